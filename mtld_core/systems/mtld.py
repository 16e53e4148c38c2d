"""MTLD: one image in, a sequence out. An encoder, a GRU that walks through latent space, a decoder, a patch discriminator.

Source: sources text 1 (MTLD, "modele a trajectoire latente deterministe"). The first frame gives z_1 and the GRU's initial
state; the GRU feeds its own output back and emits z_2 .. z_T, each of which the decoder turns into a frame.
L latent size, n decoded frames a window; other letters as in base.py.
"""

import dataclasses
import math
import typing

import torch
import torch.nn.functional as F
from torch import nn

from mtld_core import metrics
from mtld_core.config import check
from mtld_core.frames import to_float, to_uint8
from mtld_core.nn.blocks import ConvEncoder, ShuffleDecoder, UpDecoder
from mtld_core.nn.gan import (
    PatchDiscriminator,
    feature_matching_loss,
    lsgan_discriminator_loss,
    lsgan_generator_loss,
)
from mtld_core.nn.perceptual import LPIPS, load_trunk
from mtld_core.runtime import keyed_uniform
from mtld_core.systems.base import Loss, Needs, System, adam


@dataclasses.dataclass(frozen=True)
class MTLDConfig:
    height: int = 0  # pixels; 0: the dataset's own size
    width: int = 0
    sequence_length: int = 16  # T: the priming frame and T-1 frames to predict
    latent_dim: int = 256
    gru_hidden: int = 512
    gru_layers: int = 2
    encoder_channels: tuple[int, ...] = (32, 64, 128, 256)  # each halves the picture
    encoder_norm: typing.Literal["instance", "group", "none"] = "instance"
    decoder: typing.Literal["shuffle", "resize", "transposed"] = "shuffle"
    decoder_channels: tuple[int, ...] = (128,)  # shuffle: one width; else one a doubling
    decoder_blocks: int = 2  # shuffle: residual blocks on the coarse grid
    decoder_norm: typing.Literal["instance", "group", "none"] = "none"
    shuffle_factor: int = 8  # shuffle: pixels a cell, along each side
    discriminator_channels: tuple[int, ...] = (32, 64, 128, 256)
    decode_frames: int = 4  # n: random frames of each window that are decoded and compared each step; 0: all
    lr_g: float = 2e-4
    lr_d: float = 4e-4
    beta1: float = 0.5
    beta2: float = 0.999
    lambda_l1: float = 100.0  # |decoded trajectory - truth|
    lambda_reconstruction: float = 100.0  # |decoded encoding - truth|: what the encoder learns from
    lambda_latent: float = 150.0  # (trajectory - encoding)^2, the encoding detached
    lambda_lpips: float = 10.0
    lambda_adv: float = 1.0
    lambda_fm: float = 10.0  # feature matching
    perceptual: typing.Literal["vgg", "none"] = "vgg"
    lpips_frames: float = 0.25  # share of the decoded frames that LPIPS sees, in (0, 1]
    lpips_weights: str = ""  # a file with VGG16's convolutions, where torch's cache has none

    def __post_init__(self):
        down, up = 2 ** len(self.encoder_channels), self.upscale
        for side in ("height", "width"):
            size, factor = getattr(self, side), math.lcm(down, up)
            check(size >= 0, f"{side} must be 0 (as the dataset) or positive, not {size}")
            check(size % factor == 0, f"{side}={size} is not divisible by {factor}; use {max(1, size // factor) * factor}, "
                  "extract the frames at such a size, or use fewer encoder_channels")  # fmt: skip
            least = 3 << (len(self.discriminator_channels) - 1)  # the last two convolutions take a pixel each
            check(not self.adversarial or size == 0 or size >= least,
                  f"{side}={size} is too small for so many discriminator_channels, which need {least} pixels; "
                  "use fewer, or lambda_adv=0 and lambda_fm=0")  # fmt: skip
        check(self.sequence_length >= 2, f"sequence_length must be at least 2, not {self.sequence_length}")
        check(0 < self.lpips_frames <= 1, f"lpips_frames must be in (0, 1], not {self.lpips_frames}")
        check(0 <= self.decode_frames < self.sequence_length,
              f"decode_frames must be from 0 (all) to sequence_length - 1, not {self.decode_frames}")  # fmt: skip
        check(self.decoder != "shuffle" or len(self.decoder_channels) == 1,
              f"decoder='shuffle' takes one width in decoder_channels, not {list(self.decoder_channels)}")  # fmt: skip
        for name in ("encoder_channels", "decoder_channels", "discriminator_channels"):
            check(min(getattr(self, name), default=0) > 0, f"{name} must list positive widths")
        for name in ("latent_dim", "gru_hidden", "gru_layers", "shuffle_factor", "lr_g", "lr_d"):
            check(getattr(self, name) > 0, f"{name} must be positive, not {getattr(self, name)}")

    @property
    def upscale(self):
        return self.shuffle_factor if self.decoder == "shuffle" else 2 ** len(self.decoder_channels)

    @property
    def adversarial(self):
        return self.lambda_adv > 0 or self.lambda_fm > 0


class Trajectory(nn.Module):
    """z_1 `[B, L]` -> z_2, z_3, ... by a GRU that reads its own output. The state is a list of `[B, hidden]`, one a layer."""

    def __init__(self, latent_dim, hidden, layers):
        super().__init__()
        self.init = nn.Sequential(nn.Linear(latent_dim, hidden), nn.ReLU(), nn.Linear(hidden, hidden))
        self.cells = nn.ModuleList([nn.GRUCell(hidden if i else latent_dim, hidden) for i in range(layers)])
        self.head = nn.Linear(hidden, latent_dim)

    def start(self, z):
        return [self.init(z)] * len(self.cells)

    def step(self, z, hidden):
        new, x = [], z
        for cell, h in zip(self.cells, hidden, strict=True):
            x = cell(x, h)
            new.append(x)
        return self.head(x), new

    def forward(self, z, length):
        """`[B, L]` -> `[B, length, L]`."""
        hidden, out = self.start(z), []
        for _ in range(length):
            z, hidden = self.step(z, hidden)
            out.append(z)
        return torch.stack(out, 1)


class MTLD(System):
    name = "mtld"
    Config = MTLDConfig
    PRESETS: typing.ClassVar = {
        "small": {"steps": 20_000, "lr_schedule": "cosine"},
        # learns the bundled clip by heart in a few minutes on two CPU cores, at 64x64
        "demo": {
            "encoder_channels": (16, 32, 64, 128), "gru_hidden": 256, "gru_layers": 1,
            "decoder_channels": (64,), "decoder_blocks": 1,
            "lambda_latent": 10.0, "lambda_adv": 0.0, "lambda_fm": 0.0, "perceptual": "none",
            "lr_g": 2e-3, "beta1": 0.9, "lr_schedule": "cosine", "clip_norm": 100.0, "ema_decay": 0.99,
            "restitution": True, "steps": 3000, "log_every_steps": 25, "eval_every_steps": 0, "preview_every_steps": 1000,
        },
        # the source's own values
        "original": {
            "height": 256, "width": 256, "encoder_channels": (64, 128, 256, 512, 1024, 1024),
            "decoder": "transposed", "decoder_channels": (1024, 1024, 512, 256, 128, 64), "decoder_norm": "instance",
            "discriminator_channels": (64, 128, 256, 512), "decode_frames": 0, "lpips_frames": 1.0,
            "batch_size": 2, "epochs": 100, "clip_norm": 0.0, "ema_decay": 0.0, "warmup_steps": 0,
        },
        # seconds, to see that everything runs
        "tiny": {
            "sequence_length": 4, "latent_dim": 8, "gru_hidden": 16, "encoder_channels": (8, 8, 8),
            "decoder_channels": (8,), "shuffle_factor": 4, "discriminator_channels": (8, 16), "decode_frames": 2,
            "perceptual": "none", "steps": 20, "batch_size": 2,
        },
    }  # fmt: skip

    def __init__(self, config):
        super().__init__(config)
        size = (config.height, config.width)
        self.encoder = ConvEncoder(*size, config.encoder_channels, config.latent_dim, config.encoder_norm)
        if config.decoder == "shuffle":
            self.decoder = ShuffleDecoder(*size, config.decoder_channels[0], config.latent_dim, config.shuffle_factor,
                                          config.decoder_blocks, config.decoder_norm)  # fmt: skip
        else:
            self.decoder = UpDecoder(*size, config.decoder_channels, config.latent_dim, config.decoder_norm, config.decoder)
        self.trajectory = Trajectory(config.latent_dim, config.gru_hidden, config.gru_layers)
        self.discriminator = PatchDiscriminator(config.discriminator_channels) if config.adversarial else None
        self.frozen = {}  # networks of the loss: a dict, so that no checkpoint and no optimizer sees them

    # ---- training

    def needs(self):
        return Needs(window=self.config.sequence_length)

    def prepare(self, frames):
        if self.config.decoder == "shuffle":
            self.decoder.mean.copy_(to_float(frames).mean(0))

    def setup_training(self):
        if self.config.perceptual != "none" and self.config.lambda_lpips > 0:
            self.frozen["lpips"] = LPIPS(load_trunk(self.config.lpips_weights)).to(self.device)

    def optimizers(self):
        c = self.config
        makers = [self.encoder, self.decoder, self.trajectory]
        phases = {"generator": adam((p for m in makers for p in m.parameters()), c.lr_g, (c.beta1, c.beta2))}
        if self.discriminator is not None:
            phases["discriminator"] = adam(self.discriminator.parameters(), c.lr_d, (c.beta1, c.beta2))
        return phases

    def training_step(self, batches, step):
        result = step("generator", self.generator_loss, batches[0])
        logs = result.logs
        if self.discriminator is not None:
            logs = logs | step("discriminator", self.discriminator_loss, result.carry).logs
        return logs

    def generator_loss(self, batch):
        c, frames = self.config, batch["frames"]
        size, future = len(frames), c.sequence_length - 1
        n = c.decode_frames or future
        # a random subset of the future is decoded; the trajectory always runs through the whole window
        picked = keyed_uniform(batch["key"], "decode_frames", future).argsort(1)[:, :n]  # [B, n] of 0 .. T-2
        real = frames[torch.arange(size, device=frames.device)[:, None], picked + 1].flatten(0, 1)  # [B*n, 3, H, W]
        z_first, z_real = self.encoder(torch.cat([frames[:, 0], real])).split([size, len(real)])
        path = self.trajectory(z_first, future)  # [B, T-1, L]
        z_fake = path.gather(1, picked[..., None].expand(-1, -1, c.latent_dim)).flatten(0, 1)  # [B*n, L]
        fake, rebuilt = self.decoder(torch.cat([z_fake, z_real])).chunk(2)

        logs = {
            "l1": F.l1_loss(fake, real),
            "reconstruction": F.l1_loss(rebuilt, real),
            "latent": F.mse_loss(z_fake, z_real.detach()),
        }
        total = c.lambda_l1 * logs["l1"] + c.lambda_reconstruction * logs["reconstruction"] + c.lambda_latent * logs["latent"]
        if "lpips" in self.frozen:
            shown = max(1, round(c.lpips_frames * n))  # the picks are in random order: the first ones are a fair sample
            fake_part, real_part = (x.unflatten(0, (size, n))[:, :shown].flatten(0, 1) for x in (fake, real))
            logs["lpips"] = self.frozen["lpips"](fake_part, real_part).mean()
            total = total + c.lambda_lpips * logs["lpips"]
        if self.discriminator is not None:
            logits, features = self.discriminator(fake)
            with torch.no_grad():
                _, real_features = self.discriminator(real)
            logs["adversarial"] = lsgan_generator_loss(logits)
            logs["feature_matching"] = feature_matching_loss(features, real_features)
            total = total + c.lambda_adv * logs["adversarial"] + c.lambda_fm * logs["feature_matching"]
        return Loss(total, logs, {"fake": fake.unflatten(0, (size, n)), "real": real.unflatten(0, (size, n))})

    def discriminator_loss(self, batch):
        fake, real = batch["fake"].flatten(0, 1), batch["real"].flatten(0, 1)
        logits, _ = self.discriminator(torch.cat([real, fake]))
        loss = lsgan_discriminator_loss(*logits.chunk(2))
        return Loss(loss, {"discriminator": loss})

    def evaluate(self, dataset, starts):
        """reconstruction_psnr: dB of decode(encode(x)) on held-out frames, the ceiling that the trajectory works under."""
        real = dataset.frames[starts + self.config.sequence_length - 1].to(self.device)
        rebuilt = torch.cat([to_uint8(self.decoder(self.encoder(to_float(part)))) for part in real.split(32)])
        return {"reconstruction_psnr": metrics.psnr(metrics.mse(rebuilt, real)).mean().item()}

    # ---- generation

    def _start(self, context, generator):
        z = self.encoder(context[:, -1])
        return z, self.trajectory.start(z)

    def step(self, state, action=None):
        z, hidden = self.trajectory.step(*state)
        return (z, hidden), self.decoder(z)

    def rollout(self, context, num_frames, actions=None, generator=None, piece=16):
        z, hidden = self.start(context, generator)
        for first in range(0, num_frames, piece):
            path = []
            for _ in range(min(piece, num_frames - first)):
                z, hidden = self.trajectory.step(z, hidden)
                path.append(z)
            yield self.decoder(torch.stack(path, 1).flatten(0, 1)).unflatten(0, (-1, len(path)))
