"""Weight RNN: a VAE whose weights are changed, image by image, by a GRU that watches a video of what the VAE
just made.

Source: sources text 2 (Weight RNN, "RNN weight prediction, generated video input"). The VAE draws an image;
slight changes that grow make a short video of it; the GRU reads the video and predicts changes of the VAE's
weights, with which the image is drawn again. A critic judges images by WGAN-GP.
L latent numbers, U numbers in an update vector, V frames of a synthetic video; other letters as in base.py.
"""

import dataclasses
import typing
from types import MappingProxyType

import torch
import torch.nn.functional as F
from torch import nn

from mtld_core import metrics
from mtld_core.chance import keyed_normal, keyed_uniform
from mtld_core.config import check, nearest
from mtld_core.frames import to_float, to_uint8
from mtld_core.systems.base import Loss, Needs, Reconstructs, Samples, System, adam
from mtld_core.systems.weight_rnn.hyper import VAE, LayerUpdate
from mtld_core.systems.weight_rnn.losses import (
    gaussian_kl,
    gradient_penalty,
    wasserstein_critic_loss,
    wasserstein_generator_loss,
)
from mtld_core.systems.weight_rnn.nets import Critic, WeightPredictor
from mtld_core.systems.weight_rnn.videos import noisy_video, still, synthetic_video

SMALL = {
    "latent_dim": 32,
    "encoder_channels": (16, 32, 64, 64),
    "decoder_channels": (64, 64, 32, 16),
    "lambda_kl": 0.02,
    "target_layers": ("stem", "decoder.0", "decoder.1"),
    "update_bound": 1.0,
    "video_frames": 2,
    "frame_channels": (16, 32, 32),
    "lr": 4e-3,
    "lr_predictor": 2e-3,
    "batch_size": 16,
    "ema_decay": 0.99,
    "lr_schedule": "cosine",
    "eval_every_steps": 0,
}
LEAST_KL = 0.05  # nats, below which a posterior is the prior


@dataclasses.dataclass(frozen=True)
class WeightRNNConfig:
    height: int = 0  # pixels; 0: the dataset's own size
    width: int = 0
    latent_dim: int = 64  # L
    encoder_channels: tuple[int, ...] = (32, 64, 128)  # each halves the image; the critic has the same
    decoder_channels: tuple[int, ...] = (128, 64, 32)  # each doubles it
    downsample: typing.Literal["stride", "pool"] = (
        "stride"  # 4x4 convolutions of stride 2; 3x3 ones and max-pooling
    )
    activation: typing.Literal["leaky_relu", "relu"] = "leaky_relu"  # of the encoder and of the critic
    critic_widths: tuple[int, ...] = ()  # of linear layers between the critic's convolutions and its score
    updates: bool = True  # false: no GRU, a plain VAE with a critic
    target_layers: tuple[
        str, ...
    ] = ()  # layers that are changed, as "encoder.0", "mu", "stem", "decoder.1"; (): the decoder's
    update: typing.Literal["full", "low_rank", "per_channel"] = "per_channel"
    update_rank: int = 4  # low_rank
    update_size: int = 0  # U: 0, or the number that the target layers need
    update_bound: float = 0.05  # the largest change of a layer, as a share of the norm of its parameters
    update_rounds: int = 1  # times that the GRU watches and the image is drawn again
    learning: typing.Literal["together", "apart"] = (
        "together"  # apart: predictor, critic, then the VAE, in passes of their own
    )
    video_frames: int = 4  # V
    video_changes: typing.Literal["drift", "noise"] = (
        "drift"  # the image moves and changes colour; noise, anew in each frame
    )
    video_shrink: int = 2  # pixels of the image, along each side, to one of the video
    video_strength: float = (
        0.1  # of the last frame's changes: of colour in [-1, 1], and of place in half sides
    )
    frame_channels: tuple[int, ...] = (
        16,
        32,
        64,
    )  # of the net that reads each frame, each halves it; (): the bare pixels
    gru_hidden: int = 128
    gru_layers: int = 2
    adversarial_on: typing.Literal["samples", "reconstructions"] = (
        "samples"  # which images the critic tells from real ones
    )
    critic_steps: int = 1  # updates of the critic a step, each on a fresh batch
    lr: float = 1e-3
    lr_predictor: float = 1e-3
    lr_critic: float = 1e-3
    beta1: float = 0.5
    beta2: float = 0.9
    lambda_reconstruction: float = 100.0  # (image - truth)^2
    lambda_kl: float = 0.005  # nats
    lambda_adv: float = 0.1
    lambda_gp: float = 10.0

    def __post_init__(self):
        for name in (
            "latent_dim",
            "update_rank",
            "update_rounds",
            "video_shrink",
            "gru_hidden",
            "gru_layers",
            "critic_steps",
            "lr",
            "lr_predictor",
            "lr_critic",
        ):
            check(getattr(self, name) > 0, f"{name} must be positive, not {getattr(self, name)}")
        check(
            self.video_frames >= 2,
            f"video_frames must be at least 2, not {self.video_frames}: one frame is no video",
        )
        check(0 < self.update_bound <= 1, f"update_bound must be in (0, 1], not {self.update_bound}")
        for name in ("beta1", "beta2"):
            check(0 <= getattr(self, name) < 1, f"{name} must be in [0, 1), not {getattr(self, name)}")
        for name in (
            "height",
            "width",
            "update_size",
            "video_strength",
            "lambda_reconstruction",
            "lambda_kl",
            "lambda_adv",
            "lambda_gp",
        ):
            check(getattr(self, name) >= 0, f"{name} must not be negative, it is {getattr(self, name)}")
        check(
            self.lambda_reconstruction or self.lambda_adv,
            "nothing is asked of the images: give lambda_reconstruction or lambda_adv a positive weight",
        )
        check(min(self.critic_widths, default=1) > 0, "critic_widths must list positive widths")
        for name in ("encoder_channels", "decoder_channels", "frame_channels"):
            widths, of_video = getattr(self, name), name == "frame_channels"
            check(min(widths, default=of_video) > 0, f"{name} must list positive widths")
            for side in ("height", "width"):
                size, factor = getattr(self, side), 2 ** len(widths) * (self.video_shrink if of_video else 1)
                check(
                    size % factor == 0,
                    f"{side}={size} is not divisible by {factor}; use "
                    f"{max(1, size // factor) * factor}, fewer {name}{' or a lower video_shrink' * of_video}",
                )
        vae = self.build_vae("meta")
        known = [name for name, layer in vae.named_modules() if hasattr(layer, "weight")]
        for i, name in enumerate(self.target_layers):
            check(name in known, f"target_layers: the VAE has no layer {name!r}{nearest(name, known)}")
            check(name not in self.target_layers[:i], f"target_layers names {name!r} twice")
        if self.update_size and self.height and self.width:  # without a size, linear layers are not known
            needed = sum(update.size for update in self.layer_updates(vae))
            check(
                self.update_size == needed,
                f"update_size={self.update_size}, but update={self.update!r} of "
                f"{', '.join(self.targets)} takes {needed} numbers; give that, or 0, which computes it",
            )

    @property
    def targets(self):
        return self.target_layers or tuple(f"decoder.{i}" for i in range(len(self.decoder_channels)))

    def build_vae(self, device=None):
        """The VAE; on the device "meta" it takes no memory. Where the dataset has not said its size yet, in
        the smallest.
        """
        least = 2 ** max(len(self.encoder_channels), len(self.decoder_channels))
        with torch.device(device or torch.get_default_device()):
            return VAE(
                self.height or least,
                self.width or least,
                self.latent_dim,
                self.encoder_channels,
                self.decoder_channels,
                self.downsample == "pool",
                self.activation,
            )

    def layer_updates(self, vae):
        layers = map(vae.get_submodule, self.targets)
        return [LayerUpdate(layer, self.update, self.update_rank, self.update_bound) for layer in layers]


class Code(typing.NamedTuple):
    """What images are drawn from: a first code, and what the second one comes from, where updates change the
    encoder.
    """

    z: torch.Tensor  # [B, L]
    noise: torch.Tensor | float = (
        0.0  # [B, L]: the second code, or its deviations from the middle of its posterior
    )
    given: torch.Tensor | None = None  # [B, 3, H, W]: the images that are encoded; None: the code is noise
    kl: torch.Tensor | float = 0.0  # [B]: nats between posterior and prior


class WeightRNN(Reconstructs, Samples, System):
    name = "weight_rnn"
    Config = WeightRNNConfig
    PRESETS: typing.ClassVar = {
        # images of 32 or 64 pixels in some minutes of one core; docs/systems/weight_rnn.md says what the
        # updates bring
        "small": SMALL | {"steps": 4000},
        "demo": SMALL | {"steps": 800},
        # the source's own values, and the public code's where the text names none
        # (docs/systems/weight_rnn.md)
        "original": {
            "height": 128,
            "width": 128,
            "encoder_channels": (48, 48, 48),
            "decoder_channels": (48, 48, 48),
            "downsample": "pool",
            "activation": "relu",
            "critic_widths": (64, 64),
            "target_layers": ("encoder.0",),
            "update": "full",
            "update_size": 1344,
            "video_frames": 16,
            "video_changes": "noise",
            "video_strength": 0.3,  # 2 * 0.01 * 15: noise of 0.01 t on pixels in [0, 1]
            "video_shrink": 1,
            "frame_channels": (),
            "learning": "apart",
            "adversarial_on": "reconstructions",
            "lambda_adv": 1.0,
            "beta1": 0.9,
            "beta2": 0.999,
            "batch_size": 16,
            "epochs": 10,
            "clip_norm": 0.0,
            "ema_decay": 0.0,
            "warmup_steps": 0,
        },
        # seconds, to see that everything runs
        "tiny": {
            "latent_dim": 4,
            "encoder_channels": (8, 8),
            "decoder_channels": (8, 8),
            "update": "full",
            "update_rounds": 2,
            "video_frames": 2,
            "video_shrink": 1,
            "frame_channels": (4, 4),
            "gru_hidden": 8,
            "critic_steps": 2,
            "steps": 20,
            "batch_size": 4,
        },
    }

    def __init__(self, config):
        super().__init__(config)
        c = config
        self.vae = c.build_vae()
        self.critic = None
        if c.lambda_adv:
            trunk = c.encoder_channels, c.downsample == "pool", c.activation
            self.critic = Critic(c.height, c.width, *trunk, c.critic_widths)
        self.predictor, self.layer_updates = None, nn.ModuleList()
        if c.updates:  # last, so that with and without it the other weights begin alike
            self.layer_updates.extend(c.layer_updates(self.vae))
            initial = torch.cat([update.initial() for update in self.layer_updates])
            size = c.height // c.video_shrink, c.width // c.video_shrink
            self.predictor = WeightPredictor(*size, c.frame_channels, c.gru_hidden, c.gru_layers, initial)
        self.reencodes = any(name.startswith(("encoder", "mu", "logvar")) for name in c.targets)

    # ---- training

    def to_compile(self):
        return (
            [self.predictor] if self.predictor else []
        )  # the gradient penalty differentiates the critic twice

    def needs(self):
        return Needs(window=1, batches=self.config.critic_steps if self.critic else 1)

    def optimizers(self):
        c, betas = self.config, (self.config.beta1, self.config.beta2)
        vae, phases = {"params": list(self.vae.parameters()), "lr": c.lr}, {}
        predictor = [
            {"params": list(p.parameters()), "lr": c.lr_predictor} for p in (self.predictor,) if p is not None
        ]
        if c.learning == "apart" and predictor:
            phases["predictor"] = adam(predictor, c.lr, betas)
            predictor = []
        if self.critic is not None:
            phases["critic"] = adam(self.critic.parameters(), c.lr_critic, betas)
        return phases | {"generator": adam([vae, *predictor], c.lr, betas)}

    def training_step(self, batches, step):
        logs, carry = {}, {}
        first = "predictor" if self.config.learning == "apart" else "generator"
        if self.predictor is not None or first == "generator":
            result = step(first, self.generator_loss, batches[0])
            logs, carry = result.logs, result.carry
        for i, batch in enumerate(batches if self.critic is not None else []):
            logs = logs | step("critic", self.critic_loss, batch if i else batch | carry).logs
        if first == "predictor":
            logs = logs | step("generator", self.generator_loss, batches[0] | carry).logs
        return logs

    def generator_loss(self, batch):
        """What images lack that are drawn under the updates: those that the batch carries, else those the
        predictor gives.
        """
        c, frames, keys = self.config, batch["frames"][:, 0], batch["key"]
        code = self._posterior(frames, keys)
        rebuilt, again, vectors = self._redraw(code, keys, batch.get("rebuilding"))
        carry = {} if vectors is None else {"rebuilding": vectors}
        kl = (
            code.kl if again is code else code.kl + again.kl
        )  # the first code tells of the image, too, through the updates
        logs = {"mse": F.mse_loss(rebuilt, frames), "kl": kl.mean()}
        total = c.lambda_reconstruction * logs["mse"] + c.lambda_kl * logs["kl"]
        if self.critic is not None:
            carry["fake"] = rebuilt
            if c.adversarial_on == "samples":
                carry["fake"], _, vectors = self._redraw(self._prior(keys), keys, batch.get("sampling"))
                carry |= {} if vectors is None else {"sampling": vectors}
            logs["adversarial"] = wasserstein_generator_loss(self.critic(carry["fake"]))
            total = total + c.lambda_adv * logs["adversarial"]
        return Loss(total, logs, carry)

    def critic_loss(self, batch):
        c, frames, keys, fake = self.config, batch["frames"][:, 0], batch["key"], batch.get("fake")
        if fake is None:
            with torch.no_grad():
                code = self._prior(keys) if c.adversarial_on == "samples" else self._posterior(frames, keys)
                fake = self._redraw(code, keys)[0]
        loss = wasserstein_critic_loss(*self.critic(torch.cat([frames, fake])).chunk(2))
        penalty = gradient_penalty(self.critic, frames, fake, keyed_uniform(keys, "penalty", 1)[:, 0])
        return Loss(loss + c.lambda_gp * penalty, {"critic": loss, "penalty": penalty})

    def _prior(self, keys):
        return Code(
            *keyed_normal(keys, "prior", 2 * self.config.latent_dim).to(self.vae.stem.weight).chunk(2, 1)
        )

    def _posterior(self, frames, keys):
        noise = keyed_normal(keys, "posterior", 2 * self.config.latent_dim).to(frames)
        return self.encode(frames, *noise.chunk(2, 1))

    # ---- drawing

    def changes(self, vectors):
        """dict layer name -> its change, as hyper.py has them, from update vectors `[B, U]`."""
        parts = vectors.split([update.size for update in self.layer_updates], 1)
        targets = zip(self.config.targets, self.layer_updates, parts, strict=True)
        return {name: update(self.vae.get_submodule(name), part) for name, update, part in targets}

    def encode(self, given, noise=0.0, next_noise=0.0, changes=MappingProxyType({})):
        """The `Code` of images `[B, 3, H, W]`; without noise, of the middle of their posterior."""
        mu, logvar = self.vae.encode(given, changes)
        return Code(mu + noise * (0.5 * logvar).exp(), next_noise, given, gaussian_kl(mu, logvar))

    def draw(self, code, vectors=None):
        """(images `[B, 3, H, W]` in (-1, 1), the code that they come from) under the updates that vectors
        `[B, U]` stand for.

        Updates of the encoder make a second code, to which the first one can leave what it does not tell
        through the updates.
        """
        changes = {} if vectors is None else self.changes(vectors)
        if changes and self.reencodes:
            code = (
                code._replace(z=code.noise)
                if code.given is None
                else self.encode(code.given, code.noise, changes=changes)
            )
        return self.vae.decode(code.z, changes), code

    def watch(self, images, keys):
        """Update vectors `[B, U]` from images `[B, 3, H, W]`: a video of each, with changes keyed by `keys`
        `[B]`, is read.
        """
        c, images = self.config, F.avg_pool2d(images, self.config.video_shrink)
        make = synthetic_video if c.video_changes == "drift" else noisy_video
        return self.predictor(make(images, keys, c.video_frames, c.video_strength))

    def _redraw(self, code, keys, vectors=None):
        """(images under the updates, their code, vectors): those given, else predicted; None without a
        predictor.
        """
        if self.predictor is not None and vectors is None:
            for _ in range(self.config.update_rounds):
                with torch.no_grad():
                    images, _ = self.draw(code, vectors)
                vectors = self.watch(images, keys)
        return *self.draw(code, vectors), vectors

    def reconstruct(self, frames):
        given = frames.flatten(0, 1)
        return self._redraw(self.encode(given), still(given))[0].unflatten(0, frames.shape[:2])

    def evaluate(self, dataset, starts):
        """first_psnr: dB of held-out images as drawn first; update_gain_db: how much better the last drawing
        is.

        That is not what a run without updates would lack, for nothing asks the first drawing to be good.
        """
        if self.predictor is None:
            return {}
        found = []
        for part in starts.split(32):
            truth = dataset.frames[part].to(self.device)
            frames = to_float(truth)
            images = self.draw(self.encode(frames))[0], self.reconstruct(frames[:, None])[:, 0]
            found.append(torch.stack([metrics.psnr(metrics.mse(to_uint8(made), truth)) for made in images]))
        first, last = torch.cat(found, 1).mean(1).tolist()
        return {"first_psnr": first, "update_gain_db": last - first}

    def alarms(self, figures):
        gone = figures.get("kl", 1.0) < LEAST_KL
        return ["the latents say nothing about the images (kl is near 0): lower lambda_kl"] * gone

    # ---- generation

    def sample(self, count, generator=None):
        """`count` images from noise, float `[count, 3, H, W]`: drawn, watched and drawn again."""
        state = self._start(None, generator, count)
        for _ in range(self.config.update_rounds):
            state, images = self.step(state)
        return images

    def _start(self, context, generator, count=1):
        if context is None:
            code = Code(
                *torch.randn(2, count, self.config.latent_dim, generator=generator, device=self.device)
            )
        else:
            code = self.encode(context[:, -1])
        return code, self.draw(code)[0]

    def step(self, state, action=None):
        """The image under the first updates, then under those that come from watching that image, and so on.

        Every update is a change of the weights as they were learned, not of changed ones, so that no rollout
        can drift away.
        """
        code, images = state
        if self.predictor is not None:
            images, _ = self.draw(code, self.watch(images, still(images)))
        return (code, images), images
