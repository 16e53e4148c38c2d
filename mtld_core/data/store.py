"""Where the frames of a source go: RAM where they fit, else a file that is mapped; from the cache where it
has them.

An HDF5 file is no slower than a copy of it would be: where its frames do not fit, they are read from it as
needed.
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

from mtld_core.config import UserError
from mtld_core.data.cuts import cuts_of_arcs
from mtld_core.files import write_json
from mtld_core.runtime import free_memory

RAM_SHARE = 0.8  # of the free memory that frames may take


def load(source, memory="auto", cache=True, workers=0, label=None):
    """(frames uint8 `[N, H, W, 3]` array or `LazyFrames`, cuts int64 array, warnings) of a source (see
    folder.py).

    The frames are decoded straight into place, so the peak is hardly above what they take. memory: "auto",
    "ram" or "disk". Raises UserError where the frames fit neither, with the figures.
    """
    if memory not in ("auto", "ram", "disk"):
        raise UserError(f"memory must be 'auto', 'ram' or 'disk', not {memory!r}")
    can_stay = cache or not source.cached
    if memory == "disk" and not can_stay:
        raise UserError("memory='disk' keeps the frames in the cache; it needs cache=true")
    key = meta = None
    if cache and source.cached:
        key = entry_key(source.digest(workers), source.fit)
        meta = find_entry(key)
    shape = tuple(meta["shape"]) if meta else source.measure(workers)
    in_ram = _fits(source.path, int(np.prod(shape)), memory, can_stay)
    if not in_ram and not source.cached:
        frames = source.lazy(shape)
        return frames, _cuts(source, frames, workers), source.warnings
    if meta:
        source.bad = {int(i): why for i, why in meta["bad"].items()}
        return load_frames(key, meta, in_ram), np.array(meta["cuts"], np.int64), source.warnings
    if in_ram:
        return _in_ram(source, shape, key, workers, label)
    return _on_disk(source, shape, key, workers, label)


def _in_ram(source, shape, key, workers, label):
    frames = np.empty(shape, np.uint8)
    frames = frames[: source.fill(frames, workers, label)]
    cuts = _cuts(source, frames, workers)
    warnings = source.warnings
    if key:
        try:
            with new_entry(key, frames.nbytes) as folder:
                np.save(folder / "frames.npy", frames)
                write_meta(folder, frames, **_meta(source, frames, cuts))
        except OSError as error:
            warnings = [
                *warnings,
                f"the cache {cache_root()} cannot be written ({error}); the next start decodes again",
            ]
    return frames, cuts, warnings


def _on_disk(source, shape, key, workers, label):
    needed = int(np.prod(shape))
    try:
        with new_entry(key, needed) as folder:
            frames = np.lib.format.open_memmap(folder / "frames.npy", "w+", np.uint8, shape)
            if hasattr(
                os, "posix_fallocate"
            ):  # a disk that fills up under a mapped file would kill the process
                with open(folder / "frames.npy", "r+b") as file:
                    os.posix_fallocate(file.fileno(), 0, os.path.getsize(file.name))
            kept = frames[: source.fill(frames, workers, label)]
            cuts = _cuts(source, kept, workers)
            frames.flush()
            meta = _meta(source, kept, cuts)
            write_meta(folder, kept, **meta)
    except OSError as error:
        raise UserError(
            f"{source.path}: its frames ({needed / 1e9:.2f} GB) have to go into the cache {cache_root()}, "
            "which cannot "
            f"be written ({error}); point the environment variable MTLD_CACHE at a disk with room"
        ) from None
    return load_frames(key, {"rows": len(kept)}, in_ram=False), cuts, source.warnings


def _meta(source, frames, cuts):
    return {"shape": frames.shape, "cuts": cuts.tolist(), "bad": source.bad}


def _cuts(source, frames, workers):
    """Pictures in no order have no shots; in a recording a sudden change is part of the game; and a file may
    say: none.
    """
    if source.kind == "images" or source.actions is not None or not source.about.get("cuts", True):
        return np.array([], np.int64)
    return cuts_of_arcs(frames, [(arc.start, arc.stop) for arc in source.arcs()], workers)


def _fits(path, needed, memory, can_stay):
    """True where `needed` bytes go into RAM. Raises UserError where they must and cannot."""
    usable = RAM_SHARE * free_memory()
    if memory != "disk" and needed > usable and (memory == "ram" or not can_stay):
        raise UserError(
            f"{path}: its frames take {needed / 1e9:.2f} GB of RAM and {usable / 1e9:.2f} GB can be used (80 "
            "% of what "
            "is free); use a smaller height and width, or memory='auto' with cache=true, which maps them "
            "from disk"
        )
    return memory != "disk" and needed <= usable


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
