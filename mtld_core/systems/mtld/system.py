"""MTLD: one image in, a sequence out, by a walk through latent space.

Source: the text "MTLD, modele a trajectoire latente deterministe". An encoder turns the priming frames into
z_k and a GRU's initial state. The GRU feeds its own output back and emits z_k+1 .. z_T, each of which the
decoder turns into a frame; a patch discriminator says how real those look. L latent size, Z a latent (`L`, or
`L, h, w` of a latent map), n decoded frames a window; other letters as in base.py.
"""

import dataclasses
import math
import typing

import torch
import torch.nn.functional as F

from mtld_core import metrics
from mtld_core.chance import keyed_uniform
from mtld_core.config import AtLeastTwo, BelowOne, NotNegative, Positive, PositiveShare, Share, Widths, check
from mtld_core.frames import to_float, to_uint8
from mtld_core.nn.conv import NormKind, erases
from mtld_core.nn.gan import (
    PatchDiscriminator,
    check_discriminator,
    lsgan_discriminator_loss,
    lsgan_generator_loss,
)
from mtld_core.nn.perceptual import LPIPS, load_trunk
from mtld_core.nn.precision import in_fp32
from mtld_core.systems.base import FrameSize, Loss, Needs, Place, System, adam
from mtld_core.systems.mtld.film import SAMPLE, Components, components_for
from mtld_core.systems.mtld.nets import (
    ConvEncoder,
    ShuffleDecoder,
    Trajectory,
    UpDecoder,
    feature_matching_loss,
)

PIECE = 16  # frames that a rollout decodes in one pass
# what predicts unseen video best (docs/experiments/mtld.md has the table)
SMALL = {
    "latent": "map",
    "latent_dim": 32,
    "gru_hidden": 128,
    "gru_layers": 1,
    "encoder_channels": (32, 64, 128),
    "skip": "features",
    "steps": 20_000,
    "lr_schedule": "cosine",
}
# what the presets that learn all they are shown by heart share
BY_HEART = {
    "gru_layers": 1,
    "beta1": 0.9,
    "lambda_adv": 0.0,
    "lambda_fm": 0.0,
    "lr_schedule": "cosine",
    "restitution": True,
    "eval_every_steps": 0,
}


@dataclasses.dataclass(frozen=True)
class MTLDConfig(FrameSize):
    """The settings of MTLD."""

    sequence_length: AtLeastTwo[int] = 16  # T: the priming frames and those to predict
    context_frames: int = 1  # k: priming frames; one shows no movement
    # map: a vector a cell of the encoder's last grid, and a ConvGRU
    # components: how much a frame has of each of the film's principal components
    latent: typing.Literal["vector", "map", "components"] = "vector"
    latent_dim: NotNegative[int] = 256  # of components 0: as many as the film is long for
    gru_hidden: Positive[int] = 512
    gru_layers: Positive[int] = 2
    gru_gives: typing.Literal["latent", "change"] = "latent"  # the next latent, or the change to it
    # components: share of the training after which rolls fill the window; they begin with one frame
    grow_until: Share[float] = 0.0
    # components: a priming frame is taken for the film's frame that it is most like, if the film has no more
    # frames than so many; they are kept as latents
    places: NotNegative[int] = 0
    encoder_channels: Widths = (32, 64, 128, 256)  # each halves the picture
    encoder_norm: NormKind = "instance"
    decoder: typing.Literal["shuffle", "resize", "transposed"] = "shuffle"
    decoder_channels: Widths = (128,)  # shuffle: one width; else one a doubling
    decoder_blocks: NotNegative[int] = 2  # shuffle: residual blocks on the coarse grid
    decoder_norm: NormKind = "none"
    shuffle_factor: Positive[int] = 8  # shuffle: pixels a cell, along each side
    # shuffle: draw a change to the (moved) priming frame
    skip: typing.Literal["none", "features", "warp"] = "none"
    discriminator_channels: Widths = (32, 64, 128, 256)
    decode_frames: int = 4  # n: random frames of each window that are decoded and compared each step; 0: all
    rebuild_frames: PositiveShare[float] = 0.25  # share of those that are also decoded from their encoding
    lr_g: Positive[float] = 2e-4
    lr_d: Positive[float] = 4e-4
    beta1: BelowOne[float] = 0.5
    beta2: BelowOne[float] = 0.999
    weight_decay: NotNegative[float] = 0.0  # of the generator
    lambda_l1: NotNegative[float] = 100.0  # |decoded trajectory - truth|
    lambda_reconstruction: NotNegative[float] = 100.0  # |decoded encoding - truth|: what teaches the encoder
    lambda_latent: NotNegative[float] = 150.0  # (trajectory - encoding)^2, the encoding detached
    lambda_lpips: NotNegative[float] = 10.0
    lambda_adv: NotNegative[float] = 1.0
    lambda_fm: NotNegative[float] = 10.0  # feature matching
    lambda_temporal: NotNegative[float] = 0.0  # a second discriminator, which sees two frames in a row
    perceptual: typing.Literal["vgg", "none"] = "vgg"
    lpips_frames: PositiveShare[float] = 0.0625  # share of a batch's decoded frames that LPIPS sees
    lpips_weights: str = ""  # a file with VGG16's convolutions; "": torch's cache, or a download

    def __post_init__(self):
        super().__post_init__()
        self._check_lengths()
        if self.latent == "components":
            self._check_components()
            return
        check(self.latent_dim > 0, "latent_dim must be positive, except with latent='components'")
        check(not self.grow_until, "grow_until needs latent='components'")
        check(not self.places, "places needs latent='components'")
        self._check_decoder()
        self._check_sizes()
        check(
            any(self.weights.values()),
            "all weights of the loss are 0, so nothing would be learned: give lambda_l1, or another "
            "lambda_..., a positive weight",
        )

    def _check_lengths(self):
        check(
            1 <= self.context_frames < self.sequence_length,
            f"context_frames must be from 1 to sequence_length - 1, not {self.context_frames}",
        )
        check(
            0 <= self.decode_frames <= self.future,
            f"decode_frames must be from 0 (all) to {self.future} (the frames to predict), not "
            f"{self.decode_frames}",
        )
        check(
            self.lambda_temporal == 0 or self.decoded > 1,
            "lambda_temporal needs decode_frames of at least 2: its discriminator sees two frames in a row",
        )

    def _check_components(self):
        zeros = [f"{name}=0" for name, value in vars(self).items() if name.startswith("lambda_") and value]
        check(
            not zeros,
            f"latent='components' has a loss of its own and no weights of others: give {', '.join(zeros)}",
        )
        check(self.places <= SAMPLE, f"places must be at most {SAMPLE}, not {self.places}")

    def _check_decoder(self):
        if self.decoder == "shuffle":
            widths = list(self.decoder_channels)
            check(len(widths) == 1, f"decoder='shuffle' takes one width in decoder_channels, not {widths}")
        else:
            check(self.skip == "none", f"skip={self.skip!r} needs decoder='shuffle'")
        field = "shuffle_factor" if self.decoder == "shuffle" else "decoder_channels"
        check(
            self.latent == "vector" or self.upscale == self.downscale,
            f"latent='map' needs a decoder that enlarges ({self.upscale} times) as much as the encoder "
            f"shrinks ({self.downscale} times); change {field} or encoder_channels",
        )

    def _check_sizes(self):
        factor = math.lcm(self.downscale, self.upscale)
        self.check_divisible(factor, "extract the frames at such a size, or use fewer encoder_channels")
        if self.adversarial or self.lambda_temporal:
            check_discriminator(self, "lambda_adv=0, lambda_fm=0 and lambda_temporal=0")
        if self.decoder == "shuffle" and self.decoder_blocks:
            grid = self.height // self.shuffle_factor, self.width // self.shuffle_factor
            check(
                not erases(self.decoder_norm, *self.decoder_channels, *grid),
                f"frames of one cell (shuffle_factor={self.shuffle_factor}) leave nothing to decoder_norm="
                f"{self.decoder_norm!r}; use a smaller shuffle_factor, or decoder_norm='none'",
            )

    @property
    def downscale(self):
        """How many times the encoder shrinks a side of the picture."""
        return 2 ** len(self.encoder_channels)

    @property
    def upscale(self):
        """How many times the decoder enlarges a side of its first map."""
        return self.shuffle_factor if self.decoder == "shuffle" else 2 ** len(self.decoder_channels)

    @property
    def future(self):
        """Frames of a window to predict."""
        return self.sequence_length - self.context_frames

    @property
    def decoded(self):
        """n: predicted frames of a window that are decoded."""
        return self.decode_frames or self.future

    @property
    def adversarial(self):
        """Whether there is a discriminator of single frames."""
        return self.lambda_adv > 0 or self.lambda_fm > 0

    @property
    def weights(self):
        """dict term of the generator's loss -> its weight."""
        return {
            "l1": self.lambda_l1,
            "reconstruction": self.lambda_reconstruction,
            "latent": self.lambda_latent,
            "lpips": self.lambda_lpips if self.perceptual == "vgg" else 0,
            "adversarial": self.lambda_adv,
            "feature_matching": self.lambda_fm,
            "adversarial_temporal": self.lambda_temporal,
        }


class MTLD(System):
    """MTLD: priming frames in, a sequence out, by a walk through latent space."""

    name = "mtld"
    Config = MTLDConfig
    PRESETS: typing.ClassVar = {
        "small": SMALL,
        # wide enough to keep a large card busy; never trained
        "gpu": SMALL
        | {
            "gru_hidden": 512,
            "encoder_channels": (128, 256, 512),
            "decoder_channels": (512,),
            "discriminator_channels": (128, 256, 512, 512),
            "batch_size": 32,
        },
        # learns the bundled clip by heart in a few minutes on two CPU cores, at 64x64
        "demo": BY_HEART
        | {
            "encoder_channels": (16, 32, 64, 128),
            "gru_hidden": 256,
            "decoder_channels": (64,),
            "decoder_blocks": 1,
            "lambda_latent": 10.0,
            "perceptual": "none",
            "lr_g": 2e-3,
            "clip_norm": 100.0,
            "ema_decay": 0.99,
            "steps": 3000,
            "log_every_steps": 25,
            "preview_every_steps": 250,
        },
        # learns a film of many shots by heart, in some twenty minutes of one core at 64x96
        "series": BY_HEART
        | {
            "latent": "components",
            "latent_dim": 0,
            "gru_hidden": 768,
            "gru_gives": "change",
            "grow_until": 0.7,
            "places": SAMPLE,
            "lr_g": 3e-3,
            "weight_decay": 0.3,
            "lambda_l1": 0.0,
            "lambda_reconstruction": 0.0,
            "lambda_latent": 0.0,
            "lambda_lpips": 0.0,
            "ema_decay": 0.0,
            "steps": 8000,
            "log_every_steps": 50,
            "save_every_steps": 0,
            "preview_every_steps": 500,
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
        if config.latent == "components":
            self.encoder = Components(config)
            self.decoder = None
        else:
            self.encoder = ConvEncoder(config)
            self.decoder = ShuffleDecoder(config) if config.decoder == "shuffle" else UpDecoder(config)
        self.trajectory = Trajectory(config)
        self.discriminator = None
        self.temporal = None
        if config.adversarial:
            self.discriminator = PatchDiscriminator(config.discriminator_channels)
        if config.lambda_temporal:
            self.temporal = PatchDiscriminator(config.discriminator_channels, in_channels=6)
        self.frozen = {}  # networks of the loss: a dict, so that no checkpoint and no optimizer sees them

    # ---- training

    @classmethod
    def fit_config(cls, config, dataset):
        config = super().fit_config(config, dataset)
        count = sum(len(domain.frames) for domain in dataset.domains)
        return dataclasses.replace(
            config,
            latent_dim=config.latent_dim or components_for(count),
            places=count if count <= config.places else 0,
        )

    def needs(self):
        window, context = self.config.sequence_length, self.config.context_frames
        if self.config.latent == "components":
            return Needs(window, context, sample=SAMPLE)
        return Needs(window, context)

    def prepare(self, frames, frames_y=None):
        if self.config.latent == "components":
            self.encoder.learn(frames)
        elif self.config.decoder == "shuffle" and self.config.skip == "none":
            self.decoder.mean.copy_(to_float(frames).mean(0))

    def setup_training(self, folder):
        if self.config.weights["lpips"]:
            self.frozen["lpips"] = LPIPS(load_trunk(self.config.lpips_weights)).to(self.device)

    def optimizers(self):
        c = self.config
        betas = c.beta1, c.beta2
        makers = [self.encoder, self.decoder, self.trajectory]
        ours = [parameter for maker in makers if maker for parameter in maker.parameters()]
        phases = {"generator": adam(ours, c.lr_g, betas, c.weight_decay)}
        if self.discriminator:
            phases["discriminator"] = adam(self.discriminator.parameters(), c.lr_d, betas)
        if self.temporal:
            phases["temporal"] = adam(self.temporal.parameters(), c.lr_d, betas)
        return phases

    def training_step(self, batches, step):
        for critic in self.discriminator, self.temporal:
            if critic:
                critic.iterate()
        loss = self.film_loss if self.config.latent == "components" else self.generator_loss
        made = step("generator", loss, batches[0])
        logs = made.logs
        if self.discriminator:
            logs |= step("discriminator", self.discriminator_loss, made.carry).logs
        if self.temporal:
            logs |= step("temporal", self.temporal_loss, made.carry).logs
        return logs

    def generator_loss(self, batch):
        """`Loss` of the encoder, trajectory and decoder. It carries "fake" and "real", `[B, n, 3, H, W]`."""
        c = self.config
        frames = batch["frames"]
        k = c.context_frames
        picked = self._pick(batch["key"])  # [B, n]
        size, n = picked.shape
        rows = torch.arange(size, device=frames.device)[:, None]
        real = frames[rows, picked + k]  # [B, n, 3, H, W]

        m = max(1, round(c.rebuild_frames * n))  # the first m of the n are also rebuilt
        z = self._encode(torch.cat([frames[:, :k], real[:, :m]], 1))  # [B, k+m, Z]
        z_given, z_rebuilt = z.split([k, m], 1)
        z_real = z_rebuilt.detach()
        if m < n:
            with torch.no_grad():
                z_real = torch.cat([z_real, self._encode(real[:, m:])], 1)
        z_fake = self.trajectory(z_given, c.future)[rows, picked]  # [B, n, Z]
        drawn = self.decoder(torch.cat([z_fake, z_rebuilt], 1).flatten(0, 1), frames[:, k - 1])
        fake, rebuilt = drawn.unflatten(0, (size, n + m)).split([n, m], 1)

        logs = {
            "l1": F.l1_loss(fake, real),
            "reconstruction": F.l1_loss(rebuilt, real[:, :m]),
            "latent": F.mse_loss(z_fake, z_real),
        }
        if "lpips" in self.frozen:
            logs["lpips"] = self._lpips(fake, real, batch.get("place", Place(0, size)))
        if self.discriminator:
            logits, features = self.discriminator(fake.flatten(0, 1))
            with torch.no_grad():
                _, real_features = self.discriminator(real.flatten(0, 1))
            logs["adversarial"] = lsgan_generator_loss(logits)
            logs["feature_matching"] = feature_matching_loss(features, real_features)
        if self.temporal:
            logits, _ = self.temporal(_pairs(fake))
            logs["adversarial_temporal"] = lsgan_generator_loss(logits)
        weights = c.weights
        total = sum(weights[name] * value for name, value in logs.items())
        return Loss(total, logs, {"fake": fake, "real": real})

    def film_loss(self, batch):
        """`Loss` of latents that are components of the film: the log of each frame's squared error.

        This is what PSNR counts: a frame that is nearly right still gains by what is left. Squared errors of
        pixels are weighed squares of latents, so no frame is decoded.
        """
        frames = batch["frames"]
        z = self._encode(frames)  # [B, T, L]
        lost = self.encoder.lost(frames.flatten(0, 1), z.flatten(0, 1)).view(z.shape[:2])
        made, meant = self.trajectory.from_many(z, self.config.context_frames, self.reach)  # [m, B, L]
        squares = (in_fp32(made) - z[:, meant].transpose(0, 1)).square()
        errors = (squares * self.encoder.weights).sum(2) + lost[:, meant].T  # of a frame's pixels, their mean
        log = errors.log().mean()
        return Loss(log, {"log_error": log, "error": errors.mean()})

    @property
    def steps_are_alike(self):
        return self.config.latent != "components"  # whose rolls grow

    @property
    def reach(self):
        """Frames that rolls go in training: 1, then longer and longer, until they fill a window.

        What follows from one frame is soon learned; errors that add up over a long roll teach little before.
        They grow by the same share in equal times.
        """
        future, until = self.config.future, self.config.grow_until
        if self.progress >= until:
            return future
        return int(future ** (self.progress / until))

    def _encode(self, frames):
        """`[B, t, 3, H, W]` -> `[B, t, Z]`."""
        return self.encoder(frames.flatten(0, 1)).unflatten(0, frames.shape[:2])

    def _pick(self, keys):
        """Choose the predicted frames that are decoded and compared: keys `[B]` -> `[B, n]` of 0 .. future-1.

        They are in random order, or n in a row where a discriminator sees neighbours together. The trajectory
        runs through the whole window in any case.
        """
        n, future = self.config.decoded, self.config.future
        if self.temporal is None:
            return keyed_uniform(keys, "decode_frames", future).argsort(1)[:, :n]
        first = (keyed_uniform(keys, "decode_frames", 1) * (future - n + 1)).long()
        return first + torch.arange(n, device=first.device)

    def _lpips(self, fake, real, place):
        """The mean LPIPS over a share of all decoded frames of the batch, 0-dim.

        fake, real: `[B, n, 3, H, W]`, the part of the batch that lies at `place`. The frames that count lie
        evenly over the batch, so that each window has as many of them, give or take one.
        """
        size, n = fake.shape[:2]
        decoded = n * place.size  # of the whole batch
        shown = max(1, round(self.config.lpips_frames * decoded))  # frame i of these is i * decoded // shown
        first = math.ceil(shown * place.first / place.size)
        last = math.ceil(shown * (place.first + size) / place.size)
        if first == last:
            return in_fp32(fake.new_zeros(()))
        numbers = torch.arange(first, last, device=fake.device) * decoded // shown - place.first * n
        distances = self.frozen["lpips"](fake.flatten(0, 1)[numbers], real.flatten(0, 1)[numbers])
        return distances.sum() * (place.size / (size * shown))

    def discriminator_loss(self, batch):
        """`Loss` of the discriminator of single frames. batch: what `generator_loss` carries."""
        logits, _ = self.discriminator(torch.cat([batch["real"], batch["fake"]]).flatten(0, 1))
        loss = lsgan_discriminator_loss(*logits.chunk(2))
        return Loss(loss, {"discriminator": loss})

    def temporal_loss(self, batch):
        """`Loss` of the discriminator of two frames in a row. batch: what `generator_loss` carries."""
        logits, _ = self.temporal(_pairs(torch.cat([batch["real"], batch["fake"]])))
        loss = lsgan_discriminator_loss(*logits.chunk(2))
        return Loss(loss, {"temporal": loss})

    def evaluate(self, dataset, starts):
        """reconstruction_psnr: dB of decode(encode(x)) on held-out frames, the trajectory's ceiling."""
        c = self.config
        found = []
        for part in starts.split(32):
            given = dataset.frames[part + c.context_frames - 1].to(self.device)
            real = dataset.frames[part + c.sequence_length - 1].to(self.device)
            rebuilt = self._draw(self.encoder(to_float(real)), to_float(given))
            found.append(metrics.psnr(metrics.mse(to_uint8(rebuilt), real)))
        return {"reconstruction_psnr": torch.cat(found).mean().item()}

    # ---- generation

    def _start(self, context, generator):
        z = self._encode(context)
        if self.config.places:
            found = [self.encoder.find(picture) for picture in context.flatten(0, 1).split(1)]
            z = torch.cat(found).view_as(z)
        return z[:, -1], self.trajectory.start(z), context[:, -1]

    def step(self, state, action=None):
        z, hidden, given = state
        z, hidden = self.trajectory.step(z, hidden)
        return (z, hidden, given), self._draw(z, given)

    def rollout(self, context, num_frames, actions=None, generator=None):
        z, hidden, given = self.start(context, generator)
        for first in range(0, num_frames, PIECE):
            path, hidden = self.trajectory.go_on(z, hidden, min(PIECE, num_frames - first))
            z = path[:, -1]
            yield self._draw(path.flatten(0, 1), given).unflatten(0, path.shape[:2])

    def _draw(self, z, given):
        """Latents `[N, Z]` -> pictures `[N, 3, H, W]`. given: see `ShuffleDecoder`."""
        return self.encoder.draw(z) if self.decoder is None else self.decoder(z, given)


def _pairs(clips):
    """Clips `[B, n, 3, H, W]` -> every two neighbours as a picture of six channels, `[B*(n-1), 6, H, W]`."""
    return torch.cat([clips[:, :-1], clips[:, 1:]], 2).flatten(0, 1)
