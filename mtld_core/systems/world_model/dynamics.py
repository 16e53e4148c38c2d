"""Dynamics: the next frame's latents from those so far and the actions, in the space of a frozen tokenizer.

objective "mse" draws the next latents at once; "masked" fills in the next frame's codes, the surest first
(MaskGIT, Chang et al. 2022). Letters: B batch, T frames, P patches a frame, L latent channels, E width;
actions[:, t] leads from frame t to frame t + 1.
"""

import dataclasses
import math
import typing

import torch
import torch.nn.functional as F
from torch import nn

from mtld_core.chance import keyed_normal, keyed_uniform
from mtld_core.config import check
from mtld_core.frames import to_float
from mtld_core.nn.actions import ActionEncoder, action_fields, action_space
from mtld_core.nn.precision import in_fp32
from mtld_core.systems.base import (
    BuiltOn,
    InventsActions,
    Loss,
    Needs,
    System,
    adam,
)
from mtld_core.systems.world_model.latent_actions import LatentActions
from mtld_core.systems.world_model.patches import PatchEmbedding, to_patches
from mtld_core.systems.world_model.space_time import SpaceTimeTransformer
from mtld_core.systems.world_model.stages import (
    ORIGINAL,
    TINY,
    StageConfig,
    load_stage,
    read_stage,
    spread,
    spread_alarms,
    statistics,
    take_over,
)
from mtld_core.systems.world_model.tokenizer import Tokenizer


@dataclasses.dataclass(frozen=True)
class DynamicsConfig(StageConfig):
    tokenizer_run: str = (
        ""  # the run folder of the trained tokenizer, which this one then carries inside itself
    )
    latent_actions_run: str = ""  # the same of the latent actions, where they are used
    actions: typing.Literal["recorded", "latent"] = "recorded"
    # added to every patch's token; modulate: and moving the norms; latent: the latent action, added to every
    # patch's latent
    action_input: typing.Literal["modulate", "add", "latent"] = "modulate"
    action_widths: tuple[int, ...] = (64,)
    latent_dim: int = 16  # L, as the tokenizer's
    objective: typing.Literal["mse", "masked"] = "mse"
    residual: bool = True  # mse: draw the change to the present latents
    lambda_latent: float = 1.0  # mse: (latents - truth)^2, in units of each channel's spread
    lambda_pixels: float = 0.0  # mse: (decoded - truth)^2
    context_noise: float = (
        0.2  # up to this much on what the model sees in training; masked: share of codes that are replaced
    )
    decode_steps: int = 10  # masked: passes in which a frame is filled in
    temperature: float = 0.0  # masked: 0 takes the likeliest code
    action_count: int = 0  # what the dataset's actions are; 0 and empty: as they come
    control_low: tuple[float, ...] = ()
    control_high: tuple[float, ...] = ()
    tokenizer: dict = dataclasses.field(
        default_factory=dict
    )  # the configs of the frozen stages, filled in from their runs
    latent_actions: dict = dataclasses.field(default_factory=dict)

    def __post_init__(self):
        super().__post_init__()
        for name in ("lambda_latent", "lambda_pixels", "context_noise", "temperature"):
            check(getattr(self, name) >= 0, f"{name} must not be negative, it is {getattr(self, name)}")
        for name in ("decode_steps", "latent_dim"):
            check(getattr(self, name) > 0, f"{name} must be positive, not {getattr(self, name)}")
        check(min(self.action_widths, default=1) > 0, "action_widths must list positive widths")
        check(
            self.objective == "masked" or self.lambda_latent or self.lambda_pixels,
            "lambda_latent and lambda_pixels are 0, so nothing would be learned: give one a positive weight",
        )
        check(
            self.action_input != "latent" or self.actions == "latent",
            "action_input='latent' adds what the latent actions "
            "are made of, and actions='recorded' have no latent; use actions='latent', or action_input='add'",
        )
        self.check_length()


class State(typing.NamedTuple):
    latents: torch.Tensor  # [B, 1, P, L] of the present frame, as the tokenizer gives them
    past: list | None  # of the transformer; mse: without the present frame, whose action is not known yet
    drawn: list  # past of the tokenizer's decoder, with the present frame
    generator: torch.Generator | None


class Dynamics(BuiltOn, InventsActions, System):
    name = "dynamics"
    Config = DynamicsConfig
    built_on: typing.ClassVar = {"tokenizer_run": "tokenizer", "latent_actions_run": "lam"}
    PRESETS: typing.ClassVar = {
        # a game at 64x64 in ten minutes on two cores
        "small": {
            "steps": 4500,
            "batch_size": 4,
            "lr_schedule": "cosine",
            "ema_decay": 0.995,
            "eval_horizon": 16,
            "long_horizon": 64,
        },
        "demo": {
            "steps": 1000,
            "batch_size": 4,
            "lr_schedule": "cosine",
            "ema_decay": 0.99,
            "eval_horizon": 16,
        },
        # on a tokenizer with codes
        "codes": {
            "objective": "masked",
            "latent_dim": 5,
            "steps": 4500,
            "batch_size": 4,
            "lr_schedule": "cosine",
            "ema_decay": 0.995,
            "eval_horizon": 16,
            "long_horizon": 64,
        },
        "original": ORIGINAL
        | {
            "action_input": "latent",
            "actions": "latent",
            "residual": False,
            "context_noise": 0.0,
            "eval_horizon": 16,
            "long_horizon": 64,
        },
        "tiny": TINY | {"latent_dim": 4, "decode_steps": 3},
    }

    def __init__(self, config):
        super().__init__(config)
        c = config
        self.tokenizer = take_over(Tokenizer, c.tokenizer)
        self.lam = take_over(LatentActions, c.latent_actions) if c.actions == "latent" else None
        self.action_space = self.lam.action_space if self.lam else action_space(c)
        if c.action_input != "latent":
            self.encode_action = ActionEncoder(self.action_space, c.action_widths, c.embed_dim)
        self.no_action = nn.Parameter(
            torch.randn(c.embed_dim) * 0.02
        )  # where it is not known: before the context's last frame
        self.embed = PatchEmbedding(c.patches, c.latent_dim, c.embed_dim)
        modulates = c.action_input == "modulate"
        self.transformer = SpaceTimeTransformer(*c.transformer, condition_dim=c.embed_dim if modulates else 0)
        self.head = nn.Linear(
            c.embed_dim, self.tokenizer.fsq.size if c.objective == "masked" else c.latent_dim
        )
        if c.objective == "masked":
            self.unknown = nn.Parameter(torch.randn(c.embed_dim) * 0.02)
        elif c.residual:
            nn.init.zeros_(self.head.weight)
            nn.init.zeros_(self.head.bias)
        self.register_buffer("mean", torch.zeros(c.latent_dim))  # of each latent channel over the data
        self.register_buffer("std", torch.ones(c.latent_dim))

    @classmethod
    def fit_config(cls, config, dataset):
        config = super().fit_config(config, dataset)
        tokenizer = config.tokenizer or read_stage(config.tokenizer_run, "tokenizer_run", Tokenizer, dataset)
        for name in ("patch_size", "latent_dim"):
            check(
                tokenizer[name] == getattr(config, name),
                f"tokenizer_run={config.tokenizer_run!r} has {name}={tokenizer[name]}, this dynamics has "
                f"{name}={getattr(config, name)}; give both the same",
            )
        check(
            config.objective == "mse" or tokenizer["quantise"] == "fsq",
            f"objective='masked' fills in codes, and the tokenizer of {config.tokenizer_run!r} has none "
            "(quantise="
            f"{tokenizer['quantise']!r}); train one with quantise='fsq', or use objective='mse'",
        )
        below = tokenizer.get("split", [0, 0])
        split = config.split or (tuple(below) if any(below) else 2 * (tokenizer["sequence_length"],))
        config = dataclasses.replace(config, split=split)
        if config.actions == "recorded":
            return dataclasses.replace(config, tokenizer=tokenizer, **action_fields(dataset))
        latent_actions = config.latent_actions or read_stage(
            config.latent_actions_run, "latent_actions_run", LatentActions, dataset
        )
        check(
            latent_actions["patch_size"] == tokenizer["patch_size"],
            f"latent_actions_run={config.latent_actions_run!r} has "
            f"patch_size={latent_actions['patch_size']}, tokenizer_run="
            f"{config.tokenizer_run!r} has {tokenizer['patch_size']}; train both with the same",
        )
        check(
            config.action_input != "latent" or latent_actions["action_dim"] == config.latent_dim,
            f"latent_actions_run={config.latent_actions_run!r} has "
            f"action_dim={latent_actions['action_dim']}, and "
            f"action_input='latent' adds it to latents of latent_dim={config.latent_dim}; train it with that "
            "action_dim, or "
            "use action_input='add'",
        )
        return dataclasses.replace(config, tokenizer=tokenizer, latent_actions=latent_actions)

    def train(self, mode=True):
        """The frozen stages stay in eval mode."""
        super().train(mode)
        for stage in filter(None, (self.tokenizer, self.lam)):
            stage.eval()
        return self

    def needs(self):
        c = self.config
        return Needs(window=c.sequence_length, context=c.context_frames, actions=c.actions == "recorded")

    def prepare(self, frames, frames_y=None):
        """Take over the trained stages, and measure the spread of the tokenizer's latents."""
        load_stage(self.tokenizer, self.config.tokenizer_run)
        if self.lam is not None:
            load_stage(self.lam, self.config.latent_actions_run)
        with torch.no_grad():
            latents = torch.cat(
                [self.tokenizer.encode(to_float(part.to(self.device))[:, None]) for part in frames.split(32)]
            )
        self.mean.copy_(latents.mean((0, 1, 2)))
        self.std.copy_(latents.std((0, 1, 2)).clamp(min=1e-3))

    def optimizers(self):
        own = [p for p in self.parameters() if p.requires_grad]
        return {"model": adam(own, self.config.lr, (0.9, self.config.beta2), self.config.weight_decay)}

    # ---- actions

    def infer_actions(self, frames):
        return self.lam.infer_actions(frames)

    def _action(self, actions):
        """Actions -> what is added to the tokens, `[..., E]`."""
        if (
            self.config.action_input == "latent"
        ):  # a latent that is added to another one comes out of the embedding like this
            return F.linear(self.lam.latents(actions), self.embed.project.weight)
        return self.encode_action(actions)

    def _conditions(self, batch):
        """`[B, T-1, E]`: what leads from each frame to the next; of a random number of first ones nothing is
        said.
        """
        actions = batch["actions"] if self.lam is None else self.lam.infer_actions(batch["frames"])
        hidden = (
            keyed_uniform(batch["key"], "no_action", 1) * self.config.context_frames
        ).long()  # [B, 1]: 0 .. k-1
        told = torch.arange(actions.shape[1], device=hidden.device) >= hidden
        return torch.where(told[..., None], self._action(actions), self.no_action)

    def _transform(self, x, conditions, past=None, keep=True):
        """Tokens `[B, T, P, E]` and conditions `[B, T, E]` -> (`[B, T, P, E]`, past)."""
        modulates = self.config.action_input == "modulate"
        return self.transformer(x + conditions[:, :, None], conditions if modulates else None, past, keep)

    # ---- training

    def loss(self, batch):
        return self._masked_loss(batch) if self.config.objective == "masked" else self._mse_loss(batch)

    def _mse_loss(self, batch):
        c, conditions = self.config, self._conditions(batch)
        with torch.no_grad():
            latents = self.tokenizer.encode(batch["frames"])
            target = self._standard(latents)
        seen = target[:, :-1]
        if c.context_noise and self.training:
            noise = keyed_normal(batch["key"], "context_noise", seen[0].numel()).view_as(seen)
            seen = (
                seen + noise * c.context_noise * keyed_uniform(batch["key"], "noise_level", 1)[:, None, None]
            )
        drawn = self._predict(seen, conditions)[0]
        logs = {"latent": F.mse_loss(drawn, target[:, 1:])}
        total = c.lambda_latent * logs["latent"]
        if c.lambda_pixels:
            rebuilt, _ = self.tokenizer.decode_patches(torch.cat([latents[:, :1], self._raw(drawn)], 1))
            logs["pixels"] = F.mse_loss(rebuilt[:, 1:], to_patches(batch["frames"][:, 1:], c.patch_size))
            total = total + c.lambda_pixels * logs["pixels"]
        return Loss(total, logs | spread("latent", latents) | statistics("output", drawn))

    def _predict(self, seen, conditions, past=None):
        """Standard latents `[B, T, P, L]` -> (those of the next frames, past)."""
        x, past = self._transform(self.embed(seen), conditions, past)
        return (seen + self.head(x) if self.config.residual else self.head(x)), past

    def _masked_loss(self, batch):
        c, key = self.config, batch["key"]
        with torch.no_grad():
            latents = self.tokenizer.encode(batch["frames"])
        codes, (size, frames, patches) = self.tokenizer.fsq.codes(latents), latents.shape[:3]

        def chance(purpose, n=patches):
            return keyed_uniform(key, purpose, frames * n).view(size, frames, n)

        share = torch.cos(math.pi / 2 * chance("share", 1)) * (
            chance("context", 1) < 0.7
        )  # of a frame's codes that are hidden
        share[:, 0] = 0
        hidden = chance("hidden") < share
        if c.context_noise and self.training:
            wrong = chance("wrong") < c.context_noise * chance("noise_level", 1)
            codes_seen = torch.where(wrong, (chance("code") * self.tokenizer.fsq.size).long(), codes)
            latents = self.tokenizer.fsq.latents(codes_seen)
        before = self.no_action.expand(size, 1, -1)  # nothing is known to lead to the first frame
        conditions = torch.cat([before, self._conditions(batch)], 1)
        x, _ = self._transform(self._tokens(latents, hidden), conditions)
        logits = in_fp32(self.head(x))
        losses = F.cross_entropy(logits.flatten(0, 2), codes.flatten(), reduction="none").view_as(hidden)
        count = hidden.sum().clamp(min=1)
        loss = (losses * hidden).sum() / count
        right = ((logits.argmax(-1) == codes) * hidden).sum() / count
        logs = (
            {"cross_entropy": loss, "right": right} | spread("latent", latents) | statistics("output", logits)
        )
        return Loss(loss, logs, weight=hidden.to(loss.dtype).sum() / size)  # a mean over the hidden codes

    def evaluate(self, dataset, starts):
        """What the frozen stages say of themselves on this data."""
        figures = self.tokenizer.evaluate(dataset, starts)
        if self.lam is not None:
            figures |= {
                f"action_{name.removeprefix('action_')}": value
                for name, value in self.lam.evaluate(dataset, starts).items()
            }
        return figures

    def alarms(self, figures):
        return spread_alarms(figures, "latent")

    def _tokens(self, latents, hidden):
        """Latents `[B, T, P, L]`, hidden `[B, T, P]` -> tokens; a hidden patch shows its place alone."""
        x = self.embed(self._standard(latents))
        return torch.where(hidden[..., None], self.unknown + self.embed.place, x)

    def _standard(self, latents):
        return (latents - self.mean) / self.std

    def _raw(self, standard):
        return standard * self.std + self.mean

    # ---- generation

    def _start(self, context, generator):
        latents = self.tokenizer.encode(context)
        _, drawn = self.tokenizer.decode_patches(latents)
        known = latents if self.config.objective == "masked" else latents[:, :-1]
        past = None
        if known.shape[1]:
            conditions = self.no_action.expand(*known.shape[:2], -1)
            _, past = self._transform(self.embed(self._standard(known)), conditions)
        return State(latents[:, -1:], past, drawn, generator)

    def step(self, state, action=None):
        condition = self._action(action)[:, None]
        if self.config.objective == "masked":
            latents, past = self._fill_in(state, condition)
        else:
            drawn, past = self._predict(self._standard(state.latents), condition, state.past)
            latents = self._raw(drawn).clamp(-1, 1)
        frame, drawn = self.tokenizer.decode(latents, state.drawn)
        return State(latents, past, drawn, state.generator), frame[:, 0].clamp(-1, 1)

    def _fill_in(self, state, condition):
        """(latents `[B, 1, P, L]` of the next frame, past with it): in each pass the surest of its codes are
        kept.
        """
        c, fsq = self.config, self.tokenizer.fsq
        latents = torch.zeros_like(state.latents)
        hidden = torch.ones(latents.shape[:3], dtype=torch.bool, device=latents.device)
        for i in range(1, c.decode_steps + 1):
            x, _ = self._transform(self._tokens(latents, hidden), condition, state.past, keep=False)
            logits = self.head(x)
            if c.temperature:
                chance = torch.rand(logits.shape, generator=state.generator, device=logits.device)
                codes = (logits / c.temperature - torch.log(-torch.log(chance + 1e-20) + 1e-20)).argmax(
                    -1
                )  # Gumbel's trick
            else:
                codes = logits.argmax(-1)
            sure = (
                torch.log_softmax(logits, -1)
                .gather(-1, codes[..., None])[..., 0]
                .masked_fill(~hidden, float("inf"))
            )
            count = hidden.shape[-1] - int(hidden.shape[-1] * math.cos(math.pi / 2 * i / c.decode_steps))
            kept = torch.zeros_like(hidden).scatter(-1, sure.topk(count, -1).indices, True)
            latents = torch.where((kept & hidden)[..., None], fsq.latents(codes), latents)
            hidden = ~kept
        _, past = self._transform(self._tokens(latents, hidden), condition, state.past)
        return latents, past
