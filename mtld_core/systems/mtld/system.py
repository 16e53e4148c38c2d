"""MTLD: one image in, a sequence out. An encoder, a GRU that walks through latent space, a decoder, a patch
discriminator.

Source: sources text 1 (MTLD, "modele a trajectoire latente deterministe"). The priming frame gives z_k and
the GRU's initial state; the GRU feeds its own output back and emits z_k+1 .. z_T, each of which the decoder
turns into a frame. L latent size (Z stands for `L`, or `L, h, w` of a latent map), n decoded frames a window;
other letters as in base.py.
"""

import dataclasses
import math
import typing

import torch
import torch.nn.functional as F

from mtld_core import metrics
from mtld_core.chance import keyed_uniform
from mtld_core.config import check
from mtld_core.frames import to_float, to_uint8
from mtld_core.nn.conv import erases
from mtld_core.nn.gan import PatchDiscriminator, lsgan_discriminator_loss, lsgan_generator_loss
from mtld_core.nn.perceptual import LPIPS, load_trunk
from mtld_core.systems.base import Loss, Needs, Place, System, adam
from mtld_core.systems.mtld.nets import (
    ConvEncoder,
    ShuffleDecoder,
    Trajectory,
    UpDecoder,
    feature_matching_loss,
)


@dataclasses.dataclass(frozen=True)
class MTLDConfig:
    height: int = 0  # pixels; 0: the dataset's own size
    width: int = 0
    sequence_length: int = 16  # T: the priming frames and those to predict
    context_frames: int = 1  # k: priming frames; one shows no movement
    latent: typing.Literal["vector", "map"] = (
        "vector"  # map: one vector a cell of the encoder's last grid, and a ConvGRU
    )
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
    skip: typing.Literal["none", "features", "warp"] = (
        "none"  # shuffle: draw a change to the (moved) priming frame
    )
    discriminator_channels: tuple[int, ...] = (32, 64, 128, 256)
    decode_frames: int = 4  # n: random frames of each window that are decoded and compared each step; 0: all
    rebuild_frames: float = 0.25  # share of those that are also decoded from their own encoding, in (0, 1]
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
    lambda_temporal: float = 0.0  # a second discriminator, which sees two frames in a row
    perceptual: typing.Literal["vgg", "none"] = "vgg"
    lpips_frames: float = 0.0625  # share of a batch's decoded frames that LPIPS sees, in (0, 1]; one at least
    lpips_weights: str = ""  # a file with VGG16's convolutions; "": torch's cache, or a download

    def __post_init__(self):
        for name in ("latent_dim", "gru_hidden", "gru_layers", "shuffle_factor", "lr_g", "lr_d"):
            check(getattr(self, name) > 0, f"{name} must be positive, not {getattr(self, name)}")
        check(self.decoder_blocks >= 0, f"decoder_blocks must not be negative, it is {self.decoder_blocks}")
        down, up = 2 ** len(self.encoder_channels), self.upscale
        for side in ("height", "width"):
            size, factor = getattr(self, side), math.lcm(down, up)
            check(size >= 0, f"{side} must be 0 (as the dataset) or positive, not {size}")
            check(
                size % factor == 0,
                f"{side}={size} is not divisible by {factor}; use {max(1, size // factor) * factor}, "
                "extract the frames at such a size, or use fewer encoder_channels",
            )
            least = 3 << (len(self.discriminator_channels) - 1)  # the last two convolutions take a pixel each
            check(
                not (self.adversarial or self.lambda_temporal > 0) or size == 0 or size >= least,
                f"{side}={size} is too small for so many discriminator_channels, which need {least} pixels; "
                "use fewer, or lambda_adv=0, lambda_fm=0 and lambda_temporal=0",
            )
        check(self.sequence_length >= 2, f"sequence_length must be at least 2, not {self.sequence_length}")
        check(
            1 <= self.context_frames < self.sequence_length,
            f"context_frames must be from 1 to sequence_length - 1, not {self.context_frames}",
        )
        for name in ("lpips_frames", "rebuild_frames"):
            check(0 < getattr(self, name) <= 1, f"{name} must be in (0, 1], not {getattr(self, name)}")
        check(
            0 <= self.decode_frames <= self.future,
            f"decode_frames must be from 0 (all) to {self.future} (the frames to predict), not "
            f"{self.decode_frames}",
        )
        check(
            self.lambda_temporal == 0 or (self.decode_frames or self.future) > 1,
            "lambda_temporal needs decode_frames of at least 2: its discriminator sees two frames in a row",
        )
        check(
            self.latent == "vector" or up == down,
            f"latent='map' needs a decoder that enlarges ({up} times) as much as the encoder shrinks ({down} "
            "times); change "
            f"{'shuffle_factor' if self.decoder == 'shuffle' else 'decoder_channels'} or encoder_channels",
        )
        check(self.skip == "none" or self.decoder == "shuffle", f"skip={self.skip!r} needs decoder='shuffle'")
        check(
            self.decoder != "shuffle" or len(self.decoder_channels) == 1,
            f"decoder='shuffle' takes one width in decoder_channels, not {list(self.decoder_channels)}",
        )
        for name in ("encoder_channels", "decoder_channels", "discriminator_channels"):
            check(min(getattr(self, name), default=0) > 0, f"{name} must list positive widths")
        for name in ("beta1", "beta2"):
            check(0 <= getattr(self, name) < 1, f"{name} must be in [0, 1), not {getattr(self, name)}")
        for name in (field.name for field in dataclasses.fields(self) if field.name.startswith("lambda_")):
            check(getattr(self, name) >= 0, f"{name} must not be negative, it is {getattr(self, name)}")
        weights = (
            self.lambda_l1,
            self.lambda_reconstruction,
            self.lambda_latent,
            self.lambda_adv,
            self.lambda_fm,
        )
        check(
            any(weights) or self.lambda_temporal or (self.lambda_lpips and self.perceptual != "none"),
            "all weights of the "
            "loss are 0, so nothing would be learned: give lambda_l1, or another lambda_..., a positive "
            "weight",
        )
        if self.decoder == "shuffle" and self.decoder_blocks:
            cells = self.height // self.shuffle_factor, self.width // self.shuffle_factor
            check(
                not erases(self.decoder_norm, *self.decoder_channels, *cells),
                f"frames of one cell (shuffle_factor={self.shuffle_factor}) leave nothing to decoder_norm="
                f"{self.decoder_norm!r}; use a smaller shuffle_factor, or decoder_norm='none'",
            )

    @property
    def upscale(self):
        return self.shuffle_factor if self.decoder == "shuffle" else 2 ** len(self.decoder_channels)

    @property
    def future(self):
        return self.sequence_length - self.context_frames

    @property
    def adversarial(self):
        return self.lambda_adv > 0 or self.lambda_fm > 0


class MTLD(System):
    name = "mtld"
    Config = MTLDConfig
    PRESETS: typing.ClassVar = {
        # what predicts unseen video best (docs/systems/mtld.md has the table)
        "small": {
            "latent": "map",
            "latent_dim": 32,
            "gru_hidden": 128,
            "gru_layers": 1,
            "encoder_channels": (32, 64, 128),
            "skip": "features",
            "steps": 20_000,
            "lr_schedule": "cosine",
        },
        # learns the bundled clip by heart in a few minutes on two CPU cores, at 64x64
        "demo": {
            "encoder_channels": (16, 32, 64, 128),
            "gru_hidden": 256,
            "gru_layers": 1,
            "decoder_channels": (64,),
            "decoder_blocks": 1,
            "lambda_latent": 10.0,
            "lambda_adv": 0.0,
            "lambda_fm": 0.0,
            "perceptual": "none",
            "lr_g": 2e-3,
            "beta1": 0.9,
            "lr_schedule": "cosine",
            "clip_norm": 100.0,
            "ema_decay": 0.99,
            "restitution": True,
            "steps": 3000,
            "log_every_steps": 25,
            "eval_every_steps": 0,
            "preview_every_steps": 250,
        },
        # the source's own values
        "original": {
            "height": 256,
            "width": 256,
            "encoder_channels": (64, 128, 256, 512, 1024, 1024),
            "decoder": "transposed",
            "decoder_channels": (1024, 1024, 512, 256, 128, 64),
            "decoder_norm": "instance",
            "discriminator_channels": (64, 128, 256, 512),
            "decode_frames": 0,
            "lpips_frames": 1.0,
            "batch_size": 2,
            "epochs": 100,
            "clip_norm": 0.0,
            "ema_decay": 0.0,
            "warmup_steps": 0,
        },
        # seconds, to see that everything runs
        "tiny": {
            "sequence_length": 4,
            "latent_dim": 8,
            "gru_hidden": 16,
            "encoder_channels": (8, 8, 8),
            "decoder_channels": (8,),
            "shuffle_factor": 4,
            "discriminator_channels": (8, 16),
            "decode_frames": 2,
            "perceptual": "none",
            "steps": 20,
            "batch_size": 2,
        },
    }

    def __init__(self, config):
        super().__init__(config)
        c, size, as_map = config, (config.height, config.width), config.latent == "map"
        self.encoder = ConvEncoder(*size, c.encoder_channels, c.latent_dim, c.encoder_norm, as_map)
        if c.decoder == "shuffle":
            self.decoder = ShuffleDecoder(
                *size,
                c.decoder_channels[0],
                c.latent_dim,
                c.shuffle_factor,
                c.decoder_blocks,
                c.decoder_norm,
                as_map,
                c.skip,
            )
        else:
            self.decoder = UpDecoder(
                *size, c.decoder_channels, c.latent_dim, c.decoder_norm, c.decoder, as_map
            )
        self.trajectory = Trajectory(c.latent_dim, c.gru_hidden, c.gru_layers, c.context_frames, as_map)
        self.discriminator = PatchDiscriminator(c.discriminator_channels) if c.adversarial else None
        self.temporal = (
            PatchDiscriminator(c.discriminator_channels, in_channels=6) if c.lambda_temporal > 0 else None
        )
        self.frozen = {}  # networks of the loss: a dict, so that no checkpoint and no optimizer sees them

    # ---- training

    def needs(self):
        return Needs(window=self.config.sequence_length, context=self.config.context_frames)

    def prepare(self, frames, frames_y=None):
        if self.config.decoder == "shuffle" and self.config.skip == "none":
            self.decoder.mean.copy_(to_float(frames).mean(0))

    def setup_training(self, folder):
        if self.config.perceptual != "none" and self.config.lambda_lpips > 0:
            self.frozen["lpips"] = LPIPS(load_trunk(self.config.lpips_weights)).to(self.device)

    def optimizers(self):
        c = self.config
        makers = [self.encoder, self.decoder, self.trajectory]
        phases = {"generator": adam((p for m in makers for p in m.parameters()), c.lr_g, (c.beta1, c.beta2))}
        for name in ("discriminator", "temporal"):
            if (network := getattr(self, name)) is not None:
                phases[name] = adam(network.parameters(), c.lr_d, (c.beta1, c.beta2))
        return phases

    def training_step(self, batches, step):
        for judge in filter(None, (self.discriminator, self.temporal)):
            judge.iterate()
        result = step("generator", self.generator_loss, batches[0])
        logs = result.logs
        if self.discriminator is not None:
            logs = logs | step("discriminator", self.discriminator_loss, result.carry).logs
        if self.temporal is not None:
            logs = logs | step("temporal", self.temporal_loss, result.carry).logs
        return logs

    def _encode(self, frames):
        """`[B, t, 3, H, W]` -> `[B, t, Z]`."""
        return self.encoder(frames.flatten(0, 1)).unflatten(0, frames.shape[:2])

    def _pick(self, keys):
        """Which predicted frames are decoded and compared: `[B, n]` of 0 .. future-1.

        In random order; where two neighbours are judged together, in a row. The trajectory runs through the
        whole window in any case.
        """
        future = self.config.future
        n = self.config.decode_frames or future
        if self.temporal is None:
            return keyed_uniform(keys, "decode_frames", future).argsort(1)[:, :n]
        first = (keyed_uniform(keys, "decode_frames", 1) * (future - n + 1)).long()
        return first + torch.arange(n, device=first.device)

    def generator_loss(self, batch):
        c, frames = self.config, batch["frames"]
        size, k, picked = len(frames), c.context_frames, self._pick(batch["key"])
        n, rows = picked.shape[1], torch.arange(len(frames), device=frames.device)[:, None]
        m = max(1, round(c.rebuild_frames * n))  # of the n, the first m are also rebuilt
        real = frames[rows, picked + k]  # [B, n, 3, H, W]
        z = self._encode(torch.cat([frames[:, :k], real[:, :m]], 1))  # [B, k+m, Z]
        z_real = z[:, k:].detach()
        if m < n:
            with torch.no_grad():
                z_real = torch.cat([z_real, self._encode(real[:, m:])], 1)
        z_fake = self.trajectory(z[:, :k], c.future)[rows, picked]  # [B, n, Z]
        drawn = self.decoder(torch.cat([z_fake, z[:, k:]], 1).flatten(0, 1), frames[:, k - 1])
        fake, rebuilt = drawn.unflatten(0, (size, n + m)).split([n, m], 1)

        logs = {
            "l1": F.l1_loss(fake, real),
            "reconstruction": F.l1_loss(rebuilt, real[:, :m]),
            "latent": F.mse_loss(z_fake, z_real),
        }
        total = (
            c.lambda_l1 * logs["l1"]
            + c.lambda_reconstruction * logs["reconstruction"]
            + c.lambda_latent * logs["latent"]
        )
        if "lpips" in self.frozen:
            logs["lpips"] = self._lpips(fake, real, batch.get("place", Place(0, size)))
            total = total + c.lambda_lpips * logs["lpips"]
        if self.discriminator is not None:
            logits, features = self.discriminator(fake.flatten(0, 1))
            with torch.no_grad():
                _, real_features = self.discriminator(real.flatten(0, 1))
            logs["adversarial"] = lsgan_generator_loss(logits)
            logs["feature_matching"] = feature_matching_loss(features, real_features)
            total = total + c.lambda_adv * logs["adversarial"] + c.lambda_fm * logs["feature_matching"]
        if self.temporal is not None:
            logs["adversarial_temporal"] = lsgan_generator_loss(self.temporal(_pairs(fake))[0])
            total = total + c.lambda_temporal * logs["adversarial_temporal"]
        return Loss(total, logs, {"fake": fake, "real": real})

    def _lpips(self, fake, real, place):
        """The mean over a share of all decoded frames of the batch, of which `[B, n, 3, H, W]` are those from
        `place` on.

        They lie evenly over the batch, so that each window has as many, give or take one.
        """
        (size, n), everything = fake.shape[:2], fake.shape[1] * place.size
        shown = max(
            1, round(self.config.lpips_frames * everything)
        )  # frame i of them is number i * everything // shown
        first, last = (-(-row * n * shown // everything) for row in (place.first, place.first + size))
        if first == last:
            return fake.new_zeros((), dtype=torch.promote_types(fake.dtype, torch.float32))
        numbers = torch.arange(first, last, device=fake.device) * everything // shown - place.first * n
        distances = self.frozen["lpips"](*(x.flatten(0, 1)[numbers] for x in (fake, real)))
        return distances.sum() * (place.size / (size * shown))

    def discriminator_loss(self, batch):
        logits, _ = self.discriminator(torch.cat([batch["real"], batch["fake"]]).flatten(0, 1))
        loss = lsgan_discriminator_loss(*logits.chunk(2))
        return Loss(loss, {"discriminator": loss})

    def temporal_loss(self, batch):
        logits, _ = self.temporal(_pairs(torch.cat([batch["real"], batch["fake"]])))
        loss = lsgan_discriminator_loss(*logits.chunk(2))
        return Loss(loss, {"temporal": loss})

    def evaluate(self, dataset, starts):
        """reconstruction_psnr: dB of decode(encode(x)) on held-out frames, the ceiling that the trajectory
        works under.
        """
        found = []
        for part in starts.split(32):
            given, real = (
                dataset.frames[part + row].to(self.device)
                for row in (self.config.context_frames - 1, self.config.sequence_length - 1)
            )
            rebuilt = to_uint8(self.decoder(self.encoder(to_float(real)), to_float(given)))
            found.append(metrics.psnr(metrics.mse(rebuilt, real)))
        return {"reconstruction_psnr": torch.cat(found).mean().item()}

    # ---- generation

    def _start(self, context, generator):
        z = self._encode(context)
        return z[:, -1], self.trajectory.start(z), context[:, -1]

    def step(self, state, action=None):
        z, hidden, given = state
        z, hidden = self.trajectory.step(z, hidden)
        return (z, hidden, given), self.decoder(z, given)

    def rollout(self, context, num_frames, actions=None, generator=None, piece=16):
        z, hidden, given = self.start(context, generator)
        for first in range(0, num_frames, piece):
            path = []
            for _ in range(min(piece, num_frames - first)):
                z, hidden = self.trajectory.step(z, hidden)
                path.append(z)
            yield self.decoder(torch.stack(path, 1).flatten(0, 1), given).unflatten(0, (-1, len(path)))


def _pairs(clips):
    """`[B, n, 3, H, W]` -> every two neighbours as one picture of six channels, `[B*(n-1), 6, H, W]`."""
    return torch.cat([clips[:, :-1], clips[:, 1:]], 2).flatten(0, 1)
