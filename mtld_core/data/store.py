"""Where the frames of a source go: RAM where they fit, else a file that is mapped; from the cache where it
has them.

An HDF5 file is no slower than a copy of it would be: where its frames do not fit, they are read from it as
needed.
"""

import os

import numpy as np

from mtld_core.config import UserError
from mtld_core.data.cache import cache_root, entry_key, find_entry, load_frames, new_entry, write_meta
from mtld_core.data.cuts import cuts_of_arcs
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
