"""Frames that stay in their HDF5 files: only what is indexed is read."""

import numpy as np
import torch

from mtld_core.config import UserError
from mtld_core.data.hdf5_file import open_file
from mtld_core.frames import fit_frame

PIECE = 2**22  # bytes that are read at once, so that reading adds next to nothing to what the frames take
OPEN = 32  # files that are kept open at once


class LazyFrames:
    """Stands in for the uint8 tensor `[N, H, W, 3]`: frames[i], frames[a:b] and frames[rows] (int64 tensor,
    any shape).

    parts: (path, how many frames) of each file; their rows count on from file to file.
    order: int64 `[N]`, the row in the files for each row here. shape: (N, H, W, 3) after `fit`. What is
    indexed is read anew each time, each frame of it once. Raises UserError where a file cannot be read.
    """

    device, dtype = torch.device("cpu"), torch.uint8

    def __init__(self, parts, order, shape, fit="crop"):
        self.parts, self.order, self.shape, self.fit = parts, torch.from_numpy(order), torch.Size(shape), fit
        self._starts = np.cumsum([0, *(count for _, count in parts)])
        self._files = {}  # number of a part -> its open file, the longest open first
        frames = self._dataset(0)
        self.piece = max(1, PIECE // int(np.prod(frames.shape[1:])), (frames.chunks or [0])[0])

    def __len__(self):
        return self.shape[0]

    @property
    def nbytes(self):
        return self.shape.numel()

    def __getitem__(self, index):
        rows = self.order[index].numpy()
        wanted, place = np.unique(rows, return_inverse=True)
        found, done = np.empty((len(wanted), *self.shape[1:]), np.uint8), 0
        apart = (np.diff(wanted) != 1) | np.isin(wanted[1:], self._starts)
        for run in np.split(wanted, np.flatnonzero(apart) + 1):
            for part in np.split(run, range(self.piece, len(run), self.piece)):
                for frame in self._read(part):
                    found[done] = fit_frame(frame, *self.shape[1:3], self.fit)
                    done += 1
        in_order = rows.ndim == 1 and np.array_equal(rows, wanted)
        return torch.from_numpy(found if in_order else found[place.reshape(rows.shape)])

    def to(self, device):
        """A tensor of all frames on `device`, filled piece by piece."""
        frames = torch.empty(self.shape, dtype=torch.uint8, device=device)
        for start in range(0, len(self), self.piece):
            frames[start : start + self.piece] = self[start : start + self.piece].to(device)
        return frames

    def _read(self, run):
        """The frames at rows that follow each other in one file, as they are there."""
        if not len(run):
            return ()
        part = int(np.searchsorted(self._starts, run[0], side="right")) - 1
        first = run[0] - self._starts[part]
        try:
            return self._dataset(part)[first : first + len(run)]
        except (OSError, KeyError) as error:
            path = self.parts[part][0]
            raise UserError(
                f"{path}: its frames cannot be read ({error}); record or download it again"
            ) from None

    def _dataset(self, part):
        path, _ = self.parts[part]
        if part not in self._files:
            if len(self._files) == OPEN:
                self._files.pop(next(iter(self._files))).close()
            self._files[part] = open_file(path)
        return self._files[part]["frames"]
