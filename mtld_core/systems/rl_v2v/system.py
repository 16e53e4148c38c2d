"""RL-V2V-GAN: clips of one domain become clips of another, learned from unpaired data.

Source: arXiv 2410.20657, and a text on it. For each domain d of x and y, and o the other one: a
translator g[d] from o to d, a predictor p[d] (past frames -> next frame), a discriminator d[d] and a value
network q[d]. The GAN half learns from the losses at a random moment of each clip; the RL half takes the same
losses as rewards of a decision process (decisions.py) whose actions are frames, learns their value, and moves
translators and predictors towards more of it. B batch, T frames of a window, p frames of a state, n
transitions; other letters as in base.py.
"""

import copy
import dataclasses
import functools
import typing

import torch
from torch import nn

from mtld_core.chance import keyed_uniform
from mtld_core.config import AtLeastTwo, BelowOne, NotNegative, Positive, Share, Widths, check
from mtld_core.frames import to_float, to_uint8
from mtld_core.machine.group import gathered, process, processes
from mtld_core.metrics import colour_transfer
from mtld_core.nn.conv import erases
from mtld_core.nn.precision import in_fp32
from mtld_core.systems.base import FrameSize, Loss, Needs, Reconstructs, System, Translates, adam
from mtld_core.systems.rl_v2v.decisions import choose, last_reward, next_state, q_target, reward, soft_update
from mtld_core.systems.rl_v2v.losses import CELL, GAN_LOSSES, structure
from mtld_core.systems.rl_v2v.nets import Discriminator, Translator, Value
from mtld_core.systems.rl_v2v.replay import Replay

FRAMES = {"x": "frames", "y": "frames_y"}  # names in a batch
OTHER = {"x": "y", "y": "x"}
TARGET = {"x_to_y": "y", "y_to_x": "x"}
SMALL = {
    "lr": 5e-4,
    "lr_d": 5e-4,
    "lambda_rr": 10.0,
    "lambda_rc": 10.0,
    "lambda_steady": 100.0,
    "lambda_structure": 20.0,
    "rl_every": 4,
    "batch_size": 4,
}


@dataclasses.dataclass(frozen=True)
class RLV2VConfig(FrameSize):
    sequence_length: int = 16  # T
    context_frames: Positive[int] = 3  # p: frames of a state
    channels: Widths = (48,)  # of translators and predictors; each after the first halves the grid
    fold: Positive[int] = 4  # pixels along a square that becomes channels, before the first convolution
    blocks: NotNegative[int] = 3  # residual ones, on the coarsest grid
    memory: Positive[int] = 24  # channels of the ConvLSTM
    norm: typing.Literal["instance", "group", "none"] = "group"
    output: typing.Literal["residual", "tanh"] = "residual"  # residual: a linear map of colours and a change
    # of discriminators and value networks
    discriminator_channels: Widths = dataclasses.field(
        default=(32, 64, 64), metadata={"was": "judge_channels"}
    )
    discriminator_fold: Positive[int] = dataclasses.field(default=2, metadata={"was": "judge_fold"})
    # the discriminators' verdict on a frame: one by a fully connected layer, or one a place
    dense_head: bool = False
    gan: typing.Literal["lsgan", "bce"] = "lsgan"
    lr: Positive[float] = 1e-4
    lr_d: Positive[float] = 1e-4
    lr_policy: Positive[float] = 1e-4
    beta1: BelowOne[float] = 0.5
    beta2: BelowOne[float] = 0.999
    lambda_v: NotNegative[float] = 1.0  # adversarial, on whole clips, at the last step
    lambda_rr: NotNegative[float] = 0.1  # recurrent: |p(s_t) - f_t+1|
    lambda_rc: NotNegative[float] = 0.1  # recycle: |g(p(g(s_t))) - f_t+1|
    # |p(g(s_t)) - g(f_t+1)|: a translation that is as predictable as its domain does not flicker
    lambda_steady: NotNegative[float] = 0.0
    # of the clip and its translation: what lies where, whatever the colours (losses.structure)
    lambda_structure: NotNegative[float] = 0.0
    rl_every: NotNegative[int] = 1  # steps; 0: no RL half
    gamma: Share[float] = 0.99
    tau: Share[float] = 0.001  # of slow copies
    sigma1: Share[float] = 0.5  # probability that a transition comes from the replay, instead of being made
    sigma2: Share[float] = 0.5  # probability of a coin's choice, instead of the candidate of more value
    replay_size: AtLeastTwo[int] = 10_000  # transitions

    def __post_init__(self):
        super().__post_init__()
        check(
            self.sequence_length > self.context_frames,
            f"sequence_length={self.sequence_length} leaves no frame to predict "
            f"after context_frames={self.context_frames}; it must be larger",
        )
        self.check_divisible(self.grid, "a smaller fold or fewer channels")
        way_out = "a smaller discriminator_fold or fewer discriminator_channels"
        self.check_divisible(self.discriminator_grid, way_out)
        normed = {self.fold: self.channels[0]}  # pixels along a cell -> width of the maps that have a norm
        if self.blocks:
            normed[self.grid] = self.channels[-1]
        for cell, width in normed.items():
            check(
                not erases(self.norm, width, self.height // cell, self.width // cell),
                f"frames of one cell ({cell} pixels, as fold and channels ask for) leave nothing to "
                f"norm={self.norm!r}; use a smaller fold, fewer channels, or norm='none'",
            )

    @property
    def grid(self):
        """Pixels along a cell of the translators' last grid."""
        return self.fold * 2 ** (len(self.channels) - 1)

    @property
    def discriminator_grid(self):
        """Pixels along a cell of the discriminators' last grid."""
        return self.discriminator_fold * 2 ** (len(self.discriminator_channels) - 1)


class RLV2V(Reconstructs, Translates, System):
    name = "rl_v2v"
    Config = RLV2VConfig
    replay, steps = None, 0
    PRESETS: typing.ClassVar = {
        # clips of 64x64 in a quarter of an hour on two cores
        "small": SMALL | {"steps": 1200},
        # wide enough to keep a large card busy; never trained
        "gpu": SMALL
        | {
            "channels": (256,),
            "memory": 128,
            "discriminator_channels": (128, 256, 256),
            "lr": 1e-4,
            "lr_d": 1e-4,
            "batch_size": 16,
            "steps": 20_000,
        },
        "demo": SMALL | {"steps": 300},
        # the source's own values; widths are not known
        "original": {
            "height": 64,
            "width": 64,
            "channels": (32, 64, 128),
            "fold": 1,
            "blocks": 4,
            "memory": 128,
            "norm": "instance",
            "output": "tanh",
            "discriminator_channels": (32, 64, 128),
            "discriminator_fold": 1,
            "dense_head": True,
            "gan": "bce",
            "batch_size": 4,
            "epochs": 10,
            "steps_per_epoch": 100,
            "eval_batches": 5,
            "eval_every_steps": 100,
            "save_every_steps": 100,
            "clip_norm": 0.0,
            "ema_decay": 0.0,
            "warmup_steps": 0,
        },
        # the source's quick check
        "sanity": {
            "height": 32,
            "width": 32,
            "sequence_length": 4,
            "context_frames": 2,
            "channels": (8, 16),
            "fold": 1,
            "blocks": 1,
            "memory": 8,
            "discriminator_channels": (8, 16),
            "batch_size": 2,
            "epochs": 2,
            "steps_per_epoch": 5,
            "eval_batches": 5,
            "log_every_steps": 5,
            "eval_every_steps": 5,
            "save_every_steps": 5,
        },
        "tiny": {
            "sequence_length": 5,
            "context_frames": 2,
            "channels": (8,),
            "memory": 4,
            "blocks": 1,
            "discriminator_channels": (8, 8),
            "steps": 20,
            "batch_size": 2,
        },
    }

    def __init__(self, config):
        super().__init__(config)
        c = config
        translator = c.channels, c.fold, c.blocks, c.memory, c.norm, c.output == "residual"
        discriminator = c.discriminator_channels, c.discriminator_fold
        grid = None
        if c.dense_head:
            grid = c.height // c.discriminator_grid, c.width // c.discriminator_grid
        self.g = _for_both(Translator, *translator)
        self.p = _for_both(Translator, *translator)
        self.d = _for_both(Discriminator, *discriminator, grid)
        self.q = _for_both(Value, *discriminator) if c.rl_every else None
        self.discriminator_gan, generator_gan = GAN_LOSSES[c.gan]
        self.generator_gan = torch.vmap(generator_gan)  # of each sample: `[n, ...]` -> `[n]`
        self.slow = {}  # name -> slow copy of g, p and q; no parameters of the model

    # ---- training

    @classmethod
    def fit_config(cls, config, dataset):
        past = config.context_frames
        check(
            config.sequence_length > past + 1,  # such runs were made once, and they open still
            f"sequence_length={config.sequence_length} with context_frames={past} leaves only the last step "
            "of a clip, at which predictors learn nothing; "
            f"use sequence_length={past + 2} or more, or fewer context_frames",
        )
        config = super().fit_config(config, dataset)
        check(
            not config.lambda_structure or min(config.height, config.width) >= 2 * CELL,
            f"lambda_structure={config.lambda_structure:g} compares squares of {2 * CELL} pixels, but frames "
            f"are {config.height}x{config.width}; use larger ones, or lambda_structure=0",
        )
        return config

    def needs(self):
        return Needs(window=self.config.sequence_length, domains=2)

    def optimizers(self):
        c = self.config
        betas = c.beta1, c.beta2
        makers = [*self.g.parameters(), *self.p.parameters()]
        phases = {
            "generator": adam(makers, c.lr, betas),
            "discriminator": adam(self.d.parameters(), c.lr_d, betas),
        }
        if c.rl_every:
            phases["q"] = adam(self.q.parameters(), c.lr_policy)
            phases["policy"] = adam(makers, c.lr_policy, betas)
        return phases

    def prepare(self, frames, frames_y=None):
        """Let residual translators begin as the colour transfer between the domains: with likely colours."""
        if self.config.output == "residual":
            for d, source, target in (("y", frames, frames_y), ("x", frames_y, frames)):
                matrix, shift = colour_transfer(source.cpu(), target.cpu())  # of levels from 0 to 255
                self.g[d].set_colour(matrix, matrix.sum(1) + shift / 127.5 - 1)

    def setup_training(self, folder):
        c = self.config
        if c.rl_every:
            self.slow = {name: copy.deepcopy(getattr(self, name)).requires_grad_(False) for name in "gpq"}
            shape = c.context_frames + 1, c.height, c.width, 3
            self.replay = Replay(folder, c.replay_size, shape, self.device)

    def training_step(self, batches, step):
        c = self.config
        batch = batches[0]
        # frames seen: the next one is frame t
        t = int(torch.randint(c.context_frames, c.sequence_length, ()))
        made = step("generator", functools.partial(self.generator_loss, t=t), batch)
        told = step("discriminator", functools.partial(self.discriminator_loss, t=t), batch | made.carry)
        logs = made.logs | told.logs
        self.steps += 1
        if c.rl_every and self.steps % c.rl_every == 0:
            self._remember(batch, t)
            drawn = self._draw(batch["key"])
            logs |= step("q", self.q_loss, drawn).logs
            logs |= step("policy", self.policy_loss, drawn).logs
            for name, slow in self.slow.items():
                soft_update(slow, getattr(self, name), c.tau)
        return logs

    # ---- the GAN half

    def generator_loss(self, batch, t):
        """L_g + lambda_rr L_rr + lambda_rc L_rc at frame t of each clip, or lambda_v L_v at the last one."""
        c = self.config
        total, logs, carry = 0, {}, {}
        for d, o in OTHER.items():
            parts, fake = self._losses_at(batch[FRAMES[d]], d, t)
            loss = parts["adversarial"]
            if t == c.sequence_length - 1:
                loss = c.lambda_v * loss
            else:
                loss = loss + c.lambda_rr * parts["recurrent"] + c.lambda_rc * parts["recycle"]
                if c.lambda_steady:
                    loss = loss + c.lambda_steady * parts["steady"]
            if c.lambda_structure:
                loss = loss + c.lambda_structure * parts["structure"]
            total = total + loss.mean()
            logs |= {f"{name}_{d}": value.mean() for name, value in parts.items()}
            carry[f"fake_{o}"] = fake
        return Loss(total, logs, carry)

    def _losses_at(self, clip, d, t):
        """(losses `[B]` by name, the translation as `[B, t, 3, H, W]`) at frame t of clips of domain d."""
        c = self.config
        o = OTHER[d]
        translate = self.g[o]
        begin = t - c.context_frames
        state, after = clip[:, begin:t], clip[:, t]
        memory = None
        if begin:  # what came before the state, so that the memory is as full as it is in a long clip
            with torch.no_grad():
                _, memory = translate(clip[:, :begin])
        there, memory = translate(state, memory)
        onward = self.p[o](there)[0][:, -1:]
        predicted = self.p[d](state)[0][:, -1]
        recycled = self.g[d](onward)[0][:, 0]
        parts = {"recurrent": _distance(predicted, after), "recycle": _distance(recycled, after)}
        if c.lambda_steady:
            parts["steady"] = _distance(onward, translate(after[:, None], memory)[0])
        if t == c.sequence_length - 1:
            fake, _ = translate(clip)
            _, whole = self.d[o](fake)
            parts["adversarial"] = self.generator_gan(whole)
        else:
            fake = torch.cat([there, onward], 1)
            frames, whole = self.d[o](fake)
            parts["adversarial"] = self.generator_gan(frames) + self.generator_gan(whole)
        if c.lambda_structure:
            seen = clip[:, t + 1 - fake.shape[1] : t + 1]
            wanted, found = (
                structure(each.flatten(0, 1)).unflatten(0, each.shape[:2]) for each in (seen, fake)
            )
            parts["structure"] = _distance(found, wanted)
        return parts, fake

    def discriminator_loss(self, batch, t):
        """How badly discriminators tell the translations in the batch from real clips of the same length."""
        logs = {}
        for d in "xy":
            fake = batch[f"fake_{d}"]
            real = batch[FRAMES[d]]
            if fake.shape[1] < real.shape[1]:
                real = real[:, t - self.config.context_frames : t + 1]
            real_frames, real_clip = self.d[d](real)
            fake_frames, fake_clip = self.d[d](fake)
            of_frames = self.discriminator_gan(real_frames, fake_frames)
            logs[f"discriminator_{d}"] = of_frames + self.discriminator_gan(real_clip, fake_clip)
        return Loss(sum(logs.values()), logs)

    # ---- what a checkpoint holds beside the networks

    def extra_state(self):
        if not self.config.rl_every:
            return {}
        slow = {name: nets.state_dict() for name, nets in self.slow.items()}
        return {"steps": self.steps, "replay": self.replay.state(), "slow": slow}

    def extra_files(self):
        return self.replay.files() if self.replay else {}

    def load_extra_state(self, state, folder):
        if state:
            self.steps = state["steps"]
            self.replay.load(state["replay"], folder)
            for name, nets in self.slow.items():
                nets.load_state_dict(state["slow"][name])

    # ---- the RL half

    @torch.no_grad()
    def _remember(self, batch, t):
        """Let each clip of the batch become a transition at frame t, in the replay."""
        c = self.config
        last = t == c.sequence_length - 1
        shown, rewarded = [], []
        for d in "xy":
            past, after = batch[FRAMES[d]][:, :t], batch[FRAMES[d]][:, t]
            state = past[:, -c.context_frames :]
            predicted, recycled = self._candidates(state, d, self.g, self.p)
            values = _values(self.q[d], state, (predicted, recycled))
            explore, coin = keyed_uniform(batch["key"], f"choice/{d}", 2).unbind(1)
            chosen = choose(values.T, explore, coin, c.sigma2).view(-1, 1, 1, 1)
            action = torch.where(chosen == 0, predicted, recycled)[:, None]
            frames, whole = self.d[d](torch.cat([past if last else state, action], 1))
            adversarial = self.generator_gan(whole)
            if last:
                rewards = last_reward(adversarial, c.lambda_v)
            else:
                adversarial = self.generator_gan(frames[:, -1]) + adversarial
                recurrent, recycle = _distance(predicted, after), _distance(recycled, after)
                rewards = reward(adversarial, recurrent, recycle, c.lambda_rr, c.lambda_rc)
            shown.append(to_uint8(torch.cat([state, action], 1)))
            rewarded.append(rewards.float())
        shown, rewarded = (gathered(torch.stack(each, 1)).flatten(0, 1) for each in (shown, rewarded))
        domains = torch.arange(len(shown), device=shown.device) % 2
        self.replay.add(shown, rewarded, t, domains, last)

    def _draw(self, keys):
        """Draw a transition of each domain for every sample, from all that are kept or the sample's own.

        The former with probability sigma1. keys: int64 `[B]`. Returns "state_x", "action_y", ...: `[B, ...]`.
        """
        own = torch.arange(len(keys), device=keys.device) + process() * len(keys)
        like = next(self.parameters())
        drawn = {}
        for number, d in enumerate("xy"):
            old, place = keyed_uniform(keys, f"draw/{d}", 2).unbind(1)
            from_all = self.replay.draw(place, number)
            newest = self.replay.newest(own, processes() * len(keys), number)
            found = self.replay.take(torch.where(old < self.config.sigma1, from_all, newest))
            frames = to_float(found["frames"]).to(like.dtype)
            drawn |= {f"state_{d}": frames[:, :-1], f"action_{d}": frames[:, -1]}
            drawn |= {f"rewards_{d}": found["rewards"], f"done_{d}": found["done"]}
        return drawn

    def q_loss(self, batch):
        """Squared error of Q(s, a) from its target, which the slow copies give."""
        errors = []
        for d in "xy":
            states, actions = batch[f"state_{d}"], batch[f"action_{d}"]
            with torch.no_grad():
                after = next_state(states, actions)
                there = self._candidates(after, d, self.slow["g"], self.slow["p"])
                best = _values(self.slow["q"][d], after, there).amax(0)
                target = q_target(batch[f"rewards_{d}"], batch[f"done_{d}"], best, self.config.gamma)
            errors.append(self.q[d](states, actions) - target)
        loss = torch.cat(errors).square().mean()
        return Loss(loss, {"q": loss})

    def policy_loss(self, batch):
        """Minus Q of the candidate of more value, through translators and predictors."""
        values = []
        for d in "xy":
            states = batch[f"state_{d}"]
            candidates = self._candidates(states, d, self.g, self.p)
            values.append(_values(self.q[d], states, candidates).amax(0))
        loss = -in_fp32(torch.cat(values)).mean()
        return Loss(loss, {"policy": loss})

    def _candidates(self, states, d, g, p):
        """The two next frames `[n, 3, H, W]` to choose from: the predicted one, and the recycled one."""
        o = OTHER[d]
        onward = p[o](g[o](states)[0])[0][:, -1:]
        return p[d](states)[0][:, -1], g[d](onward)[0][:, 0]

    # ---- generation

    def translate(self, frames, direction="x_to_y", state=None):
        return self.g[TARGET[direction]](frames, state)

    def _start(self, context, generator):
        return self.translate(context)[1]

    def step(self, state, action=None):
        """Translate X's next frame, which is the action, `[B, 3, H, W]` -> (state, the frame in Y)."""
        frames, state = self.translate(action[:, None], "x_to_y", state)
        return state, frames[:, 0]

    def reconstruct(self, frames):
        """Recycle clips of X: to Y, there the next frame from the last p or fewer, and back to X.

        The first frame goes there and back.
        """
        there, _ = self.g["y"](frames)
        onward = [there[:, 0]]
        for t in range(1, there.shape[1]):
            past = there[:, max(0, t - self.config.context_frames) : t]
            onward.append(self.p["y"](past)[0][:, -1])
        return self.g["x"](torch.stack(onward, 1))[0]


def _for_both(cls, *arguments):
    return nn.ModuleDict({domain: cls(*arguments) for domain in "xy"})


def _distance(a, b):
    """Mean absolute difference of each sample, `[B]`, in fp32."""
    return in_fp32(a - b).abs().flatten(1).mean(1)


def _values(q, states, candidates):
    """Q of each candidate `[n, 3, H, W]` for these states: `[candidates, n]`."""
    return torch.stack([q(states, action) for action in candidates])
