"""What costs nothing, as systems of the contract: what a model has to beat. Nobody trains them.

    copy_last       the last frame, again and again
    median          the median frame of the training part
    linear          each pixel goes on changing as it did between the last two frames
    optical_flow    what moved between the last two frames moves on
    nearest         the training window whose first frames are nearest, replayed

They see the last frames of the context and ignore actions. They stay on the device of the dataset's frames.
"""

import numpy as np
import torch

from mtld_core.config import check, nearest
from mtld_core.data import covered
from mtld_core.frames import evenly, to_float, to_uint8
from mtld_core.nn.flow import optical_flow, pushed
from mtld_core.systems.base import FrameSize, Needs, System

SAMPLE = 512  # frames of the training part that its median and a system's statistics are taken of
SEARCHED = 2**25  # bytes of the training part that are compared at once, in float64


class Baseline(System):
    """A system without parameters. dataset: a `Dataset`; learned, length: see `fit_baseline`."""

    Config, PRESETS = FrameSize, {}
    context = 2
    device = None  # of the dataset's frames; there are no parameters to ask

    def __init__(self, dataset, learned, length):
        super().__init__(FrameSize(*dataset.size))
        self.length = length
        self.device = dataset.frames.device

    def needs(self):
        return Needs(self.length, self.context)


class CopyLast(Baseline):
    """The last frame, again and again."""

    name, context = "copy_last", 1

    def _start(self, context, generator):
        return context[:, -1]

    def step(self, state, action=None):
        return state, state


class Median(CopyLast):
    """The median frame of the training part, whatever the context shows."""

    name = "median"

    def __init__(self, dataset, learned, length):
        super().__init__(dataset, learned, length)
        rows = covered(len(dataset.frames), learned, length).nonzero()[:, 0]
        self.frame = median_frame(dataset.frames[evenly(rows, SAMPLE)]).to(self.device)

    def _start(self, context, generator):
        return to_float(self.frame).expand_as(context[:, -1])


class Linear(Baseline):
    """Each pixel goes on changing as it did between the last two frames, until it is black or white.

    It never stops extrapolating: frame t is last + t (last - the one before), clamped to [-1, 1].
    """

    name = "linear"

    def _start(self, context, generator):
        before, last = context.unbind(1)
        return last, last - before, 0

    def step(self, state, action=None):
        last, change, t = state
        return (last, change, t + 1), (last + (t + 1) * change).clamp(-1, 1)


class OpticalFlow(Baseline):
    """What moved between the last two frames moves on, by as much in each step.

    The flow leads from the last frame back, so that it is known at the pixels that have to move, and these
    are pushed forward, from the last frame in each step: so nothing blurs by being moved twice. Pulling back
    would ask for the flow where things will be, of which nothing is known; of a square that moves by two
    pixels it loses the front after few frames.
    """

    name = "optical_flow"

    def _start(self, context, generator):
        before, last = to_uint8(context).cpu().unbind(1)
        return last, -optical_flow(last, before), 0

    def step(self, state, action=None):
        last, flow, t = state
        return (last, flow, t + 1), to_float(pushed(last, (t + 1) * flow).to(self.device))


class Nearest(Baseline):
    """The training window whose first frames are nearest to the context in MSE, replayed: looking it up.

    It is replayed beyond the window's own end as far as training windows go on, so never across a cut, an
    arc's end or into what is held out; then its last frame stays. Of windows equally near it is the first.
    """

    name = "nearest"

    def __init__(self, dataset, learned, length):
        super().__init__(dataset, learned, length)
        self.context = min(2, length - 1)
        self.frames = dataset.frames  # no copy
        self.learned = learned
        self.goes_on = covered(len(self.frames), learned, length - 1)  # rows whose next one may follow

    def _start(self, context, generator):
        wanted = to_uint8(context).flatten(2).double()  # [B, k, H*W*3]
        distances = []
        for starts in self.learned.split(max(1, SEARCHED // wanted[0, 0].nbytes)):
            distance = 0  # less the squares of `wanted`; exact, for whole numbers in float64 are
            for t, seen in enumerate(wanted.unbind(1)):
                known = self.frames[starts + t].flatten(1).double()
                distance += known.square().sum(1) - 2 * seen @ known.T
            distances.append(distance)  # [B, n]
        return self.learned[torch.cat(distances, 1).argmin(1).cpu()] + self.context - 1

    def step(self, state, action=None):
        rows = state + self.goes_on[state]
        return rows, to_float(self.frames[rows])


BASELINES = {cls.name: cls for cls in (CopyLast, Median, Linear, OpticalFlow, Nearest)}


def fit_baseline(name, dataset, learned, length):
    """Make the baseline called `name` from training windows: a `System` in eval mode.

    dataset: a `Dataset` of one domain. learned: start rows of the windows that a model learned from, int64
    (`Task.learned[0]`). length: frames of such a window, `needs().window` of that model; no other frame is
    looked at. Raises UserError with the nearest known name.
    """
    check(name in BASELINES, f"there is no baseline {name!r}{nearest(name, BASELINES)}")
    return BASELINES[name](dataset, learned, length).eval()


def median_frame(frames):
    """The median over time of each number: uint8 `[n, H, W, 3]` -> uint8 `[H, W, 3]` on the CPU.

    Halves are rounded down.
    """
    return torch.from_numpy(np.median(frames.cpu().numpy(), axis=0).astype(np.uint8))
