"""Where the frames of a source go: into RAM, or into a file that is mapped; from the cache where it has them.

An HDF5 file is as fast as a copy of it would be: where its frames do not fit, they are read from it as
needed.
"""

import contextlib
import errno
import json
import math
import os
import re
import shutil
import time
from hashlib import blake2b
from pathlib import Path

import numpy as np

from mtld_core.config import UserError, check
from mtld_core.data.cuts import cuts_of_arcs
from mtld_core.files import atomic_folder, read_json, write_json
from mtld_core.runtime import free_memory

RAM_SHARE = 0.8  # of the free memory that frames may take
VERSION = 1  # part of every key: raise it when the same files would give other frames or another meta.json
DAY = 24 * 3600  # seconds


def load(source, memory, cache, workers, label):
    """Load a source: (frames uint8 `[N, H, W, 3]`, an array or `LazyFrames`; cuts, int64; list of warnings).

    source: see folder.py. memory: "auto", "ram" or "disk". cache: whether decoded frames are kept on disk.
    workers: threads, 0 for one a core. label: of a progress bar, None for no bar. The frames are decoded
    straight into place, so the peak is hardly above what they take. Raises UserError, with the figures, where
    they fit nowhere.
    """
    check(memory in ("auto", "ram", "disk"), f"memory must be 'auto', 'ram' or 'disk', not {memory!r}")
    can_stay = cache or not source.cached
    check(can_stay or memory != "disk", "memory='disk' keeps the frames in the cache; it needs cache=true")
    key = meta = None
    if cache and source.cached:
        content = [VERSION, source.digest(workers), *source.size]
        key = blake2b(json.dumps(content).encode(), digest_size=16).hexdigest()
        meta = _find(key)
    shape = meta["shape"] if meta else source.measure()
    in_ram = _fits(source.path, math.prod(shape), memory, can_stay)
    if meta:
        source.bad = {int(i): why for i, why in meta["bad"].items()}
        frames = _open(key, meta["rows"], in_ram)
        return frames, np.array(meta["cuts"], np.int64), source.warnings
    if in_ram:
        return _in_ram(source, shape, key, workers, label)
    if source.cached:
        return _on_disk(source, shape, key, workers, label)
    frames = source.lazy(shape)
    return frames, _cuts(source, frames, workers), source.warnings


def _in_ram(source, shape, key, workers, label):
    """Decode into RAM, and copy that into the cache where there is a `key`. Returns as `load`."""
    frames, cuts, meta = _decoded(source, np.empty(shape, np.uint8), workers, label)
    warnings = source.warnings
    if key:
        try:
            with _new_entry(key, frames.nbytes) as folder:
                np.save(folder / "frames.npy", frames)
                write_json(folder / "meta.json", meta)
        except OSError as error:
            failed = f"the cache {cache_root()} cannot be written ({error}); the next start decodes again"
            warnings = [*warnings, failed]
    return frames, cuts, warnings


def _on_disk(source, shape, key, workers, label):
    """Decode into a file in the cache, and map it. Returns as `load`."""
    needed = math.prod(shape)
    try:
        with _new_entry(key, needed) as folder:
            path = folder / "frames.npy"
            frames = np.lib.format.open_memmap(path, "w+", np.uint8, shape)
            if hasattr(os, "posix_fallocate"):  # a disk that fills up under a mapped file kills the process
                with open(path, "r+b") as file:
                    os.posix_fallocate(file.fileno(), 0, os.path.getsize(path))
            _, cuts, meta = _decoded(source, frames, workers, label)
            frames.flush()
            write_json(folder / "meta.json", meta)
    except OSError as error:
        raise UserError(
            f"{source.path}: its frames ({needed / 1e9:.2f} GB) have to go into the cache {cache_root()}, "
            f"which cannot be written ({error}); point the environment variable MTLD_CACHE at a disk with "
            "room"
        ) from None
    return _open(key, meta["rows"], in_ram=False), cuts, source.warnings


def _decoded(source, store, workers, label):
    """Fill `store`. Returns (its rows that hold frames, their cuts, what meta.json says of them)."""
    rows = source.fill(store, workers, label)
    frames = store[:rows]
    cuts = _cuts(source, frames, workers)
    meta = {"rows": rows, "sample": _sample(frames), "shape": frames.shape}
    return frames, cuts, meta | {"cuts": cuts.tolist(), "bad": source.bad}


def _cuts(source, frames, workers):
    """The rows where shots begin, int64.

    There are none in pictures in no order, nor where a file says so. Nor in a recording, where a sudden
    change is part of the game.
    """
    if source.kind == "images" or source.actions is not None or not source.about.get("cuts", True):
        return np.array([], np.int64)
    return cuts_of_arcs(frames, [(arc.start, arc.stop) for arc in source.arcs()], workers)


def _fits(path, needed, memory, can_stay):
    """Whether `needed` bytes go into RAM. Raises UserError where they must and cannot."""
    if memory == "disk":
        return False
    usable = RAM_SHARE * free_memory()
    if needed <= usable:
        return True
    if memory == "ram" or not can_stay:
        raise UserError(
            f"{path}: its frames take {needed / 1e9:.2f} GB of RAM and {usable / 1e9:.2f} GB can be used "
            "(80 % of what is free); use a smaller height and width, or memory='auto' with cache=true, which "
            "maps them from disk"
        )
    return False


# ---- the cache: a folder for each key, with frames.npy and meta.json


def cache_root():
    """The folder with the decoded frames of all data: under $MTLD_CACHE, else under ~/.cache/mtld."""
    return Path(os.environ.get("MTLD_CACHE") or "~/.cache/mtld").expanduser() / "datasets"


def _find(key):
    """The meta.json of the entry `key`, a dict; None where the entry is missing or damaged.

    Counts as a use of the entry.
    """
    folder = cache_root() / key
    try:
        meta = read_json(folder / "meta.json")
        if meta["sample"] != _sample(_open(key, meta["rows"], in_ram=False)):
            return None
    except (OSError, ValueError, KeyError, TypeError, EOFError):
        return None
    with contextlib.suppress(OSError):  # a cache that can only be read is still of use
        os.utime(folder)
    return meta


def _open(key, rows, in_ram):
    """The frames of an entry, uint8 `[rows, H, W, 3]`: read whole, or mapped (writes then stay in memory)."""
    return np.load(cache_root() / key / "frames.npy", mmap_mode=None if in_ram else "c")[:rows]


def _sample(frames):
    """Hex digest of the shape and of up to 16 frames spread over the whole, the last one included."""
    digest = blake2b(str(frames.shape).encode(), digest_size=16)
    for row in np.unique(np.linspace(0, len(frames) - 1, 16).astype(int)):
        digest.update(np.ascontiguousarray(frames[row]))
    return digest.hexdigest()


def _new_entry(key, needed):
    """A context that gives a temporary folder, which becomes the entry `key` if all goes well.

    Raises OSError where there is no room for `needed` bytes.
    """
    root = cache_root()
    root.mkdir(parents=True, exist_ok=True)
    _make_room(root, needed)
    return atomic_folder(root / key)


def _make_room(root, needed):
    """Delete entries, the longest unused first, until the cache with `needed` bytes more takes its half.

    That is half of what the cache and the free disk have together. Raises OSError where there is no room.
    """
    for left in root.glob(".*.*.*"):  # of a process that was killed
        if time.time() - left.stat().st_mtime > DAY:
            shutil.rmtree(left, ignore_errors=True)
    entries = [entry for entry in root.iterdir() if re.fullmatch("[0-9a-f]{32}", entry.name)]
    sizes = {entry: sum(file.stat().st_size for file in entry.iterdir()) for entry in entries}
    used = sum(sizes.values())
    room = shutil.disk_usage(root).free + used
    if needed > room:  # then nothing has to go, either
        raise OSError(errno.ENOSPC, f"no room for {needed / 1e9:.1f} GB in the cache", str(root))
    for entry in sorted(entries, key=lambda entry: entry.stat().st_mtime):
        if used + needed > room / 2:
            used -= sizes[entry]
            shutil.rmtree(entry, ignore_errors=True)
