"""What the three stages share: widths, checks, taking over a trained stage, and figures that show a
collapse.
"""

import dataclasses
import itertools

import torch

from mtld_core.config import ConfigError, check, from_dict
from mtld_core.data import Dataset
from mtld_core.frames import to_float
from mtld_core.runs import checkpoint as checkpoints
from mtld_core.runs.folder import read_config

WINDOW, JUDGED = (
    8,
    20,
)  # frames by which the stages divide data that is long enough: no preset has longer windows


@dataclasses.dataclass(frozen=True)
class StageConfig:
    height: int = 0  # pixels; 0: the dataset's own size
    width: int = 0
    sequence_length: int = 8  # T: frames of a training window
    patch_size: int = 8  # pixels along a side
    embed_dim: int = 128
    heads: int = 4
    hidden_dim: int = 512  # of the MLPs
    blocks: int = 2
    context_frames: int = 4  # frames that attention over time sees, the present one included
    lr: float = 1e-3
    beta2: float = 0.99
    weight_decay: float = 0.01
    # frames of a training window and of a judged one by which all stages divide the data alike; (): chosen
    # from the data, or as the run below; (0, 0): by this stage's own, as runs of before did
    split: tuple[int, ...] = ()

    def __post_init__(self):
        for name in ("patch_size", "embed_dim", "heads", "hidden_dim", "blocks", "context_frames", "lr"):
            check(getattr(self, name) > 0, f"{name} must be positive, not {getattr(self, name)}")
        check(0 <= self.beta2 < 1, f"beta2 must be in [0, 1), not {self.beta2}")
        check(self.weight_decay >= 0, f"weight_decay must not be negative, it is {self.weight_decay}")
        for side in ("height", "width"):
            size = getattr(self, side)
            check(
                size >= 0 and size % self.patch_size == 0,
                f"{side}={size} is not divisible by patch_size={self.patch_size}; extract the frames at "
                f"{max(1, size // self.patch_size) * self.patch_size}, or choose another patch_size",
            )
        wide = 8 * self.heads
        check(
            self.embed_dim % wide == 0,
            f"embed_dim={self.embed_dim} must be a multiple of 8 * heads = {wide}, or the fast attention "
            "kernels cannot be "
            f"used; the nearest is {max(1, round(self.embed_dim / wide)) * wide}",
        )
        check(self.sequence_length >= 2, f"sequence_length must be at least 2, not {self.sequence_length}")

        check(
            self.split in ((), (0, 0)) or (len(self.split) == 2 and min(self.split) > 0),
            f"split must be two numbers of frames, such as [{WINDOW}, {JUDGED}], not {list(self.split)}",
        )

    def check_length(self):
        """For stages that predict: a window holds more than the context."""
        check(
            self.sequence_length > self.context_frames,
            f"sequence_length={self.sequence_length} must be above context_frames={self.context_frames}",
        )

    @property
    def patches(self):
        return (self.height // self.patch_size) * (self.width // self.patch_size)

    @property
    def patch_values(self):
        return 3 * self.patch_size**2

    @property
    def transformer(self):
        """The first arguments of `SpaceTimeTransformer`."""
        return self.embed_dim, self.heads, self.hidden_dim, self.blocks, self.context_frames


# the source's values, the same for all three
ORIGINAL = {
    "height": 64,
    "width": 64,
    "patch_size": 8,
    "embed_dim": 128,
    "heads": 4,
    "hidden_dim": 512,
    "blocks": 2,
    "context_frames": 4,
    "sequence_length": 5,
    "lr": 1e-4,
    "beta2": 0.999,
    "weight_decay": 0.0,
    "batch_size": 32,
    "steps": 10_000,
    "log_every_steps": 10,
    "clip_norm": 1.0,
    "ema_decay": 0.0,
    "warmup_steps": 0,
}
MOST_CODES = 2**16  # that a stage may have: each is counted, and is a button or one outcome of a softmax
# seconds, to see that everything runs
TINY = {
    "patch_size": 8,
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


def common_split(dataset):
    """`StageConfig.split` for a dataset: it depends on the data alone, so that every stage holds out the same
    frames.

    As everywhere whole arcs are held out where there are five or more, such as are long enough for any stage;
    short data counts short ones. Else it is the end of each arc: the longest one has room for a window to
    learn, one as a gap, and a judged one.
    """
    if not isinstance(dataset, Dataset):  # two domains, which training refuses
        return ()
    borders = [
        [arc.start, *dataset.cuts[(dataset.cuts > arc.start) & (dataset.cuts < arc.stop)], arc.stop]
        for arc in dataset.arcs
    ]
    shots = [
        int(max(b - a for a, b in itertools.pairwise(some))) for some in borders
    ]  # the longest one of each arc
    longest, *_ = shots = sorted(shots, reverse=True)
    fifth = shots[4] if len(shots) >= 5 else 0
    short = longest < 2 * WINDOW + JUDGED
    if fifth >= WINDOW or (short and fifth >= WINDOW // 2):
        return min(WINDOW, fifth), min(JUDGED, longest)
    window = max(1, min(WINDOW, longest // 3))
    return window, max(1, min(JUDGED, longest - 2 * window))


def read_stage(run, field, cls, dataset):
    """The config, as a dict, of the run that the setting `field` names; refuses another system, frame size or
    dataset.
    """
    if not run:
        raise ConfigError(
            f'{field} is empty: name the run folder of a trained {cls.name}, overrides={{"{field}": '
            '"runs/..."}}'
        )
    about = read_config(run, field)
    system, there = about["system"], about["dataset"]
    check(system == cls.name, f"{field}={run!r} is a run of {system!r}, wanted is one of {cls.name!r}")
    here = dataset.describe()
    for name in ("size", "frames", "arcs"):
        check(
            there[name] == here[name],
            f"{field}={run!r} was trained on data with {name}={there[name]}, this dataset has "
            f"{name}={here[name]}; "
            f"train both stages on the same data ({there['path']} there)",
        )
    return about["config"]


def take_over(cls, config):
    """A stage of class `cls` with random weights, frozen; config: a dict, as `read_stage` gives it."""
    return cls(from_dict(cls.Config, config)).requires_grad_(False).eval()


def load_stage(stage, run):
    """Give a taken-over stage the weights that its run ended with."""
    folder = checkpoints.find(run)
    checkpoints.load_state_dict(stage, checkpoints.load_weights(folder), folder)


def spread(name, values):
    """What to log of latents `[..., L]`, to see a collapse: their variance, averaged over the channels and of
    the least one.
    """
    variance = values.detach().float().flatten(0, -2).var(0)
    return {f"{name}_variance": variance.mean(), f"{name}_variance_least": variance.min()}


def statistics(name, values):
    """What to log of an output."""
    values = values.detach().float()
    return {f"{name}_mean": values.mean(), f"{name}_std": values.std()}


def code_use(codes, size):
    """Which of `size` codes were used: the share that was used at all, and as how many equally used ones they
    count.
    """
    share = torch.bincount(codes.flatten(), minlength=size) / codes.numel()
    return {
        "codebook_use": (share > 0).float().mean().item(),
        "codebook_perplexity": torch.special.entr(share).sum().exp().item(),
    }


def spread_alarms(figures, name, least=1e-5):
    """A line where a channel of the latents called `name` has stopped to vary."""
    if figures.get(f"{name}_variance_least", 1) < least:
        return [
            f"a channel of the {name}s has collapsed: its variance is below {least}; lower the learning "
            "rate, or begin anew"
        ]
    return []


def held_out(system, dataset, starts, most=64):
    """Float windows `[n, T, 3, H, W]` of the system's training length, in pieces, from at most `most` of the
    held-out ones.
    """
    ends = torch.tensor([arc.stop for arc in dataset.arcs])
    room = int(
        (ends[torch.searchsorted(ends, starts, right=True)] - starts).min()
    )  # a stage may have learned longer ones
    for part in starts[:: -(-len(starts) // most)].split(16):
        rows = part[:, None] + torch.arange(min(system.config.sequence_length, room))
        yield rows, to_float(dataset.frames[rows].to(system.device))
