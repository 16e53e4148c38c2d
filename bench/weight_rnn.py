"""Weight RNN with and without its updates, on the same data and budget: how well images are made.

python bench/weight_rnn.py DATASET_ROOT OUT --minutes 3 --seeds 0 1 2
python bench/weight_rnn.py DATASET_ROOT OUT --sheet 2000     instead: one run of so many steps, OUT/sheet.png

Each seed trains three runs into OUT: "on" for so many minutes of processor time, "off_steps" without updates
for as many steps, "off_time" without updates for as much time. Time is turned into steps by measuring both
kinds in turn before, so that other work on the machine changes no result and the learning rate falls to its
end in each run. All are judged on the same held-out images: psnr of reconstructions, and the Frechet distance
to them of draws from noise and of reconstructions; mean and spread over the seeds.
"""

import argparse
import json
import statistics
import sys
import time
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from mtld_core.config import parse_object
from mtld_core.data import Batches, split_windows
from mtld_core.frames import evenly, to_float, to_uint8
from mtld_core.generate import rollout
from mtld_core.judge.frechet import FRECHET_FEATURES, Likeness
from mtld_core.judge.task import DRAWS
from mtld_core.media import save_picture, strip
from mtld_core.runtime import command, warm_memory
from mtld_core.systems.opening import open_run
from mtld_core.train import fit
from mtld_core.train.settings import build, open_data, plan
from mtld_core.train.stepper import Stepper, to_channels_last

SHOWN = 10  # pictures in a row of the sheet
ROUNDS, STEPS = 10, 20  # of measuring the time of a step
NAME = f"frechet_{FRECHET_FEATURES}"


def seconds_a_step(cases, dataset, learned):
    """Median processor time of a step for each of `cases`, a list of (class, config, training), measured in
    turn.
    """
    calls = []
    for cls, config, training in cases:
        system = build(cls, config, dataset, 0).train()
        to_channels_last(system)
        stepper = Stepper(system.optimizers(), torch.device("cpu"), clip_norm=training.clip_norm)
        batches = Batches(dataset, [learned], 1, training.batch_size, 0, system.needs().batches)
        calls.append(
            lambda system=system, batches=batches, stepper=stepper: system.training_step(
                batches.next(), stepper
            )
        )
    found = [[] for _ in calls]
    with warm_memory():
        for _ in range(ROUNDS):
            for call, times in zip(calls, found, strict=True):
                call()
                began = time.process_time()
                for _ in range(STEPS):
                    call()
                times.append((time.process_time() - began) / STEPS)
    return [statistics.median(times) for times in found]


@torch.inference_mode()
def rebuilt(system, images):
    """Reconstructions of uint8 `[n, H, W, 3]`, the same."""
    return torch.cat(
        [to_uint8(system.reconstruct(to_float(part)[:, None])[:, 0]) for part in images.split(64)]
    )


@torch.inference_mode()
def sheet(system, images):
    """A picture of what a run draws: uint8 `[n, H, W, 3]` in two looks, noise in two looks, and the first
    one's rollout.
    """
    truth = to_float(images)
    first, last = system.draw(system.encode(truth))[0], system.reconstruct(truth[:, None])[:, 0]
    generator, noise = torch.Generator().manual_seed(0), []
    for _ in images:
        state = system.start(None, generator)
        drawn_first = state[1]
        for _ in range(system.config.update_rounds):
            state, image = system.step(state)
        noise.append((drawn_first, image))
    noise_first, noise_last = map(torch.cat, zip(*noise, strict=True))
    rows = [to_uint8(made) for made in (first, last, noise_first, noise_last)]
    labels = [
        "truth",
        "drawn first",
        "after the update",
        "from noise, drawn first",
        "after the update",
        "update after update",
    ]
    return strip([images, *rows, rollout(system, images[0], len(images))], labels)


def show(out, case, steps, dataset):
    """Train one run with updates into `out`/sheet and write `out`/sheet.png: held-out images, and what it
    draws.
    """
    cls, config, training = case(steps=steps, run_dir=str(out / "sheet"))
    _, held = split_windows(dataset, 1, training.holdout, training.cross_cuts)
    figures = fit(build(cls, config, dataset, training.seed), dataset, training)["metrics"]
    print(json.dumps({figure: figures.get(figure) for figure in ("first_psnr", "psnr", NAME)}))
    save_picture(
        out / "sheet.png", sheet(open_run(out / "sheet", device="cpu"), dataset.frames[evenly(held, SHOWN)])
    )


@command
def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("dataset_root")
    parser.add_argument("out", type=Path)
    parser.add_argument(
        "--minutes", type=float, default=3.0, help="processor time that the run with updates trains"
    )
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument(
        "--sheet", type=int, default=0, metavar="STEPS", help="train one run so long and draw its sheet"
    )
    parser.add_argument("--preset", default="small")
    parser.add_argument("--overrides", default="{}", help="JSON, for all runs")
    given = parser.parse_args()
    common = {"eval_every_steps": 0, "preview_every_steps": 0} | parse_object(given.overrides, "--overrides")
    common |= {"device": "cpu"}

    def case(**settings):
        return plan("weight_rnn", given.preset, common | settings)

    dataset = open_data(given.dataset_root, case(steps=1)[1])
    training = case(steps=1)[2]
    if given.sheet:
        show(given.out, case, given.sheet, dataset)
        return
    learned, held = split_windows(dataset, 1, training.holdout, training.cross_cuts)
    images = dataset.frames[evenly(held, DRAWS)]
    likeness = Likeness(images)
    on, off = seconds_a_step([case(updates=value, steps=1) for value in (True, False)], dataset, learned)
    steps = round(60 * given.minutes / on)
    kinds = {
        "on": (True, steps),
        "off_steps": (False, steps),
        "off_time": (False, round(60 * given.minutes / off)),
    }
    print(
        f"a step takes {1e3 * on:.1f} ms with updates and {1e3 * off:.1f} ms without; steps: "
        f"{', '.join(f'{name} {count}' for name, (_, count) in kinds.items())}"
    )
    figures = {}
    for seed in given.seeds:
        for name, (updates, count) in kinds.items():
            folder = given.out / f"{name}_{seed}"
            cls, config, training = case(updates=updates, steps=count, seed=seed, run_dir=str(folder))
            found = fit(build(cls, config, dataset, seed), dataset, training)["metrics"]
            found = {figure: found.get(figure) for figure in ("psnr", NAME, "update_gain_db")}
            found[f"{NAME}_rebuilt"] = likeness(rebuilt(open_run(folder, device="cpu"), images))[NAME]
            figures.setdefault(name, []).append(found)
            print(name, seed, json.dumps(figures[name][-1]), flush=True)
    facts = {"seconds_a_step": [on, off], "steps": kinds, "seeds": given.seeds} | figures
    (given.out / "figures.json").write_text(json.dumps(facts, indent=2))
    for figure in figures["on"][0]:
        for name, runs in figures.items():
            values = [run[figure] for run in runs if run[figure] is not None]
            spread = statistics.stdev(values) if len(values) > 1 else 0.0
            if values:
                print(f"{figure:36s} {name:10s} {statistics.fmean(values):8.3f} +- {spread:.3f}")


if __name__ == "__main__":
    sys.exit(main())
