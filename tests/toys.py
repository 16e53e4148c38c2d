"""Systems that exist to stress the contract: a critic with fresh batches and extra state, two stages with
actions, one that rebuilds, one that draws from noise and one that translates.
"""

import dataclasses

import torch
from torch import nn

from mtld_core.chance import keyed_normal
from mtld_core.nn.precision import in_fp32
from mtld_core.systems.base import Loss, Needs, Reconstructs, Samples, System, Translates, adam


@dataclasses.dataclass(frozen=True)
class ToyConfig:
    height: int = 0
    width: int = 0
    sequence_length: int = 3
    critic_steps: int = 3
    hidden: int = 8


def flat(frames):
    return frames.flatten(-3)


class ToyGAN(System):
    """A generator of next frames and a critic that wants `critic_steps` batches of its own; it counts what it
    has seen.
    """

    name, Config = "toy_gan", ToyConfig
    PRESETS = {"tiny": {"steps": 20, "batch_size": 4}}  # noqa: RUF012

    def __init__(self, config):
        super().__init__(config)
        pixels = 3 * config.height * config.width
        self.generator = nn.Sequential(
            nn.Linear(pixels, config.hidden), nn.Tanh(), nn.Linear(config.hidden, pixels)
        )
        self.critic = nn.Linear(pixels, 1)
        self.seen, self.replay = 0, []

    def needs(self):
        return Needs(window=self.config.sequence_length, batches=1 + self.config.critic_steps)

    def optimizers(self):
        return {
            "generator": adam(self.generator.parameters(), 1e-3),
            "critic": adam(self.critic.parameters(), 1e-3),
        }

    def training_step(self, batches, step):
        for batch in batches[1:]:
            critic = step("critic", self.critic_loss, batch)
            self.seen += len(batch["key"])
        self.replay = [*self.replay[-4:], int(batches[0]["key"][0])]
        generator = step("generator", self.generator_loss, batches[0])
        return generator.logs | critic.logs

    def critic_loss(self, batch):
        real, past = flat(batch["frames"][:, -1]), flat(batch["frames"][:, 0])
        fake = self.generator(past).detach() + 0.1 * keyed_normal(batch["key"], "noise", 1)
        scores, real_scores = in_fp32(self.critic(fake)), in_fp32(self.critic(real))
        loss = (scores - real_scores).mean() + real_scores.square().mean()
        return Loss(loss, {"critic": loss})

    def generator_loss(self, batch):
        past = flat(batch["frames"][:, 0])
        fake = self.generator(past)
        loss = (fake - flat(batch["frames"][:, -1])).square().mean() - 0.01 * in_fp32(
            self.critic(fake)
        ).mean()
        return Loss(loss, {"generator": loss}, {"fake": fake})

    def extra_state(self):
        return {"seen": self.seen, "replay": list(self.replay)}

    def load_extra_state(self, state, folder):
        self.seen, self.replay = state["seen"], state["replay"]

    def _start(self, context, generator):
        return context[:, -1]

    def step(self, state, action=None):
        frame = self.generator(flat(state)).view_as(state)
        return frame, frame


class ToyStage(System):
    """First stage: a linear tokenizer of frames."""

    name, Config = "toy_stage", ToyConfig
    PRESETS = {"tiny": {"steps": 20, "batch_size": 4}}  # noqa: RUF012

    def __init__(self, config):
        super().__init__(config)
        pixels = 3 * config.height * config.width
        self.encode, self.decode = nn.Linear(pixels, config.hidden), nn.Linear(config.hidden, pixels)

    def needs(self):
        return Needs(window=self.config.sequence_length)

    def optimizers(self):
        return {"model": adam(self.parameters(), 1e-3)}

    def loss(self, batch):
        x = flat(batch["frames"])
        loss = (self.decode(self.encode(x)) - x).square().mean()
        return Loss(loss, {"loss": loss})

    def _start(self, context, generator):
        return context[:, -1]

    def step(self, state, action=None):
        return state, self.decode(self.encode(flat(state))).view_as(state)


class ToyPlayer(System):
    """Second stage: dynamics under two discrete actions in the latent space of a frozen first stage that it
    holds.
    """

    name, Config, action_space = "toy_player", ToyConfig, 2
    PRESETS = {"tiny": {"steps": 20, "batch_size": 4}}  # noqa: RUF012

    def __init__(self, config, stage=None):
        super().__init__(config)
        self.stage = (stage or ToyStage(config)).requires_grad_(False)
        self.dynamics = nn.Linear(config.hidden + self.action_space, config.hidden)

    def needs(self):
        return Needs(window=self.config.sequence_length, actions=True)

    def optimizers(self):
        return {"model": adam(self.dynamics.parameters(), 1e-2)}

    def advance(self, z, action):
        return z + self.dynamics(
            torch.cat([z, nn.functional.one_hot(action.long(), self.action_space).float()], -1)
        )

    def loss(self, batch):
        z = self.stage.encode(flat(batch["frames"]))  # [B, T, hidden]
        loss = in_fp32(self.advance(z[:, :-1], batch["actions"]) - z[:, 1:]).square().mean()
        return Loss(loss, {"loss": loss})

    def evaluate(self, dataset, starts):
        return {"judged_windows": float(len(starts))}

    def _start(self, context, generator):
        return self.stage.encode(flat(context[:, -1])), context.shape[-2:]

    def step(self, state, action=None):
        z, size = state
        z = self.advance(z, torch.as_tensor(action).expand(len(z)))
        return (z, size), self.stage.decode(z).view(-1, 3, *size)


class ToyAutoencoder(Reconstructs, ToyStage):
    """Judged by reconstruction, on windows of a single frame."""

    name = "toy_autoencoder"

    def needs(self):
        return Needs(window=1)

    def reconstruct(self, frames):
        return self.decode(self.encode(flat(frames))).view_as(frames)


class ToySampler(Samples, ToyAutoencoder):
    """Draws a latent from noise, or takes a picture's, and lets it fade."""

    name = "toy_sampler"

    def _start(self, context, generator):
        if context is not None:
            return self.encode(flat(context[:, -1]))
        return torch.randn(1, self.config.hidden, generator=generator, device=self.device)

    def step(self, state, action=None):
        return 0.9 * state, self.decode(state).view(-1, 3, self.config.height, self.config.width)


class ToyTranslator(Translates, ToyAutoencoder):
    """Two unpaired domains. Of a clip's translation half is that of the frame before, which its state is."""

    name = "toy_translator"

    def needs(self):
        return Needs(window=self.config.sequence_length, domains=2)

    def loss(self, batch):
        x, y = flat(batch["frames"]), flat(batch["frames_y"])
        there = self.decode(self.encode(x))
        loss = (self.decode(self.encode(there)) - x).square().mean() + 0.1 * (
            there.mean(1) - y.mean(1)
        ).square().mean()
        return Loss(loss, {"loss": loss})

    def translate(self, frames, direction="x_to_y", state=None):
        sign, made = {"x_to_y": 1, "y_to_x": -1}[direction], []
        for frame in self.reconstruct(frames).unbind(1):
            state = sign * frame if state is None else (sign * frame + state) / 2
            made.append(state)
        return torch.stack(made, 1), state


TOYS = {cls.name: cls for cls in (ToyGAN, ToyStage, ToyPlayer, ToyAutoencoder, ToySampler, ToyTranslator)}
