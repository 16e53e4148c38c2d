"""`open_dataset`: looks at what a path holds and opens it."""

import os
from pathlib import Path

import numpy as np
import torch

from mtld_core.config import check, find, looked_in
from mtld_core.data.dataset import Dataset, DomainPair
from mtld_core.data.folder import LAYOUT, VIDEO_SUFFIXES, Folder, has_images, natural
from mtld_core.data.hdf5 import SUFFIXES, Hdf5
from mtld_core.data.recording import Recording, find_log
from mtld_core.data.store import load
from mtld_core.files import can_be_read


def open_dataset(
    path,
    height=0,
    width=0,
    fit="crop",
    workers=0,
    cache=True,
    memory="auto",
    progress=True,
    controls_lead_to="next",
):
    """Open what `path` holds: a `Dataset`, or a `DomainPair` where that is the folders X and Y.

    path: one of
        arcs `<path>/<arc>/frame_0000.png`, one arc's folder, or torchvision's ImageFolder layout;
        an HDF5 file, or a folder that holds one, or holds several and no images;
        a recording: the folder with its log, or the log itself, .jsonl;
        two domains `<path>/X/<arc>/`, `<path>/Y/<arc>/`.
    height, width: size of the frames in pixels; 0 keeps a side, or lets it follow the other one.
    fit: "crop", "pad" or "stretch", see `fit_frame`.
    workers: threads that decode, 0 for one a core. progress: show a bar.
    cache: keep decoded frames under $MTLD_CACHE or ~/.cache/mtld, so that the next start decodes nothing.
    memory: "ram", "disk" (mapped from the cache, or read from the HDF5 file as they are needed), or "auto":
        RAM where the frames take at most 80 % of what is free.
    controls_lead_to: the frame to which the controls in a line of a recording's log lead: the "next" one, or
        "this" one.

    Raises UserError, which names the path and the way out, for whatever cannot be opened. What was left out
    or looks odd is told in the result's `warnings`.
    """
    path = Path(find(path))
    looked, path = looked_in(path), path.absolute()
    check(fit in ("crop", "pad", "stretch"), f"fit must be 'crop', 'pad' or 'stretch', not {fit!r}")
    check(min(height, width) >= 0, f"height and width must be 0 (as is) or more, not {height} and {width}")
    known = ("next", "this")
    check(controls_lead_to in known, f"controls_lead_to must be 'next' or 'this', not {controls_lead_to!r}")
    check(
        os.path.exists(path),
        f"{path} does not exist{looked}; wanted is {LAYOUT}, an HDF5 file, a recording, or "
        "<folder>/X and <folder>/Y",
    )

    def open_one(path):
        source = _source(path, (height, width, fit), controls_lead_to)
        label = f"reading {path.name}" if progress else None
        frames, cuts, warnings = load(source, memory, cache, workers, label)
        if isinstance(frames, np.ndarray):
            frames = torch.from_numpy(frames)
        arcs, actions = source.arcs(), source.actions
        return Dataset(source.path, source.kind, frames, arcs, cuts, actions, warnings, source.about)

    if not ((path / "X").is_dir() and (path / "Y").is_dir()):
        return open_one(path)
    x, y = open_one(path / "X"), open_one(path / "Y")
    check(
        x.size == y.size,
        f"{path}: X has frames of {_pixels(x)} and Y of {_pixels(y)}; set height and width to fit both",
    )
    return DomainPair(x, y, str(path))


def _source(path, size, controls_lead_to):
    """Choose the source (see folder.py) that reads `path`. size: (height, width, fit)."""
    log = find_log(path)
    if log:
        return Recording(path, log, size, controls_lead_to)
    if not path.is_dir():
        is_video = path.suffix.lower() in VIDEO_SUFFIXES
        check(not is_video, f"{path} is a video, not frames: run notebooks/01_extract_frames on it first")
        return Hdf5([path], size)
    files = [file for file in path.glob("[!.]*") if file.suffix.lower() in SUFFIXES and can_be_read(file)]
    if len(files) == 1 or (files and not has_images(path)):
        return Hdf5(sorted(files, key=lambda file: natural(file.name)), size)
    return Folder(path, size)


def _pixels(dataset):
    return f"{dataset.size[1]}x{dataset.size[0]} pixels"
