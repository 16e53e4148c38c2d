"""What a training step costs, beside its floor: its arithmetic at the rate of this machine's matrix products.

python bench/steps.py            presets of mtld, weight_rnn and rl_v2v on the bundled clip, 64x64
"""

import argparse
import math
import statistics
import sys
import tempfile
import time
from pathlib import Path

import torch
from torch.utils.flop_counter import FlopCounterMode

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from data_prep.make_domains import film
from mtld_core.data import Batches
from mtld_core.judge.task import Task
from mtld_core.runtime import command, pick_device, pick_precision, warm_memory
from mtld_core.train.settings import build, open_data, plan
from mtld_core.train.stepper import Stepper, to_channels_last


class Steps:
    """A system ready to train: `steps()` makes one update and returns its seconds."""

    def __init__(self, preset, overrides=None, dataset_root="sample", system="mtld"):
        cls, config, training = plan(system, preset, (overrides or {}) | {"restitution": True})
        dataset = open_data(dataset_root, config)
        self.device = pick_device()
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
        self.folder = tempfile.TemporaryDirectory()  # a replay's
        self.system.setup_training(Path(self.folder.name))
        dtype, _ = pick_precision(self.device)
        self.stepper = Stepper(self.system.optimizers(), self.device, dtype, clip_norm=training.clip_norm)

    def __call__(self):
        torch.manual_seed(1)  # rl_v2v draws a moment of the clips: one inside them, always the same
        began = time.perf_counter()
        self.system.training_step(self.batches.next(), self.stepper)
        if self.device.type == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter() - began

    def gflop(self):
        """What a step computes; nan where torch's counter has no answer (2.14: a gradient penalty)."""
        try:
            with FlopCounterMode(display=False) as counter:
                self()
        except RuntimeError:
            return math.nan
        return counter.get_total_flops() / 1e9


def gemm_rate(device, size=1024):
    """GFLOP/s of a float32 matrix product, the median of several."""
    a, out = torch.randn(2, size, size, device=device).unbind()
    seconds = []
    for _ in range(60):
        began = time.perf_counter()
        torch.mm(a, a, out=out)[0, 0].item()
        seconds.append(time.perf_counter() - began)
    return 2 * size**3 / statistics.median(seconds[10:]) / 1e9


def table(cases, rounds):
    """Every case in turn, `rounds` times after one to warm up; a line each with medians."""
    rate = gemm_rate(pick_device())
    print(
        f"torch {torch.__version__}, {torch.get_num_threads()} threads, {pick_device()}; matrix product "
        f"{rate:.0f} GFLOP/s"
    )
    print("| case | ms a step | GFLOP | at the matrix rate, ms | share of the floor |")
    print("|---|---|---|---|---|")
    ready = {name: Steps(*case) for name, case in cases.items()}
    work = {name: steps.gflop() for name, steps in ready.items()}
    seconds = {name: [] for name in ready}
    with warm_memory():
        for turn in range(rounds + 1):
            for name, steps in ready.items():
                used = steps()
                if turn:
                    seconds[name].append(used)
    for name in ready:
        ms, floor = 1000 * statistics.median(seconds[name]), 1000 * work[name] / rate
        print(f"| {name} | {ms:.0f} | {work[name]:.1f} | {floor:.0f} | {floor / ms:.0%} |", flush=True)


GRADED = Path("dataset_sample") / "graded"
CASES = {
    "`mtld`, `demo`": ("demo",),
    "`mtld`, `small`, without LPIPS": ("small", {"perceptual": "none"}),
    "`mtld`, `small`": ("small",),
    "`mtld`, `small`, LPIPS on all decoded frames": ("small", {"lpips_frames": 1.0}),
    "`weight_rnn`, `small`": ("small", {}, "sample", "weight_rnn"),
    "`weight_rnn`, `small`, without updates": ("small", {"updates": False}, "sample", "weight_rnn"),
    "`rl_v2v`, `small`, a step without the RL half": ("small", {"rl_every": 0}, GRADED, "rl_v2v"),
    "`rl_v2v`, `small`, a step with it": ("small", {"rl_every": 1}, GRADED, "rl_v2v"),
}


@command
def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--system", default="", help="of this system alone")
    given = parser.parse_args()
    if not GRADED.exists():
        film(GRADED, "sample")
    table({name: case for name, case in CASES.items() if given.system in name}, given.rounds)


if __name__ == "__main__":
    sys.exit(main())
