"""An HDF5 file as a source: `frames` `[N, H, W, 3]` uint8, perhaps `actions` `[N]` or `[N, A]` and `episode` `[N]`.

An attribute `recording` of the file, JSON text, is what record_game.py says about it; {"unordered": true} means that these are
single pictures, among which no shots are to be looked for, and {"cuts": false} that each episode is one shot.
"""

import h5py
import numpy as np
import torch

from mtld_core.config import nearest
from mtld_core.data.dataset import Arc
from mtld_core.data.lazy import LazyFrames
from mtld_core.data.recording import read_about
from mtld_core.data.threads import for_each
from mtld_core.frames import fit_frame
from mtld_core.runtime import UserError


class Hdf5:
    """The frames of one HDF5 file; each episode is an arc "episode_<n>" whose frames count from 0.

    Rows of one episode may lie apart in the file (several games recorded at once): they are put in order by episode.
    actions: int64 `[N]` for whole numbers, else float32. Raises UserError naming the dataset, its dtype and shape.
    """

    cached = False  # reading is as fast as reading a copy of it would be

    def __init__(self, path, height=0, width=0, fit="crop"):
        self.path, self.fit, self.bad, self.warnings = str(path), (height, width, fit), {}, []
        try:
            with h5py.File(path) as file:
                frames = self._check(file)
                count = len(frames)
                self.shape = frames.shape
                episode = self._column(file, "episode", count, (1,))
                actions = self._column(file, "actions", count, (1, 2))
                about = file.attrs.get("recording", "{}")
        except OSError as error:
            raise UserError(f"{path} is no HDF5 file, or a damaged one ({error}); record or download it again") from None
        episode = np.zeros(count, np.int64) if episode is None else episode.astype(np.int64)
        self.order = np.argsort(episode, kind="stable")  # row of the store -> row of the file
        self.episode = episode[self.order]
        self.about = read_about(about, f"{path}: attribute 'recording'", self.warnings)
        self.kind = "images" if self.about.get("unordered") else "hdf5"
        self.actions = None
        if actions is not None:
            self.actions = torch.from_numpy(self._checked_actions(actions)[self.order])

    def measure(self, workers=0):
        """(N, H, W, 3) of the frames to come."""
        blank = np.zeros(self.shape[1:], np.uint8)
        return self.shape[0], *fit_frame(blank, *self.fit).shape

    def fill(self, store, workers=0, label=None):
        """Copy the frames into `store` (uint8, as measured). Returns how many there are."""
        place = np.argsort(self.order)  # row of the file -> row of the store
        frames = LazyFrames(self.path, np.arange(len(place)), store.shape, self.fit[2])

        def copy(i):
            rows = slice(i * frames.piece, (i + 1) * frames.piece)
            store[place[rows]] = frames[rows]

        for_each(copy, -(-len(place) // frames.piece), 1, label)  # HDF5 reads in one thread only
        return len(place)

    def lazy(self, shape):
        """The frames without reading them; shape: as measured."""
        return LazyFrames(self.path, self.order, shape, self.fit[2])

    def arcs(self):
        starts = np.flatnonzero(np.diff(self.episode, prepend=self.episode[0] - 1)).tolist()
        spans = zip(starts, [*starts[1:], len(self.episode)], strict=True)
        return [Arc(f"episode_{self.episode[a]}", a, b, np.arange(b - a)) for a, b in spans]

    def _checked_actions(self, actions):
        """int64 `[N]` where they are whole numbers from 0 on, else float32 `[N, A]`."""
        if actions.ndim == 2 or (actions.dtype.kind == "f" and (actions % 1).any()):
            return actions.astype(np.float32).reshape(len(actions), -1)
        if (actions < 0).any():
            row = int(np.argmax(actions < 0))
            raise UserError(f"{self.path}: dataset 'actions' has {actions[row]} in row {row}; discrete actions count from 0")
        return actions.astype(np.int64)

    def _check(self, file):
        """The dataset `frames`, known to be uint8 `[N, H, W, 3]` with N > 0."""
        wanted = "wanted is uint8 [N, H, W, 3]"
        found = file.get("frames")
        if not isinstance(found, h5py.Dataset):
            near = nearest("frames", list(file)) if len(file) else "; the file is empty"
            raise UserError(f"{self.path} has no dataset 'frames'{near}; {wanted}")
        what = f"{self.path}: dataset 'frames' is {found.dtype} {list(found.shape)}; {wanted}"
        if found.ndim == 4 and found.shape[1] == 3 != found.shape[3]:
            raise UserError(f"{what}: move the channels last, frames.transpose(0, 2, 3, 1)")
        if found.ndim == 3 or (found.ndim == 4 and 1 in (found.shape[1], found.shape[3]) and found.shape[3] != 3):
            raise UserError(f"{what}: these are grey, np.repeat(frames.reshape(N, H, W, 1), 3, axis=3) makes them RGB")
        if found.ndim != 4 or found.shape[3] != 3 or 0 in found.shape:
            raise UserError(what)
        if found.dtype != np.uint8:
            raise UserError(f"{what}: scale the values to 0..255 and store them as uint8")
        return found

    def _column(self, file, name, count, dims):
        """The dataset `name` as an array with one row a frame, None where there is none."""
        if name not in file:
            return None
        found = file[name]
        shapes = " or ".join(["[N]", "[N, A]"][dim - 1] for dim in dims)
        if found.ndim not in dims or len(found) != count or found.dtype.kind not in "iubf":
            raise UserError(
                f"{self.path}: dataset {name!r} is {found.dtype} {list(found.shape)}; wanted are numbers {shapes}, one "
                f"row a frame, and 'frames' has N = {count}"
            )
        values = found[()]
        if not np.isfinite(values).all():
            raise UserError(f"{self.path}: dataset {name!r} holds values that are not finite (NaN or infinity)")
        return values
