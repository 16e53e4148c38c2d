"""What the three stages share: settings, a split, trained stages below, and signs of a collapse."""

import dataclasses
import math

import torch

from mtld_core.config import (
    AtLeastTwo,
    BelowOne,
    ConfigError,
    NotNegative,
    Positive,
    check,
    from_dict,
)
from mtld_core.frames import rows_of, to_float
from mtld_core.nn.muon import weights_of
from mtld_core.runs import checkpoint as checkpoints
from mtld_core.runs.folder import read_config
from mtld_core.systems.base import FrameSize, System, adam
from mtld_core.systems.world_model.patches import to_frames, to_patches
from mtld_core.systems.world_model.space_time import SpaceTimeTransformer

# by these the stages divide data that is long enough; no preset has longer windows
WINDOW = 8  # frames of a training window
JUDGED = 20  # frames of a held-out window
MOST_CODES = 2**16  # that a stage may have: each is counted, and is a button or one outcome of a softmax
LEAST_VARIANCE = 1e-5  # of a latent channel, below which it has collapsed

# the source's values, alike for all three; the defaults are its, too
ORIGINAL = {
    "height": 64,
    "width": 64,
    "sequence_length": 5,
    "lr": 1e-4,
    "beta2": 0.999,
    "weight_decay": 0.0,
    "batch_size": 32,
    "steps": 10_000,
    "ema_decay": 0.0,
    "warmup_steps": 0,
}
# seconds, to see that everything runs
TINY = {
    "embed_dim": 16,
    "heads": 2,
    "hidden_dim": 32,
    "blocks": 1,
    "context_frames": 2,
    "sequence_length": 4,
    "steps": 20,
    "batch_size": 4,
    "eval_windows": 8,
}

# widths that keep a large card busy; never trained
GPU = {
    "embed_dim": 512,
    "heads": 8,
    "hidden_dim": 2048,
    "blocks": 6,
    "lr": 3e-4,  # falls with the width
    "batch_size": 64,
    "steps": 20_000,
    "lr_schedule": "cosine",
}


@dataclasses.dataclass(frozen=True)
class StageConfig(FrameSize):
    """The settings that every stage of the world model has."""

    sequence_length: AtLeastTwo[int] = 8  # T: frames of a training window
    patch_size: Positive[int] = 8  # pixels along a side
    embed_dim: Positive[int] = 128
    heads: Positive[int] = 4
    hidden_dim: Positive[int] = 512  # of the MLPs
    blocks: Positive[int] = 2
    context_frames: Positive[int] = 4  # frames that attention over time sees, the present one included
    lr: Positive[float] = 1e-3
    lr_muon: NotNegative[float] = 0.0  # of the transformers by Muon, such as 0.02; 0: AdamW, as for all else
    beta2: BelowOne[float] = 0.99
    weight_decay: NotNegative[float] = 0.01
    # frames of a training window and of a judged one by which all stages divide the data alike; (): chosen
    # from the data, or as the run below; (0, 0): by this stage's own, as runs of before did
    split: tuple[int, ...] = ()

    def __post_init__(self):
        super().__post_init__()
        self.check_divisible(self.patch_size, "or choose another patch_size", "patch_size")
        wide = 8 * self.heads
        check(
            self.embed_dim % wide == 0,
            f"embed_dim={self.embed_dim} must be a multiple of 8 * heads = {wide}, or the fast attention "
            f"kernels cannot be used; the nearest is {max(1, round(self.embed_dim / wide)) * wide}",
        )
        two_numbers = len(self.split) == 2 and min(self.split) > 0
        check(
            two_numbers or self.split in ((), (0, 0)),
            f"split must be two numbers of frames, such as [{WINDOW}, {JUDGED}], not {list(self.split)}",
        )

    def check_length(self):
        """Raise ConfigError where a window holds no more than the context: for stages that predict."""
        check(
            self.sequence_length > self.context_frames,
            f"sequence_length={self.sequence_length} must be above context_frames={self.context_frames}",
        )

    @property
    def patches(self):
        """P, how many patches a frame has."""
        return (self.height // self.patch_size) * (self.width // self.patch_size)

    @property
    def patch_values(self):
        """How many numbers a patch of pixels has."""
        return 3 * self.patch_size**2

    @property
    def transformer(self):
        """The first arguments of `SpaceTimeTransformer`: dim, heads, hidden, blocks and span."""
        return self.embed_dim, self.heads, self.hidden_dim, self.blocks, self.context_frames


class Stage(System):
    """A stage of the world model: a system of one phase, which sees frames as patches less their `mean`."""

    steps_are_alike = True

    @classmethod
    def fit_config(cls, config, dataset):
        config = super().fit_config(config, dataset)
        return dataclasses.replace(config, split=config.split or common_split(dataset))

    def prepare(self, frames, frames_y=None):
        """Set `mean` to the median frame, `[P, 3pp]`."""
        median = to_float(frames).median(0).values
        self.mean.copy_(to_patches(median, self.config.patch_size))

    def _patches(self, frames):
        """Frames float `[..., 3, H, W]` -> their patches less the mean, `[..., P, 3pp]`."""
        return to_patches(frames, self.config.patch_size) - self.mean

    def _frames(self, patches):
        """Patches `[..., P, 3pp]` -> frames `[..., 3, H, W]`."""
        c = self.config
        return to_frames(patches, c.patch_size, c.height, c.width)

    def optimizers(self):
        config = self.config
        own = [parameter for parameter in self.parameters() if parameter.requires_grad]
        transformers = [part for part in self.children() if isinstance(part, SpaceTimeTransformer)]
        betas = 0.9, config.beta2
        hidden = weights_of(*transformers)
        return {"model": adam(own, config.lr, betas, config.weight_decay, hidden, config.lr_muon)}


def common_split(dataset):
    """Choose `StageConfig.split` by the data alone, so that every stage holds out the same frames.

    Where five arcs or more are long enough for any stage, whole ones are held out; in short data, short ones
    count too. Else it is the end of each arc: the longest one has room for a window to learn, one as a gap,
    and a judged one. () for two domains, which training refuses.
    """
    if len(dataset.domains) > 1:
        return ()
    of_arcs = [max(stop - start for start, stop in dataset.shots(arc)) for arc in dataset.arcs]
    of_arcs.sort(reverse=True)
    longest = of_arcs[0]
    fifth = of_arcs[4] if len(of_arcs) >= 5 else 0
    short = longest < 2 * WINDOW + JUDGED
    if fifth >= WINDOW or (short and fifth >= WINDOW // 2):
        return min(WINDOW, fifth), min(JUDGED, longest)
    window = max(1, min(WINDOW, longest // 3))
    return window, max(1, min(JUDGED, longest - 2 * window))


# ---- stages below


def read_stage(run, field, cls, dataset):
    """Read the config, a dict, of the run whose folder the setting `field` names as `run`.

    Raises ConfigError or UserError where it is no run of the system `cls`, or learned other data.
    """
    if not run:
        example = f'overrides={{"{field}": "runs/..."}}'
        raise ConfigError(f"{field} is empty: name the run folder of a trained {cls.name}, {example}")
    about = read_config(run, field)
    system, there = about["system"], about["dataset"]
    check(system == cls.name, f"{field}={run!r} is a run of {system!r}, wanted is one of {cls.name!r}")
    here = dataset.describe()
    for name in ("size", "frames", "arcs"):
        check(
            there[name] == here[name],
            f"{field}={run!r} was trained on data with {name}={there[name]}, this dataset has "
            f"{name}={here[name]}; train both stages on the same data ({there['path']} there)",
        )
    return about["config"]


def take_over(cls, config):
    """Build a frozen stage of class `cls`, with random weights. config: a dict, as `read_stage` gives it."""
    return cls(from_dict(cls.Config, config)).requires_grad_(False).eval()


def load_stage(stage, run):
    """Load into a taken-over stage the weights of its run's newest good checkpoint. run: its folder."""
    folder = checkpoints.find(run)
    checkpoints.load_state_dict(stage, checkpoints.load_weights(folder), folder)


# ---- figures


def spread(name, values):
    """Variance of latents `[..., L]`, the mean over channels and the least one, as 0-dim tensors to log.

    name: what the latents are called. A variance near 0 shows a collapse.
    """
    variance = values.detach().float().flatten(0, -2).var(0)
    return {f"{name}_variance": variance.mean(), f"{name}_variance_least": variance.min()}


def spread_alarms(figures, name):
    """List one line where a channel of the latents called `name` has ceased to vary, else none.

    figures: dict of floats, with those of `spread`.
    """
    if figures.get(f"{name}_variance_least", 1) >= LEAST_VARIANCE:
        return []
    collapse = f"a channel of the {name}s has collapsed: its variance is below {LEAST_VARIANCE}"
    return [f"{collapse}; lower the learning rate, or begin anew"]


def statistics(output):
    """Mean and standard deviation of all values of the output, as 0-dim tensors to log."""
    output = output.detach().float()
    return {"output_mean": output.mean(), "output_std": output.std()}


def code_use(codes, size):
    """How many of `size` codes are in use, by int64 `codes` of any shape: a dict of floats.

    codebook_use is the share of codes that occur. codebook_perplexity is e to their entropy: as many codes,
    all equally frequent, would have the same.
    """
    share = torch.bincount(codes.flatten(), minlength=size) / codes.numel()
    return {
        "codebook_use": (share > 0).float().mean().item(),
        "codebook_perplexity": torch.special.entr(share).sum().exp().item(),
    }


def held_out(system, dataset, starts, most=64):
    """Yield (rows `[n, T]`, windows float `[n, T, 3, H, W]`) of at most `most` held-out windows.

    starts: first rows of all held-out windows.
    """
    ends = torch.tensor([arc.stop for arc in dataset.arcs])
    room = ends[torch.searchsorted(ends, starts, right=True)] - starts
    length = min(system.config.sequence_length, int(room.min()))  # a stage may have learned longer ones
    every = math.ceil(len(starts) / most)
    for part in starts[::every].split(16):
        rows = rows_of(part, length)
        yield rows, to_float(dataset.frames[rows].to(system.device))
