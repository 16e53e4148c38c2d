"""Weight RNN: a GRU watches a video of what a VAE just made, and changes the VAE's weights, image by image.

Source: the text "RNN weight prediction, generated video input". The VAE draws an image; slight changes that
grow make a short video of it; the GRU reads the video and predicts changes of the VAE's weights, with which
the image is drawn again. A critic judges images by WGAN-GP.
L latent numbers, U numbers in an update vector, V frames of a synthetic video; other letters as in base.py.
"""

import dataclasses
import typing

import torch
import torch.nn.functional as F
from torch import nn

from mtld_core import metrics
from mtld_core.chance import keyed_normal, keyed_uniform
from mtld_core.config import (
    AtLeastTwo,
    BelowOne,
    NotNegative,
    Positive,
    PositiveShare,
    Widths,
    WidthsOrNone,
    check,
    nearest,
)
from mtld_core.frames import to_float, to_uint8
from mtld_core.systems.base import FrameSize, Loss, Needs, Reconstructs, Samples, System, adam
from mtld_core.systems.weight_rnn.hyper import UNCHANGED, VAE, LayerUpdate
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
LEAN = {"watched": "features", "video_shrink": 1, "frame_channels": (), "gru_layers": 1}
LEAST_KL = 0.05  # nats, below which a posterior is the prior


@dataclasses.dataclass(frozen=True)
class WeightRNNConfig(FrameSize):
    latent_dim: Positive[int] = 64  # L
    encoder_channels: Widths = (32, 64, 128)  # each halves the image; the critic has the same
    decoder_channels: Widths = (128, 64, 32)  # each doubles it
    # 4x4 convolutions of stride 2; or 3x3 ones and max-pooling
    downsample: typing.Literal["stride", "pool"] = "stride"
    activation: typing.Literal["leaky_relu", "relu"] = "leaky_relu"  # of the encoder and of the critic
    critic_widths: WidthsOrNone = ()  # of linear layers between the critic's convolutions and its score
    updates: bool = True  # false: no GRU, a plain VAE with a critic
    # layers that are changed, as "encoder.0", "mu", "stem", "decoder.1"; (): the decoder's
    target_layers: tuple[str, ...] = ()
    update: typing.Literal["full", "low_rank", "per_channel"] = "per_channel"
    update_rank: Positive[int] = 4  # low_rank
    update_size: NotNegative[int] = 0  # U: 0, or the number that the target layers need
    update_bound: PositiveShare[float] = 0.05  # largest change of a layer, as a share of its parameters' norm
    update_rounds: Positive[int] = 1  # times that the GRU watches and the image is drawn again
    # apart: predictor, critic, then the VAE, in passes of their own
    learning: typing.Literal["together", "apart"] = "together"
    # what the GRU watches: the image as it was drawn, or the features that its drawing begins with
    watched: typing.Literal["image", "features"] = "image"
    video_frames: AtLeastTwo[int] = 4  # V
    # drift: the image moves and changes colour; noise: anew in each frame
    video_changes: typing.Literal["drift", "noise"] = "drift"
    video_shrink: Positive[int] = 2  # pixels of the image, along each side, to one of the video
    # of the last frame's changes: of colour in [-1, 1], and of place in half sides
    video_strength: NotNegative[float] = 0.1
    # of the net that reads each frame, each halves it; (): the bare pixels
    frame_channels: WidthsOrNone = (16, 32, 64)
    gru_hidden: Positive[int] = 128
    gru_layers: Positive[int] = 2
    # which images the critic tells from real ones
    adversarial_on: typing.Literal["samples", "reconstructions"] = "samples"
    critic_steps: Positive[int] = 1  # updates of the critic a step, each on a fresh batch
    lr: Positive[float] = 1e-3
    lr_predictor: Positive[float] = 1e-3
    lr_critic: Positive[float] = 1e-3
    beta1: BelowOne[float] = 0.5
    beta2: BelowOne[float] = 0.9
    lambda_reconstruction: NotNegative[float] = 100.0  # (image - truth)^2
    lambda_kl: NotNegative[float] = 0.005  # nats
    lambda_adv: NotNegative[float] = 0.1
    lambda_gp: NotNegative[float] = 10.0

    def __post_init__(self):
        super().__post_init__()
        check(
            self.lambda_reconstruction or self.lambda_adv,
            "nothing is asked of the images: give lambda_reconstruction or lambda_adv a positive weight",
        )
        self.check_divisible(2 ** len(self.encoder_channels), "fewer encoder_channels")
        self.check_divisible(2 ** len(self.decoder_channels), "fewer decoder_channels")
        self.check_divisible(self.frame_factor, "fewer frame_channels or a lower video_shrink")
        with torch.device("meta"):  # where networks take no memory
            self._check_targets(self.build_vae())

    def _check_targets(self, vae):
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
        """Names of the layers that are changed."""
        return self.target_layers or tuple(f"decoder.{i}" for i in range(len(self.decoder_channels)))

    @property
    def frame_factor(self):
        """Pixels of the image, along each side, to one place of what the predictor's GRU takes."""
        factor = self.video_shrink * 2 ** len(self.frame_channels)
        return factor if self.watched == "image" else factor * 2 ** len(self.decoder_channels)

    def build_vae(self):
        """The VAE of these settings, in the smallest size where the dataset has not said its own yet."""
        least = 2 ** max(len(self.encoder_channels), len(self.decoder_channels))
        return VAE(self, self.height or least, self.width or least)

    def layer_updates(self, vae):
        """A `LayerUpdate` for each of the targets in this VAE."""
        layers = map(vae.get_submodule, self.targets)
        return [LayerUpdate(layer, self.update, self.update_rank, self.update_bound) for layer in layers]


class Code(typing.NamedTuple):
    """What images are drawn from: a first code, and what the second one of a changed encoder comes from."""

    z: torch.Tensor  # [B, L]
    # [B, L]: the second code, or its deviations from the middle of its posterior
    noise: torch.Tensor | float = 0.0
    given: torch.Tensor | None = None  # [B, 3, H, W]: the images that are encoded; None: the code is noise
    kl: torch.Tensor | float = 0.0  # [B]: nats between posterior and prior


class WeightRNN(Reconstructs, Samples, System):
    name = "weight_rnn"
    Config = WeightRNNConfig
    steps_are_alike = True
    PRESETS: typing.ClassVar = {
        # images of 32 or 64 pixels in some minutes of one core; docs/systems/weight_rnn.md says what the
        # updates bring
        "small": SMALL | {"steps": 4000},
        # the same, but each image is drawn once a step
        "lean": SMALL | LEAN | {"steps": 4000},
        # wide enough to keep a large card busy; never trained
        "gpu": SMALL
        | {
            "encoder_channels": (128, 256, 512, 512),
            "decoder_channels": (512, 512, 256, 128),
            "frame_channels": (64, 128, 256),
            "gru_hidden": 512,
            "lr": 5e-4,
            "lr_predictor": 3e-4,
            "lr_critic": 2e-4,
            "batch_size": 128,
            "steps": 20_000,
        },
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
        self.vae = config.build_vae()
        self.critic = Critic(config) if config.lambda_adv else None
        self.layer_updates = nn.ModuleList()
        self.predictor = None
        if config.updates:  # last, so that with and without it the other weights begin alike
            self.layer_updates.extend(config.layer_updates(self.vae))
            initial = torch.cat([update.initial() for update in self.layer_updates])
            self.predictor = WeightPredictor(config, initial)
        self.reencodes = any(name.startswith(("encoder", "mu", "logvar")) for name in config.targets)

    # ---- training

    def to_compile(self):
        # the gradient penalty differentiates the critic twice
        return [self.predictor] if self.predictor else []

    def needs(self):
        return Needs(window=1, batches=self.config.critic_steps if self.critic else 1)

    def optimizers(self):
        c = self.config
        betas = c.beta1, c.beta2
        phases = {}
        groups = [{"params": list(self.vae.parameters()), "lr": c.lr}]
        if self.predictor and c.learning == "apart":
            phases["predictor"] = adam(self.predictor.parameters(), c.lr_predictor, betas)
        elif self.predictor:
            groups.append({"params": list(self.predictor.parameters()), "lr": c.lr_predictor})
        if self.critic:
            phases["critic"] = adam(self.critic.parameters(), c.lr_critic, betas)
        phases["generator"] = adam(groups, c.lr, betas)
        return phases

    def training_step(self, batches, step):
        if self.config.learning == "together":  # the VAE and the predictor in one phase, then the critic
            made = step("generator", self.generator_loss, batches[0])
            return made.logs | self._step_critic(batches, made.carry, step)
        # the predictor, the critic and then the VAE, under the updates that were predicted at first
        logs, carry = {}, {}
        if self.predictor:
            made = step("predictor", self.generator_loss, batches[0])
            logs, carry = made.logs, made.carry
        logs = logs | self._step_critic(batches, carry, step)
        return logs | step("generator", self.generator_loss, batches[0] | carry).logs

    def _step_critic(self, batches, carry, step):
        """Move the critic, where there is one. carry: the images that the first batch gave, if any."""
        logs = {}
        if self.critic:
            for batch in batches:
                logs = step("critic", self.critic_loss, batch | carry).logs
                carry = {}
        return logs

    def generator_loss(self, batch):
        """What images lack that are drawn under the updates: those in the batch, else those predicted now."""
        c = self.config
        keys = batch["key"]
        frames = batch["frames"][:, 0]
        code = self._posterior(frames, keys)
        fake, again, vectors = self._redraw(code, keys, batch.get("rebuilding"))
        carry = {"rebuilding": vectors}
        kl = code.kl
        if again is not code:  # the first code tells of the image, too, through the updates
            kl = kl + again.kl
        logs = {"mse": F.mse_loss(fake, frames), "kl": kl.mean()}
        total = c.lambda_reconstruction * logs["mse"] + c.lambda_kl * logs["kl"]
        if self.critic:
            if c.adversarial_on == "samples":
                fake, _, carry["sampling"] = self._redraw(self._prior(keys), keys, batch.get("sampling"))
            carry["fake"] = fake
            logs["adversarial"] = wasserstein_generator_loss(self.critic(fake))
            total = total + c.lambda_adv * logs["adversarial"]
        return Loss(total, logs, {name: value for name, value in carry.items() if value is not None})

    def critic_loss(self, batch):
        """How badly the critic tells real images from those that the batch carries, else from new ones."""
        c = self.config
        keys = batch["key"]
        frames = batch["frames"][:, 0]
        fake = batch.get("fake")
        if fake is None:
            with torch.no_grad():
                code = self._prior(keys) if c.adversarial_on == "samples" else self._posterior(frames, keys)
                fake, _, _ = self._redraw(code, keys)
        real_scores, fake_scores = self.critic(torch.cat([frames, fake])).chunk(2)
        loss = wasserstein_critic_loss(real_scores, fake_scores)
        alpha = keyed_uniform(keys, "penalty", 1)[:, 0]
        penalty = gradient_penalty(self.critic, frames, fake, alpha)
        return Loss(loss + c.lambda_gp * penalty, {"critic": loss, "penalty": penalty})

    def _prior(self, keys):
        return Code(*self._noise(keys, "prior"))

    def _posterior(self, frames, keys):
        return self.encode(frames, *self._noise(keys, "posterior"))

    def _noise(self, keys, purpose):
        """What the first code and the second one are drawn by, `[B, L]` each."""
        noise = keyed_normal(keys, purpose, 2 * self.config.latent_dim)
        return noise.to(self.vae.stem.weight).chunk(2, 1)

    # ---- drawing

    def changes(self, vectors):
        """dict layer name -> its change, as hyper.py has them, from update vectors `[B, U]`."""
        parts = vectors.split([update.size for update in self.layer_updates], 1)
        return {
            name: update(self.vae.get_submodule(name), part)
            for name, update, part in zip(self.config.targets, self.layer_updates, parts, strict=True)
        }

    def encode(self, given, noise=0.0, next_noise=0.0, changes=UNCHANGED):
        """The `Code` of images `[B, 3, H, W]`; without noise, of the middle of their posterior."""
        mu, logvar = self.vae.encode(given, changes)
        return Code(mu + noise * (0.5 * logvar).exp(), next_noise, given, gaussian_kl(mu, logvar))

    def draw(self, code, vectors=None):
        """(images `[B, 3, H, W]` in (-1, 1), the code they come from) under the updates in vectors `[B, U]`.

        Updates of the encoder make a second code, to which the first one can leave what it does not tell
        through the updates. vectors: None for no updates.
        """
        changes, code = self._changed(code, vectors)
        return self.vae.decode(code.z, changes), code

    def _changed(self, code, vectors):
        """(changes, the code that is drawn from) under the updates in vectors; None for no updates."""
        if vectors is None:
            return UNCHANGED, code
        changes = self.changes(vectors)
        if self.reencodes and code.given is None:
            code = code._replace(z=code.noise)
        elif self.reencodes:
            code = self.encode(code.given, code.noise, changes=changes)
        return changes, code

    def look(self, code, vectors=None):
        """What the GRU is to watch under the updates in vectors: `[B, C, h, w]` in [-1, 1].

        The images that are drawn; or the features that the drawing begins with, for which nothing is drawn.
        """
        if self.config.watched == "image":
            return self.draw(code, vectors)[0]
        changes, code = self._changed(code, vectors)
        return torch.tanh(self.vae.features(code.z, changes))

    def watch(self, seen, keys):
        """Update vectors `[B, U]` from what `look` gave: the predictor reads a video of each.

        keys: `[B]`, of the chance in those videos.
        """
        c = self.config
        images = F.avg_pool2d(seen, c.video_shrink)  # [B, C, h, w]
        make = synthetic_video if c.video_changes == "drift" else noisy_video
        return self.predictor(make(images, keys, c.video_frames, c.video_strength))

    def _redraw(self, code, keys, vectors=None):
        """(images, their code, vectors) under the vectors given, else predicted; None without a predictor."""
        if self.predictor and vectors is None:
            for _ in range(self.config.update_rounds):
                with torch.no_grad():
                    seen = self.look(code, vectors)
                vectors = self.watch(seen, keys)
        return *self.draw(code, vectors), vectors

    def reconstruct(self, frames):
        given = frames.flatten(0, 1)  # [B * T, 3, H, W]
        images, _, _ = self._redraw(self.encode(given), still(given))
        return images.unflatten(0, frames.shape[:2])

    def evaluate(self, dataset, starts):
        """first_psnr: dB of held-out images as drawn first; update_gain_db: what the last drawing gains.

        That is not what a run without updates would lack, for nothing asks the first drawing to be good.
        """
        if not self.predictor:
            return {}
        found = []
        for part in starts.split(32):
            truth = dataset.frames[part].to(self.device)
            frames = to_float(truth)
            first, _ = self.draw(self.encode(frames))
            last = self.reconstruct(frames[:, None])[:, 0]
            both = [metrics.psnr(metrics.mse(to_uint8(images), truth)) for images in (first, last)]
            found.append(torch.stack(both))  # [2, b]
        first, last = torch.cat(found, 1).mean(1).tolist()
        return {"first_psnr": first, "update_gain_db": last - first}

    def alarms(self, figures):
        if figures.get("kl", 1.0) < LEAST_KL:
            return ["the latents say nothing about the images (kl is near 0): lower lambda_kl"]
        return []

    # ---- generation

    def sample(self, count, generator=None):
        """Draw images from noise, watch them and draw them again: float `[count, 3, H, W]`."""
        state = self._start(None, generator, count)
        for _ in range(self.config.update_rounds):
            state, images = self.step(state)
        return images

    def _start(self, context, generator, count=1):
        if context is None:
            size = (2, count, self.config.latent_dim)
            code = Code(*torch.randn(size, generator=generator, device=self.device))
        else:
            code = self.encode(context[:, -1])
        return code, self.look(code)

    def step(self, state, action=None):
        """Draw the image under the first updates, then under those that come from watching it, and so on.

        Every update is a change of the weights as they were learned, not of changed ones, so that no rollout
        can drift away.
        """
        code, seen = state
        vectors = self.watch(seen, still(seen)) if self.predictor else None
        images, _ = self.draw(code, vectors)
        seen = images if self.config.watched == "image" else self.look(code, vectors)
        return (code, seen), images
