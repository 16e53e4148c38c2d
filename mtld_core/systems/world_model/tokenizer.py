"""Video tokenizer: patches -> space-time transformer -> L numbers a patch -> transformer -> patches.

The numbers may be quantised to codes. Letters: B batch, T frames, P patches a frame, L latent channels, p
pixels along a patch's side.
"""

import dataclasses
import typing

import torch
from torch import nn

from mtld_core.chance import keyed_normal
from mtld_core.config import AtLeastTwo, NotNegative, Positive, check
from mtld_core.nn.conv import zeroed
from mtld_core.nn.moving import moving_weights
from mtld_core.systems.base import Loss, Needs, Reconstructs
from mtld_core.systems.world_model.patches import PatchEmbedding
from mtld_core.systems.world_model.quantise import FSQ
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

GAME = {"batch_size": 4, "sequence_length": 4, "lr_schedule": "cosine"}


@dataclasses.dataclass(frozen=True)
class TokenizerConfig(StageConfig):
    """The settings of the video tokenizer."""

    latent_dim: Positive[int] = 16  # L
    quantise: typing.Literal["none", "fsq"] = "none"
    levels: AtLeastTwo[int] = 4  # fsq: values a channel; levels ** latent_dim codes in all
    # none: standard deviation of noise on latents in training, so that near ones look alike
    latent_noise: NotNegative[float] = 0.05
    # by so much more the error weighs where the frame differs from the median frame
    moving_weight: NotNegative[float] = 0.0

    def __post_init__(self):
        super().__post_init__()
        codes = self.levels**self.latent_dim
        check(
            self.quantise == "none" or codes <= MOST_CODES,
            f"levels={self.levels} in latent_dim={self.latent_dim} channels make {codes} codes; {MOST_CODES} "
            "are the most; use fewer of either (4 in 5 channels make 1024)",
        )


class Tokenizer(Reconstructs, Stage):
    """The first stage of the world model, which turns frames into latents and back."""

    name = "tokenizer"
    Config = TokenizerConfig
    PRESETS: typing.ClassVar = {
        # a game at 64x64 in a quarter of an hour on two cores
        "small": GAME | {"steps": 4000, "ema_decay": 0.995},
        "gpu": GAME | GPU,
        "demo": GAME | {"steps": 1500, "ema_decay": 0.99},
        # codes for masked dynamics
        "codes": GAME
        | {"quantise": "fsq", "latent_dim": 5, "moving_weight": 20.0, "steps": 6000, "ema_decay": 0.995},
        "original": ORIGINAL | {"sequence_length": 4, "latent_noise": 0.0},
        "tiny": TINY | {"latent_dim": 4},
    }

    def __init__(self, config):
        super().__init__(config)
        c, width = config, config.embed_dim
        self.embed = PatchEmbedding(c.patches, c.patch_values, width)
        self.encoder = SpaceTimeTransformer(*c.transformer)
        self.to_latent = nn.Linear(width, c.latent_dim)
        self.fsq = FSQ(c.latent_dim, c.levels) if c.quantise == "fsq" else None
        self.from_latent = PatchEmbedding(c.patches, c.latent_dim, width)
        self.decoder = SpaceTimeTransformer(*c.transformer)
        self.head = zeroed(nn.Linear(width, c.patch_values))  # so it begins with the median frame
        self.register_buffer("mean", torch.zeros(c.patches, c.patch_values))  # what the head adds to

    def needs(self):
        return Needs(window=self.config.sequence_length)

    @property
    def median(self):
        """The training part's median frame, `[3, H, W]`."""
        return self._frames(self.mean)

    # ---- frames <-> latents

    def encode(self, frames, hold=0.0):
        """Frames float `[B, T, 3, H, W]` in [-1, 1] -> latents `[B, T, P, L]` in [-1, 1].

        A frame's latents depend on the frames before it, too. hold: of codes, how far beyond half a step a
        channel has to be from its value in the frame before to take another one.
        """
        x, _ = self.encoder(self.embed(self._patches(frames)))
        x = self.to_latent(x)
        return torch.tanh(x) if self.fsq is None else self.fsq(x, hold)

    def decode(self, latents, past=None):
        """Latents `[B, T, P, L]` and the past of those before -> (frames `[B, T, 3, H, W]`, the new past).

        past: see `SpaceTimeTransformer`. Frames are not clipped.
        """
        patches, past = self.decode_patches(latents, past)
        return self._frames(patches), past

    def decode_patches(self, latents, past=None):
        """Latents `[B, T, P, L]` and the past of those before -> (patches `[B, T, P, 3pp]`, the new past)."""
        x, past = self.decoder(self.from_latent(latents), past=past)
        return self.head(x) + self.mean, past

    # ---- training

    def loss(self, batch):
        """`Loss`: the squared error of the rebuilt frames, by `moving_weight`."""
        c = self.config
        frames = batch["frames"]
        latents = self.encode(frames)
        noisy = latents
        if self.fsq is None and c.latent_noise and self.training:
            noise = keyed_normal(batch["key"], "latent_noise", latents[0].numel())
            noisy = latents + c.latent_noise * noise.view_as(latents)
        rebuilt, _ = self.decode(noisy)
        error = (rebuilt - frames).square()
        if c.moving_weight:
            error = error * moving_weights(frames, rebuilt, self.median, c.moving_weight)
        loss = error.mean()
        return Loss(loss, {"mse": loss} | spread("latent", latents) | statistics(rebuilt))

    def reconstruct(self, frames):
        frames, _ = self.decode(self.encode(frames))
        return frames.clamp(-1, 1)

    def evaluate(self, dataset, starts):
        """latent_variance, latent_variance_least and, of codes, codebook_use and codebook_perplexity."""
        latents = torch.cat([self.encode(frames) for _, frames in held_out(self, dataset, starts)])
        figures = {name: value.item() for name, value in spread("latent", latents).items()}
        if self.fsq:
            figures |= code_use(self.fsq.codes(latents), self.fsq.size)
        return figures

    def alarms(self, figures):
        lines = spread_alarms(figures, "latent")
        if figures.get("codebook_perplexity", 2) < 2:
            lines.append("nearly all patches have the same code: the codebook has collapsed")
        return lines
