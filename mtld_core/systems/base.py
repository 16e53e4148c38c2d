"""The contract between a system (what is studied) and everything that trains, judges, plays and saves it.

A system is a `System` subclass with a frozen `Config` and named `PRESETS`. It gives what it needs to:

    name, Config, PRESETS     what it is called, its settings, and named sets of those that differ
    action_space              None, the number of discrete actions, or (low, high) lists of floats
    fit_config                the config with all that the dataset decides filled in
    needs                     what a batch must hold; the loop builds the batches from it
    prepare                   statistics of the data, once, before the first step
    setup_training            in every session: frozen networks of the loss, files in the run's folder
    optimizers                one for each phase, by the phase's name
    steps_are_alike           whether a GPU may replay a training step as a graph
    training_step             one update of everything: a call `step(phase, loss_fn, batch)` for each phase
    loss                      all that a system with a single phase has to give
    to_compile                the modules that compile=true compiles
    start, step, rollout      generation: the context gives a state, the state gives frame after frame
    evaluate, alarms          its own figures beside the general ones, and what they should warn of
    extra_state, load_extra_state, extra_files    what is neither module nor optimizer: counters, a replay

What only some systems can do is told by a class beside it: `Reconstructs`, `Samples`, `Translates`,
`InventsActions`, `BuiltOn`. A `Config` inherits from `FrameSize`. Letters: B batch, T frames, k context
frames, H W pixels, A numbers of an action. Frames inside are float `[B, T, 3, H, W]` in [-1, 1].
"""

import contextlib
import dataclasses
import types
import typing

import torch
from torch import nn

from mtld_core.config import NotNegative, Settings, check
from mtld_core.frames import to_float
from mtld_core.nn.muon import Muon
from mtld_core.nn.precision import HalfWeights
from mtld_core.runtime import computing


@dataclasses.dataclass(frozen=True)
class FrameSize(Settings):
    """The first settings of every system: the size of its frames, in pixels. 0: the dataset's own size."""

    height: NotNegative[int] = 0
    width: NotNegative[int] = 0

    def check_divisible(self, factor, way_out, name=""):
        """Raise ConfigError where a side is no multiple of `factor`, the value of the setting `name`.

        way_out: ends the error, behind a size that fits.
        """
        asked = f"{name}={factor}" if name else factor
        for side in ("height", "width"):
            size = getattr(self, side)
            fits = max(1, size // factor) * factor
            check(size % factor == 0, f"{side}={size} is not divisible by {asked}; use {fits}, {way_out}")


class Needs(typing.NamedTuple):
    """What a system asks of a batch."""

    window: int  # T: frames in a training window, context included
    context: int = 1  # k: real frames that a rollout starts from
    batches: int = 1  # fresh batches a step (a WGAN critic wants several)
    actions: bool = False
    domains: int = 1  # 2: the batch also holds "frames_y", unpaired
    sample: int = 512  # frames that `prepare` sees, at most, evenly spaced


class Loss(typing.NamedTuple):
    """What a loss function returns.

    `total` and `logs` are fp32 (or fp64), whatever the networks ran in. They are means over the samples that
    the function was given, so that the means of a batch's parts make up the mean of the whole batch.
    """

    total: torch.Tensor  # the scalar to minimise
    logs: typing.Mapping = types.MappingProxyType({})  # name -> 0-dim tensor to log
    carry: typing.Mapping = types.MappingProxyType({})  # name -> `[B, ...]` for a later phase
    weight: torch.Tensor | None = None  # 0-dim, for means over what differs by part: how much a sample has


class Place(typing.NamedTuple):
    """Where a loss function's samples lie in the whole batch: batch["place"], for what goes by number."""

    first: int  # row of the first one
    size: int  # samples of the whole batch


class Reconstructs:
    """A system that is judged by what it makes of frames that it is shown, not by rollouts."""

    def reconstruct(self, frames):
        """Rebuild frames float `[B, T, 3, H, W]` in [-1, 1]: the same shape and range."""
        raise NotImplementedError


class Samples:
    """A system that can also draw from noise: its `start` takes None for the context."""

    def sample(self, count, generator=None):
        """Draw `count` images from noise, float `[count, 3, H, W]` in [-1, 1]."""
        return torch.cat([self.step(self.start(None, generator))[1] for _ in range(count)])


class Translates:
    """A system between two domains, X and Y. A direction is "x_to_y" or "y_to_x"."""

    def translate(self, frames, direction="x_to_y", state=None):
        """Translate clips float `[B, T, 3, H, W]` -> (clips of that shape, state).

        state: what the call for the frames before these returned, None at the start of a clip.
        """
        raise NotImplementedError


class InventsActions:
    """A system with an action space whose actions nobody recorded."""

    def infer_actions(self, frames):
        """Name the actions between the frames of clips: float `[B, T, 3, H, W]` -> int64 `[B, T-1]`."""
        raise NotImplementedError


class BuiltOn:
    """A system that holds trained runs of other systems, its stages below, frozen inside itself."""

    built_on: typing.ClassVar[dict]  # config field that names such a run -> attribute that holds the system


class System(nn.Module):
    """What is studied: networks, their losses and how they make frames. The head of base.py says more."""

    name: typing.ClassVar[str]
    Config: typing.ClassVar[type]
    PRESETS: typing.ClassVar[dict]  # name -> dict of fields of Config and TrainConfig that differ
    action_space = None  # None, an int (n discrete actions) or (low, high) lists of floats
    # Whether every training step does the same work, on tensors of the same shapes, so that a compiler can
    # compile it once, and a GPU replay it as a graph. After the first steps no Python code of `training_step`
    # runs then: what changes lives in tensors that are changed in place, no value of a tensor decides what is
    # done next, and nothing is copied from or to the host.
    steps_are_alike = False
    precision = torch.float32  # of its networks outside training; who trains or opens it says so
    # Share of the training that is done, from 0 to 1; who trains says so before each step. Not for systems
    # whose steps are alike.
    progress = 0.0

    def __init__(self, config):
        super().__init__()
        self.config = config

    @property
    def device(self):
        return next(self.parameters()).device

    @contextlib.contextmanager
    def computing(self):
        """Inside, the networks compute in `precision`: for whoever judges, generates or plays."""
        half_weights = HalfWeights(self, self.precision)
        with computing(self.device, self.precision), half_weights():
            yield

    # ---- training

    @classmethod
    def fit_config(cls, config, dataset):
        """Fill in what the data decides; here height and width where they are 0. Returns a new config."""
        height, width = dataset.size
        return dataclasses.replace(config, height=config.height or height, width=config.width or width)

    def needs(self):
        """Say what a batch must hold: `Needs`."""
        raise NotImplementedError

    def prepare(self, frames, frames_y=None):
        """Set buffers that describe the data, once in a run's life, from samples uint8 `[n, H, W, 3]`."""

    def setup_training(self, folder):
        """Make what only training needs and no model file holds, such as frozen networks and slow copies.

        Called in every session, with the networks on their device, before `load_extra_state`. folder: the
        run's own, for files too large for checkpoints; what `extra_files` stops to name is deleted.
        """

    def optimizers(self):
        """dict phase -> optimizer, from `adam`. A phase moves only the parameters of its own optimizer."""
        raise NotImplementedError

    def training_step(self, batches, step):
        """Update everything, by step(phase, loss_fn, batch) -> `Loss`. Returns 0-dim tensors to log."""
        return step("model", self.loss, batches[0]).logs

    def loss(self, batch):
        """`Loss` of one batch, for systems whose only phase is "model"."""
        raise NotImplementedError

    def to_compile(self):
        """The modules that `compile=true` compiles: those that are called, and not differentiated twice."""
        parts = []
        for child in self.children():
            if isinstance(child, nn.ModuleList):  # neither a list is called, nor a dict, nor a stage inside
                parts += child
            elif isinstance(child, nn.ModuleDict):
                parts += child.values()
            elif isinstance(child, System):
                parts += child.to_compile()
            else:
                parts.append(child)
        return parts

    def extra_state(self):
        """Tensors, numbers, strings, lists and dicts of them, saved with every checkpoint."""
        return {}

    def extra_files(self):
        """Files on disk that the present state rests on: {path in the run's folder: bytes from its start}."""
        return {}

    def load_extra_state(self, state, folder):
        """Take back what `extra_state` gave. folder: the run it was saved in, with its `extra_files`."""

    def evaluate(self, dataset, starts):
        """Figures of this system's own, dict of floats. starts: first rows of the held-out windows."""
        return {}

    def alarms(self, figures):
        """Lines that warn of a collapse. figures: dict of floats, of a line of the log or an evaluation."""
        return []

    # ---- generation

    def start(self, context, generator=None):
        """Context frames -> state. Raises ConfigError where their size or number does not fit.

        context: uint8 `[H,W,3]`, `[k,H,W,3]` or `[B,k,H,W,3]`, or float `[B,k,3,H,W]` in [-1, 1]; None for a
        draw from noise, where the system `Samples`. generator: a `torch.Generator`, for systems that draw.
        """
        wanted = self.needs().context
        if context is None and isinstance(self, Samples):
            return self._start(None, generator)
        check(context is not None, f"{self.name} cannot start from noise: give it {wanted} context frames")
        context = torch.as_tensor(context).to(self.device)
        if context.dtype == torch.uint8:
            if context.dim() == 3:
                context = context[None]
            context = to_float(context.reshape(-1, *context.shape[-4:]))
        height, width = context.shape[-2:]
        check(
            (height, width) == (self.config.height, self.config.width),
            f"the context is {height}x{width} but this run was trained on "
            f"{self.config.height}x{self.config.width}; resize it (mtld_core.frames.fit_frame does)",
        )
        check(context.shape[1] >= wanted, f"this run needs {wanted} context frames, not {context.shape[1]}")
        return self._start(context[:, -wanted:], generator)

    def _start(self, context, generator):
        """Float `[B, k, 3, H, W]` on the system's device -> state; None where it `Samples`."""
        raise NotImplementedError

    def step(self, state, action=None):
        """Make the next frame: (state, action) -> (state, frame float `[B, 3, H, W]`)."""
        raise NotImplementedError

    def rollout(self, context, num_frames, actions=None, generator=None):
        """Yield the predicted frames in order, in pieces `[B, t, 3, H, W]`, here of one frame each.

        actions: `num_frames` tensors `[B]` or `[B, A]`, for systems with an action space.
        """
        state = self.start(context, generator)
        for t in range(num_frames):
            action = None if actions is None else actions[t]
            state, frame = self.step(state, action)
            yield frame[:, None]


def computed(system, pieces):
    """Yield what the iterator `pieces` makes with this system, in the system's precision.

    Whoever takes the pieces computes in their own.
    """
    pieces = iter(pieces)
    while True:
        with system.computing():
            piece = next(pieces, None)
        if piece is None:
            return
        yield piece


def adam(parameters, lr, betas=(0.9, 0.999), weight_decay=0.0, hidden=(), lr_hidden=0.0):
    """Make AdamW in its fused form, which can skip a step that is not finite without asking the device.

    lr_hidden: where it is not 0, `Muon` moves `hidden`, some of the parameters, at this rate.
    """
    if lr_hidden:
        return Muon(parameters, hidden, lr, lr_hidden, betas, weight_decay)
    return torch.optim.AdamW(list(parameters), lr=lr, betas=betas, weight_decay=weight_decay, fused=True)
