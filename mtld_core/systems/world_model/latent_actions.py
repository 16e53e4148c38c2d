"""Latent actions: what happened between two frames, as one of a few codes that nobody named.

The encoder looks at both frames; the decoder must draw the next frame from the past and the code alone, so
the code comes to hold what the past does not tell. With a long past that is the surprise ("it turns round"),
with the present frame alone (context_frames=1) it is the movement itself ("up"), which is what a player
wants. Letters: B batch, T frames, P patches a frame, L numbers of a latent action; actions[:, t] leads from
frame t to frame t + 1.
"""

import dataclasses
import typing

import torch
import torch.nn.functional as F
from torch import nn

from mtld_core.config import check
from mtld_core.frames import to_float
from mtld_core.nn.conv import ConvTokenizer
from mtld_core.systems.base import InventsActions, Loss, Needs, System, adam
from mtld_core.systems.world_model.patches import PatchEmbedding, to_frames, to_patches
from mtld_core.systems.world_model.quantise import FSQ, Whitening
from mtld_core.systems.world_model.space_time import SpaceTimeTransformer
from mtld_core.systems.world_model.stages import (
    MOST_CODES,
    ORIGINAL,
    TINY,
    StageConfig,
    code_use,
    common_split,
    held_out,
    spread,
    spread_alarms,
    statistics,
)


@dataclasses.dataclass(frozen=True)
class LatentActionsConfig(StageConfig):
    action_dim: int = 3  # L: numbers of a latent action
    action_channels: int = (
        0  # those that are quantised, which one linear map then widens to action_dim; 0: all of action_dim
    )
    action_levels: int = 2  # values a quantised channel; action_levels ** channels codes in all
    encoder: typing.Literal["pair", "space_time"] = (
        "pair"  # pair: convolutions over two frames, blind to where things are
    )

    def __post_init__(self):
        super().__post_init__()
        check(self.action_dim > 0, f"action_dim must be positive, not {self.action_dim}")
        check(
            0 <= self.action_channels <= self.action_dim,
            f"action_channels must be from 0 (all) to action_dim={self.action_dim}, not "
            f"{self.action_channels}",
        )
        check(self.action_levels >= 2, f"action_levels must be at least 2, not {self.action_levels}")
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


class LatentActions(InventsActions, System):
    name = "latent_actions"
    Config = LatentActionsConfig
    PRESETS: typing.ClassVar = {
        "small": {
            "context_frames": 1,
            "sequence_length": 2,
            "steps": 3000,
            "batch_size": 32,
            "lr_schedule": "cosine",
            "ema_decay": 0.995,
            "eval_horizon": 16,
        },
        "demo": {
            "context_frames": 1,
            "sequence_length": 2,
            "steps": 1000,
            "batch_size": 16,
            "lr_schedule": "cosine",
            "ema_decay": 0.99,
            "eval_horizon": 16,
        },
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
        c = config
        if c.encoder == "pair":
            self.encoder = ConvTokenizer(3, (32, 64), 1, c.embed_dim, c.patch_size, "none", "silu")
        else:
            self.look = PatchEmbedding(c.patches, 2 * c.patch_values, c.embed_dim)
            self.encoder = SpaceTimeTransformer(*c.transformer)
        self.to_action = nn.Linear(c.embed_dim, c.channels)
        self.whiten = Whitening(c.channels)
        self.fsq = FSQ(c.channels, c.action_levels)
        self.widen = nn.Linear(c.channels, c.action_dim) if c.action_channels else nn.Identity()
        self.action_space = self.fsq.size
        self.embed = PatchEmbedding(c.patches, c.patch_values, c.embed_dim)
        self.act = nn.Linear(c.action_dim, c.embed_dim)
        self.decoder = SpaceTimeTransformer(*c.transformer, condition_dim=c.embed_dim)
        self.head = nn.Linear(c.embed_dim, c.patch_values)
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)
        self.register_buffer("mean", torch.zeros(c.patches, c.patch_values))

    @classmethod
    def fit_config(cls, config, dataset):
        config = super().fit_config(config, dataset)
        return dataclasses.replace(config, split=config.split or common_split(dataset))

    def needs(self):
        return Needs(window=self.config.sequence_length, context=self.config.context_frames)

    def prepare(self, frames, frames_y=None):
        self.mean.copy_(to_patches(to_float(frames).median(0).values, self.config.patch_size))

    def optimizers(self):
        return {
            "model": adam(
                self.parameters(), self.config.lr, (0.9, self.config.beta2), self.config.weight_decay
            )
        }

    # ---- frames <-> actions

    def encode(self, frames):
        """Frames float `[B, T, 3, H, W]` -> quantised values `[B, T-1, channels]` in [-1, 1]."""
        if self.config.encoder == "pair":
            x, _ = self.encoder((frames[:, 1:] - frames[:, :-1]).flatten(0, 1))  # [B*(T-1), E, h, w]
            x = (
                x.flatten(2).amax(2).unflatten(0, (len(frames), -1))
            )  # [B, T-1, E]; the largest: what acts is in few places
        else:
            patches = to_patches(frames, self.config.patch_size) - self.mean
            pairs = torch.cat([patches[:, 1:], patches[:, 1:] - patches[:, :-1]], -1)
            x = self.encoder(self.look(pairs))[0].amax(2)
        return self.fsq(self.whiten(self.to_action(x)))

    def infer_actions(self, frames):
        return self.fsq.codes(self.encode(frames))

    def latents(self, codes):
        """Codes int64 `[...]` -> latent actions `[..., L]`."""
        return self.widen(self.fsq.latents(codes))

    def _next(self, patches, actions, past=None):
        """Patches minus their mean `[B, T, P, 3pp]`, latent actions `[B, T, L]` -> (those of the next frames,
        past).
        """
        action = self.act(actions)
        x, past = self.decoder(self.embed(patches) + action[:, :, None], action, past)
        return patches + self.head(x), past

    # ---- training

    def loss(self, batch):
        patches = to_patches(batch["frames"], self.config.patch_size) - self.mean
        actions = self.encode(batch["frames"])
        drawn, _ = self._next(patches[:, :-1], self.widen(actions))
        first = min(
            1, self.config.context_frames - 1
        )  # with a past, from two frames on: one shows no movement
        loss = F.mse_loss(drawn[:, first:], patches[:, first + 1 :])
        logs = {"mse": loss} | spread("action", actions) | statistics("output", drawn)
        return Loss(loss, logs)

    def evaluate(self, dataset, starts):
        """codebook_use, codebook_perplexity; action_labels: what each code is called, where recorded actions
        tell.
        """
        codes, true = [], []
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
        """For each code the recorded action that it goes along with most, as if all actions were equally
        frequent.
        """
        count = int(actions.max()) + 1
        table = torch.bincount((codes * count + actions).flatten(), minlength=self.action_space * count).view(
            -1, count
        )
        share = table / table.sum(0).clamp(min=1)
        share = share / share.sum(1, keepdim=True).clamp(min=1e-9)
        best = share.max(1)
        return [
            f"{names[i] if names else i} {s:.0%}" if s else "unused"
            for s, i in zip(best.values.tolist(), best.indices.tolist(), strict=True)
        ]

    def alarms(self, figures):
        dead = round((1 - figures.get("codebook_use", 1)) * self.action_space)
        lines = (
            [f"{dead} of {self.action_space} action codes are never used: use fewer, or train longer"]
            if dead
            else []
        )
        return lines + spread_alarms(figures, "action")

    # ---- generation

    def _start(self, context, generator):
        patches = to_patches(context, self.config.patch_size) - self.mean
        past = None
        if patches.shape[1] > 1:
            _, past = self._next(patches[:, :-1], self.widen(self.encode(context)))
        return patches[:, -1:], past

    def step(self, state, action=None):
        c, (patches, past) = self.config, state
        patches, past = self._next(patches, self.latents(action)[:, None], past)
        frame = to_frames(patches[:, 0] + self.mean, c.patch_size, c.height, c.width).clamp(-1, 1)
        return (to_patches(frame[:, None], c.patch_size) - self.mean, past), frame
