"""Decoded frames kept on disk: `<cache>/datasets/<key>/frames.npy` (can be memory-mapped) and `meta.json`.

<cache> is $MTLD_CACHE, else ~/.cache/mtld. A key comes from the content of the source's files, so an entry is
never stale, only damaged (then it is made anew) or long unused (then it gives way). Only folders named like a
key are ever touched.
"""

import contextlib
import errno
import json
import os
import re
import shutil
import tempfile
import time
from hashlib import blake2b
from pathlib import Path

import numpy as np

from mtld_core.files import write_json

VERSION = 1  # part of every key: raise it when the same files would give other frames or another meta.json
DAY = 24 * 3600


def cache_root():
    return Path(os.environ.get("MTLD_CACHE") or "~/.cache/mtld").expanduser() / "datasets"


def entry_key(content, fit):
    """The key for a source's content digest and its (height, width, fit)."""
    return blake2b(json.dumps([VERSION, content, *fit]).encode(), digest_size=16).hexdigest()


def find_entry(key):
    """The meta.json of an entry as a dict, or None where it is missing or damaged. Counts as a use of the
    entry.
    """
    folder = cache_root() / key
    try:
        meta = json.loads((folder / "meta.json").read_text())
        frames = np.load(folder / "frames.npy", mmap_mode="r")
        if meta["sample"] != _sample(frames[: meta["rows"]]):
            return None
    except (OSError, ValueError, KeyError, TypeError, EOFError):
        return None
    with contextlib.suppress(OSError):  # a cache that can only be read is still of use
        os.utime(folder)
    return meta


def load_frames(key, meta, in_ram):
    """The frames of an entry as uint8 `[N, H, W, 3]`: read whole, or mapped (writes then stay in memory)."""
    path = cache_root() / key / "frames.npy"
    return np.load(path, mmap_mode=None if in_ram else "c")[: meta["rows"]]


@contextlib.contextmanager
def new_entry(key, needed):
    """Yield a temporary folder that becomes the entry `key` if all goes well. Raises OSError where `needed`
    bytes miss.
    """
    root = cache_root()
    root.mkdir(parents=True, exist_ok=True)
    _make_room(root, needed)
    folder = Path(tempfile.mkdtemp(prefix=f".{key}.", suffix=".tmp", dir=root))
    try:
        yield folder
        shutil.rmtree(root / key, ignore_errors=True)
        os.replace(folder, root / key)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def write_meta(folder, frames, **values):
    """Write meta.json last: `values`, and what `find_entry` judges the entry by."""
    write_json(folder / "meta.json", {"rows": len(frames), "sample": _sample(frames), **values})


def _sample(frames):
    """Hex digest of the shape and of up to 16 frames spread over the whole, the last one included."""
    digest = blake2b(str(frames.shape).encode(), digest_size=16)
    for row in np.unique(np.linspace(0, len(frames) - 1, 16).astype(int)):
        digest.update(np.ascontiguousarray(frames[row]))
    return digest.hexdigest()


def _make_room(root, needed):
    """Delete entries, the longest unused first, while the cache would exceed half of itself and the free disk
    together.
    """
    for left in root.glob(".*.tmp"):  # of a process that was killed
        if time.time() - left.stat().st_mtime > DAY:
            shutil.rmtree(left, ignore_errors=True)
    entries = [entry for entry in root.iterdir() if re.fullmatch("[0-9a-f]{32}", entry.name)]
    sizes = {entry: sum(file.stat().st_size for file in entry.iterdir()) for entry in entries}
    used = sum(sizes.values())
    limit = (shutil.disk_usage(root).free + used) / 2
    for entry in sorted(entries, key=lambda entry: entry.stat().st_mtime):
        if used + needed > limit:
            used -= sizes[entry]
            shutil.rmtree(entry, ignore_errors=True)
    if needed > shutil.disk_usage(root).free:
        raise OSError(errno.ENOSPC, f"no room for {needed / 1e9:.1f} GB in the cache", str(root))
