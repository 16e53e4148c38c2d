"""HDF5 files as a source: `frames` `[N, H, W, 3]` uint8, perhaps `actions` `[N]` or `[N, A]` and `episode`
`[N]`.

An attribute `recording` of the file, JSON text, is what record_game.py says about it; {"unordered": true}
means that these are single pictures, among which no shots are to be looked for, and {"cuts": false} that each
episode is one shot.
"""

from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from mtld_core.config import UserError
from mtld_core.data.dataset import Arc
from mtld_core.data.hdf5_file import LazyFrames, find_dataset, missing_dataset, open_file
from mtld_core.data.recording import read_about
from mtld_core.frames import fit_frame
from mtld_core.runtime import for_each

SUFFIXES = (".h5", ".hdf5")
WANTED = "wanted is uint8 [N, H, W, 3]"
# in a file without `episode`, each of these may say that a frame is the last of its episode
FLAGS = (
    *("done", "terminal", "terminated", "truncated", "is_last"),
    *("dones", "terminals", "timeouts", "terminations", "truncations", "episode_ends"),
)


class Hdf5:
    """The frames of HDF5 files; each episode is an arc whose frames count from 0.

    path: a file, or the folder of `files`. Arcs are "episode_<n>"; of several files "<file>", or
    "<file>/episode_<n>" where a file has several. Rows of one episode may lie apart in a file (several games
    recorded at once): they are put in order by episode. actions: int64 `[N]` for whole numbers, else float32
    `[N, A]`. Raises UserError naming the file, the dataset, its dtype and shape.
    """

    cached = False  # reading is as fast as reading a copy of it would be

    def __init__(self, path, height=0, width=0, fit="crop", files=()):
        self.path, self.fit, self.bad, self.warnings = str(path), (height, width, fit), {}, []
        self._parts = [self._open(file, files) for file in files or [path]]
        first = self._parts[0]
        for part in self._parts:
            if self._size(part) != self._size(first):
                sizes = [
                    f"{one.path.name} has frames of {one.shape[2]}x{one.shape[1]} pixels"
                    for one in (first, part)
                ]
                raise UserError(
                    f"{path}: {' and '.join(sizes)}; set height and width to fit both, or name one file"
                )
        starts = np.cumsum([0, *(part.shape[0] for part in self._parts)])
        orders = [np.argsort(part.episode, kind="stable") for part in self._parts]
        # row of the store -> row of the files, which count on from one to the next
        self.order = np.concatenate([start + order for start, order in zip(starts, orders, strict=False)])
        self.about = {k: v for k, v in first.about.items() if all(p.about.get(k) == v for p in self._parts)}
        self.kind = "images" if self.about.get("unordered") else "hdf5"
        self.actions = self._joined_actions()

    def measure(self, workers=0):
        """(N, H, W, 3) of the frames to come."""
        return len(self.order), *self._size(self._parts[0])

    def fill(self, store, workers=0, label=None):
        """Copy the frames into `store` (uint8, as measured). Returns how many there are."""
        place = np.argsort(self.order)  # row of the files -> row of the store
        frames = self._frames(np.arange(len(place)), store.shape)

        def copy(i):
            rows = slice(i * frames.piece, (i + 1) * frames.piece)
            store[place[rows]] = frames[rows]

        for_each(copy, -(-len(place) // frames.piece), 1, label)  # HDF5 reads in one thread only
        return len(place)

    def lazy(self, shape):
        """The frames without reading them; shape: as measured."""
        return self._frames(self.order, shape)

    def arcs(self):
        arcs, row = [], 0
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
        return fit_frame(np.zeros(part.shape[1:], np.uint8), *self.fit).shape

    def _frames(self, order, shape):
        return LazyFrames([(str(p.path), p.shape[0]) for p in self._parts], order, shape, self.fit[2])

    def _open(self, path, files):
        try:
            with open_file(path) as file:
                return _read_part(file, Path(path), self.warnings)
        except UserError as error:
            if len(files) < 2:
                raise
            how = (
                f"the {len(files)} HDF5 files in {self.path} are read together: name the one that you want, "
                "or move it away"
            )
            raise UserError(f"{error}; {how}") from None
        except OSError as error:
            raise UserError(f"{path} is a damaged HDF5 file ({error}); record or download it again") from None

    def _joined_actions(self):
        """int64 `[N]` where all are whole numbers from 0 on, else float32 `[N, A]`; None where no file has
        any.
        """
        first, *others = self._parts
        for part in others:
            shapes = [None if p.actions is None else list(p.actions.shape[1:]) for p in (first, part)]
            if shapes[0] != shapes[1]:
                have = [f"{p.path.name} {_shape_of(p.actions)}" for p in (first, part)]
                raise UserError(
                    f"{self.path}: {' and '.join(have)}; give both the same actions, or name one file"
                )
        if first.actions is None:
            return None
        actions = [_checked_actions(part.actions, part.path) for part in self._parts]
        if len({one.dtype for one in actions}) > 1:
            actions = [one.astype(np.float32).reshape(len(one), -1) for one in actions]
        return torch.from_numpy(np.concatenate(actions)[self.order])


class Part(NamedTuple):
    path: Path
    shape: tuple  # of the dataset with the frames
    episode: np.ndarray  # int64 [N]
    actions: np.ndarray | None  # [N] or [N, A]
    about: dict


def _read_part(file, path, warnings):
    """The `Part` that an open file is. Raises UserError naming the dataset, its dtype and shape."""
    frames = _checked_frames(file)
    count = len(frames)
    episode = _column(file, "episode", count, (1,))
    episode = _counted(file, count) if episode is None else episode.astype(np.int64)
    about = read_about(file.attrs.get("recording", "{}"), f"{path}: attribute 'recording'", warnings)
    return Part(path, frames.shape, episode, _column(file, "actions", count, (1, 2)), about)


def _shape_of(actions):
    return "has no 'actions'" if actions is None else f"has 'actions' {list(actions.shape)}"


def _checked_actions(actions, path):
    """int64 `[N]` where they are whole numbers from 0 on, else float32 `[N, A]`."""
    if actions.ndim == 2 or (actions.dtype.kind == "f" and (actions % 1).any()):
        return actions.astype(np.float32).reshape(len(actions), -1)
    if (actions < 0).any():
        row = int(np.argmax(actions < 0))
        raise UserError(
            f"{path}: dataset 'actions' has {actions[row]} in row {row}; discrete actions count from 0"
        )
    return actions.astype(np.int64)


def _checked_frames(file):
    """The dataset `frames`, known to be uint8 `[N, H, W, 3]` with N > 0."""
    found = find_dataset(file, "frames")
    if found is None:
        raise UserError(f"{missing_dataset(file, 'frames')}; {WANTED}")
    what = f"{file.filename}: dataset 'frames' is {found.dtype} {list(found.shape)}; {WANTED}"
    if found.ndim == 4 and found.shape[1] == 3 != found.shape[3]:
        raise UserError(f"{what}: move the channels last, frames.transpose(0, 2, 3, 1)")
    if found.ndim == 3 or (found.ndim == 4 and 1 in (found.shape[1], found.shape[3]) and found.shape[3] != 3):
        raise UserError(
            f"{what}: these are grey, np.repeat(frames.reshape(N, H, W, 1), 3, axis=3) makes them RGB"
        )
    if found.ndim != 4 or found.shape[3] != 3 or 0 in found.shape:
        raise UserError(what)
    if found.dtype != np.uint8:
        raise UserError(f"{what}: scale the values to 0..255 and store them as uint8")
    return found


def _column(file, name, count, dims):
    """The dataset `name` as an array with one row a frame, None where there is none."""
    found = find_dataset(file, name)
    if found is None:
        return None
    shapes = " or ".join(["[N]", "[N, A]"][dim - 1] for dim in dims)
    if found.ndim not in dims or len(found) != count or found.dtype.kind not in "iubf":
        raise UserError(
            f"{file.filename}: dataset {name!r} is {found.dtype} {list(found.shape)}; wanted are numbers "
            f"{shapes}, one "
            f"row a frame, and 'frames' has N = {count}"
        )
    return _finite(file, name, found[()])


def _finite(file, name, values):
    if not np.isfinite(values).all():
        raise UserError(
            f"{file.filename}: dataset {name!r} holds values that are not finite (NaN or infinity)"
        )
    return values


# ---- episodes that are told by their ends


def _counted(file, count):
    """int64 `[N]`, the episode of each row, counted from 0: after a row that ends one, in any of `FLAGS`, the
    next begins.
    """
    last = np.zeros(count, bool)
    for name in FLAGS:
        if (found := find_dataset(file, name)) is not None:
            last |= _last_rows(file, name, found, count)
    return np.concatenate([[0], np.cumsum(last[:-1])]).astype(np.int64)


def _last_rows(file, name, found, count):
    """bool `[N]`: the rows that end an episode, from a flag a row (that of the last row may be missing), or
    from their ends.

    Ends, as `episode_ends` has them, are the numbers of rows up to the end of each episode, so the last one
    is N.
    """
    what = f"{file.filename}: dataset {name!r} is {found.dtype} {list(found.shape)}"
    flat = found.ndim == 1 or (found.ndim == 2 and found.shape[1] == 1)
    if not flat or found.dtype.kind not in "iubf":
        raise UserError(f"{what}; wanted is a flag a row, and 'frames' has N = {count}")
    values, last = _finite(file, name, found[()].reshape(-1)), np.zeros(count, bool)
    if len(values) in (count, count - 1) and np.isin(values, (0, 1)).all():
        last[: len(values)] = values != 0
    elif name == "episode_ends":
        ends = values.astype(np.int64)
        rising = len(ends) and (ends == values).all() and (np.diff(ends, prepend=0) > 0).all()
        if not rising or ends[-1] != count:
            raise UserError(
                f"{what}; wanted are rising numbers of rows of which the last is N = {count}, or a flag a row"
            )
        last[ends - 1] = True
    else:
        raise UserError(f"{what}; wanted is 0 or 1 for each row, and 'frames' has N = {count}")
    return last
