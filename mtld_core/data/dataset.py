"""What every source becomes: frames in one store, arcs as ranges of its rows, windows to be cut from them."""

import dataclasses
import itertools
from hashlib import blake2b

import numpy as np
import torch

from mtld_core.config import UserError, nearest
from mtld_core.frames import evenly
from mtld_core.runtime import free_memory

SEEN = 16  # frames of a domain that tell its pictures from others
DEVICE_SHARE = 0.4  # of a device's free memory that frames may take


@dataclasses.dataclass
class Arc:
    """Frames that follow each other: rows `start`..`stop` - 1 of the store.

    numbers: int64 `[n]`, the number of each frame. For image files it is the first number in the file's name
    that differs within the arc, else frames count from 0.
    """

    name: str
    start: int
    stop: int
    numbers: np.ndarray

    def __len__(self):
        return self.stop - self.start


class Domains:
    """What a `Dataset` and a `DomainPair` have in common: `domains` of one frame `size` at one `path`."""

    def describe(self):
        """What a run keeps of its dataset: {"path", "arcs": how many, "frames": how many, "size": [H, W]}."""
        return {
            "path": self.path,
            "arcs": sum(len(domain.arcs) for domain in self.domains),
            "frames": sum(len(domain.frames) for domain in self.domains),
            "size": list(self.size),
        }

    def digest(self):
        """A hex digest of some frames, by which a run knows them from others under the same names."""
        digest = blake2b(digest_size=8)
        for domain in self.domains:
            digest.update(domain.frames[evenly(len(domain.frames), SEEN)].cpu().numpy())
        return digest.hexdigest()


@dataclasses.dataclass
class Dataset(Domains):
    """Frames of one folder or file.

    path: absolute. kind: "arcs", "images" (no number orders them), "recording" or "hdf5".
    frames: uint8 tensor `[N, H, W, 3]`, in RAM, on a device, or mapped from a file; or `LazyFrames`, which
        read from an HDF5 file what is indexed.
    cuts: sorted int64 rows that begin a new shot inside an arc.
    actions: int64 `[N]` or float32 `[N, A]` tensor or None; actions[i] leads from frame i to frame i + 1.
    warnings: one line for each file that was left out, and for whatever else looks odd.
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
        """This dataset alone, as a tuple: what goes through all domains takes a `DomainPair` or this."""
        return (self,)

    @property
    def size(self):
        """(H, W) of the frames, in pixels."""
        return tuple(self.frames.shape[1:3])

    def shots(self, arc, cross_cuts=False):
        """Yield (first row, row behind the last) of each shot in `arc`; all of it is one if `cross_cuts`."""
        cuts = []
        if not cross_cuts:
            cuts = self.cuts[(self.cuts > arc.start) & (self.cuts < arc.stop)].tolist()
        yield from itertools.pairwise([arc.start, *cuts, arc.stop])

    def arc_windows(self, arc, length, cross_cuts=False):
        """Start rows of all windows of `length` frames in `arc`, int64; across cuts only if `cross_cuts`."""
        shots = self.shots(arc, cross_cuts)
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

    def row(self, arc, number):
        """Find the row of frame `number` (see `Arc.numbers`) of the arc named `arc`.

        Where several frames have that number, it is the first one. Raises UserError where there is no such
        arc or frame.
        """
        found = next((one for one in self.arcs if one.name == arc), None)
        if found is None:
            raise UserError(f"{self.path} has no arc {arc!r}{nearest(arc, [one.name for one in self.arcs])}")
        rows = np.flatnonzero(found.numbers == number)
        if not len(rows):
            raise UserError(
                f"{self.path}: arc {arc!r} has no frame {number}; its frames go from {found.numbers.min()} "
                f"to {found.numbers.max()}"
            )
        return found.start + int(rows[0])

    def to(self, device):
        """Move the frames to `device`, unless they take over 40 % of its free memory. Returns a dataset."""
        device = torch.device(device)
        if device.type == self.frames.device.type or self.frames.nbytes > DEVICE_SHARE * free_memory(device):
            return self
        actions = None if self.actions is None else self.actions.to(device)
        return dataclasses.replace(self, frames=self.frames.to(device), actions=actions)


@dataclasses.dataclass
class DomainPair(Domains):
    """Two unpaired domains, X and Y, of one frame size. path: the absolute folder that holds both."""

    x: Dataset
    y: Dataset
    path: str

    @property
    def domains(self):
        """(X, Y): what goes through all domains takes this or a single `Dataset`."""
        return self.x, self.y

    @property
    def size(self):
        """(H, W) of the frames, in pixels."""
        return self.x.size

    @property
    def warnings(self):
        """The warnings of both domains, each behind the letter of its own."""
        return [f"X: {line}" for line in self.x.warnings] + [f"Y: {line}" for line in self.y.warnings]

    def to(self, device):
        """Move the frames of each domain to `device`, unless they take over 40 % of its free memory by then.

        Returns a pair.
        """
        x = self.x.to(device)  # first, so that the second sees what is left
        return dataclasses.replace(self, x=x, y=self.y.to(device))
