"""What a generation starts from: a picture, a clip, or a frame of the run's own dataset, at the run's frame size."""

import typing
from pathlib import Path

import torch

from mtld_core.data import open_dataset, split_windows
from mtld_core.evaluate import judged_horizon
from mtld_core.frames import fit_frame
from mtld_core.media import read_image
from mtld_core.runtime import UserError

DATASET_SUFFIXES = (".jsonl", ".h5", ".hdf5")  # files that hold many frames; any other file is taken for a picture


class Source(typing.NamedTuple):
    text: str  # as `read_source` takes it
    name: str  # as part of a file name
    context: torch.Tensor  # uint8 [k, H, W, 3]
    truth: torch.Tensor  # uint8 [n, H, W, 3]: the frames that really follow; n = 0 for a single picture
    actions: torch.Tensor | None = None  # [n] or [n, A]: the recorded ones that led to them


def read_source(system, source):
    """`Source` for an opened run.

    source: an image file (it stands for all k context frames), a clip's folder or a recording (the first k frames, of the
    first episode that has as many), "dataset:<arc>/<frame>" (the last context frame, by the number in its file name, from
    the run's own dataset), or "" for the first held-out window. The truth ends with the arc, or before it with the shot.
    Raises UserError.
    """
    k, size = system.needs().context, (system.config.height, system.config.width)
    if not source or source.startswith("dataset:"):
        return from_dataset(system, own_dataset(system), source)
    path = Path(source).expanduser()
    if path.is_dir() or path.suffix.lower() in DATASET_SUFFIXES:
        dataset = _open(system, path, cache=False, progress=False)
        if len(dataset.arcs) > 1 and dataset.kind not in ("recording", "hdf5"):  # whose episodes have no path of their own
            raise UserError(f"{path} holds {len(dataset.arcs)} arcs; name one, such as {path / dataset.arcs[0].name}")
        arc = next((arc for arc in dataset.arcs if len(arc) >= k), None)
        if arc is None:
            raise UserError(f"{path} has {max(map(len, dataset.arcs))} frames; this run starts from {k}")
        return _from_row(dataset, arc.start + k - 1, k)._replace(text=str(source), name=path.stem)
    picture = read_image(path)
    if picture.shape[:2] != size:
        height, width = picture.shape[:2]
        print(f"{path.name} is {width}x{height}: its centre is cut out and scaled to {size[1]}x{size[0]}")
        picture = fit_frame(picture, *size)
    if k > 1:
        print(f"this run starts from {k} frames: the picture stands for all of them, so nothing in it moves yet")
    context = torch.from_numpy(picture).expand(k, -1, -1, -1)
    return Source(str(source), path.stem, context, torch.empty(0, *size, 3, dtype=torch.uint8))


def own_dataset(system, progress=True):
    """The dataset that an opened run learned from, in its frame size. Raises UserError where it is gone."""
    path = system.run.dataset_path
    if not Path(path).exists():
        raise UserError(f"the run's dataset {path} is not there (any more): name an image file as source")
    return _open(system, path, progress=progress)


def _open(system, path, **options):
    """A dataset in a run's frame size, with the controls paired as it learned them."""
    lead_to = system.run.training.get("controls_lead_to", "next")  # not there in runs of before recordings were read
    return open_dataset(path, system.config.height, system.config.width, controls_lead_to=lead_to, **options)


def from_dataset(system, dataset, source=""):
    """`Source` from an opened dataset: "dataset:<arc>/<frame>" or "", as `read_source` takes them."""
    k = system.needs().context
    row = _named_row(dataset, source) if source else int(windows_of(system, dataset)[1][0]) + k - 1
    return _from_row(dataset, row, k)


def _named_row(dataset, source):
    arc, _, number = source.removeprefix("dataset:").rpartition("/")
    if not arc or not number.isdecimal():
        raise UserError(f'source={source!r} is not "dataset:<arc>/<frame number>", such as "dataset:arc_1/120"')
    return dataset.row(arc, int(number))


def windows_of(system, dataset):
    """(those that the run learned from, those that it was judged on): int64 tensors of the rows where they start."""
    split = {name: system.run.training[name] for name in ("holdout", "cross_cuts", "restitution")}
    split["restitution"] |= bool(dataset.about.get("held_out"))  # a shared run's recording is so as a whole
    needs = system.needs()
    judged = needs.context + judged_horizon(system, system.run.training["eval_horizon"])
    return split_windows(dataset, needs.window, judged=judged, **split)


def _from_row(dataset, row, k):
    """The `Source` whose last context frame is `row` of the dataset."""
    arc = next(arc for arc in dataset.arcs if arc.start <= row < arc.stop)
    if row - k + 1 < arc.start:
        first = f"frame {arc.numbers[k - 1]}" if len(arc) >= k else f"none, for it has {len(arc)}"
        raise UserError(f"this run starts from {k} frames; the first frame of arc {arc.name!r} with that many is {first}")
    end = min([arc.stop, *(int(cut) for cut in dataset.cuts if cut > row)])
    number, frames = int(arc.numbers[row - arc.start]), dataset.frames
    name = f"{arc.name}_{number}".replace("/", "_")
    actions = None if dataset.actions is None else dataset.actions[row : end - 1]
    return Source(f"dataset:{arc.name}/{number}", name, frames[row - k + 1 : row + 1].cpu(), frames[row + 1 : end], actions)
