"""Our system beside the public MTLD script: your own copy of its `kaggle.py`, run unchanged.

python bench/original.py speed KAGGLE_PY DATASET       its step and ours in turn, same widths and losses
python bench/original.py quality KAGGLE_PY DATASET     what it has learned after so much processor time,
                         --minutes 60                  judged as ours is
"""

import argparse
import importlib.util
import json
import statistics
import sys
import tempfile
import time
import types
from pathlib import Path

import lpips
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from measure import gemm_rate
from measure import seconds as seconds_of
from steps import Steps

from mtld_core.data import open_dataset
from mtld_core.judge.rollouts import Judge
from mtld_core.nn.perceptual import load_trunk
from mtld_core.runtime import command, warm_memory
from mtld_core.systems.base import Needs
from mtld_core.systems.mtld.system import MTLDConfig

FIGURES = ("psnr", "ssim", "lpips", "baseline_copy_psnr")
SIZE = 128  # the smallest square that the script can do: at 64 its instance norm meets a 1x1 map and refuses


class Enough(Exception):
    """Thrown through the script's loop to end it."""


def load_original(path, dataset_root, size=SIZE):
    """The script as a module, with its own settings but for the data's place and size and for loader
    processes (none).
    """
    spec = importlib.util.spec_from_file_location("public_original", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    folder = Path(tempfile.gettempdir()) / "public_original"
    for name, value in {
        "DATASET_PATH": str(dataset_root),
        "IMG_SIZE": size,
        "NUM_WORKERS": 0,
        "EPOCHS": 10**6,
        "SAVE_EPOCH_INTERVAL": 10**6,
        "MODEL_SAVE_PATH": f"{folder}/models",
        "OUTPUT_SAVE_PATH": f"{folder}/outputs",
    }.items():
        setattr(module.Config, name, value)
    module.config = module.Config()
    module.lpips = types.SimpleNamespace(LPIPS=lambda net: packaged_lpips())
    return module


def packaged_lpips():
    """The lpips package's own network on this machine's copy of the trunk; by itself it would download
    one.
    """
    network = lpips.LPIPS(net="vgg", pnet_rand=True, verbose=False)
    trunk = {
        name.removeprefix("features."): value
        for name, value in load_trunk().items()
        if name.startswith("features.")
    }
    layers = [layer for part in "12345" for layer in getattr(network.net, f"slice{part}")]
    for index, layer in enumerate(layers):
        if isinstance(layer, torch.nn.Conv2d):
            layer.load_state_dict({"weight": trunk[f"{index}.weight"], "bias": trunk[f"{index}.bias"]})
    return network


def run_original(module, after_step):
    """The script's `train_mtld`, with `after_step(model)` called where it shows its losses."""
    made = []

    class Kept(module.MTLD):
        def __init__(self, *args):
            super().__init__(*args)
            made.append(self)

    class Bar:
        def __init__(self, batches, desc=""):
            self.batches = batches

        def __iter__(self):
            return iter(self.batches)

        def set_postfix(self, *args, **kwargs):
            after_step(made[0])

    module.MTLD, module.tqdm = Kept, Bar
    try:
        module.train_mtld()
    except Enough:
        return


class Adaptor:
    """The script's model as the judge wants it."""

    device = torch.device("cpu")

    def __init__(self, model):
        self.model = model

    def rollout(self, context, num_frames, actions=None):
        z = self.model.encoder(context[:, -1])
        yield self.model.decoder(self.model.trajectory_generator(z, max_len=num_frames))

    def evaluate(self, dataset, starts):
        return {}


def quality(path, dataset_root, minutes, every, out):
    dataset = open_dataset(dataset_root, SIZE, SIZE)
    judge = Judge(dataset, dataset.windows(16), Needs(16), 15, dataset.frames, max_windows=24)
    used = judged = 0.0
    steps, mark, found = 0, time.process_time(), []

    def after_step(model):
        nonlocal used, judged, steps, mark
        used, steps = used + time.process_time() - mark, steps + 1
        if used - judged >= 60 * every or used >= 60 * minutes:
            judged = used
            figures = judge(Adaptor(model))
            line = {"minutes": used / 60, "steps": steps} | {k: figures[k] for k in FIGURES}
            found.append(line)
            print(json.dumps(line), flush=True)
            Path(out).write_text(json.dumps(found))
        if used >= 60 * minutes:
            raise Enough
        mark = time.process_time()

    run_original(load_original(path, dataset_root), after_step)


# its widths and losses throughout (preset "original"); what changes is how many frames the losses see
OURS = {
    "LPIPS on all frames": {"lpips_frames": 1.0},
    "default lpips_frames": {"lpips_frames": MTLDConfig.lpips_frames},
    "default lpips_frames and decode_frames": {
        "lpips_frames": MTLDConfig.lpips_frames,
        "decode_frames": MTLDConfig.decode_frames,
    },
}


def speed(path, dataset_root, rounds):
    """Medians of seconds a step, the script's and ours in turn, in one process."""
    ours = {
        name: Steps("mtld", "original", {"height": SIZE, "width": SIZE} | change, dataset_root)
        for name, change in OURS.items()
    }
    seconds = {name: [] for name in ("the public script", *ours)}
    mark = time.perf_counter()

    def after_step(model):
        nonlocal mark
        seconds["the public script"].append(time.perf_counter() - mark)
        with warm_memory():
            next(
                iter(ours.values())
            )()  # leaving it gave all memory back, which no real run does between two steps
            for name, steps in ours.items():
                seconds[name].append(seconds_of(steps))
        if len(seconds["the public script"]) > rounds:
            raise Enough
        mark = time.perf_counter()

    run_original(load_original(path, dataset_root), after_step)
    theirs = statistics.median(seconds["the public script"][1:])  # the first step warms up
    print(
        f"{torch.get_num_threads()} threads, fp32, {SIZE}x{SIZE}, T=16, batch 2; matrix product "
        f"{gemm_rate('cpu'):.0f} GFLOP/s"
    )
    for name, values in seconds.items():
        least, median, most = min(values[1:]), statistics.median(values[1:]), max(values[1:])
        print(
            f"| {name} | {median:.2f} s ({least:.2f} to {most:.2f}) | {theirs / median:.2f} times as fast |"
        )


@command
def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=["speed", "quality"])
    parser.add_argument("script")
    parser.add_argument("dataset")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--minutes", type=float, default=60)
    parser.add_argument("--every", type=float, default=10)
    parser.add_argument("--out", default="original_quality.json")
    given = parser.parse_args()
    if given.what == "speed":
        speed(given.script, given.dataset, given.rounds)
    else:
        quality(given.script, given.dataset, given.minutes, given.every, given.out)


if __name__ == "__main__":
    sys.exit(main())
