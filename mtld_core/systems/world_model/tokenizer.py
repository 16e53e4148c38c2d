"""Video tokenizer: patches -> space-time transformer -> L numbers a patch, perhaps quantised -> transformer
-> pixels.

Letters: B batch, T frames, P patches a frame, L latent channels, p pixels along a patch's side.
"""

import dataclasses
import typing

import torch
import torch.nn.functional as F
from torch import nn

from mtld_core.chance import keyed_normal
from mtld_core.config import check
from mtld_core.frames import to_float
from mtld_core.systems.base import Loss, Needs, Reconstructs, System, adam
from mtld_core.systems.world_model.patches import PatchEmbedding, to_frames, to_patches
from mtld_core.systems.world_model.quantise import FSQ
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
class TokenizerConfig(StageConfig):
    latent_dim: int = 16  # L
    quantise: typing.Literal["none", "fsq"] = "none"
    levels: int = 4  # fsq: values a channel; levels ** latent_dim codes in all
    latent_noise: float = (
        0.05  # none: what is added to latents in (-1, 1) in training, so that near ones look alike
    )

    def __post_init__(self):
        super().__post_init__()
        check(self.latent_dim > 0, f"latent_dim must be positive, not {self.latent_dim}")
        check(self.levels >= 2, f"levels must be at least 2, not {self.levels}")
        check(
            self.quantise == "none" or self.levels**self.latent_dim <= MOST_CODES,
            f"levels={self.levels} in latent_dim={self.latent_dim} channels make "
            f"{self.levels**self.latent_dim} codes; "
            f"{MOST_CODES} are the most; use fewer of either (4 in 5 channels make 1024)",
        )
        check(self.latent_noise >= 0, f"latent_noise must not be negative, it is {self.latent_noise}")


class Tokenizer(Reconstructs, System):
    name = "tokenizer"
    Config = TokenizerConfig
    PRESETS: typing.ClassVar = {
        # a game at 64x64 in a quarter of an hour on two cores
        "small": {
            "steps": 4000,
            "batch_size": 4,
            "sequence_length": 4,
            "lr_schedule": "cosine",
            "ema_decay": 0.995,
        },
        "demo": {
            "steps": 1500,
            "batch_size": 4,
            "sequence_length": 4,
            "lr_schedule": "cosine",
            "ema_decay": 0.99,
        },
        # codes for masked dynamics
        "codes": {
            "quantise": "fsq",
            "latent_dim": 5,
            "steps": 6000,
            "batch_size": 4,
            "sequence_length": 4,
            "lr_schedule": "cosine",
            "ema_decay": 0.995,
        },
        "original": ORIGINAL | {"sequence_length": 4, "latent_noise": 0.0},
        "tiny": TINY | {"latent_dim": 4},
    }

    def __init__(self, config):
        super().__init__(config)
        c = config
        self.embed = PatchEmbedding(c.patches, c.patch_values, c.embed_dim)
        self.encoder = SpaceTimeTransformer(*c.transformer)
        self.to_latent = nn.Linear(c.embed_dim, c.latent_dim)
        self.fsq = FSQ(c.latent_dim, c.levels) if c.quantise == "fsq" else None
        self.from_latent = PatchEmbedding(c.patches, c.latent_dim, c.embed_dim)
        self.decoder = SpaceTimeTransformer(*c.transformer)
        self.head = nn.Linear(c.embed_dim, c.patch_values)
        self.register_buffer(
            "mean", torch.zeros(c.patches, c.patch_values)
        )  # of all frames: what the head adds to

    @classmethod
    def fit_config(cls, config, dataset):
        config = super().fit_config(config, dataset)
        return dataclasses.replace(config, split=config.split or common_split(dataset))

    def needs(self):
        return Needs(window=self.config.sequence_length)

    def prepare(self, frames, frames_y=None):
        median = to_float(frames).median(0).values
        self.mean.copy_(to_patches(median, self.config.patch_size))

    def optimizers(self):
        return {
            "model": adam(
                self.parameters(), self.config.lr, (0.9, self.config.beta2), self.config.weight_decay
            )
        }

    # ---- frames <-> latents

    def encode(self, frames):
        """Frames float `[B, T, 3, H, W]` in [-1, 1] -> latents `[B, T, P, L]` in [-1, 1]; a frame's know
        those before.
        """
        return self._bound(self._encode(to_patches(frames, self.config.patch_size)))

    def decode(self, latents, past=None):
        """Latents `[B, T, P, L]` -> (frames `[B, T, 3, H, W]`, past), as `SpaceTimeTransformer` does."""
        c = self.config
        patches, past = self.decode_patches(latents, past)
        return to_frames(patches, c.patch_size, c.height, c.width), past

    def decode_patches(self, latents, past=None):
        x, past = self.decoder(self.from_latent(latents), past=past)
        return self.head(x) + self.mean, past

    def _encode(self, patches):
        x, _ = self.encoder(self.embed(patches - self.mean))
        return self.to_latent(x)

    def _bound(self, x):
        return torch.tanh(x) if self.fsq is None else self.fsq(x)

    # ---- training

    def loss(self, batch):
        c = self.config
        patches = to_patches(batch["frames"], c.patch_size)
        latents = self._bound(self._encode(patches))
        noisy = latents
        if self.fsq is None and c.latent_noise and self.training:
            noise = keyed_normal(batch["key"], "latent_noise", latents[0].numel())
            noisy = latents + c.latent_noise * noise.view_as(latents)
        rebuilt, _ = self.decode_patches(noisy)
        loss = F.mse_loss(rebuilt, patches)
        return Loss(loss, {"mse": loss} | spread("latent", latents) | statistics("output", rebuilt))

    def reconstruct(self, frames):
        return self.decode(self.encode(frames))[0].clamp(-1, 1)

    def evaluate(self, dataset, starts):
        """latent_variance (mean and least channel); codebook_use and codebook_perplexity of quantised
        latents.
        """
        latents = torch.cat([self.encode(frames) for _, frames in held_out(self, dataset, starts)])
        figures = {name: value.item() for name, value in spread("latent", latents).items()}
        return figures | (code_use(self.fsq.codes(latents), self.fsq.size) if self.fsq else {})

    def alarms(self, figures):
        few = figures.get("codebook_perplexity", 2) < 2
        return (
            spread_alarms(figures, "latent")
            + ["nearly all patches have the same code: the codebook has collapsed"] * few
        )
