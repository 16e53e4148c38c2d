"""TinyDreams: the current frames and the controls in, the next frame out. A tokenizer, a Transformer, a
decoder.

Source: sources text 4 (TinyDreamsI, "Next Frame Prediction with Vision Transformer and CNN Decoder"). k
context frames become a grid of tokens and the controls one token; a Transformer mixes them; the decoder draws
the next frame, or the change to the last one. In training the n frames of a window are predicted one after
another, each from what was made of the earlier ones. E width of a token, h w the grid, P = h w; other letters
as in base.py.
"""

import dataclasses
import typing

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint

from mtld_core.chance import keyed_normal, keyed_uniform
from mtld_core.config import check
from mtld_core.nn.actions import ActionEncoder, action_fields, action_space
from mtld_core.nn.conv import ConvTokenizer, erases
from mtld_core.nn.gan import PatchDiscriminator, lsgan_discriminator_loss, lsgan_generator_loss
from mtld_core.nn.perceptual import LPIPS, load_trunk
from mtld_core.systems.base import Loss, Needs, System, adam
from mtld_core.systems.tinydreams.losses import sobel_loss, spectrum_loss, ssim_loss
from mtld_core.systems.tinydreams.nets import AttentionDecoder, Block, ConvDecoder, CrossBlock, PatchTokenizer

UNET = {
    "tokenizer_filters": (32, 64),
    "decoder_filters": (64, 32),
    "skips": True,
    "norm": "group",
    "activation": "silu",
    "layers": 2,
    "lambda_l1": 0.0,
    "lambda_mse": 10.0,
}
PIXEL_LOSSES = ("l1", "mse", "sobel", "fft", "ssim", "lpips")


@dataclasses.dataclass(frozen=True)
class TinyDreamsConfig:
    height: int = 0  # pixels; 0: the dataset's own size
    width: int = 0
    action_count: int = 0  # discrete actions, or the range of each control: the dataset's own
    control_low: tuple[float, ...] = ()
    control_high: tuple[float, ...] = ()
    context_frames: int = 3  # k: one frame shows no movement
    rollout_frames: int = (
        1  # n: frames predicted from the model's own predictions in training; 1: teacher forcing
    )
    rollout_gradient: bool = True  # through the predicted frames back to those before
    context_noise: float = (
        0.0  # standard deviation of noise on the context in training, where pixels are in [-1, 1]
    )
    tokenizer: typing.Literal["conv", "patch"] = "conv"
    patch_size: int = 8  # pixels along a token's side
    tokenizer_filters: tuple[int, ...] = (
        32,
        64,
    )  # conv: each halves the grid; what patch_size asks for beyond, folding does
    tokenizer_blocks: int = 1  # conv: ResNet blocks a level
    norm: typing.Literal["instance", "group", "none"] = "instance"  # of all ResNet blocks
    activation: typing.Literal["gelu", "relu", "silu"] = "gelu"  # of the ResNet blocks
    action_widths: tuple[int, ...] = (64,)  # hidden layers of the controls' MLP
    action_mode: typing.Literal["concat", "cross", "modulate"] = "concat"
    embed_dim: int = 128  # E
    heads: int = 4
    layers: int = 4
    ffn_scale: float = 2.0
    registers: int = 0  # extra learned tokens
    decoder: typing.Literal["conv", "attention"] = "conv"
    decoder_filters: tuple[int, ...] = (
        64,
        32,
    )  # conv: each doubles the grid, then a pixel shuffle; (): the shuffle alone
    decoder_blocks: int = 1  # conv: ResNet blocks a level
    decoder_activation: typing.Literal["same", "gelu", "relu", "silu"] = (
        "same"  # conv: of its ResNet blocks; same: activation
    )
    decoder_layers: int = 2  # attention
    skips: bool = False  # the decoder's levels also see the tokenizer's of the same size
    output: typing.Literal["residual", "direct"] = "residual"  # residual: the last frame and a change
    gradient_checkpointing: bool = False  # less memory, a third more work
    lr: float = 1e-3
    lr_d: float = 4e-4
    beta1: float = 0.9
    beta2: float = 0.99
    weight_decay: float = 0.0
    lambda_l1: float = 1.0
    lambda_mse: float = 0.0
    lambda_sobel: float = 0.0  # edges
    lambda_fft: float = 0.0  # magnitudes of frequencies
    lambda_ssim: float = 0.0
    lambda_lpips: float = 0.0
    lambda_still: float = (
        0.0  # |what comes under no action at all - the present frame|; one more prediction a step
    )
    lpips_weights: str = ""  # a file with VGG16's convolutions; "": torch's cache, or a download
    lambda_gan: float = 0.0
    gan_conditional: bool = False  # the discriminator also sees the frame before and the controls
    discriminator_channels: tuple[int, ...] = (32, 64, 128)
    soft_labels: float = 0.0  # the discriminator's labels are drawn from [0, this] and [1 - this, 1]
    label_noise: float = 0.0  # share of its labels that is exchanged

    def __post_init__(self):
        for name in (
            "context_frames",
            "rollout_frames",
            "patch_size",
            "embed_dim",
            "heads",
            "layers",
            "ffn_scale",
            "lr",
            "lr_d",
            "tokenizer_blocks",
            "decoder_blocks",
        ):
            check(getattr(self, name) > 0, f"{name} must be positive, not {getattr(self, name)}")
        for side in ("height", "width"):
            size = getattr(self, side)
            check(size >= 0, f"{side} must be 0 (as the dataset) or positive, not {size}")
            check(
                size % self.patch_size == 0,
                f"{side}={size} is not divisible by patch_size={self.patch_size}; make the "
                f"frames {max(1, size // self.patch_size) * self.patch_size} pixels or use a smaller "
                "patch_size",
            )
            least = 3 << (len(self.discriminator_channels) - 1)  # the last two convolutions take a pixel each
            check(
                not self.lambda_gan or size == 0 or size >= least,
                f"{side}={size} is too small for so many discriminator_channels, which need {least} pixels; "
                "use fewer, or "
                "lambda_gan=0",
            )
        for name in ("action_widths", "discriminator_channels", "tokenizer_filters", "decoder_filters"):
            empty = name == "decoder_filters" or (name == "tokenizer_filters" and self.tokenizer == "patch")
            check(min(getattr(self, name), default=empty) > 0, f"{name} must list positive widths")
        check(
            self.ffn_hidden >= 1,
            f"ffn_scale={self.ffn_scale} of embed_dim={self.embed_dim} leaves the MLPs no width; use at "
            "least "
            f"{1 / self.embed_dim:g}",
        )
        if self.tokenizer == "conv":
            cells = self.height // self.patch_size, self.width // self.patch_size
            check(
                not erases(self.norm, self.tokenizer_filters[-1], *cells),
                f"frames of one patch (patch_size={self.patch_size}) leave nothing to norm={self.norm!r}; "
                "use a smaller "
                "patch_size, or norm='none'",
            )
        width = self.embed_dim / self.heads
        near = max(8, round(width / 8) * 8)
        check(
            width == near,
            f"heads={self.heads} over embed_dim={self.embed_dim} are {width:g} wide, and fast attention "
            "wants "
            f"a multiple of 8; the nearest is {near}: embed_dim={near * self.heads}",
        )
        for part in ("tokenizer", "decoder"):
            grids = 2 ** len(getattr(self, f"{part}_filters"))
            check(
                getattr(self, part) != "conv" or self.patch_size % grids == 0,
                f"{part}_filters change the grid {grids} times, and patch_size={self.patch_size} is no "
                "multiple of that; use "
                "fewer of them or a larger patch_size",
            )
        check(
            not self.skips
            or (
                self.tokenizer == self.decoder == "conv"
                and len(self.tokenizer_filters) == len(self.decoder_filters)
            ),
            "skips needs a conv tokenizer and a conv decoder with as many levels: as many tokenizer_filters "
            "as "
            "decoder_filters",
        )
        check(
            any(getattr(self, f"lambda_{name}") for name in PIXEL_LOSSES),
            "there is no loss that compares the frame with "
            "the truth: give lambda_l1 or lambda_mse a positive weight",
        )
        for name in ("beta1", "beta2", "label_noise", "soft_labels"):
            check(0 <= getattr(self, name) < 1, f"{name} must be in [0, 1), not {getattr(self, name)}")
        for name in (field.name for field in dataclasses.fields(self) if field.name.startswith("lambda_")):
            check(getattr(self, name) >= 0, f"{name} must not be negative, it is {getattr(self, name)}")
        for name in ("registers", "decoder_layers", "context_noise", "weight_decay", "action_count"):
            check(getattr(self, name) >= 0, f"{name} must not be negative, it is {getattr(self, name)}")

    @property
    def ffn_hidden(self):
        """Width of the Transformer's MLPs."""
        return round(self.ffn_scale * self.embed_dim)


class TinyDreams(System):
    name = "tinydreams"
    Config = TinyDreamsConfig
    PRESETS: typing.ClassVar = {
        # the best measured for Atari at 64x64 in a quarter of an hour (docs/systems/tinydreams.md has the
        # table)
        "small": UNET
        | {
            "rollout_frames": 4,
            "time_budget_minutes": 15,
            "batch_size": 8,
            "ema_decay": 0.995,
            "lr_schedule": "cosine",
            "eval_horizon": 16,
            "long_horizon": 64,
            "eval_windows": 128,
            "eval_every_steps": 0,
        },
        # the same network learns to see one frame ahead in a few minutes, and a little further
        "demo": UNET
        | {
            "rollout_frames": 2,
            "time_budget_minutes": 3,
            "batch_size": 8,
            "ema_decay": 0.99,
            "lr_schedule": "cosine",
            "eval_horizon": 16,
            "eval_windows": 32,
            "eval_every_steps": 0,
        },
        # the public code's values; its 14 heads are 22 wide, 24 is the nearest that can be
        # (docs/systems/tinydreams.md)
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
        c, dim = config, config.embed_dim
        hidden, frames = c.ffn_hidden, 3 * c.context_frames
        self.action_space = action_space(c)
        self.action = ActionEncoder(self.action_space, c.action_widths, dim)
        if c.tokenizer == "conv":
            self.tokenizer = ConvTokenizer(
                frames, c.tokenizer_filters, c.tokenizer_blocks, dim, c.patch_size, c.norm, c.activation
            )
        else:
            self.tokenizer = PatchTokenizer(frames, dim, c.patch_size)
        places = (c.height // c.patch_size) * (c.width // c.patch_size)
        self.place = nn.Parameter(torch.randn(places, dim) * 0.02)
        self.registers = nn.Parameter(torch.randn(c.registers, dim) * 0.02)
        if c.action_mode == "cross":
            layers = [CrossBlock(dim, c.heads, hidden) for _ in range(c.layers)]
        else:
            layers = [
                Block(dim, c.heads, hidden, dim * (c.action_mode == "modulate")) for _ in range(c.layers)
            ]
        self.encoder, self.norm = nn.ModuleList(layers), nn.LayerNorm(dim)
        if c.decoder == "conv":
            activation = c.activation if c.decoder_activation == "same" else c.decoder_activation
            self.decoder = ConvDecoder(
                dim,
                c.decoder_filters,
                c.decoder_blocks,
                c.patch_size,
                c.norm,
                activation,
                self.tokenizer.widths if c.skips else (),
            )
        else:
            self.decoder = AttentionDecoder(dim, c.heads, hidden, c.decoder_layers, c.patch_size)
        if c.output == "residual":
            nn.init.zeros_(self.decoder.head.weight)
            nn.init.zeros_(self.decoder.head.bias)
        self.discriminator = None
        if c.lambda_gan > 0:
            seen = 3 + c.gan_conditional * (3 + self.action.values)
            self.discriminator = PatchDiscriminator(c.discriminator_channels, in_channels=seen)
        self.frozen = {}  # networks of the loss: a dict, so that no checkpoint and no optimizer sees them

    # ---- training

    @classmethod
    def fit_config(cls, config, dataset):
        found = {"action_count": 0, "control_low": (), "control_high": ()} | action_fields(dataset)
        given, there = (
            f"{c['action_count']} actions" if c["action_count"] else f"{len(c['control_low'])} floats"
            for c in (vars(config), found)
        )
        check(
            given in ("0 floats", there),
            f"the config is for {given} and those of {dataset.path} are {there}; leave "
            "action_count, control_low and control_high out, or use the recording that they were made for",
        )
        return dataclasses.replace(super().fit_config(config, dataset), **found)

    def needs(self):
        k, n = self.config.context_frames, self.config.rollout_frames
        return Needs(window=k + n, context=k, actions=True)

    def setup_training(self, folder):
        if self.config.lambda_lpips > 0:
            self.frozen["lpips"] = LPIPS(load_trunk(self.config.lpips_weights)).to(self.device)

    def optimizers(self):
        c, judge = self.config, list(self.discriminator.parameters()) if self.discriminator else []
        apart = set(judge)
        makers = [p for p in self.parameters() if p not in apart]
        phases = {"generator": adam(makers, c.lr, (c.beta1, c.beta2), c.weight_decay)}
        if judge:
            phases["discriminator"] = adam(judge, c.lr_d, (0.5, 0.999))
        return phases

    def training_step(self, batches, step):
        if self.discriminator is not None:
            self.discriminator.iterate()
        result = step("generator", self.generator_loss, batches[0])
        if self.discriminator is None:
            return result.logs
        return result.logs | step("discriminator", self.discriminator_loss, result.carry).logs

    def _layer(self, layer, *inputs):
        if self.config.gradient_checkpointing and torch.is_grad_enabled():
            return checkpoint(layer, *inputs, use_reentrant=False)
        return layer(*inputs)

    def predict(self, past, action):
        """Frames `[B, k, 3, H, W]` and the action `[B]` or `[B, A]` that leads on from the last one -> `[B,
        3, H, W]`.

        action: None for no action at all, see `ActionEncoder.idle`.
        """
        c = self.config
        x, levels = self._layer(self.tokenizer, past.flatten(1, 2))  # [B, E, h, w], maps
        grid, places = x.shape[-2:], len(self.place)
        x = x.flatten(2).transpose(1, 2) + self.place  # [B, P, E]
        token = self.action.idle(len(x)) if action is None else self.action(action)
        token = token[:, None]  # [B, 1, E]
        extra = [self.registers.expand(len(x), -1, -1)] + [token] * (c.action_mode == "concat")
        x = torch.cat([x, *extra], 1)
        for layer in self.encoder:
            x = self._layer(layer, x, token) if c.action_mode != "concat" else self._layer(layer, x)
        x = self.norm(x[:, :places]).transpose(1, 2).unflatten(2, grid)  # [B, E, h, w]
        drawn = self._layer(self.decoder, x, levels).to(past.dtype)
        return past[:, -1] + drawn if c.output == "residual" else drawn

    def unroll(self, past, actions):
        """Context `[B, k, 3, H, W]` and actions `[B, n, ...]` -> the n frames they lead to, `[B, n, 3, H,
        W]`.
        """
        frames = []
        for action in actions.unbind(1):
            frames.append(self.predict(past, action))
            newest = frames[-1] if self.config.rollout_gradient else frames[-1].detach()
            past = torch.cat([past[:, 1:], newest.clamp(-1, 1)[:, None]], 1)
        return torch.stack(frames, 1)

    def generator_loss(self, batch):
        c, frames, k = self.config, batch["frames"], self.config.context_frames
        past, real, actions = frames[:, :k], frames[:, k:], batch["actions"][:, k - 1 :]
        if c.context_noise:
            noise = keyed_normal(batch["key"], "context_noise", past[0].numel()).view_as(past)
            past = past + c.context_noise * noise
        made = self.unroll(past, actions)
        fake, truth = made.flatten(0, 1), real.flatten(0, 1)
        terms = {
            "l1": lambda: F.l1_loss(fake, truth),
            "mse": lambda: F.mse_loss(fake, truth),
            "sobel": lambda: sobel_loss(fake, truth),
            "fft": lambda: spectrum_loss(fake, truth),
            "ssim": lambda: ssim_loss(fake, truth),
            "lpips": lambda: self.frozen["lpips"](fake, truth).mean(),
            "still": lambda: F.l1_loss(self.predict(past, None), frames[:, k - 1]),
        }
        logs = {name: term() for name, term in terms.items() if getattr(c, f"lambda_{name}") > 0}
        carry = {}
        if self.discriminator is not None:
            before = torch.cat(
                [frames[:, k - 1 : k], made[:, :-1].detach()], 1
            )  # a fake frame goes on from a fake one
            carry = {
                "fake": made,
                "fake_before": before,
                "real": real,
                "real_before": frames[:, k - 1 : -1],
                "actions": actions,
                "key": batch["key"],
            }
            logs["gan"] = lsgan_generator_loss(self.discriminator(self._shown(made, before, actions))[0])
        total = sum(getattr(c, f"lambda_{name}") * value for name, value in logs.items())
        return Loss(total, logs, carry)

    def _shown(self, frames, before, actions):
        """What the discriminator sees of frames `[B, n, 3, H, W]`, as `[B*n, C, H, W]`."""
        if not self.config.gan_conditional:
            return frames.flatten(0, 1)
        controls = self.action.to_values(actions).to(frames.dtype)[..., None, None]  # [B, n, A, 1, 1]
        return torch.cat(
            [frames, before, controls.expand(*controls.shape[:-2], *frames.shape[-2:])], 2
        ).flatten(0, 1)

    def discriminator_loss(self, batch):
        c, (size, n) = self.config, batch["fake"].shape[:2]
        chance = keyed_uniform(batch["key"], "labels", 4 * n).view(size, n, 4).flatten(0, 1)  # [B*n, 4]
        soft, exchanged = c.soft_labels * chance[:, :2], chance[:, 2:] < c.label_noise
        real, fake = torch.where(exchanged, 1 - soft, soft).unbind(
            1
        )  # how far the labels are from where they belong
        shown = [
            self._shown(batch[side], batch[f"{side}_before"], batch["actions"]) for side in ("real", "fake")
        ]
        logits = self.discriminator(torch.cat(shown))[0].chunk(2)
        loss = lsgan_discriminator_loss(*logits, *(label.view(-1, 1, 1, 1) for label in (1 - real, fake)))
        return Loss(loss, {"discriminator": loss})

    # ---- generation

    def _start(self, context, generator):
        return context

    def step(self, state, action=None):
        frame = self.predict(state, action).clamp(-1, 1)
        return torch.cat([state[:, 1:], frame[:, None]], 1), frame
