"""The contract between a system (what is studied) and everything that trains, judges, plays and saves it.

A system is a `System` subclass with a frozen `Config` and named `PRESETS`. It gives what it needs to:

    name, Config, PRESETS     what it is called, its settings, and named sets of those that differ
    action_space              None, the number of discrete actions, or (low, high) lists of floats
    fit_config                the config with all that the dataset decides filled in
    needs                     what a batch must hold; the loop builds the batches from it
    prepare                   statistics of the data, once, before the first step
    setup_training            in every session: frozen networks of the loss, files in the run's folder
    optimizers                one for each phase, by the phase's name
    training_step             one update of everything: a call `step(phase, loss_fn, batch)` for each phase
    loss                      all that a system with a single phase has to give
    to_compile                the modules that compile=true compiles
    start, step, rollout      generation: the context gives a state, the state gives frame after frame
    evaluate, alarms          its own figures beside the general ones, and what they should warn of
    extra_state, load_extra_state, extra_files    what is neither module nor optimizer: counters, a replay

What only some systems can do is told by a class beside it: `Reconstructs`, `Samples`, `Translates`,
`InventsActions`, `BuiltOn`.

Axis letters: B batch, T frames, k context frames, H W pixels, A action. Frames inside are float
`[B, T, 3, H, W]` in [-1, 1].
"""

import dataclasses
import types
import typing

import torch
from torch import nn

from mtld_core.config import ConfigError, NotNegative, Settings, check
from mtld_core.frames import to_float


@dataclasses.dataclass(frozen=True)
class FrameSize(Settings):
    """The first settings of every system: the size of its frames, in pixels. 0: the dataset's own size."""

    height: NotNegative[int] = 0
    width: NotNegative[int] = 0

    def check_divisible(self, factor, way_out, name=""):
        """Raise ConfigError where a side is no multiple of `factor`, which the setting `name` asks for."""
        asked = f"{name}={factor}" if name else factor
        for side in ("height", "width"):
            size = getattr(self, side)
            nearest = max(1, size // factor) * factor
            check(size % factor == 0, f"{side}={size} is not divisible by {asked}; use {nearest}, {way_out}")


class Needs(typing.NamedTuple):
    """What a system asks of a batch."""

    window: int  # T: frames in a training window, context included
    context: int = 1  # k: real frames that a rollout starts from
    batches: int = 1  # fresh batches a step (a WGAN critic wants several)
    actions: bool = False
    domains: int = 1  # 2: the batch also holds "frames_y", unpaired


class Loss(typing.NamedTuple):
    """What a loss function returns: the scalar to minimise, 0-dim tensors to log, and `[B, ...]` tensors for
    a later phase.

    The scalar and the logs are fp32 (or fp64), whatever the networks ran in. They are means over the samples
    that the function was given, so that those of a batch's parts make up the whole batch's. weight: a 0-dim
    tensor where they are means over something that differs from part to part: how much of that there was, a
    sample.
    """

    total: torch.Tensor
    logs: typing.Mapping = types.MappingProxyType({})
    carry: typing.Mapping = types.MappingProxyType({})
    weight: torch.Tensor | None = None


class Place(typing.NamedTuple):
    """Where the samples that a loss function is given lie in the whole batch, for what is chosen by
    number.
    """

    first: int  # row of the first one
    size: int  # samples of the whole batch


class Reconstructs:
    """A system that is judged by what it makes of frames that it is shown, not by rollouts."""

    def reconstruct(self, frames):
        """Frames as the system rebuilds them, both float `[B, T, 3, H, W]`."""
        raise NotImplementedError


class Samples:
    """A system that draws from noise, too: `start` takes no context then."""

    def sample(self, count, generator=None):
        """Draw `count` images from noise, float `[count, 3, H, W]`."""
        return torch.cat([self.step(self.start(None, generator))[1] for _ in range(count)])


class Translates:
    """A system between two domains, X and Y."""

    def translate(self, frames, direction="x_to_y", state=None):
        """Clips float `[B, T, 3, H, W]` -> (their translations, state).

        direction: "x_to_y" or "y_to_x". state: what the clips' earlier part returned, to go on with the next.
        """
        raise NotImplementedError


class InventsActions:
    """A system with an action space whose actions nobody recorded."""

    def infer_actions(self, frames):
        """Actions `[B, T-1]` that lead from frame to frame of clips float `[B, T, 3, H, W]`."""
        raise NotImplementedError


class BuiltOn:
    """A system that holds trained runs of other systems, its stages below, frozen inside itself."""

    # config fields that name such a run -> the attribute that holds the system
    built_on: typing.ClassVar[dict]


class System(nn.Module):
    """What is studied: networks, their losses and how they make frames. See the head of this file."""

    name: typing.ClassVar[str]
    Config: typing.ClassVar[type]
    # preset -> fields of Config and of TrainConfig that differ from the defaults
    PRESETS: typing.ClassVar[dict]
    action_space = None  # None, an int (n discrete actions) or (low, high) lists of floats

    def __init__(self, config):
        super().__init__()
        self.config = config

    @property
    def device(self):
        return next(self.parameters()).device

    # ---- training

    @classmethod
    def fit_config(cls, config, dataset):
        """The config with all that the data decides filled in; here height and width where they are 0."""
        height, width = dataset.size
        return dataclasses.replace(config, height=config.height or height, width=config.width or width)

    def needs(self):
        raise NotImplementedError

    def prepare(self, frames, frames_y=None):
        """Set buffers that describe the data, from `frames`: uint8 `[n, H, W, 3]`, a sample of the training
        part.

        frames_y: the same of the second domain, where there is one. Called once in the life of a run, not on
        resume.
        """

    def setup_training(self, folder):
        """Make what only training needs and no model file holds (frozen loss networks, slow copies).

        Called in every session, with the networks on their device, before `load_extra_state`. folder: the
        run's own, where a system may keep files that are too large for checkpoints; it names them in
        `extra_files`.
        """

    def optimizers(self):
        """dict phase name -> optimizer (see `adam`). A phase moves the parameters of its own optimizer
        only.
        """
        raise NotImplementedError

    def training_step(self, batches, step):
        """One update of everything. `batches`: list of `needs().batches` dicts. Returns 0-dim tensors to
        log.
        """
        return step("model", self.loss, batches[0]).logs

    def loss(self, batch):
        """`Loss` of one batch, for systems whose only phase is "model"."""
        raise NotImplementedError

    def to_compile(self):
        """The modules that `compile=true` compiles: those that are called, and not differentiated twice."""
        return self.children()

    def extra_state(self):
        """Tensors, numbers, strings, lists and dicts of them, saved with every checkpoint."""
        return {}

    def extra_files(self):
        """{path relative to the run's folder: bytes of it, from its beginning} of files that the present
        state rests on.

        They are on disk when this returns. A file that no kept checkpoint names any more is deleted.
        """
        return {}

    def load_extra_state(self, state, folder):
        """Take back what `extra_state` gave. folder: of the run that it was saved in, where the `extra_files`
        lie.
        """

    def evaluate(self, dataset, starts):
        """Figures of this system's own, dict of floats. `starts`: first rows of the held-out windows."""
        return {}

    def alarms(self, figures):
        """Lines that warn of a collapse, from a log line's values or an evaluation's figures (dict of
        floats).
        """
        return []

    # ---- generation

    def start(self, context, generator=None):
        """Context frames -> state. uint8 `[H,W,3]`, `[k,H,W,3]` or `[B,k,H,W,3]`, or float `[B,k,3,H,W]` in
        [-1, 1].

        context: None for a draw from noise, where the system `Samples`. generator: a `torch.Generator` for
        systems that draw. Raises ConfigError where size or number do not fit.
        """
        if context is None and isinstance(self, Samples):
            return self._start(None, generator)
        if context is None:
            raise ConfigError(
                f"{self.name} cannot start from noise: give it {self.needs().context} context frames"
            )
        context = torch.as_tensor(context)
        if context.dtype == torch.uint8:
            context = context.reshape(-1, *context.shape[-4:]) if context.dim() >= 4 else context[None, None]
            context = to_float(context.to(self.device))
        wanted, (height, width) = self.needs().context, context.shape[-2:]
        if (height, width) != (self.config.height, self.config.width):
            raise ConfigError(
                f"the context is {height}x{width} but this run was trained on "
                f"{self.config.height}x{self.config.width}; "
                "resize it (mtld_core.frames.fit_frame does)"
            )
        if context.shape[1] < wanted:
            raise ConfigError(f"this run needs {wanted} context frames, not {context.shape[1]}")
        return self._start(context[:, -wanted:].to(self.device), generator)

    def _start(self, context, generator):
        raise NotImplementedError

    def step(self, state, action=None):
        """(state, action) -> (state, next frame float `[B, 3, H, W]`)."""
        raise NotImplementedError

    def rollout(self, context, num_frames, actions=None, generator=None):
        """Yield the predicted frames in order, in pieces of float `[B, t, 3, H, W]`; overridden where pieces
        are faster.

        actions: sequence of `num_frames` actions, each a `[B]` or `[B, A]` tensor, for systems with an action
        space.
        """
        state = self.start(context, generator)
        for t in range(num_frames):
            state, frame = self.step(state, None if actions is None else actions[t])
            yield frame[:, None]


def action_fields(dataset):
    """What the config of a system with actions keeps of the dataset's: "action_count", or "control_low" and
    "control_high".
    """
    actions = dataset.actions
    if actions is None:
        raise ConfigError(
            f"{dataset.path} has no actions, which this system needs: use a recording "
            "(data_prep/record_game.py makes one)"
        )
    if actions.dtype == torch.int64:
        return {"action_count": max(int(actions.max()) + 1, len(dataset.about.get("action_names", [])))}
    return {"control_low": tuple(actions.amin(0).tolist()), "control_high": tuple(actions.amax(0).tolist())}


def action_space(config):
    """`System.action_space` from such a config."""
    return config.action_count or (list(config.control_low), list(config.control_high))


def adam(parameters, lr, betas=(0.9, 0.999), weight_decay=0.0):
    """AdamW in its fused form, which can also skip a non-finite step without asking the device
    (`found_inf`).
    """
    return torch.optim.AdamW(list(parameters), lr=lr, betas=betas, weight_decay=weight_decay, fused=True)


def to_channels_last(system):
    """Lay out the weights of all 2-d convolutions as the fast kernels like them; everything else stays as it
    is.
    """
    for parameter in system.parameters():
        if parameter.dim() == 4:
            parameter.data = parameter.data.contiguous(memory_format=torch.channels_last)
