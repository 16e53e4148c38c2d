"""Trains tiny systems in fp64, alone or as one of several processes; tests/train/test_together.py compares them.

python -m torch.distributed.run --standalone --nproc_per_node=2 tests/together.py FOLDER SYSTEM ...
"""

import sys
import time
import weakref
from pathlib import Path

import psutil
import torch
from conftest import moving_square

from mtld_core.data import Arc, Dataset, DomainPair
from mtld_core.machine.group import ALONE, joined
from mtld_core.machine.threads import Threads
from mtld_core.train.controls import Controls
from mtld_core.train.loop import Training
from mtld_core.train.settings import build, plan

BATCH = 4
# settings that lead through whatever depends on more than one sample
WAYS = {
    "mtld": {},
    "tinydreams": {"latents": 2, "lambda_gan": 0.1},
    "weight_rnn": {},
    "rl_v2v": {},
    "tokenizer": {"quantise": "fsq"},
    "latent_actions": {},
    "dynamics": {"objective": "masked", "actions": "latent"},
}


def data():
    """Six arcs of 16 frames of 16x16, with two discrete actions."""
    frames = torch.cat([torch.from_numpy(moving_square(16, seed=i)) for i in range(6)])
    arcs = [Arc(f"arc_{i}", 16 * i, 16 * i + 16, torch.arange(16).numpy()) for i in range(6)]
    actions = torch.arange(len(frames)) % 2
    return Dataset("memory", "arcs", frames, arcs, torch.zeros(0, dtype=torch.int64).numpy(), actions)


def pair():
    x, y = data(), data()
    y.frames = 255 - y.frames.flip(0)
    return DomainPair(x, y, "memory")


def train(name, run_dir, steps, group=ALONE, settings=None):
    """Train a system up to `steps` in run_dir, from where that stands; saved at half of that and at its end.

    Stages that it is built on are the runs in the folder "1" beside. Returns the `Training`.
    """
    torch.set_default_dtype(torch.float64)
    # of one picture in channels_last torch's fp64 convolutions give gradients that are not as exact
    overrides = WAYS[name] | {"batch_size": BATCH, "steps": steps, "threads": 1, "channels_last": False}
    overrides |= settings or {}
    if name == "dynamics":
        for below in ("tokenizer", "latent_actions"):
            overrides[f"{below}_run"] = str(run_dir.parent.parent / "1" / below)
    cls, config, training = plan(name, "tiny", overrides, run_dir=str(run_dir))
    dataset = pair() if name == "rl_v2v" else data()
    system = build(cls, config, dataset, training.seed).double()
    controls = Controls(say=lambda line: None)
    threads = Threads(1)
    run = Training(system, dataset, training, run_dir, controls, threads, time.monotonic(), group)
    run.saved_at = time.monotonic()
    while run._attend() is None:
        run.logs = run._train_step()
        run.step += 1
        if run.step in (steps // 2, steps):
            run._compare(group)
            run._save()
    group.meet()
    return run


def workers(mark):
    """The processes of trainings that were started where the environment's MTLD_TEST is `mark`, by rank."""
    found = {}
    for process in psutil.process_iter():
        try:
            told = process.environ()
            if "mtld_core.train" in process.cmdline() and "RANK" in told and told["MTLD_TEST"] == str(mark):
                found[int(told["RANK"])] = process
        except (psutil.Error, KeyError):
            continue
    return found


if __name__ == "__main__":
    folder, steps, *names = sys.argv[1:]
    with joined() as group:
        host = weakref.ref(group.host)
        for name in names:
            began = time.monotonic()
            run = train(name, Path(folder) / name, int(steps), group)
            if group.leads:
                print(f"{name} {time.monotonic() - began:.1f} s", flush=True)
    assert host() is None, (
        "gloo's threads are left: one may still work as Python ends, which aborts the process"
    )
