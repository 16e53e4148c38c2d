"""Weight RNN with and without its updates, on the same data and budget: how well images are made.

python bench/weight_rnn.py DATASET_ROOT OUT --minutes 3 --seeds 0 1 2
python bench/weight_rnn.py MNIST OUT --unseen 9              instead: adapt to a class from 16 images of it
python bench/weight_rnn.py DATASET_ROOT OUT --sheet 2000     instead: one run of so many steps, OUT/sheet.png

Each seed trains three runs into OUT: "on" for so many minutes of processor time, "off_steps" without updates
for as many steps, "off_time" without updates for as much time. Time is turned into steps by measuring both
kinds in turn before, so that other work on the machine changes no result and the learning rate falls to its
end in each run. All are judged on the same held-out images, of each class as many: psnr of reconstructions,
and the Frechet distance to them of draws from noise and of reconstructions; median over the seeds, and the
least and the most.

With --unseen the three train without a class and are judged on held-out images of the others and on 200 of
it (psnr): as they are, with more rounds of updates, and after learning some more from 16 others. "on" learns
from these for so many steps, with all of its weights or the predictor's alone; "off_steps" for as many steps,
"off_time" for as much time.
"""

import argparse
import copy
import dataclasses
import json
import statistics
import sys
import time
from pathlib import Path

import h5py
import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from mtld_core.config import UserError, nearest, parse_object
from mtld_core.data import Batches, split_windows
from mtld_core.data.dataset import Arc
from mtld_core.frames import evenly, to_float, to_uint8
from mtld_core.generate import rollout
from mtld_core.judge.frechet import FRECHET_FEATURES, Likeness
from mtld_core.judge.task import DRAWS
from mtld_core.media import save_picture, strip
from mtld_core.nn.conv import to_channels_last
from mtld_core.runtime import command, warm_memory
from mtld_core.systems.opening import open_run
from mtld_core.train import fit
from mtld_core.train.settings import build, open_data, plan
from mtld_core.train.stepper import Stepper

SHOWN = 10  # pictures in a row of the sheet
ROUNDS, STEPS = 40, 4  # of measuring the time of a step
SHOTS, JUDGED = 16, 200  # images of an unseen class that are learned from, and others of it
WATCHED = 4  # rounds of updates, the most that an unseen class is judged after
# of the learning rates, for learning from few images: without updates the best of 1, 0.25 and 0.06. 0.25 is
# as good after few steps and falls off sooner, 1 is worse than not to learn
TUNING = 0.06
NAME = f"frechet_{FRECHET_FEATURES}"


def seconds_a_step(cases, dataset, learned):
    """Processor time of a step for each of `cases`, a list of (class, config, training), measured in turn.

    It is that of the fastest tenth of `ROUNDS`: other work on the machine only ever makes steps slower.
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
    return [statistics.quantiles(times, n=10)[0] for times in found]


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


def by_class(dataset):
    """The dataset with an arc for each class, so that as many of each are held out.

    A folder of images has them already; an HDF5 file of make_mnist.py says the classes in `digits`.
    """
    if not h5py.is_hdf5(dataset.path):
        return dataset
    with h5py.File(dataset.path) as file:
        if "digits" not in file:
            return dataset
        digits = file["digits"][:]
    order = np.argsort(digits, kind="stable")
    arcs, start = [], 0
    for digit, count in zip(*np.unique(digits, return_counts=True), strict=True):
        arcs.append(Arc(str(digit), start, start + int(count), np.arange(count)))
        start += int(count)
    return dataclasses.replace(dataset, frames=dataset.frames[torch.from_numpy(order)], arcs=arcs)


def without(dataset, name):
    """(the dataset without a class, the rows of that class). Raises UserError where that cannot be."""
    arcs = {arc.name: arc for arc in dataset.arcs}
    if name not in arcs:
        raise UserError(f"--unseen: {dataset.path} has no class {name!r}{nearest(name, arcs)}")
    unseen = arcs.pop(name)
    if not arcs or len(unseen) <= SHOTS:
        raise UserError(
            f"--unseen: {dataset.path} needs another class, and more than {SHOTS} images of {name!r}"
        )
    return dataclasses.replace(dataset, arcs=list(arcs.values())), torch.arange(unseen.start, unseen.stop)


def tuned(system, dataset, shots, steps, seed, alone=False):
    """A copy of an opened system after so many steps on the images in the rows `shots`, all in each.

    alone: the predictor learns, and nothing else.
    """
    system = copy.deepcopy(system).train().requires_grad_(True)
    rates = {name: TUNING * getattr(system.config, name) for name in ("lr", "lr_predictor", "lr_critic")}
    if alone:
        rates["learning"] = "apart"  # which gives the predictor an optimizer of its own
    system.config = dataclasses.replace(system.config, **rates)
    to_channels_last(system)
    stepper = Stepper(system.optimizers(), torch.device("cpu"), clip_norm=system.run.training["clip_norm"])
    batches = Batches(dataset, [shots], 1, len(shots), seed, system.needs().batches)
    for _ in range(steps):
        drawn = batches.next()
        if alone:
            stepper("predictor", system.generator_loss, drawn[0])
        else:
            system.training_step(drawn, stepper)
    return system.eval()


def adapted(system, dataset, unseen, lengths, seed, pace):
    """How an opened system rebuilds a class that it has not seen: dict figure -> psnr, dB.

    unseen: rows of that class. lengths: steps of learning from `SHOTS` of them, `pace` times as many here.
    """
    chosen = unseen[torch.randperm(len(unseen), generator=torch.Generator().manual_seed(seed))]
    shots, images = chosen[:SHOTS], dataset.frames[chosen[SHOTS : SHOTS + JUDGED]]

    def psnr(system):
        squares = (rebuilt(system, images).float() - images).square().mean((1, 2, 3))
        return 10 * torch.log10(255**2 / squares).mean().item()

    found = {"as it is": psnr(system)}
    if system.predictor is not None:
        again = copy.copy(system)
        again.config = dataclasses.replace(system.config, update_rounds=WATCHED)
        found[f"after {WATCHED} rounds"] = psnr(again)
    for length in lengths:
        steps = round(pace * length)
        found[f"tuned for {length}"] = psnr(tuned(system, dataset, shots, steps, seed))
        if system.predictor is not None:
            found[f"tuned for {length}, predictor"] = psnr(tuned(system, dataset, shots, steps, seed, True))
    return found


def held_out(system, likeness, found):
    """The figures of a report that are compared, and the Frechet distance of reconstructions."""
    figures = {figure: found.get(figure) for figure in ("psnr", NAME, "update_gain_db")}
    figures[f"{NAME}_rebuilt"] = likeness(rebuilt(system, likeness.real))[NAME]
    return figures


def compare(out, case, kinds, seeds, dataset, judged):
    """Train the runs of each kind and seed into `out`: dict kind -> a list of figures, one for each seed.

    kinds: name -> (with updates?, steps). judged: (name, seed, opened system, its report's figures) ->
    figures.
    """
    figures = {name: [] for name in kinds}
    for seed in seeds:
        for name, (updates, steps) in kinds.items():
            folder = out / f"{name}_{seed}"
            cls, config, training = case(updates=updates, steps=steps, seed=seed, run_dir=str(folder))
            found = fit(build(cls, config, dataset, seed), dataset, training)["metrics"]
            figures[name].append(judged(name, seed, open_run(folder, device="cpu"), found))
            print(name, seed, json.dumps(figures[name][-1]), flush=True)
    return figures


def table(figures):
    """Yield lines: of each figure the median over the seeds, the least and the most, for each kind."""
    for figure in figures["on"][0]:
        for name, runs in figures.items():
            values = [run[figure] for run in runs if run.get(figure) is not None]
            if values:
                middle = statistics.median(values)
                yield f"{figure:36s} {name:10s} {middle:8.3f} ({min(values):.3f} to {max(values):.3f})"


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
    parser.add_argument("--unseen", default="", metavar="CLASS", help="train without it, then adapt to it")
    parser.add_argument(
        "--tuned", type=int, nargs="*", default=[10, 40, 160], help="steps of learning from few images of it"
    )
    parser.add_argument("--preset", default="small")
    parser.add_argument("--overrides", default="{}", help="JSON, for all runs")
    given = parser.parse_args()
    common = {"eval_every_steps": 0, "preview_every_steps": 0} | parse_object(given.overrides, "--overrides")
    common |= {"device": "cpu"}

    def case(**settings):
        return plan("weight_rnn", given.preset, common | settings)

    dataset = open_data(given.dataset_root, case(steps=1)[1])
    if given.sheet:
        show(given.out, case, given.sheet, dataset)
        return
    dataset = by_class(dataset)
    if given.unseen:
        dataset, unseen = without(dataset, given.unseen)
    training = case(steps=1)[2]
    learned, held = split_windows(dataset, 1, training.holdout, training.cross_cuts)
    on, off = seconds_a_step([case(updates=value, steps=1) for value in (True, False)], dataset, learned)
    steps = round(60 * given.minutes / on)
    kinds = {"on": (True, steps), "off_steps": (False, steps), "off_time": (False, round(steps * on / off))}
    print(
        f"a step takes {1e3 * on:.1f} ms with updates and {1e3 * off:.1f} ms without; steps: "
        f"{', '.join(f'{name} {count}' for name, (_, count) in kinds.items())}"
    )
    likeness = Likeness(dataset.frames[evenly(held, DRAWS)])

    def judged(name, seed, system, found):
        if given.unseen:
            pace = on / off if name == "off_time" else 1
            seen = {"classes that were seen": found["psnr"]}
            return seen | adapted(system, dataset, unseen, given.tuned, seed, pace)
        return held_out(system, likeness, found)

    figures = compare(given.out, case, kinds, given.seeds, dataset, judged)
    facts = {"seconds_a_step": [on, off], "steps": kinds, "seeds": given.seeds} | figures
    (given.out / "figures.json").write_text(json.dumps(facts, indent=2))
    print(*table(figures), sep="\n")


if __name__ == "__main__":
    sys.exit(main())
