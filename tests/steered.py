"""A system that obeys: its picture rolls right by the action. With runs of it, on a recording made here or of
a real game.
"""

import dataclasses
import json

import h5py
import numpy as np
import torch

from mtld_core.nn.actions import action_fields, action_space
from mtld_core.systems import SYSTEMS
from mtld_core.systems.base import Loss, Needs, System, adam
from mtld_core.train import train

ABOUT = {"action_names": ["NOOP", "RIGHT", "LEFT"]}
QUICK = {
    "eval_every_steps": 0,
    "preview_every_steps": 0,
    "save_every_steps": 0,
    "eval_windows": 2,
    "log_every_steps": 1,
}


@dataclasses.dataclass(frozen=True)
class SteeredConfig:
    height: int = 0
    width: int = 0
    context: int = 2
    invents: bool = False  # its actions: seen in the frames instead of recorded
    action_count: int = 0
    control_low: tuple[float, ...] = ()
    control_high: tuple[float, ...] = ()


class Steered(System):
    name, Config = "steered", SteeredConfig
    PRESETS = {"tiny": {"steps": 1, "batch_size": 2}}  # noqa: RUF012

    def __init__(self, config):
        super().__init__(config)
        self.action_space = action_space(config)
        self.weight = torch.nn.Parameter(torch.ones(()))

    @classmethod
    def fit_config(cls, config, dataset):
        return dataclasses.replace(
            super().fit_config(config, dataset), **action_fields(dataset, "another system")
        )

    def needs(self):
        return Needs(
            window=self.config.context + 1, context=self.config.context, actions=not self.config.invents
        )

    def optimizers(self):
        return {"model": adam(self.parameters(), 1e-3)}

    def loss(self, batch):
        loss = (self.weight - 1).square()
        return Loss(loss, {"loss": loss})

    def infer_actions(self, frames):
        before, after = frames[:, :-1], frames[:, 1:]
        errors = [
            (before.roll(shift, -1) - after).square().mean((2, 3, 4)) for shift in range(self.action_space)
        ]
        return torch.stack(errors).argmin(0)

    def _start(self, context, generator):
        return context[:, -1]

    def step(self, state, action=None):
        frame = state.roll(int(action.sum().round()), -1) * self.weight
        return frame, frame


def write_recording(path, actions, episodes=6, about=ABOUT):
    """An HDF5 file of `episodes` in which a picture rolls by `actions`: int64 `[n]` or float `[n, A]`; the
    same in each.
    """
    smooth = 120 + 100 * np.sin(np.arange(24) * np.pi / 12 + np.arange(16)[:, None] / 3)
    first = np.stack([smooth, smooth[::-1], 0 * smooth + 60], -1).astype(np.uint8)  # [16, 24, 3]
    places = np.cumsum([0, *np.reshape(actions, (len(actions), -1)).sum(1).round().astype(int)[:-1]])
    with h5py.File(path, "w") as file:
        file["frames"] = np.stack(
            [np.roll(first, place + 4 * e, 1) for e in range(episodes) for place in places]
        )
        file["actions"] = np.concatenate([actions] * episodes)
        file["episode"] = np.repeat(np.arange(episodes), len(actions))
        file.attrs["recording"] = json.dumps(about)
    return path


def steered_run(monkeypatch, folder, recording, **overrides):
    """`<folder>/runs/steered`, trained for a step on the recording."""
    monkeypatch.setitem(SYSTEMS, "steered", "steered:Steered")
    train("steered", "tiny", str(recording), QUICK | overrides, steps=1, run_dir=str(folder / "runs/steered"))
    return folder / "runs/steered"
