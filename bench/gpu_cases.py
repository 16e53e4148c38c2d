"""What the GPU check computes on: data that it draws itself, and systems that are ready to train on them."""

import dataclasses
import functools
import importlib.util
import json
import math
import subprocess
import sys
import time
import typing
from pathlib import Path

import h5py
import numpy as np
import torch
from measure import product
from steps import Steps, stage

from data_prep.make_domains import shapes
from mtld_core.data import open_dataset
from mtld_core.runs.checkpoint import list_checkpoints, load_weights
from mtld_core.runs.folder import LOG
from mtld_core.systems import SYSTEMS
from mtld_core.train import fit
from mtld_core.train.controls import Controls
from mtld_core.train.settings import build, plan
from mtld_core.train.stepper import Stepper

ROOT = Path(__file__).resolve().parents[1]
EVERY = tuple(SYSTEMS)
SIDE, EPISODES, LENGTH = 128, 6, 60  # pixels, and frames of what is drawn
SIZES = {("mtld", "gpu"): 128, ("mtld", "original"): 256}  # pixels that a preset is measured at
TINY, USUAL = 32, 64  # those of the presets `tiny`, and of all others
# TFLOP/s of a card's matrix units in half precision, dense, by its data sheet: the first name that fits
PEAKS = {"H200": 989, "H100 PCIe": 756, "H100": 989, "A100": 312, "L40S": 362, "L4": 121, "T4": 65}
LARGE, SMALL = 8192, 256  # rows and columns of the product whose rate is the card's own; a CPU's
FEW = {  # of a whole run: what its end must not take
    "restitution": True,
    "eval_windows": 4,
    "eval_every_steps": 0,
    "preview_every_steps": 0,
    "long_horizon": 0,
    "life_horizon": 0,
    "save_every_minutes": 0,
}


@dataclasses.dataclass
class Bench:
    """Where the check runs. device: a `torch.device`. folder: for all that it writes. say: takes lines."""

    device: torch.device
    folder: Path
    say: typing.Callable = print
    opened: dict = dataclasses.field(default_factory=dict)  # (path, side) -> `data`
    until: float = math.inf  # by the monotonic clock: no row is begun after it
    rates: dict = dataclasses.field(default_factory=dict)  # dtype -> `rate`

    @functools.cached_property
    def recording(self):
        """A recording of a square that moves over noise, with two actions; its path, a text."""
        path = self.folder / "recording.h5"
        chance = np.random.default_rng(0)
        count = EPISODES * LENGTH
        frames = chance.integers(90, 130, (count, SIDE, SIDE, 3), np.uint8)
        room = SIDE - SIDE // 4
        for i, frame in enumerate(frames):
            y, x = 6 * i % room, 10 * i % room
            frame[y : y + SIDE // 4, x : x + SIDE // 4] = (220, 60, 40)
        with h5py.File(path, "w") as file:
            file["frames"] = frames
            file["actions"] = np.arange(count) % 2
            file["episode"] = np.arange(count) // LENGTH
            file.attrs["recording"] = json.dumps({"action_names": ["left", "right"]})
        return str(path)

    @functools.cached_property
    def domains(self):
        """Clips of two domains; their folder, a text."""
        shapes(self.folder / "domains", clips=EPISODES, size=USUAL)
        return str(self.folder / "domains")

    @functools.cached_property
    def perceptual(self):
        """Settings for mtld's LPIPS: random weights cost what true ones do. None at all without its heads."""
        if importlib.util.find_spec("lpips") is None:
            return {"perceptual": "none"}
        from torchvision.models.vgg import cfgs, make_layers

        layers = make_layers(cfgs["D"]).state_dict()
        path = self.folder / "lpips_vgg16.pth"
        torch.save({f"features.{name}": weight for name, weight in layers.items()}, path)
        return {"lpips_weights": str(path)}

    def path(self, name):
        """The data for a system."""
        return self.domains if name == "rl_v2v" else self.recording

    def data(self, name, preset):
        """The data for a system, opened once in each size."""
        path, side = self.path(name), side_of(name, preset)
        if (path, side) not in self.opened:
            self.opened[path, side] = open_dataset(path, height=side, width=side, progress=False)
        return self.opened[path, side]

    def settings(self, name, preset, overrides):
        """Overrides for this preset at the size that it is measured at, on a stage where it needs one."""
        size = dict.fromkeys(("height", "width"), side_of(name, preset))
        more = self.perceptual if name == "mtld" and preset != "tiny" else {}
        if name == "dynamics":
            run = self.folder / f"tokenizer_{preset}"
            if not run.exists():
                stage(run, preset, self.recording, **size)
            more = {"tokenizer_run": str(run)}
        return size | more | overrides

    def rows(self, what, cases, row_of):
        """A row for each case, a dict: its name under `what`, and what `row_of(case)` gives.

        A case is a text, or two. One that fails has the error in its row, and the others go on.
        """
        found = []
        for case in cases:
            row = {what: case if isinstance(case, str) else "{} `{}`".format(*case)}
            if time.monotonic() > self.until:
                row["left out"] = "no time"
            else:
                try:
                    row |= row_of(case)
                except Exception as error:  # the check is to say what fails
                    row |= {"error": f"{type(error).__name__}: {error}"[:300], "right": False}
            self.say(f"   {row}")
            found.append(row)
        return found

    def steps(self, name, preset, overrides=None, precision="auto", device=None, kind=Stepper):
        """`Steps` of a preset, here or on another device."""
        settings = self.settings(name, preset, overrides or {})
        where = str(device or self.device)
        return Steps(name, preset, settings, self.data(name, preset), where, precision, kind)

    def run(self, name, preset, run_dir, overrides=None, say=lambda line: None, **settings):
        """Train a preset as `fit` does; returns what report.json holds."""
        chosen = FEW | {"device": str(self.device)} | self.settings(name, preset, overrides or {})
        cls, config, training = plan(name, preset, chosen, run_dir=str(run_dir), **settings)
        dataset = self.data(name, preset)
        system = build(cls, config, dataset, training.seed)
        return fit(system, dataset, training, Controls(say=say))

    def timed_run(self, name, preset, run_dir, overrides, steps=60):
        """(ms a step of a run's second half, its weights at the end: name -> tensor, the lines it said)."""
        said = []
        settings = {"log_every_steps": steps // 2} | overrides
        self.run(name, preset, run_dir, settings, said.append, steps=steps)
        return *timed(run_dir), said

    def launched_run(self, name, preset, run_dir, processes, steps=60):
        """(ms a step, weights) of a run by the command that trains, in so many processes on as many cards."""
        job = {"system": name, "preset": preset, "dataset_root": self.path(name), "run_dir": str(run_dir)}
        job["overrides"] = FEW | {"log_every_steps": steps // 2} | self.settings(name, preset, {})
        file = self.folder / f"{Path(run_dir).name}.json"
        file.write_text(json.dumps(job | {"steps": steps}))
        several = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(processes)]
        command = [sys.executable, *(several if processes > 1 else []), "-m", "mtld_core.train"]
        done = subprocess.run([*command, "--config", str(file)], cwd=ROOT, capture_output=True, text=True)
        if done.returncode:
            raise RuntimeError(f"{processes} processes ended with {done.returncode}: {done.stderr[-600:]}")
        return timed(run_dir)

    def wait(self):
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def median_ms(self, call, rounds=10, warm=3):
        """Median ms of a call, the device's work included."""
        found = []
        for turn in range(warm + rounds):
            self.wait()
            began = time.perf_counter()
            call()
            self.wait()
            if turn >= warm:
                found.append(1000 * (time.perf_counter() - began))
        return float(np.median(found))

    @functools.cached_property
    def peak(self):
        """FLOP/s of the card by its data sheet; None for one that is not in the table."""
        if self.device.type != "cuda":
            return None
        name = torch.cuda.get_device_name(self.device)
        return next((1e12 * peak for card, peak in PEAKS.items() if card in name), None)

    def rate(self, dtype):
        """FLOP/s of a large matrix product here, in this type; measured once."""
        if dtype not in self.rates:
            size = LARGE if self.device.type == "cuda" else SMALL
            multiply = product(self.device, dtype, size)
            self.rates[dtype] = 2 * size**3 / (self.median_ms(multiply) / 1000)
        return self.rates[dtype]


def side_of(name, preset):
    """Pixels of a side that a preset is measured at."""
    return SIZES.get((name, preset), TINY if preset == "tiny" else USUAL)


def timed(run_dir):
    """(ms a step between the last two lines of a run's log, its weights at the end: name -> tensor)."""
    lines = [json.loads(line) for line in (Path(run_dir) / LOG).read_text().splitlines()]
    before, last = lines[-2:]
    taken = (last["seconds"] - before["seconds"]) / (last["step"] - before["step"])
    return 1000 * taken, load_weights(list_checkpoints(Path(run_dir))[0], ema=False)


class NotHere(Exception):
    """A section that this machine cannot run; says why."""


class Graded(Stepper):
    """A stepper that keeps each phase's first gradient: `gradients[phase]`, flat, on the CPU, in fp32.

    without: for how many parameters a phase left none, in all calls.
    """

    def __init__(self, *settings, **named):
        super().__init__(*settings, **named)
        self.gradients, self.without = {}, 0

    def _update(self, phase):
        given = [parameter.grad for parameter in self.parameters[phase]]
        self.without += sum(gradient is None for gradient in given)
        if phase not in self.gradients:
            flat = [gradient.detach().flatten().float().cpu() for gradient in given if gradient is not None]
            self.gradients[phase] = torch.cat(flat)
        super()._update(phase)


def differ(one, other):
    """How far gradients are apart, the worst phase's, as a share of the norm of the first ones."""
    apart = [((other[phase] - flat).norm() / flat.norm()).item() for phase, flat in one.items()]
    return max(apart)


def furthest(one, other):
    """The largest difference between two sets of weights, name -> tensor."""
    return max((one[name].float() - other[name].float()).abs().max().item() for name in one)
