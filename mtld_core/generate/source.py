"""What a generation starts from: a picture, a clip, a frame of the run's own dataset, or noise."""

import os
import typing
from pathlib import Path

import torch

from mtld_core.config import UserError, check, find, looked_in
from mtld_core.data.folder import VIDEO_SUFFIXES
from mtld_core.data.truth import open_truth, true_frames
from mtld_core.frames import cut_away, fit_frame
from mtld_core.judge.windows import windows_of
from mtld_core.media import LONGEST, fetch, last_frames, read_image
from mtld_core.systems.base import Reconstructs, Samples, Translates
from mtld_core.systems.opening import open_as_learned, own_dataset

# files that hold many frames; any other file is taken for a picture or, by its name, for a video
DATASET_SUFFIXES = (".jsonl", ".h5", ".hdf5")
NOISE = "noise"


class Source(typing.NamedTuple):
    """Frames to start from and what is known to follow, in the run's frame size."""

    text: str  # as `read_source` takes it
    name: str  # as part of a file name
    context: torch.Tensor | None  # uint8 [k, H, W, 3], for a translator the whole clip; None: noise
    truth: torch.Tensor  # uint8 [n, H, W, 3]: what should come out, as far as it is known
    actions: torch.Tensor | None = None  # [n] or [n, A]: the recorded ones that led to them
    shots: tuple = ()  # where in a translator's clip a new shot begins


def read_source(system, source, direction="x_to_y", say=print):
    """Read what an opened run is to start from -> `Source`. Raises UserError.

    source: an image file (it stands for all k context frames), a video (its last k frames), the web address
    of either, a clip's folder or a recording (the first k frames, of the first episode that has as many),
    "dataset:<arc>/<frame>" (the last context frame, by the number in its file name, from the run's own
    dataset), or "" for the first held-out window. The truth ends with the arc, or before it with the shot.
    "noise" is for systems that draw from it, and their "". say: is told, in words, of what had to be changed.

    For a translator all of them name a clip of the domain that `direction` ("x_to_y" or "y_to_x") starts
    from: an image one of a single frame, "dataset:<arc>/<frame>" and "" one that goes on to the end of the
    arc. Its truth is the clip in the other domain, where <root>/truth/ has it.
    """
    source = str(source or "")
    if not source and isinstance(system, Samples):
        source = NOISE
    if source == NOISE:
        ways = 'an image, a clip\'s folder, a recording or "dataset:<arc>/<frame>"'
        way = f"{system.name} starts from {ways}"
        check(isinstance(system, Samples), f"source={source!r} is for systems that draw from noise; {way}")
        return Source(NOISE, NOISE, None, _no_frames(system))
    if not source or source.startswith("dataset:"):
        return from_dataset(system, own_dataset(system), source, direction)
    path = path_of(source)
    if path.is_dir() or path.suffix.lower() in DATASET_SUFFIXES:
        given = _from_clip(system, path, direction)
    else:
        given = _from_pictures(system, path, say)
    return given._replace(text=source, name=path.stem[:LONGEST])


def _no_frames(system):
    return torch.empty(0, system.config.height, system.config.width, 3, dtype=torch.uint8)


def path_of(source):
    """The file or folder of a source; what a web address gives is fetched. Raises UserError."""
    check(source != "sample", 'source="sample" is no source; empty, it is a frame that the run is judged on')
    is_address = source.startswith(("http://", "https://"))
    path = fetch(source) if is_address else Path(find(source))
    if not os.path.exists(path):
        wanted = "image or video file, folder or recording"
        raise UserError(f"source={source}: no such {wanted}{looked_in(path)}")
    return path


def pictures(path, count=1, say=print):
    """A picture, or up to `count` last frames of a video: a list of uint8 `[H, W, 3]`. Raises UserError.

    A GIF is a picture, its first.
    """
    if path.suffix.lower() in VIDEO_SUFFIXES and path.suffix.lower() != ".gif":
        return last_frames(path, count, say)
    return [read_image(path)]


def _from_pictures(system, path, say):
    size = height, width = system.config.height, system.config.width
    k = context_of(system)
    frames = pictures(path, k, say)
    h, w = frames[0].shape[:2]
    if (h, w) != size:
        say(
            f"{path.name} is {w}x{h}: its centre is scaled to {width}x{height}, "
            f"{cut_away(h, w, *size):.0%} is cut away"
        )
    missing = k - len(frames)
    if missing:
        say(f"this run starts from {k} frames: one stands for {missing + 1} of them, in which nothing moves")
    frames = [frames[0]] * missing + frames
    context = torch.stack([torch.from_numpy(fit_frame(frame, *size)) for frame in frames])
    return Source("", "", context, _no_frames(system))


def _from_clip(system, path, direction):
    dataset = domain_of(open_as_learned(system, path, cache=False, progress=False), direction)
    episodes_have_paths = dataset.kind not in ("recording", "hdf5")
    if len(dataset.arcs) > 1 and episodes_have_paths:
        raise UserError(
            f"{path} holds {len(dataset.arcs)} arcs; name one, such as "
            f"{Path(dataset.path) / dataset.arcs[0].name}"
        )
    k = context_of(system)
    for arc in dataset.arcs:
        if len(arc) >= k:
            return _from_row(system, dataset, arc.start + k - 1, direction)
    raise UserError(f"{path} has {max(map(len, dataset.arcs))} frames; this run starts from {k}")


def context_of(system):
    """How many frames a source has to have, up to the one that is named."""
    return 1 if isinstance(system, Translates) else system.needs().context


def domain_of(dataset, direction):
    """The domain that `direction` starts from; the only one of a dataset that has no second."""
    return dataset.domains[-1] if direction == "y_to_x" else dataset.domains[0]


def starts_in(system, dataset):
    """{arc: numbers of its frames that a source may name}, without arcs that are too short."""
    first = context_of(system) - 1
    return {arc.name: arc.numbers[first:].tolist() for arc in dataset.arcs if len(arc) > first}


def from_dataset(system, dataset, source="", direction="x_to_y"):
    """`Source` from an opened dataset: "dataset:<arc>/<frame>", or "" for the first held-out window."""
    dataset = domain_of(dataset, direction)
    if source:
        arc, _, number = source.removeprefix("dataset:").rpartition("/")
        wanted = '"dataset:<arc>/<frame number>", such as "dataset:arc_1/120"'
        check(arc and number.isdecimal(), f"source={source!r} is not {wanted}")
        row = dataset.row(arc, int(number))
    else:
        _, judged = windows_of(system, dataset)
        row = int(judged[0]) + context_of(system) - 1
    return _from_row(system, dataset, row, direction)


def _from_row(system, dataset, row, direction):
    """The `Source` whose last context frame (a translator: first frame) is `row` of the dataset."""
    k, frames = context_of(system), dataset.frames
    arc = next(arc for arc in dataset.arcs if arc.start <= row < arc.stop)
    if row - k + 1 < arc.start:
        first = f"frame {arc.numbers[k - 1]}" if len(arc) >= k else f"none, for it has {len(arc)}"
        raise UserError(
            f"this run starts from {k} frames; the first frame of arc {arc.name!r} with that many is {first}"
        )
    number = int(arc.numbers[row - arc.start])
    text = f"dataset:{arc.name}/{number}"
    name = f"{arc.name[-LONGEST:]}_{number}".replace("/", "_")
    cuts = [cut for cut in dataset.cuts.tolist() if row < cut < arc.stop]
    if isinstance(system, Translates):
        truth = _truth(dataset, arc, row, direction)
        shots = tuple(cut - row for cut in cuts)
        return Source(text, name, frames[row : arc.stop], truth, shots=shots)
    end = cuts[0] if cuts else arc.stop
    if isinstance(system, Reconstructs):  # it was not taught what follows
        end = row + 1
    actions = None if dataset.actions is None else dataset.actions[row : end - 1]
    context = frames[row - k + 1 : row + 1].cpu()
    return Source(text, name, context, frames[row + 1 : end], actions)


def _truth(dataset, arc, row, direction):
    """uint8 `[n, H, W, 3]`: an arc from `row` on in the other domain; n = 0 where that is not known."""
    path, name = Path(dataset.path), direction[0].upper()  # the domain's folder, or one clip's inside it
    root = next((folder.parent for folder in (path, path.parent) if folder.name == name), None)
    truth = open_truth(root, direction, dataset.size, arc.name) if root else None
    return dataset.frames[:0] if truth is None else true_frames(truth, dataset, row, arc.stop)
