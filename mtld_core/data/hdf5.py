"""HDF5 files as a source: `frames` uint8 `[N, H, W, 3]`, perhaps `actions` `[N(, A)]` and `episode` `[N]`.

An attribute `recording` of the file, JSON text, is what data_prep/record_game.py says about it;
{"unordered": true} means that these are single pictures, in no order, and {"cuts": false} that each episode
is one shot.
"""

import math
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from mtld_core.config import UserError, check
from mtld_core.data.dataset import Arc
from mtld_core.data.hdf5_file import LazyFrames, find_dataset, missing_dataset, open_file
from mtld_core.data.recording import read_about
from mtld_core.frames import fitted_size
from mtld_core.runtime import for_each

SUFFIXES = (".h5", ".hdf5")
NUMBERS = "iubf"  # kinds of dtype
WANTED = "wanted is uint8 [N, H, W, 3]"
# in a file without `episode`, each of these may say that a frame is the last of its episode
FLAGS = (
    "done",
    "dones",
    "terminal",
    "terminals",
    "terminated",
    "terminations",
    "truncated",
    "truncations",
    "timeouts",
    "is_last",
    "episode_ends",
)


class Hdf5:
    """The frames of HDF5 files; each episode is an arc whose frames count from 0.

    files: paths of one, or of several in a folder. size: (height, width, fit), see `fit_frame`. Arcs are
    "episode_<n>"; of several files "<file>", or "<file>/episode_<n>" where a file has several. Rows of one
    episode may lie apart in a file (several games recorded at once): they are put in order by episode.
    actions: int64 `[N]` for whole numbers, else float32 `[N, A]`. Raises UserError naming the file, the
    dataset, its dtype and shape.
    """

    cached = False  # reading is as fast as reading a copy of it would be

    def __init__(self, files, size):
        self.path = str(files[0] if len(files) == 1 else files[0].parent)
        self.size = size
        self.bad = {}
        self.warnings = []
        self._parts = [self._open(file, len(files)) for file in files]
        self._check_alike()
        of_file = np.repeat(np.arange(len(files)), [len(part.episode) for part in self._parts])
        episodes = np.concatenate([part.episode for part in self._parts])
        # row of the store -> row of the files, which count on from one to the next
        self.order = np.lexsort((episodes, of_file))
        self.about = _said_by_all([part.about for part in self._parts])
        self.kind = "images" if self.about.get("unordered") else "hdf5"
        self.actions = self._joined_actions()

    def measure(self):
        """(N, H, W, 3) of the frames to come."""
        return len(self.order), *self._size(self._parts[0]), 3

    def fill(self, store, workers, label):
        """Copy the frames into `store`, a uint8 array of the shape measured. Returns how many there are."""
        place = np.argsort(self.order)  # row of the files -> row of the store
        frames = self._frames(np.arange(len(place)), store.shape)

        def copy(i):
            rows = slice(i * frames.piece, (i + 1) * frames.piece)
            store[place[rows]] = frames[rows]

        pieces = math.ceil(len(place) / frames.piece)
        for_each(copy, pieces, 1, label)  # HDF5 reads in one thread only
        return len(place)

    def lazy(self, shape):
        """The frames as `LazyFrames`, which reads them later. shape: as measured."""
        return self._frames(self.order, shape)

    def arcs(self):
        """List an `Arc` for each episode."""
        arcs = []
        row = 0
        for part in self._parts:
            numbers, counts = np.unique(part.episode, return_counts=True)
            for number, count in zip(numbers.tolist(), counts.tolist(), strict=True):
                name = f"episode_{number}"
                if len(self._parts) > 1:
                    name = f"{self._label(part)}/{name}" if len(numbers) > 1 else self._label(part)
                arcs.append(Arc(name, row, row + count, np.arange(count)))
                row += count
        return arcs

    def _label(self, part):
        """A file's name, without its suffix where no other file has the same."""
        alike = [one for one in self._parts if one.path.stem == part.path.stem]
        return part.path.stem if len(alike) == 1 else part.path.name

    def _size(self, part):
        height, width, _ = self.size
        return fitted_size(*part.shape[1:3], height, width)

    def _frames(self, order, shape):
        parts = [(str(part.path), part.shape[0]) for part in self._parts]
        return LazyFrames(parts, order, shape, self.size[2])

    def _open(self, path, count):
        """The `Part` that a file is, one of `count`."""
        try:
            with open_file(path) as file:
                return _read_part(file, path, self.warnings)
        except UserError as error:
            if count == 1:
                raise
            raise UserError(
                f"{error}; the {count} HDF5 files in {self.path} are read together: name the one that you "
                "want, or move it away"
            ) from None
        except OSError as error:
            raise UserError(f"{path} is a damaged HDF5 file ({error}); record or download it again") from None

    def _check_alike(self):
        """Raise UserError where files have frames of different sizes, or actions of different widths."""
        first = self._parts[0]
        for part in self._parts:
            check(
                self._size(part) == self._size(first),
                f"{self.path}: {first.tell_size()} and {part.tell_size()}; set height and width to fit both, "
                "or name one file",
            )
            check(
                part.width() == first.width(),
                f"{self.path}: {first.tell_actions()} and {part.tell_actions()}; give both the same actions, "
                "or name one file",
            )

    def _joined_actions(self):
        """int64 `[N]` where all are whole numbers from 0 on, else float32 `[N, A]`; None where none is."""
        if self._parts[0].actions is None:
            return None
        actions = np.concatenate([part.actions for part in self._parts])[self.order]
        if actions.ndim == 2 or (actions % 1).any():
            return torch.from_numpy(actions.astype(np.float32).reshape(len(actions), -1))
        for part in self._parts:
            row = (part.actions < 0).argmax()  # the first that is negative, if any is
            check(
                part.actions[row] >= 0,
                f"{part.path}: dataset 'actions' has {part.actions[row]} in row {row}; discrete actions "
                "count from 0",
            )
        return torch.from_numpy(actions.astype(np.int64))


def _said_by_all(abouts):
    """What all of some dicts say alike."""
    first, *others = abouts
    return {key: first[key] for key in first if all(other.get(key) == first[key] for other in others)}


# ---- reading one file


class Part(NamedTuple):
    """What one file holds."""

    path: Path
    shape: tuple  # of the dataset with the frames
    episode: np.ndarray  # int64 [N]
    actions: np.ndarray | None  # [N] or [N, A]
    about: dict

    def width(self):
        """() of discrete actions, (A,) of others, None of none."""
        return None if self.actions is None else self.actions.shape[1:]

    def tell_size(self):
        return f"{self.path.name} has frames of {self.shape[2]}x{self.shape[1]} pixels"

    def tell_actions(self):
        if self.actions is None:
            return f"{self.path.name} has no 'actions'"
        return f"{self.path.name} has 'actions' {list(self.actions.shape)}"


def _read_part(file, path, warnings):
    """The `Part` that an open file is. Raises UserError naming the dataset, its dtype and shape."""
    frames = _checked_frames(file)
    count = len(frames)
    episode = _column(file, "episode", count, ["[N]"])
    episode = _counted(file, count) if episode is None else episode.astype(np.int64)
    actions = _column(file, "actions", count, ["[N]", "[N, A]"])
    about = read_about(file.attrs.get("recording", "{}"), f"{path}: attribute 'recording'", warnings)
    return Part(path, frames.shape, episode, actions, about)


def _checked_frames(file):
    """The dataset `frames`, uint8 `[N, H, W, 3]` with N > 0. Raises UserError where it is anything else."""
    found = find_dataset(file, "frames")
    if found is None:
        raise UserError(f"{missing_dataset(file, 'frames')}; {WANTED}")
    what = f"{_told(file, 'frames', found)}; {WANTED}"
    shape, axes = found.shape, found.ndim
    no_rgb = axes == 4 and shape[3] != 3
    if no_rgb and shape[1] == 3:
        raise UserError(f"{what}: move the channels last, frames.transpose(0, 2, 3, 1)")
    if axes == 3 or (no_rgb and 1 in (shape[1], shape[3])):
        raise UserError(
            f"{what}: these are grey, np.repeat(frames.reshape(N, H, W, 1), 3, axis=3) makes them RGB"
        )
    if axes != 4 or no_rgb or 0 in shape:
        raise UserError(what)
    check(found.dtype == np.uint8, f"{what}: scale the values to 0..255 and store them as uint8")
    return found


def _column(file, name, count, shapes):
    """Read the dataset `name`: an array of numbers with one row a frame, None where there is no such dataset.

    shapes: in words, those that it may have, by the number of their axes. Raises UserError for another one.
    """
    found = find_dataset(file, name)
    if found is None:
        return None
    if found.shape[:1] != (count,) or found.ndim > len(shapes) or found.dtype.kind not in NUMBERS:
        raise UserError(
            f"{_told(file, name, found)}; wanted are numbers {' or '.join(shapes)}, one row a frame, and "
            f"'frames' has N = {count}"
        )
    return _finite(file, name, found)


def _told(file, name, found):
    return f"{file.filename}: dataset {name!r} is {found.dtype} {list(found.shape)}"


def _finite(file, name, found):
    """Read the dataset `found`. Raises UserError where it holds NaN or infinity."""
    values = found[()]
    check(
        np.isfinite(values).all(),
        f"{file.filename}: dataset {name!r} holds values that are not finite (NaN or infinity)",
    )
    return values


# ---- episodes that are told by their ends


def _counted(file, count):
    """int64 `[N]`: the episode of each row, from 0; the next begins after a row that ends one, by `FLAGS`."""
    last = np.zeros(count, bool)
    for name in FLAGS:
        found = find_dataset(file, name)
        if found is not None:
            last |= _last_rows(file, name, found, count)
    return np.cumsum(last) - last


def _last_rows(file, name, found, count):
    """bool `[N]`: the rows that end an episode, from a flag a row, or from their ends.

    The flag of the last row may be missing. Ends, as `episode_ends` has them, are the numbers of rows up to
    the end of each episode, so the last one is N.
    """
    what = f"{_told(file, name, found)}; wanted"
    flat = found.ndim == 1 or (found.ndim == 2 and found.shape[1] == 1)
    if not flat or found.dtype.kind not in NUMBERS:
        raise UserError(f"{what} is a flag a row, and 'frames' has N = {count}")
    values = _finite(file, name, found).reshape(-1)
    last = np.zeros(count, bool)
    if len(values) in (count, count - 1) and np.isin(values, (0, 1)).all():
        last[: len(values)] = values != 0
        return last
    check(name == "episode_ends", f"{what} is 0 or 1 for each row, and 'frames' has N = {count}")
    ends = values.astype(np.int64)
    rising = (ends == values).all() and (np.diff(ends, prepend=0) > 0).all()
    if not len(ends) or not rising or ends[-1] != count:
        raise UserError(
            f"{what} are rising numbers of rows of which the last is N = {count}, or a flag a row"
        )
    last[ends - 1] = True
    return last
