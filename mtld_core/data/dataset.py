"""What every source becomes: frames in one store, arcs as ranges of its rows, windows to be cut from them."""

import dataclasses
import itertools

import numpy as np
import torch

from mtld_core.config import UserError, nearest
from mtld_core.runtime import free_memory

DEVICE_SHARE = 0.4  # of a device's free memory that frames may take


@dataclasses.dataclass
class Arc:
    """Frames that follow each other: rows `start`..`stop` - 1 of the store.

    numbers: int64, of each frame the first number in its file name that differs within the arc.
    """

    name: str
    start: int
    stop: int
    numbers: np.ndarray

    def __len__(self):
        return self.stop - self.start


@dataclasses.dataclass
class Dataset:
    """Frames of one folder or file.

    path: absolute. kind: "arcs", "images" (no number orders them), "recording" or "hdf5".
    frames: uint8 tensor `[N, H, W, 3]`, in RAM, on a device, or mapped from a file; or `LazyFrames`, which
        are read from an HDF5 file as they are indexed.
    cuts: sorted int64 rows that begin a new shot inside an arc.
    actions: int64 `[N]` or float32 `[N, A]` tensor or None; actions[i] leads from frame i to frame i + 1.
    warnings: one line a file or gap.
    about: what a recording says of itself ("action_names", "env", "fps", "episode_seeds", ...), else {}.
    """

    path: str
    kind: str
    frames: torch.Tensor
    arcs: list[Arc]
    cuts: np.ndarray
    actions: torch.Tensor | None = None
    warnings: list[str] = dataclasses.field(default_factory=list)
    about: dict = dataclasses.field(default_factory=dict)

    @property
    def domains(self):
        """What a caller that takes one domain or two goes through: here this dataset alone."""
        return (self,)

    @property
    def size(self):
        """(H, W)"""
        return tuple(self.frames.shape[1:3])

    def arc_windows(self, arc, length, cross_cuts=False):
        """Start rows of all windows of `length` frames in `arc`, int64; across cuts only if `cross_cuts`."""
        cuts = () if cross_cuts else self.cuts[(self.cuts > arc.start) & (self.cuts < arc.stop)].tolist()
        shots = itertools.pairwise([arc.start, *cuts, arc.stop])
        return torch.cat([torch.arange(start, max(start, stop - length + 1)) for start, stop in shots])

    def windows(self, length, cross_cuts=False):
        """Start rows of all windows of `length` frames, int64; none crosses the border of an arc.

        None crosses a cut either, unless `cross_cuts`. Raises UserError where no arc holds such a window.
        """
        starts = torch.cat([self.arc_windows(arc, length, cross_cuts) for arc in self.arcs])
        if len(starts):
            return starts
        longest = max(self.arcs, key=len)
        if len(longest) < length:
            raise UserError(
                f"{self.path}: windows of {length} frames do not fit, the longest arc ({longest.name!r}) has "
                f"{len(longest)}; use a shorter window or longer arcs"
            )
        raise UserError(
            f"{self.path}: every window of {length} frames crosses a hard cut (the longest arc, "
            f"{longest.name!r}, has {len(longest)} frames); use a shorter window, or cross_cuts=true"
        )

    def too_short(self, length, cross_cuts=False):
        """Names of the arcs that hold no window of `length` frames."""
        return [arc.name for arc in self.arcs if not len(self.arc_windows(arc, length, cross_cuts))]

    def row(self, arc, number):
        """The row of frame `number` of the arc named `arc`: of several such frames, of the first.

        number: as in the file's name. Raises UserError if there is none.
        """
        found = next((one for one in self.arcs if one.name == arc), None)
        if found is None:
            raise UserError(f"{self.path} has no arc {arc!r}{nearest(arc, [one.name for one in self.arcs])}")
        rows = np.flatnonzero(found.numbers == number)
        if not len(rows):
            low, high = found.numbers.min(), found.numbers.max()
            raise UserError(
                f"{self.path}: arc {arc!r} has no frame {number}; its frames go from {low} to {high}"
            )
        return found.start + int(rows[0])

    def describe(self):
        """{"path", "arcs": how many, "frames": how many, "size": [H, W]}"""
        return {
            "path": self.path,
            "arcs": len(self.arcs),
            "frames": len(self.frames),
            "size": list(self.size),
        }

    def to(self, device):
        """This dataset with its frames on `device`; as it is where they take over 40 % of the free memory."""
        device = torch.device(device)
        if device.type == self.frames.device.type or self.frames.nbytes > DEVICE_SHARE * free_memory(device):
            return self
        actions = None if self.actions is None else self.actions.to(device)
        return dataclasses.replace(self, frames=self.frames.to(device), actions=actions)


@dataclasses.dataclass
class DomainPair:
    """Two unpaired domains, X and Y, of one frame size, in the folder `path`."""

    x: Dataset
    y: Dataset
    path: str

    @property
    def domains(self):
        """What a caller that takes one domain or two goes through: X and Y."""
        return self.x, self.y

    @property
    def size(self):
        """(H, W)"""
        return self.x.size

    @property
    def warnings(self):
        return [f"X: {line}" for line in self.x.warnings] + [f"Y: {line}" for line in self.y.warnings]

    def describe(self):
        """{"path", "arcs": of both domains, "frames": of both domains, "size": [H, W]}"""
        return {
            "path": self.path,
            "arcs": len(self.x.arcs) + len(self.y.arcs),
            "frames": len(self.x.frames) + len(self.y.frames),
            "size": list(self.size),
        }

    def to(self, device):
        """This pair with each domain's frames on `device` where they fit, see `Dataset.to`."""
        x = self.x.to(device)  # first, so that the second sees what is left
        return dataclasses.replace(self, x=x, y=self.y.to(device))
