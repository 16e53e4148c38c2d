"""Frames that stay in their HDF5 file: only what is indexed is read."""

import h5py
import numpy as np
import torch

from mtld_core.frames import fit_frame
from mtld_core.runtime import UserError

PIECE = 2**22  # bytes that are read at once, so that reading adds next to nothing to what the frames take


class LazyFrames:
    """Stands in for the uint8 tensor `[N, H, W, 3]`: frames[i], frames[a:b] and frames[rows] (int64 tensor, any shape).

    order: int64 `[N]`, the row of the file for each row here. shape: (N, H, W, 3) after `fit`. What is indexed is read
    anew each time, each frame of it once. Raises UserError where the file cannot be read.
    """

    device, dtype = torch.device("cpu"), torch.uint8

    def __init__(self, path, order, shape, fit="crop"):
        self.path, self.order, self.shape, self.fit = path, torch.from_numpy(order), torch.Size(shape), fit
        self._file = h5py.File(path)
        frames = self._file["frames"]
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
        for run in np.split(wanted, np.flatnonzero(np.diff(wanted) != 1) + 1):
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
        """The frames at rows of the file that follow each other, as they are there."""
        if not len(run):
            return ()
        try:
            return self._file["frames"][run[0] : run[-1] + 1]
        except OSError as error:
            raise UserError(f"{self.path}: its frames cannot be read ({error}); record or download it again") from None
