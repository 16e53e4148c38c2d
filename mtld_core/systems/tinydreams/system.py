"""TinyDreams: the current frames and the controls in, the next frame out.

Source: the text "TinyDreamsI, Next Frame Prediction with Vision Transformer and CNN Decoder". k context
frames become a grid of tokens and the controls one token; a Transformer mixes them; the decoder draws the
next frame, or the change to the last one. In training the n frames of a window are predicted one after
another, each from what was made of the earlier ones.

Not the source's, for dreams that last: a frame can be drawn over the median frame, what moves can weigh
more, and a `StochasticLatent` can stand for what the past does not decide. E width of a token, h w the grid,
P = h w; other letters as in base.py.
"""

import dataclasses
import math
import typing

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint

from mtld_core.chance import keyed_uniform, keyed_uniforms, normal_of
from mtld_core.config import AtLeastTwo, BelowOne, NotNegative, Positive, Widths, WidthsOrNone, check
from mtld_core.frames import to_float
from mtld_core.nn.actions import ActionEncoder, action_fields, action_space
from mtld_core.nn.conv import ConvTokenizer, NormKind, erases, laid_out, zeroed
from mtld_core.nn.gan import (
    PatchDiscriminator,
    check_discriminator,
    lsgan_discriminator_loss,
    lsgan_generator_loss,
)
from mtld_core.nn.moving import heal, moving_weights
from mtld_core.nn.muon import weights_of
from mtld_core.nn.perceptual import LPIPS, load_trunk
from mtld_core.nn.sample import sample
from mtld_core.systems.base import FrameSize, Loss, Needs, System, adam
from mtld_core.systems.tinydreams.latent import StochasticLatent, surprise
from mtld_core.systems.tinydreams.losses import PIXEL_LOSSES
from mtld_core.systems.tinydreams.nets import (
    AttentionDecoder,
    Block,
    ConvDecoder,
    CrossBlock,
    PatchTokenizer,
)

NOISE_STRIDE = 997  # numbers from where one frame's noise begins to where the next one's does

# differences from the defaults that the presets "small" and "demo" share
UNET = {
    "skips": True,
    "norm": "group",
    "activation": "silu",
    "layers": 2,
    "lambda_l1": 0.0,
    "lambda_mse": 10.0,
    "lr_schedule": "cosine",
    "eval_horizon": 16,
    "eval_every_steps": 0,
}
# Atari at 64x64 in a quarter of an hour, a dream that lasts: docs/systems/tinydreams.md
SMALL = UNET | {
    # maps of full size: where a ball is to the pixel, those of half size are long in learning
    "tokenizer_filters": (24, 32, 64),
    "decoder_filters": (64, 32, 24),
    "output": "anchored",
    "moving_weight": 20.0,
    "context_noise": 0.05,
    "context_fade": 0.5,
    "older_frames": (6, 12, 18, 24),
    "latents": 2,
    "batch_size": 24,
    "time_budget_minutes": 15,
    "ema_decay": 0.995,
    "long_horizon": 64,
    "eval_windows": 128,
    "life_horizon": 1000,
}


@dataclasses.dataclass(frozen=True)
class TinyDreamsConfig(FrameSize):
    """The settings of TinyDreams."""

    action_count: NotNegative[int] = 0  # discrete actions; 0: the dataset's own
    control_low: tuple[float, ...] = ()  # of each control; (): the dataset's own
    control_high: tuple[float, ...] = ()
    context_frames: Positive[int] = 3  # the newest ones; one shows no movement
    older_frames: tuple[int, ...] = ()  # more that are seen, such as 6 and 12 frames before the present one
    # n: frames predicted from the model's own predictions in training; 1: teacher forcing
    rollout_frames: Positive[int] = 1
    rollout_gradient: bool = True  # through the predicted frames back to those before
    # standard deviation of noise on the context in training, where pixels are in [-1, 1]
    context_noise: NotNegative[float] = 0.0
    # share, at most, by which the context is drawn towards the median frame in training: what grew faint in a
    # dream is then drawn whole again
    context_fade: BelowOne[float] = 0.0
    tokenizer: typing.Literal["conv", "patch"] = "conv"
    patch_size: Positive[int] = 8  # pixels along a token's side
    # conv: each halves the grid; what patch_size asks for beyond, folding does
    tokenizer_filters: WidthsOrNone = (32, 64)
    tokenizer_blocks: Positive[int] = 1  # conv: ResNet blocks a level
    norm: NormKind = "instance"  # of all ResNet blocks
    activation: typing.Literal["gelu", "relu", "silu"] = "gelu"  # of the ResNet blocks
    action_widths: Widths = (64,)  # hidden layers of the controls' MLP
    # none: plain video, without controls
    action_mode: typing.Literal["concat", "cross", "modulate", "none"] = "concat"
    embed_dim: Positive[int] = 128  # E
    heads: Positive[int] = 4
    layers: Positive[int] = 4
    ffn_scale: Positive[float] = 2.0
    registers: NotNegative[int] = 0  # extra learned tokens
    decoder: typing.Literal["conv", "attention"] = "conv"
    # conv: each doubles the grid, then a pixel shuffle; (): the shuffle alone
    decoder_filters: WidthsOrNone = (64, 32)
    decoder_blocks: Positive[int] = 1  # conv: ResNet blocks a level
    # conv: of its ResNet blocks; same: activation
    decoder_activation: typing.Literal["same", "gelu", "relu", "silu"] = "same"
    decoder_layers: NotNegative[int] = 2  # attention
    skips: bool = False  # the decoder's levels also see the tokenizer's of the same size
    # residual: the last frame and a change; anchored: the median frame, over it what a learned mask lets
    # through of the last frame, and a change
    output: typing.Literal["residual", "anchored", "direct"] = "residual"
    latents: NotNegative[int] = 0  # G: categorical numbers for what the past does not decide
    latent_classes: AtLeastTwo[int] = 8  # K: values of each
    lambda_prior: Positive[float] = 0.01  # of each nat that the prior did not expect of them
    temperature: NotNegative[float] = 1.0  # of the latents in a dream; 0 takes the likeliest
    gradient_checkpointing: bool = False  # less memory, a third more work
    lr: Positive[float] = 1e-3
    # of tokenizer, Transformer and decoder by Muon, such as 0.02; 0: AdamW, as for all else
    lr_muon: NotNegative[float] = 0.0
    lr_d: Positive[float] = 4e-4
    beta1: BelowOne[float] = 0.9
    beta2: BelowOne[float] = 0.99
    weight_decay: NotNegative[float] = 0.0
    # l1 and mse weigh by so much more where truth or prediction differs from the median frame
    moving_weight: NotNegative[float] = 0.0
    lambda_l1: NotNegative[float] = 1.0
    lambda_mse: NotNegative[float] = 0.0
    lambda_sobel: NotNegative[float] = 0.0  # edges
    lambda_fft: NotNegative[float] = 0.0  # magnitudes of frequencies
    lambda_ssim: NotNegative[float] = 0.0
    lambda_lpips: NotNegative[float] = 0.0
    # |what comes under no action at all - the present frame|; one more prediction a step
    lambda_still: NotNegative[float] = 0.0
    lpips_weights: str = ""  # a file with VGG16's convolutions; "": torch's cache, or a download
    lambda_gan: NotNegative[float] = 0.0
    gan_conditional: bool = False  # the discriminator also sees the frame before and the controls
    discriminator_channels: Widths = (32, 64, 128)
    soft_labels: BelowOne[float] = 0.0  # the discriminator's labels lie in [0, this] and [1 - this, 1]
    label_noise: BelowOne[float] = 0.0  # share of its labels that is exchanged

    def __post_init__(self):
        super().__post_init__()
        newest = self.context_frames
        check(
            all(isinstance(age, int) and age >= newest for age in self.older_frames),
            f"older_frames={list(self.older_frames)} must list whole numbers of at least {newest}, which is "
            "context_frames: the newer ones are seen anyway",
        )
        self._check_widths()
        self._check_levels()
        self.check_divisible(self.patch_size, "or use a smaller patch_size", "patch_size")
        if self.lambda_gan:
            check_discriminator(self, "lambda_gan=0")
        if self.tokenizer == "conv":
            check(
                not erases(self.norm, self.tokenizer_filters[-1], *self.grid),
                f"frames of one patch (patch_size={self.patch_size}) leave nothing to norm={self.norm!r}; "
                "use a smaller patch_size, or norm='none'",
            )
        check(
            any(self.weight(name) for name in (*PIXEL_LOSSES, "lpips")),
            "there is no loss that compares the frame with the truth: give lambda_l1 or lambda_mse a "
            "positive weight",
        )
        check(
            not self.lambda_still or self.action_mode != "none",
            "lambda_still says what comes under no action, and with action_mode='none' there never is one; "
            "use lambda_still=0",
        )

    def _check_widths(self):
        check(
            self.ffn_hidden >= 1,
            f"ffn_scale={self.ffn_scale} of embed_dim={self.embed_dim} leaves the MLPs no width; use at "
            f"least {1 / self.embed_dim:g}",
        )
        width = self.embed_dim / self.heads
        near = max(8, round(width / 8) * 8)
        check(
            width == near,
            f"heads={self.heads} over embed_dim={self.embed_dim} are {width:g} wide, and fast attention "
            f"wants a multiple of 8; the nearest is {near}: embed_dim={near * self.heads}",
        )

    def _check_levels(self):
        if self.tokenizer == "conv":
            check(self.tokenizer_filters, "tokenizer_filters must list positive widths")
            self._check_filters("tokenizer_filters")
        if self.decoder == "conv":
            self._check_filters("decoder_filters")
        both_conv = self.tokenizer == self.decoder == "conv"
        same_depth = len(self.tokenizer_filters) == len(self.decoder_filters)
        check(
            not self.skips or (both_conv and same_depth),
            "skips needs a conv tokenizer and a conv decoder with as many levels: as many tokenizer_filters "
            "as decoder_filters",
        )

    def _check_filters(self, field):
        grids = 2 ** len(getattr(self, field))
        check(
            self.patch_size % grids == 0,
            f"{field} change the grid {grids} times, and patch_size={self.patch_size} is no multiple of "
            "that; use fewer of them or a larger patch_size",
        )

    @property
    def grid(self):
        """(h, w), how many tokens stand for places."""
        return self.height // self.patch_size, self.width // self.patch_size

    @property
    def ffn_hidden(self):
        """Width of the Transformer's MLPs."""
        return round(self.ffn_scale * self.embed_dim)

    @property
    def ages(self):
        """How many frames before the present one the frames are that are seen, the oldest first."""
        return sorted({*range(self.context_frames), *self.older_frames}, reverse=True)

    def weight(self, term):
        """The weight of a term of the generator's loss. term: its name in the log."""
        return getattr(self, f"lambda_{term}")


class Seen(typing.NamedTuple):
    """What `TinyDreams.look` makes of the present."""

    last: torch.Tensor  # [B, 3, H, W], the present frame
    tokens: torch.Tensor  # [B, P + others, E], those of the places first
    maps: list  # what the tokenizer saw on the way, coarsest first
    action: torch.Tensor | None  # [B, 1, E]


class State(typing.NamedTuple):
    """Where a dream stands."""

    past: torch.Tensor  # [B, k, 3, H, W], the newest frame last
    generator: torch.Generator | None  # what latents are drawn by


class TinyDreams(System):
    """TinyDreams: the current frames and the controls in, the next frame out."""

    name = "tinydreams"
    Config = TinyDreamsConfig
    steps_are_alike = True
    PRESETS: typing.ClassVar = {
        "small": SMALL,
        # wide enough to keep a large card busy; never trained
        "gpu": SMALL
        | {
            "tokenizer_filters": (128, 256, 512),
            "decoder_filters": (512, 256, 128),
            "embed_dim": 512,
            "heads": 8,
            "layers": 8,
            "lr": 3e-4,
            "batch_size": 64,
            "steps": 20_000,
            "time_budget_minutes": 0,
        },
        # the same network learns to see one frame ahead in a few minutes, and a little further
        "demo": UNET
        | {
            "rollout_frames": 2,
            "time_budget_minutes": 3,
            "ema_decay": 0.99,
            "eval_windows": 32,
        },
        # the public code's values, but for its 14 heads of 22: 24 is the nearest width that can be
        "original": {
            "height": 256,
            "width": 256,
            "context_frames": 1,
            "patch_size": 32,
            "embed_dim": 336,
            "heads": 14,
            "layers": 14,
            "ffn_scale": 3.0,
            "registers": 12,
            "action_widths": (15, 31, 63),
            "tokenizer_filters": (64, 128, 256, 256, 336),
            "tokenizer_blocks": 2,
            "decoder_filters": (240, 180, 96, 64, 48),
            "decoder_blocks": 2,
            "decoder_activation": "relu",
            "output": "direct",
            "lambda_still": 0.4,
            "lr": 6e-4,
            "beta2": 0.999,
            "weight_decay": 1e-5,
            "lr_d": 1e-4,
            "soft_labels": 0.2,
            "batch_size": 36,
            "epochs": 10_000,
            "clip_norm": 0.0,
            "ema_decay": 0.0,
            "warmup_steps": 0,
            "eval_horizon": 16,
            "long_horizon": 64,
        },
        # seconds, to see that everything runs
        "tiny": {
            "context_frames": 2,
            "rollout_frames": 2,
            "tokenizer_filters": (8,),
            "patch_size": 4,
            "embed_dim": 16,
            "heads": 2,
            "layers": 1,
            "decoder_filters": (8,),
            "action_widths": (8,),
            "registers": 1,
            "context_noise": 0.05,
            "lambda_gan": 0.1,
            "gan_conditional": True,
            "soft_labels": 0.1,
            "label_noise": 0.1,
            "discriminator_channels": (8, 16),
            "steps": 20,
            "batch_size": 4,
            "eval_windows": 8,
        },
    }

    def __init__(self, config):
        super().__init__(config)
        c = config
        dim = c.embed_dim
        frames = 3 * len(c.ages)
        self.action = None
        if c.action_mode != "none":
            self.action_space = action_space(c)
            self.action = ActionEncoder(self.action_space, c.action_widths, dim)
        if c.tokenizer == "conv":
            self.tokenizer = ConvTokenizer(
                frames, c.tokenizer_filters, c.tokenizer_blocks, dim, c.patch_size, c.norm, c.activation
            )
        else:
            self.tokenizer = PatchTokenizer(frames, dim, c.patch_size)
        self.place = nn.Parameter(torch.randn(math.prod(c.grid), dim) * 0.02)
        self.registers = nn.Parameter(torch.randn(c.registers, dim) * 0.02)
        self.encoder = nn.ModuleList(self._block() for _ in range(c.layers))
        self.latent = self.compose = None
        if c.latents:
            self.latent = StochasticLatent(c)
            self.compose = self._block()
        self.norm = nn.LayerNorm(dim)
        compared = c.output == "anchored" or c.moving_weight or c.context_fade
        median = torch.zeros(3, c.height, c.width) if compared else None
        self.register_buffer("median", median)  # the training part's median frame
        if c.decoder == "conv":
            self.decoder = ConvDecoder(c, self.tokenizer.widths if c.skips else ())
        else:
            self.decoder = AttentionDecoder(c)
        if c.output != "direct":
            zeroed(self.decoder.head)
        self.discriminator = None
        if c.lambda_gan:
            seen = 3
            if c.gan_conditional:
                seen = 6 + (self.action.values if self.action else 0)
            self.discriminator = PatchDiscriminator(c.discriminator_channels, in_channels=seen)
        self.frozen = {}  # networks of the loss: a dict, so that no checkpoint and no optimizer sees them

    def _block(self):
        c = self.config
        if c.action_mode == "cross":
            return CrossBlock(c.embed_dim, c.heads, c.ffn_hidden)
        condition_dim = c.embed_dim if c.action_mode == "modulate" else 0
        return Block(c.embed_dim, c.heads, c.ffn_hidden, condition_dim)

    # ---- training

    @classmethod
    def fit_config(cls, config, dataset):
        fitted = super().fit_config(config, dataset)
        if config.action_mode == "none":
            return fitted
        found = {"action_count": 0, "control_low": (), "control_high": ()}
        found |= action_fields(dataset, "action_mode='none'")
        fitted = dataclasses.replace(fitted, **found)
        given, there = _actions_of(config), _actions_of(fitted)
        check(
            given in ("0 floats", there),
            f"the config is for {given} and those of {dataset.path} are {there}; leave action_count, "
            "control_low and control_high out, or use the recording that they were made for",
        )
        return fitted

    def needs(self):
        k, n = self.config.ages[0] + 1, self.config.rollout_frames
        return Needs(window=k + n, context=k, actions=self.action is not None)

    def prepare(self, frames, frames_y=None):
        if self.median is not None:
            self.median.copy_(to_float(frames).median(0).values)

    def setup_training(self, folder):
        if self.config.lambda_lpips:
            self.frozen["lpips"] = LPIPS(load_trunk(self.config.lpips_weights)).to(self.device)

    def optimizers(self):
        c = self.config
        makers = [p for name, p in self.named_parameters() if not name.startswith("discriminator.")]
        head = self.decoder.head.weight
        parts = [self.tokenizer, self.encoder, self.decoder, self.compose]
        hidden = [weight for weight in weights_of(*filter(None, parts)) if weight is not head]
        betas = c.beta1, c.beta2
        phases = {"generator": adam(makers, c.lr, betas, c.weight_decay, hidden, c.lr_muon)}
        if self.discriminator:
            phases["discriminator"] = adam(self.discriminator.parameters(), c.lr_d, (0.5, 0.999))
        return phases

    def training_step(self, batches, step):
        if self.discriminator is None:
            return step("generator", self.generator_loss, batches[0]).logs
        self.discriminator.iterate()
        made = step("generator", self.generator_loss, batches[0])
        return made.logs | step("discriminator", self.discriminator_loss, made.carry).logs

    def _layer(self, layer, *inputs):
        """Call a layer, under gradient checkpointing where the config asks for that."""
        if self.config.gradient_checkpointing and torch.is_grad_enabled():
            # no layer draws, and asking for the generator's state would wait for the GPU
            return checkpoint(layer, *inputs, use_reentrant=False, preserve_rng_state=False)
        return layer(*inputs)

    def look(self, past, action):
        """See the present: k or more frames `[B, 3, H, W]`, the newest last, and an action -> `Seen`.

        action: `[B]` or `[B, A]`; None for no action at all, see `ActionEncoder.idle`, or without controls.
        """
        # joined by their channels a batch of one has strides for which torch (2.14, on a CPU) computes wrong
        # gradients
        pictures = torch.stack([past[-1 - age] for age in self.config.ages], 1).flatten(1, 2)
        x, maps = self._layer(self.tokenizer, laid_out(pictures))  # [B, E, h, w]
        x = x.flatten(2).transpose(1, 2) + self.place  # [B, P, E]
        token = None
        if self.action:
            token = self.action.idle(len(x)) if action is None else self.action(action)
            token = token[:, None]  # [B, 1, E]
        tokens = [x, self.registers.expand(len(x), -1, -1)]
        if self.config.action_mode == "concat":
            tokens.append(token)
        x = torch.cat(tokens, 1)
        for block in self.encoder:
            x = self._layer(block, x, token)
        return Seen(past[-1], x, maps, token)

    def places_of(self, seen):
        """The tokens of what was `seen` that stand for places: `[B, P, E]`."""
        return seen.tokens[:, : len(self.place)]

    def draw(self, seen, choice=None):
        """Draw the next frame, `[B, 3, H, W]`, not clipped.

        choice: one-hot, of the latents, `[B, G, K]`; None where there are none.
        """
        c = self.config
        if choice is not None:
            tokens = self.latent(seen.tokens, choice)
            seen = seen._replace(tokens=self._layer(self.compose, tokens, seen.action))
        x = self.norm(self.places_of(seen))
        x = x.transpose(1, 2).unflatten(2, c.grid)  # [B, E, h, w]
        drawn = self._layer(self.decoder, x, seen.maps).to(seen.last.dtype)
        if c.output == "direct":
            return drawn
        if c.output == "residual":
            return seen.last + drawn
        change, mask = drawn.split((3, 1), 1)
        return torch.lerp(self.median.expand_as(change), seen.last, mask.sigmoid()) + change

    def predict(self, past, action, generator=None):
        """Draw the next frame of a dream: `[B, k, 3, H, W]` and an action -> `[B, 3, H, W]`, not clipped.

        generator: what the latents are drawn by; None for the likeliest ones.
        """
        seen = self.look(past.unbind(1), action)
        if self.latent is None:
            return self.draw(seen)
        expected = self.latent.expect(self.places_of(seen))
        classes = sample(expected, self.config.temperature, generator)
        return self.draw(seen, F.one_hot(classes, self.config.latent_classes))

    def unroll(self, past, actions, told=None):
        """Draw n frames, each from those before: (frames `[B, n, 3, H, W]`, nats `[B, n]`).

        past: k frames `[B, 3, H, W]`. actions: `[B, n]` or `[B, n, A]`; actions[:, t] leads to the frame t of
        these; without controls None. told: the choice of latents for each frame, `[B, n, G, K]`. nats: those
        of it that were not expected. Without latents both are None.
        """
        frames = []
        nats = []
        past = list(past)
        steps = [None] * self.config.rollout_frames if actions is None else actions.unbind(1)
        for t, action in enumerate(steps):
            if frames:
                newest = frames[-1] if self.config.rollout_gradient else frames[-1].detach()
                past.append(newest.clamp(-1, 1))
            seen = self.look(past, action)
            choice = None
            if told is not None:
                choice = told[:, t]
                nats.append(surprise(choice, self.latent.expect(self.places_of(seen))))
            frames.append(self.draw(seen, choice))
        return torch.stack(frames, 1), torch.stack(nats, 1) if nats else None

    def generator_loss(self, batch):
        """`Loss` of the predicted frames. It carries what the discriminator sees of them and of the truth."""
        c = self.config
        k = self.needs().context
        frames = batch["frames"]
        past = frames[:, :k].unbind(1)
        before, real = frames[:, k - 1 : -1], frames[:, k:]
        truth = real.flatten(0, 1)
        actions = batch["actions"][:, k - 1 :] if self.action else None
        if c.context_noise or c.context_fade:
            past = self._worn(past, batch["key"])
        told = None
        if self.latent:
            told = self.latent.tell(before.flatten(0, 1), truth)
            told = told.unflatten(0, real.shape[:2])  # [B, n, G, K]
        made, nats = self.unroll(past, actions, told)

        fake = made.flatten(0, 1)
        logs = self._pixel_losses(fake, truth)
        if self.latent:
            logs["prior"] = nats.mean()
        if c.lambda_lpips:
            logs["lpips"] = self.frozen["lpips"](fake, truth).mean()
        if c.lambda_still:
            logs["still"] = F.l1_loss(self.predict(torch.stack(past, 1), None), frames[:, k - 1])
        carry = {}
        if self.discriminator:
            fake_before = torch.cat([before[:, :1], made[:, :-1].detach()], 1)  # it goes on from a fake one
            shown = self._shown(made, fake_before, actions)
            logits, _ = self.discriminator(shown.flatten(0, 1))
            logs["gan"] = lsgan_generator_loss(logits)
            carry = {"fake": shown, "real": self._shown(real, before, actions), "key": batch["key"]}
        total = sum(c.weight(name) * value for name, value in logs.items())
        return Loss(total, logs, carry)

    def _worn(self, past, key):
        """The frames `[B, 3, H, W]` of `past`, faded and noisy by one key a sample where they are looked at.

        The noise of all is cut from the same few numbers, each further on, which no convolution can tell: of
        their own numbers for 25 frames, drawing took longer than the networks.
        """
        c = self.config
        frames = list(past)
        newest = len(frames) - 1
        looked_at = {newest + t - age for t in range(c.rollout_frames) for age in c.ages}
        looked_at = sorted(i for i in looked_at if i <= newest)
        values = frames[0][0].numel()
        numbers = values + NOISE_STRIDE * (len(looked_at) - 1)
        uniform, fade = keyed_uniforms(key, {"context_noise": 2 * numbers, "context_fade": 1})
        cuts = normal_of(uniform).unfold(1, values, NOISE_STRIDE).unflatten(2, (c.height, c.width, 3))
        left = torch.rsub(fade[..., None, None], 1, alpha=c.context_fade)  # [B, 1, 1, 1]
        seen = torch.stack([frames[i].movedim(1, -1) for i in looked_at], 1).movedim(-1, 2)  # [B, n, 3, H, W]
        if c.context_fade:
            seen = torch.lerp(self.median, seen, left[:, None])
        seen = torch.add(seen, cuts.movedim(-1, 2), alpha=c.context_noise)
        for i, frame in zip(looked_at, seen.unbind(1), strict=True):
            frames[i] = frame
        return frames

    def _pixel_losses(self, fake, truth):
        """The losses of `PIXEL_LOSSES` that have a weight, by name. fake, truth: `[N, 3, H, W]`."""
        c = self.config
        losses = {}
        if c.moving_weight:
            moving = moving_weights(truth, fake, self.median, c.moving_weight)  # [N, 1, H, W]
        for name, loss in PIXEL_LOSSES.items():
            if not c.weight(name):
                continue
            if c.moving_weight and name in ("l1", "mse"):
                losses[name] = (moving * loss(fake, truth, reduction="none")).mean()
            else:
                losses[name] = loss(fake, truth)
        return losses

    def _shown(self, frames, before, actions):
        """What the discriminator sees of frames `[B, n, 3, H, W]`: `[B, n, C, H, W]`.

        With gan_conditional these are also the frames before, `[B, n, 3, H, W]`, and a plane for each number
        of the actions `[B, n, ...]`, where there are any.
        """
        if not self.config.gan_conditional:
            return frames
        if actions is None:
            return torch.cat([frames, before], 2)
        controls = self.action.to_values(actions).to(frames.dtype)[..., None, None]  # [B, n, A, 1, 1]
        planes = controls.expand(-1, -1, -1, *frames.shape[-2:])
        return torch.cat([frames, before, planes], 2)

    def discriminator_loss(self, batch):
        """`Loss` of the discriminator, with soft and noisy labels. batch: what `generator_loss` carries."""
        c = self.config
        logits, _ = self.discriminator(torch.cat([batch["real"], batch["fake"]]).flatten(0, 1))
        n = batch["real"].shape[1]
        chance = keyed_uniform(batch["key"], "labels", 4 * n).view(-1, 4, 1, 1, 1)  # [B*n, 4, 1, 1, 1]
        soft = c.soft_labels * chance[:, :2]
        exchanged = chance[:, 2:] < c.label_noise
        # how far the labels are from where they belong
        real_off, fake_off = torch.where(exchanged, 1 - soft, soft).unbind(1)
        loss = lsgan_discriminator_loss(*logits.chunk(2), 1 - real_off, fake_off)
        return Loss(loss, {"discriminator": loss})

    # ---- generation

    def _start(self, context, generator):
        return State(context, generator)

    def step(self, state, action=None):
        frame = self.predict(state.past, action, state.generator).clamp(-1, 1)
        if self.config.output == "anchored":
            frame = heal(frame, self.median)
        return state._replace(past=torch.cat([state.past[:, 1:], frame[:, None]], 1)), frame


def _actions_of(config):
    """The actions that a config is for, in words: "6 actions" or "2 floats"."""
    if config.action_count:
        return f"{config.action_count} actions"
    return f"{len(config.control_low)} floats"
