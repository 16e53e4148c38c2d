"""A toy system that rolls its picture to the right, and a run of it that `generate` opens."""

import dataclasses
import json
import types

import numpy as np
import torch
from PIL import Image
from torch import nn

from mtld_core.generate import jobs as generate
from mtld_core.generate import panel
from mtld_core.systems.base import Needs, System


@dataclasses.dataclass(frozen=True)
class ToyConfig:
    height: int = 16
    width: int = 24
    context: int = 1
    noise: float = 0.0


class Toy(System):
    """The next frame is the last one moved right by one pixel (and by the action, where there is one), plus
    noise.
    """

    name = "toy"
    Config = ToyConfig

    def __init__(self, config, action_space=None):
        super().__init__(config)
        self.action_space = action_space
        self.weight = nn.Parameter(torch.ones(()))
        self.drop = nn.Dropout(0.5)
        self.frozen = nn.Dropout(0.5).eval()

    def needs(self):
        return Needs(window=4, context=self.config.context)

    def _start(self, context, generator):
        return context[:, -1], generator

    def step(self, state, action=None):
        frame, generator = state
        shift = 1 if action is None else int(action.sum())
        noise = torch.randn(frame.shape, generator=generator) * self.config.noise
        frame = self.drop(frame.roll(shift, -1) * self.weight) + noise
        return (frame, generator), frame


def picture(height=16, width=24, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)


def write_rolling_arcs(root):
    """Two arcs of frames 10 to 29 in which the picture moves right by one pixel a frame, as Toy says."""
    y, x = np.mgrid[:16, :24]
    smooth = np.stack([100 + 60 * np.sin(x * np.pi / 12), y * 8 + 40, 0 * x + 90], -1).astype(np.uint8)
    for arc in ("moves", "other"):
        (root / arc).mkdir(parents=True)
        for i in range(20):
            Image.fromarray(np.roll(smooth, i, 1)).save(root / arc / f"frame_{i + 10:04d}.png")


# what config.json of a run that nothing opens says
ABOUT = json.dumps({"system": "toy", "preset": "", "config": {}, "training": {}, "dataset": {"path": "data"}})


def open_toy(monkeypatch, folder, action_space=None, **config):
    """Let `generate` and the panel open a toy, given back, as `<folder>/run`; `<folder>/data` is its dataset."""
    system = Toy(ToyConfig(**config), action_space).eval()
    (folder / "run").mkdir(exist_ok=True)
    system.run = types.SimpleNamespace(
        dir=folder / "run",
        checkpoint="step_00000007",
        step=7,
        preset="demo",
        dataset_path=str(folder / "data"),
        training={"holdout": 0.1, "cross_cuts": False, "restitution": False, "eval_horizon": 0},
    )
    for module in (generate, panel):
        monkeypatch.setattr(module, "open_run", lambda path, checkpoint="", device="auto": system)
    return system


def press_generate(form):
    """Click Generate in the form of notebook 03, and wait until its thread is through."""
    form.button.click()
    form.worker.join()
