"""What a training step of every system costs, beside its floors.

    python bench/steps.py [--system NAME] [--rounds 5] [--bf16]

The floors: its arithmetic at the rate of this machine's matrix products; and the same where each kernel that
has less to compute than to read and write takes as long as a copy of that. `python bench/tables.py` saves it.
"""

import argparse
import contextlib
import io
import sys
import tempfile
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from measure import PRODUCT, Work, in_turn, machine, print_table, product

from data_prep.make_domains import film
from mtld_core.data import Batches
from mtld_core.judge.task import Task
from mtld_core.nn.conv import to_channels_last
from mtld_core.runtime import command, pick_device, pick_precision, warm_memory
from mtld_core.train import train
from mtld_core.train.settings import build, open_data, plan
from mtld_core.train.stepper import Stepper

GRADED = Path("dataset_sample") / "graded"
PONG = "examples/pong/recording.h5"
SAMPLE = "sample"
MANY = 20  # matrix products that a turn measures
CASES = {  # row -> (system, preset, overrides, data)
    "mtld `demo`": ("mtld", "demo", {}, SAMPLE),
    "mtld `small`, no LPIPS": ("mtld", "small", {"perceptual": "none"}, SAMPLE),
    "mtld `small`": ("mtld", "small", {}, SAMPLE),
    "mtld `small`, LPIPS on all frames": ("mtld", "small", {"lpips_frames": 1.0}, SAMPLE),
    "tinydreams `demo`": ("tinydreams", "demo", {}, PONG),
    "tinydreams `small`": ("tinydreams", "small", {}, PONG),
    "tokenizer `small`": ("tokenizer", "small", {}, PONG),
    "tokenizer `codes`": ("tokenizer", "codes", {}, PONG),
    "latent_actions `small`": ("latent_actions", "small", {}, PONG),
    "dynamics `small`": ("dynamics", "small", {}, PONG),
    "dynamics `codes`": ("dynamics", "codes", {}, PONG),
    "weight_rnn `small`": ("weight_rnn", "small", {}, SAMPLE),
    "weight_rnn `small`, no updates": ("weight_rnn", "small", {"updates": False}, SAMPLE),
    "rl_v2v `small`, no RL half": ("rl_v2v", "small", {"rl_every": 0}, GRADED),
    "rl_v2v `small`, with it": ("rl_v2v", "small", {"rl_every": 1}, GRADED),
}


class Steps:
    """A system ready to train: `steps()` makes one update, and waits for its end.

    data: a path, "sample", or what was opened. device, precision: as in training. kind: the class that makes
    the updates.
    """

    def __init__(self, system, preset, overrides, data, device="auto", precision="auto", kind=Stepper):
        if data == GRADED and not GRADED.exists():
            film(GRADED, SAMPLE)
        self.folder = tempfile.TemporaryDirectory()  # a replay's, and a stage's
        below = {}
        if system == "dynamics" and "tokenizer_run" not in overrides:
            below = {"tokenizer_run": stage(Path(self.folder.name) / "tokenizer", preset, data)}
        cls, config, training = plan(system, preset, overrides | below | {"restitution": True})
        dataset = open_data(str(data), config) if isinstance(data, str | Path) else data
        self.device = pick_device(device)
        self.system = build(cls, config, dataset).to(self.device).train()
        task = Task(self.system, dataset.to(self.device), training, say=lambda line: None)
        needs = self.system.needs()
        self.batches = Batches(
            task.dataset,
            task.learned,
            needs.window,
            training.batch_size,
            training.seed,
            needs.batches,
            self.device,
        )
        self.system.prepare(*task.samples)
        to_channels_last(self.system)
        self.system.setup_training(Path(self.folder.name))
        dtype, _ = pick_precision(self.device, precision)
        self.stepper = kind(self.system.optimizers(), self.device, dtype, clip_norm=training.clip_norm)
        self.training = training

    def __call__(self):
        logs = self.update()
        if self.device.type == "cuda":
            torch.cuda.synchronize()
        return logs

    def update(self, seed=1):
        """Make one update without waiting for it; returns its logs. The seed is that of unkeyed chance."""
        torch.manual_seed(seed)  # rl_v2v draws a moment of the clips by it: 1 gives one inside them
        return self.system.training_step(self.batches.next(), self.stepper)


def stage(run, preset, data, **size):
    """Train a tokenizer for one step, which costs what a longer trained one does; returns `run`, a text.

    preset: of the dynamics that is built on it. size: height and width of the frames.
    """
    kind = preset if preset in ("codes", "gpu", "tiny") else "small"
    settings = {"steps": 1, "restitution": True, "eval_windows": 8, "preview_every_steps": 0}
    with contextlib.redirect_stdout(io.StringIO()):
        train("tokenizer", kind, data, size, run_dir=str(run), **settings)
    return str(run)


def rows_of(about, cases=CASES, rounds=5):
    """Every case in turn -> a row each, a dict. about: `machine()`, whose rate of copies is a floor."""
    rows = []
    with warm_memory():
        ready = {name: Steps(*case) for name, case in cases.items()}
        for step in ready.values():
            step()
        multiply = product()
        taken = in_turn(ready | {"products": lambda: [multiply() for _ in range(MANY)]}, rounds)
        # their rate changes with what else the machine does: so it is that of the same minutes
        about = about | {"gflops": MANY * PRODUCT / taken["products"] / 1e9}
        for name, step in ready.items():
            with Work() as work:
                step()
            arithmetic = work.flop / about["gflops"] / 1e9
            rows.append(
                {
                    "step of": name,
                    "ms": 1000 * taken[name],
                    "GFLOP": work.flop / 1e9,
                    "kernels": work.kernels,
                    "at the matrix rate, ms": 1000 * arithmetic,
                    "share": arithmetic / taken[name],
                    "with memory, ms": 1000 * work.floor(about),
                    "share of that": work.floor(about) / taken[name],
                }
            )
    return rows


@command
def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--system", default="", help="of this system alone")
    parser.add_argument("--bf16", action="store_true", help="each also in bf16, in turn")
    given = parser.parse_args()
    chosen = {name: case for name, case in CASES.items() if given.system in name}
    if given.bf16:
        chosen |= {f"{name}, bf16": (*case, "auto", "bf16") for name, case in chosen.items()}
    print_table(rows_of(machine(), chosen, given.rounds))


if __name__ == "__main__":
    sys.exit(main())
