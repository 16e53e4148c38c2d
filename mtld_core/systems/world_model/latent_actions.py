"""Latent actions: what happened between two frames, as one of a few codes that nobody named.

The encoder looks at both frames; the decoder must draw the next frame from the past and the code alone, so
the code comes to hold what the past does not tell. With a long past that is the surprise ("it turns round"),
with the present frame alone (context_frames=1) it is the movement itself ("up"), which is what a player
wants. Letters: B batch, T frames, P patches a frame, p pixels along a patch's side, L numbers of a latent
action; actions[:, t] leads from frame t to frame t + 1.
"""

import dataclasses
import typing

import torch
import torch.nn.functional as F
from torch import nn

from mtld_core.config import AtLeastTwo, Positive, check
from mtld_core.nn.conv import ConvTokenizer, zeroed
from mtld_core.systems.base import InventsActions, Loss, Needs
from mtld_core.systems.world_model.patches import PatchEmbedding
from mtld_core.systems.world_model.quantise import FSQ, Whitening
from mtld_core.systems.world_model.space_time import SpaceTimeTransformer
from mtld_core.systems.world_model.stages import (
    GPU,
    MOST_CODES,
    ORIGINAL,
    TINY,
    Stage,
    StageConfig,
    code_use,
    held_out,
    spread,
    spread_alarms,
    statistics,
)

PAIRS = {"context_frames": 1, "sequence_length": 2, "lr_schedule": "cosine", "eval_horizon": 16}


@dataclasses.dataclass(frozen=True)
class LatentActionsConfig(StageConfig):
    """The settings of the latent actions."""

    action_dim: Positive[int] = 3  # L: numbers of a latent action
    # quantised numbers, which one linear map then widens to action_dim; 0: action_dim of them, and no map
    action_channels: int = 0
    action_levels: AtLeastTwo[int] = 2  # values a quantised channel; action_levels ** channels codes in all
    # pair: convolutions over two frames, blind to where things are
    encoder: typing.Literal["pair", "space_time"] = "pair"

    def __post_init__(self):
        super().__post_init__()
        check(
            0 <= self.action_channels <= self.action_dim,
            f"action_channels must be from 0 (all) to action_dim={self.action_dim}, not "
            f"{self.action_channels}",
        )
        codes = self.action_levels**self.channels
        check(
            codes <= MOST_CODES,
            f"action_levels={self.action_levels} in {self.channels} channels make {codes} codes; "
            f"{MOST_CODES} are the most; use fewer levels, or action_channels below action_dim",
        )
        check(
            self.encoder == "space_time" or self.patch_size % 4 == 0,
            f"encoder='pair' needs a patch_size that 4 divides, not {self.patch_size}; use "
            "encoder='space_time'",
        )
        self.check_length()

    @property
    def channels(self):
        """Quantised numbers of a latent action."""
        return self.action_channels or self.action_dim


class LatentActions(InventsActions, Stage):
    """The stage that learns what may happen next, for data whose actions nobody recorded."""

    name = "latent_actions"
    Config = LatentActionsConfig
    PRESETS: typing.ClassVar = {
        "small": PAIRS | {"steps": 3000, "batch_size": 32, "ema_decay": 0.995},
        "gpu": PAIRS | GPU | {"batch_size": 256},
        "demo": PAIRS | {"steps": 1000, "batch_size": 16, "ema_decay": 0.99},
        "original": ORIGINAL
        | {
            "encoder": "space_time",
            "action_dim": 16,
            "action_channels": 2,
            "eval_horizon": 16,
            "long_horizon": 64,
        },
        "tiny": TINY,
    }

    def __init__(self, config):
        super().__init__(config)
        c, width, channels = config, config.embed_dim, config.channels
        if c.encoder == "pair":
            self.encoder = ConvTokenizer(3, (32, 64), 1, width, c.patch_size, "none", "silu")
        else:
            self.look = PatchEmbedding(c.patches, 2 * c.patch_values, width)
            self.encoder = SpaceTimeTransformer(*c.transformer)
        self.to_action = nn.Linear(width, channels)
        self.whiten = Whitening(channels)
        self.fsq = FSQ(channels, c.action_levels)
        self.widen = nn.Linear(channels, c.action_dim) if c.action_channels else nn.Identity()
        self.action_space = self.fsq.size
        self.embed = PatchEmbedding(c.patches, c.patch_values, width)
        self.act = nn.Linear(c.action_dim, width)
        self.decoder = SpaceTimeTransformer(*c.transformer, condition_dim=width)
        self.head = zeroed(nn.Linear(width, c.patch_values))
        self.register_buffer("mean", torch.zeros(c.patches, c.patch_values))

    def needs(self):
        return Needs(window=self.config.sequence_length, context=self.config.context_frames)

    # ---- frames <-> actions

    def encode(self, frames):
        """Frames float `[B, T, 3, H, W]` -> quantised values `[B, T-1, channels]` in [-1, 1]."""
        if self.config.encoder == "pair":
            changes = frames[:, 1:] - frames[:, :-1]
            maps, _ = self.encoder(changes.flatten(0, 1))  # [B*(T-1), E, h, w]
            x = maps.flatten(2).amax(2)  # the largest, for what moves is in few places
            x = x.unflatten(0, (len(frames), -1))  # [B, T-1, E]
        else:
            patches = self._patches(frames)
            pairs = torch.cat([patches[:, 1:], patches[:, 1:] - patches[:, :-1]], -1)
            x, _ = self.encoder(self.look(pairs))
            x = x.amax(2)
        return self.fsq(self.whiten(self.to_action(x)))

    def infer_actions(self, frames):
        return self.fsq.codes(self.encode(frames))

    def latents(self, codes):
        """Codes int64 `[...]` -> latent actions `[..., L]`."""
        return self.widen(self.fsq.latents(codes))

    def _next(self, patches, actions, past=None):
        """Draw the next frames: patches `[B, T, P, 3pp]`, latent actions `[B, T, L]` -> (patches, past).

        Patches are less the mean, as `_patches` gives them.
        """
        action = self.act(actions)
        x, past = self.decoder(self.embed(patches) + action[:, :, None], action, past)
        return patches + self.head(x), past

    # ---- training

    def loss(self, batch):
        """`Loss`: the squared error of the next frames, drawn from the past and the latent actions."""
        patches = self._patches(batch["frames"])
        actions = self.encode(batch["frames"])
        drawn, _ = self._next(patches[:, :-1], self.widen(actions))
        first = min(1, self.config.context_frames - 1)  # with a past: one frame shows no movement
        loss = F.mse_loss(drawn[:, first:], patches[:, first + 1 :])
        return Loss(loss, {"mse": loss} | spread("action", actions) | statistics(drawn))

    def evaluate(self, dataset, starts):
        """codebook_use, codebook_perplexity and, where actions are recorded, action_labels: a name a code."""
        codes = []
        true = []
        for rows, frames in held_out(self, dataset, starts, 256):
            codes.append(self.infer_actions(frames).cpu())
            if dataset.actions is not None:
                true.append(dataset.actions[rows[:, :-1]].cpu())
        codes = torch.cat(codes)
        figures = code_use(codes, self.action_space)
        if true and true[0].dtype == torch.int64:
            figures["action_labels"] = self._labels(codes, torch.cat(true), dataset.about.get("action_names"))
        return figures

    def _labels(self, codes, actions, names):
        """Name each code by the recorded action that goes most with it, as if all actions were as frequent.

        codes, actions: int64 `[n, T-1]`. names: list of the actions' names, or None. Returns a list such as
        "left 93%", or "unused" for a code that is never used.
        """
        count = int(actions.max()) + 1
        pairs = (codes * count + actions).flatten()
        table = torch.bincount(pairs, minlength=self.action_space * count).view(-1, count)
        share = table / table.sum(0).clamp(min=1)
        share = share / share.sum(1, keepdim=True).clamp(min=1e-9)
        largest, likeliest = share.max(1)
        labels = []
        for part, action in zip(largest.tolist(), likeliest.tolist(), strict=True):
            name = names[action] if names else action
            labels.append(f"{name} {part:.0%}" if part else "unused")
        return labels

    def alarms(self, figures):
        lines = spread_alarms(figures, "action")
        dead = round((1 - figures.get("codebook_use", 1)) * self.action_space)
        if dead:
            use = f"{dead} of {self.action_space} action codes are never used"
            lines.insert(0, f"{use}: use fewer, or train longer")
        return lines

    # ---- generation

    def _start(self, context, generator):
        patches = self._patches(context)
        past = None
        if patches.shape[1] > 1:
            _, past = self._next(patches[:, :-1], self.widen(self.encode(context)))
        return patches[:, -1:], past

    def step(self, state, action=None):
        patches, past = state
        patches, past = self._next(patches, self.latents(action)[:, None], past)
        frame = self._frames(patches[:, 0] + self.mean).clamp(-1, 1)
        return (self._patches(frame[:, None]), past), frame
