"""Dynamics: the next frame's latents from those so far and the actions, in the space of a frozen tokenizer.

objective "mse" draws the next latents at once; "masked" fills in the next frame's codes, surer patches first
(MaskGIT, Chang et al. 2022). Letters: B batch, T frames, P patches a frame, L latent channels, E width;
actions[:, t] leads from frame t to frame t + 1.
"""

import dataclasses
import math
import typing

import torch
import torch.nn.functional as F
from torch import nn

from mtld_core.chance import keyed_uniform, keyed_uniforms, normal_of
from mtld_core.config import BelowOne, NotNegative, Positive, WidthsOrNone, check
from mtld_core.frames import to_float
from mtld_core.nn.actions import ActionEncoder, action_fields, action_space
from mtld_core.nn.conv import zeroed
from mtld_core.nn.moving import FAR, heal
from mtld_core.nn.precision import in_fp32
from mtld_core.nn.sample import sample
from mtld_core.systems.base import BuiltOn, InventsActions, Loss, Needs
from mtld_core.systems.world_model.latent_actions import LatentActions
from mtld_core.systems.world_model.patches import PatchEmbedding, to_patches
from mtld_core.systems.world_model.space_time import SpaceTimeTransformer
from mtld_core.systems.world_model.stages import (
    GPU,
    ORIGINAL,
    TINY,
    Stage,
    StageConfig,
    load_stage,
    read_stage,
    spread,
    spread_alarms,
    statistics,
    take_over,
)
from mtld_core.systems.world_model.tokenizer import Tokenizer

OPEN = 4.0  # logit of a mask that begins by letting through nearly all
# mean square by which a patch's standard latents are off the median frame's where something is drawn: of
# Pong's frames it is below 0.002 where nothing moves (99 %), and above 1 where something does (99 %)
DRAWN = 0.1
GHOSTS = 0.15  # of the weight on what moves counts where something is drawn and nothing is

SMALL = {  # a game at 64x64 in ten minutes on two cores
    "steps": 4500,
    "batch_size": 4,
    "lr_schedule": "cosine",
    "ema_decay": 0.995,
    "eval_horizon": 16,
    "long_horizon": 64,
    "life_horizon": 1000,
    # a dream that neither fades nor drifts, and has a ball
    "anchored": True,
    "context_fade": 0.5,
    "moving_weight": 6.0,
}


@dataclasses.dataclass(frozen=True)
class DynamicsConfig(StageConfig):
    """The settings of the dynamics."""

    # the run folder of the trained tokenizer, which this system then carries inside itself
    tokenizer_run: str = ""
    latent_actions_run: str = ""  # the run folder of the latent actions, where they are used
    actions: typing.Literal["recorded", "latent"] = "recorded"
    # add: the action's token is added to every patch's; modulate: and moves the norms; latent: the latent
    # action itself is added to every patch's latent
    action_input: typing.Literal["modulate", "add", "latent"] = "modulate"
    action_widths: WidthsOrNone = (64,)
    latent_dim: Positive[int] = 16  # L, as the tokenizer's
    objective: typing.Literal["mse", "masked"] = "mse"
    residual: bool = True  # mse: draw the change to the present latents
    # mse: of the present latents that change is drawn to, a learned mask lets through how they differ from
    # the median frame's, which stay
    anchored: bool = False
    lambda_latent: NotNegative[float] = 1.0  # mse: (latents - truth)^2, in units of each channel's spread
    lambda_pixels: NotNegative[float] = 0.0  # mse: (decoded - truth)^2
    # mse: noise, up to this much, on what the model sees in training; masked: share of codes replaced there
    context_noise: NotNegative[float] = 0.2
    # mse: in training what the model sees is drawn towards the median frame's latents by up to this share,
    # one a sample: what grew faint in a dream is then drawn whole again
    context_fade: BelowOne[float] = 0.0
    # mse: by so much more weigh the latents of patches where something moves, by 0.15 of that where
    # something is drawn and nothing is: a ball is in one of 64
    moving_weight: NotNegative[float] = 0.0
    # masked: of a step between two values, how far beyond the middle a code has to be to change in time
    code_hold: NotNegative[float] = 0.0
    decode_steps: Positive[int] = 6  # masked: passes in which a frame is filled in
    temperature: NotNegative[float] = 0.0  # masked: 0 takes the likeliest code
    action_count: int = 0  # discrete actions, filled in from the dataset
    control_low: tuple[float, ...] = ()  # of each control, filled in from the dataset
    control_high: tuple[float, ...] = ()
    # the configs of the frozen stages, filled in from their runs
    tokenizer: dict = dataclasses.field(default_factory=dict)
    latent_actions: dict = dataclasses.field(default_factory=dict)

    def __post_init__(self):
        super().__post_init__()
        check(
            self.objective == "masked" or self.lambda_latent or self.lambda_pixels,
            "lambda_latent and lambda_pixels are 0, so nothing would be learned: give one a positive weight",
        )
        check(
            self.action_input != "latent" or self.actions == "latent",
            "action_input='latent' adds what the latent actions are made of, and actions='recorded' have no "
            "latent; use actions='latent', or action_input='add'",
        )
        check(
            self.residual or not self.anchored,
            "anchored=True draws a change to the present latents, and residual=False draws none; use "
            "residual=True",
        )
        self.check_length()


class State(typing.NamedTuple):
    """Where a rollout of the dynamics stands."""

    latents: torch.Tensor  # [B, 1, P, L] of the present frame, as the tokenizer gives them
    past: list | None  # of the transformer; mse: without the present frame, whose action is not known yet
    drawn: list  # past of the tokenizer's decoder, with the present frame
    generator: torch.Generator | None


class Dynamics(BuiltOn, InventsActions, Stage):
    """The last stage of the world model, which a player steers: the next frame's latents from an action."""

    name = "dynamics"
    Config = DynamicsConfig
    built_on: typing.ClassVar = {"tokenizer_run": "tokenizer", "latent_actions_run": "lam"}
    PRESETS: typing.ClassVar = {
        "small": SMALL,
        "gpu": SMALL | GPU | {"embed_dim": 1024, "heads": 16, "hidden_dim": 4096, "blocks": 8, "lr": 1.5e-4},
        "demo": {
            "steps": 1000,
            "batch_size": 4,
            "lr_schedule": "cosine",
            "ema_decay": 0.99,
            "eval_horizon": 16,
        },
        # on a tokenizer with codes; judged less, for a frame is drawn in seven passes
        "codes": SMALL
        | {
            "objective": "masked",
            "latent_dim": 5,
            "code_hold": 0.2,
            "temperature": 1.0,
            "eval_windows": 32,
            "long_horizon": 16,
            "life_horizon": 256,
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
        c, width = config, config.embed_dim
        self.tokenizer = take_over(Tokenizer, c.tokenizer)
        self.lam = take_over(LatentActions, c.latent_actions) if c.actions == "latent" else None
        self.action_space = self.lam.action_space if self.lam else action_space(c)
        if c.action_input != "latent":
            self.encode_action = ActionEncoder(self.action_space, c.action_widths, width)
        # stands for an action that is not known: those before the context's last frame
        self.no_action = nn.Parameter(torch.randn(width) * 0.02)
        self.embed = PatchEmbedding(c.patches, c.latent_dim, width)
        self.modulates = c.action_input == "modulate"
        condition_dim = width if self.modulates else 0
        self.transformer = SpaceTimeTransformer(*c.transformer, condition_dim=condition_dim)
        outputs = self.tokenizer.fsq.size if c.objective == "masked" else c.latent_dim + c.anchored
        self.head = nn.Linear(width, outputs)
        if c.objective == "masked":
            self.unknown = nn.Parameter(torch.randn(width) * 0.02)
        elif c.residual:
            zeroed(self.head)
            if c.anchored:
                nn.init.constant_(self.head.bias[-1:], OPEN)
        # of each latent channel over the data
        self.register_buffer("mean", torch.zeros(c.latent_dim))
        self.register_buffer("std", torch.ones(c.latent_dim))
        if c.anchored or c.context_fade or c.moving_weight:
            self.register_buffer("rest", torch.zeros(c.patches, c.latent_dim))  # the median frame's, standard

    @classmethod
    def fit_config(cls, config, dataset):
        tokenizer = config.tokenizer or read_stage(config.tokenizer_run, "tokenizer_run", Tokenizer, dataset)
        _check_tokenizer(config, tokenizer)
        below = tuple(tokenizer.get("split", (0, 0)))
        if not any(below):
            below = 2 * (tokenizer["sequence_length"],)
        config = dataclasses.replace(config, tokenizer=tokenizer, split=config.split or below)
        config = super().fit_config(config, dataset)
        if config.actions == "recorded":
            return dataclasses.replace(config, **action_fields(dataset, "actions='latent'"))
        latent_actions = config.latent_actions or read_stage(
            config.latent_actions_run, "latent_actions_run", LatentActions, dataset
        )
        _check_latent_actions(config, latent_actions)
        return dataclasses.replace(config, latent_actions=latent_actions)

    def train(self, mode=True):
        """Switch training mode on or off; the frozen stages stay in eval mode. Returns the system."""
        super().train(mode)
        for stage in filter(None, (self.tokenizer, self.lam)):
            stage.eval()
        return self

    def needs(self):
        c = self.config
        return Needs(window=c.sequence_length, context=c.context_frames, actions=c.actions == "recorded")

    def prepare(self, frames, frames_y=None):
        """Load the weights of the trained stages, and measure the spread of the tokenizer's latents."""
        load_stage(self.tokenizer, self.config.tokenizer_run)
        if self.lam is not None:
            load_stage(self.lam, self.config.latent_actions_run)
        pieces = (to_float(piece.to(self.device))[:, None] for piece in frames.split(32))
        with torch.no_grad():
            latents = torch.cat([self.tokenizer.encode(piece) for piece in pieces])
        self.mean.copy_(latents.mean((0, 1, 2)))
        self.std.copy_(latents.std((0, 1, 2)).clamp(min=1e-3))
        if hasattr(self, "rest"):
            still = self.tokenizer.median.expand(1, self.config.context_frames, -1, -1, -1)
            with torch.no_grad():
                self.rest.copy_(self._standard(self.tokenizer.encode(still)[0, -1]))

    # ---- actions

    def infer_actions(self, frames):
        return self.lam.infer_actions(frames)

    def _action(self, actions):
        """Actions `[...]` or `[..., A]` -> what is added to the tokens, `[..., E]`."""
        if self.config.action_input == "latent":
            # adding to a latent is adding this to its token, for the embedding is linear
            return F.linear(self.lam.latents(actions), self.embed.project.weight)
        return self.encode_action(actions)

    def _conditions(self, batch, uniform):
        """What leads from each frame to the next, `[B, T-1, E]`. uniform: chance for "no_action", `[B, 1]`.

        Of the first k - 1 actions as many are hidden as chance says: generation does not know them either.
        """
        actions = batch["actions"] if self.lam is None else self.lam.infer_actions(batch["frames"])
        hidden = (uniform * self.config.context_frames).long()  # [B, 1]: 0 .. k-1
        told = torch.arange(actions.shape[1], device=hidden.device) >= hidden
        return torch.where(told[..., None], self._action(actions), self.no_action)

    def _transform(self, x, conditions, past=None, keep=True):
        """Tokens `[B, T, P, E]` and conditions `[B, T, E]` -> (`[B, T, P, E]`, past)."""
        modulation = conditions if self.modulates else None
        return self.transformer(x + conditions[:, :, None], modulation, past, keep)

    # ---- training

    def loss(self, batch):
        """`Loss` of the next frames' latents, by the config's objective."""
        if self.config.objective == "masked":
            return self._masked_loss(batch)
        return self._mse_loss(batch)

    def _mse_loss(self, batch):
        """Squared error of the next frames' latents, and of their pixels where lambda_pixels asks for it."""
        c = self.config
        with torch.no_grad():
            latents = self.tokenizer.encode(batch["frames"])
            target = self._standard(latents)
        seen = target[:, :-1]
        noisy, fades = (self.training and share for share in (c.context_noise, c.context_fade))
        sizes = {"no_action": 1}
        if noisy:
            sizes |= {"context_noise": 2 * seen[0].numel(), "noise_level": 1}
        if fades:
            sizes["context_fade"] = 1
        chance = dict(zip(sizes, keyed_uniforms(batch["key"], sizes), strict=True))
        conditions = self._conditions(batch, chance["no_action"])
        if fades:
            seen = seen + fades * chance["context_fade"][:, None, None] * (self.rest - seen)
        if noisy:
            noise = normal_of(chance["context_noise"]).view_as(seen)
            seen = seen + noise * noisy * chance["noise_level"][:, None, None]
        drawn, _ = self._predict(seen, conditions)
        error = (drawn - target[:, 1:]).square()
        if c.moving_weight:
            off = to_patches(batch["frames"][:, 1:], c.patch_size) - self.tokenizer.mean
            moves = off.abs().amax(-1, keepdim=True) > FAR  # [B, T-1, P, 1]
            ghosts = (drawn.detach() - self.rest).square().mean(-1, keepdim=True) > DRAWN
            error = error * (1 + c.moving_weight * torch.maximum(moves, GHOSTS * ghosts))
        logs = {"latent": error.mean()}
        total = c.lambda_latent * logs["latent"]
        if c.lambda_pixels:
            rebuilt, _ = self.tokenizer.decode_patches(torch.cat([latents[:, :1], self._raw(drawn)], 1))
            logs["pixels"] = F.mse_loss(rebuilt[:, 1:], to_patches(batch["frames"][:, 1:], c.patch_size))
            total = total + c.lambda_pixels * logs["pixels"]
        return Loss(total, logs | spread("latent", latents) | statistics(drawn))

    def _predict(self, seen, conditions, past=None):
        """Standard latents `[B, T, P, L]` -> (standard latents of the next frames, past)."""
        x, past = self._transform(self.embed(seen), conditions, past)
        drawn = self.head(x)
        if self.config.anchored:
            drawn, mask = drawn[..., :-1], drawn[..., -1:]
            seen = self.rest + mask.sigmoid() * (seen - self.rest)
        if self.config.residual:
            drawn = seen + drawn
        return drawn, past

    def _masked_loss(self, batch):
        """Cross-entropy of hidden codes: a random share of each frame's, none of the first frame's."""
        c = self.config
        fsq = self.tokenizer.fsq
        with torch.no_grad():
            latents = self.tokenizer.encode(batch["frames"], c.code_hold)
        size, frames, patches, _ = latents.shape
        codes = fsq.codes(latents)

        def chance(purpose, n=patches):
            return keyed_uniform(batch["key"], purpose, frames * n).view(size, frames, n)

        share = torch.cos(math.pi / 2 * chance("share", 1))  # of a frame's codes that are hidden
        share = share.where(chance("context", 1) < 0.7, 0)  # three frames in ten are shown whole
        share[:, 0] = 0
        hidden = chance("hidden") < share
        if c.context_noise and self.training:
            wrong = chance("wrong") < c.context_noise * chance("noise_level", 1)
            random_codes = (chance("code") * fsq.size).long()
            latents = fsq.latents(torch.where(wrong, random_codes, codes))
        before = self.no_action.expand(size, 1, -1)  # nothing is known to lead to the first frame
        uniform = keyed_uniform(batch["key"], "no_action", 1)
        conditions = torch.cat([before, self._conditions(batch, uniform)], 1)
        x, _ = self._transform(self._tokens(latents, hidden), conditions)
        logits = in_fp32(self.head(x))
        losses = F.cross_entropy(logits.flatten(0, 2), codes.flatten(), reduction="none").view_as(hidden)
        count = hidden.sum().clamp(min=1)
        loss = (losses * hidden).sum() / count
        right = ((logits.argmax(-1) == codes) * hidden).sum() / count
        logs = {"cross_entropy": loss, "right": right}
        logs |= spread("latent", latents) | statistics(logits)
        weight = hidden.to(loss.dtype).sum() / size  # the loss is a mean over the hidden codes
        return Loss(loss, logs, weight=weight)

    def evaluate(self, dataset, starts):
        """Figures of the frozen stages on this data; those of the latent actions begin with "action_"."""
        figures = self.tokenizer.evaluate(dataset, starts)
        if self.lam is not None:
            for name, value in self.lam.evaluate(dataset, starts).items():
                figures[f"action_{name.removeprefix('action_')}"] = value
        return figures

    def alarms(self, figures):
        return spread_alarms(figures, "latent")

    def _tokens(self, latents, hidden):
        """Latents `[B, T, P, L]`, bool hidden `[B, T, P]` -> tokens `[B, T, P, E]`.

        A hidden patch's token tells its place alone.
        """
        x = self.embed(self._standard(latents))
        return torch.where(hidden[..., None], self.unknown + self.embed.place, x)

    def _standard(self, latents):
        """The tokenizer's latents `[..., L]` -> standard ones: mean 0 and spread 1 in each channel."""
        return (latents - self.mean) / self.std

    def _raw(self, standard):
        """Standard latents `[..., L]` -> latents as the tokenizer has them."""
        return standard * self.std + self.mean

    # ---- generation

    def _start(self, context, generator):
        latents = self.tokenizer.encode(context, self.config.code_hold)
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
        frame = frame[:, 0].clamp(-1, 1)
        if self.tokenizer.config.moving_weight:
            frame = heal(frame, self.tokenizer.median)
        return State(latents, past, drawn, state.generator), frame

    def _fill_in(self, state, condition):
        """Fill in the next frame's codes: each pass keeps those of the patches that are surest of theirs.

        How sure a patch is must not depend on the code that was drawn there. By that code's own probability
        each patch in the way of a ball would sooner or later say that it has none, which is likely of each,
        and be kept. The surer half of the patches, about, is kept at a time, so that the last ones, which are
        not sure, are drawn one after another.
        condition: `[B, 1, E]`. Returns (the frame's latents `[B, 1, P, L]`, past with that frame).
        """
        c = self.config
        fsq = self.tokenizer.fsq
        latents = torch.zeros_like(state.latents)
        hidden = torch.ones(latents.shape[:3], dtype=torch.bool, device=latents.device)
        patches = hidden.shape[-1]
        for i in range(1, c.decode_steps + 1):
            x, _ = self._transform(self._tokens(latents, hidden), condition, state.past, keep=False)
            logits = self.head(x)
            codes = sample(logits, c.temperature, state.generator)
            sure = (logits.amax(-1) - logits.logsumexp(-1)).masked_fill(~hidden, float("inf"))
            left = int((patches + 1) ** (1 - i / c.decode_steps)) - 1
            kept = torch.zeros_like(hidden).scatter(-1, sure.topk(patches - left, -1).indices, True)
            latents = torch.where((kept & hidden)[..., None], fsq.latents(codes), latents)
            hidden = ~kept
        _, past = self._transform(self._tokens(latents, hidden), condition, state.past)
        return latents, past


def _check_tokenizer(config, tokenizer):
    """Raise ConfigError where the tokenizer, whose config is a dict, does not fit this dynamics."""
    run = f"tokenizer_run={config.tokenizer_run!r}"
    for name in ("patch_size", "latent_dim"):
        there, here = tokenizer[name], getattr(config, name)
        check(
            there == here,
            f"{run} has {name}={there}, this dynamics has {name}={here}; give both the same",
        )
    check(
        config.objective == "mse" or tokenizer["quantise"] == "fsq",
        f"objective='masked' fills in codes, and the tokenizer of {config.tokenizer_run!r} has none "
        f"(quantise={tokenizer['quantise']!r}); train one with quantise='fsq', or use objective='mse'",
    )


def _check_latent_actions(config, latent_actions):
    """Raise ConfigError where the latent actions, whose config is a dict, do not fit this dynamics."""
    run = f"latent_actions_run={config.latent_actions_run!r}"
    there, here = latent_actions["patch_size"], config.patch_size
    check(
        there == here,
        f"{run} has patch_size={there}, tokenizer_run={config.tokenizer_run!r} has {here}; train both with "
        "the same",
    )
    there, here = latent_actions["action_dim"], config.latent_dim
    check(
        config.action_input != "latent" or there == here,
        f"{run} has action_dim={there}, and action_input='latent' adds it to latents of latent_dim={here}; "
        "train it with that action_dim, or use action_input='add'",
    )
