"""Runs side by side: all judged on the same frames, beside what costs nothing.

A reader compares the figures of a column. So every run that predicts is judged on the same target frames:
those that all of them hold out, each run with its own context before them, as far as the shortest horizon of
all. Where each would judge exactly these by itself, the figures are those of its report.json. What rebuilds
or translates frames is measured by other figures of the same names, and has a table of its own.
"""

import collections
import contextlib
import copy
import dataclasses
import os
import statistics
import time
from pathlib import Path

import torch
from torch.utils.flop_counter import FlopCounterMode

from mtld_core import media, metrics
from mtld_core.config import UserError, check
from mtld_core.data import covered
from mtld_core.frames import evenly
from mtld_core.judge import sheets
from mtld_core.judge.frechet import VIDEO, Likeness
from mtld_core.judge.rollouts import errors_of
from mtld_core.judge.task import Task, opened
from mtld_core.judge.windows import reachable
from mtld_core.judge.words import compared
from mtld_core.runs.folder import EXAMPLES, LATEST, folder_of, read_config, read_report, runs_in, write_part
from mtld_core.systems.base import Reconstructs, Translates
from mtld_core.systems.baselines import BASELINES, fit_baseline
from mtld_core.systems.opening import own_dataset

KINDS = ("prediction", "reconstruction", "translation")
# windows, and frames of each, that the Frechet distance is taken of; MS-SSIM of half of these
LOOKED_AT, SHOWN = 32, 4
TIMED = 5  # rollouts of which the median is a run's speed


def compare(run_dirs, dataset_root="", horizon=0, out_dir="", tick=lambda: None):
    """Compare runs on one dataset -> what compare.json holds, a dict, and "out_dir".

    run_dirs: paths of runs. dataset_root: where the data lies, "" where the runs say it. horizon: frames that
    are predicted, 0 for the fewest that one of the runs was judged on in training. out_dir gets table.csv,
    table.md, horizon.png, strips.png and compare.json; "" stands for `runs/compare_<time stamp>`. tick:
    called before each piece of the work; it may raise to give it up. Raises UserError where a folder is no
    run, or the runs cannot be compared.
    """
    runs = [_Run(path) for path in run_dirs]
    check(runs, "name runs to compare; notebooks/02_train makes them")
    check(horizon >= 0, f"horizon must be 0 or more frames, not {horizon}")
    names = [run.name for run in runs]
    for run in runs:
        if names.count(run.name) > 1:
            run.name = str(run.system.run.dir)
    dataset = _dataset(runs, dataset_root)
    for run in runs:
        size = run.system.config.height, run.system.config.width
        check(size == dataset.size, f"{run.name} has frames of {size}, {runs[0].name} of {dataset.size}")
        run.task = Task(run.system, dataset, run.config, say=lambda line: None)
    out_dir = folder_of(out_dir, "compare")
    place = next(filter(Path.exists, (out_dir, *out_dir.parents)))
    free = place.is_dir() and os.access(place, os.W_OK)  # said before minutes of judging
    check(free, f"out_dir={out_dir} cannot be made in {place}: choose another one")
    result = {"schema": 1, "dataset": dataset.describe(), "sections": []}
    for kind in KINDS:
        if some := [run for run in runs if run.kind == kind]:
            section, strips = _section(some, dataset, horizon, tick)
            others = f"_{kind}" if result["sections"] else ""
            result["sections"].append(section)
            write_part(out_dir, f"horizon{others}.png", sheets.draw_horizons(section))
            media.save_picture(out_dir / f"strips{others}.png", strips)
    write_part(out_dir, "compare.json", result)
    write_part(out_dir, "table.csv", sheets.as_csv(result).encode())
    write_part(out_dir, "table.md", sheets.as_markdown(result).encode())
    return result | {"out_dir": str(out_dir)}


def runs_to_compare():
    """Paths of the trained runs in runs/ that learned what the newest one did; none: of examples/pong."""
    trained = [path for path in runs_in("runs") if Path(path, LATEST).exists()]
    times = {path: os.path.getmtime(f"{path}/{LATEST}") for path in trained}
    if not times:
        return [path for path in runs_in(EXAMPLES) if path.endswith("/pong")]
    data = {path: read_config(path)["dataset"] | {"digest": ""} for path in times}  # older runs have none
    return [path for path in times if data[path] == data[max(times, key=times.get)]]


# ---- what is compared


class _Entry:
    """A baseline, unless it is a `_Run`. task: what judges it."""

    kind, report = "baseline", {"metrics": {}}

    def __init__(self, system, task=None):
        self.system, self.task, self.name = system, task, system.name


class _Run(_Entry):
    kind = "prediction"

    def __init__(self, path):
        system, config = opened(path)
        super().__init__(system)
        self.config = dataclasses.replace(config, life_horizon=0)  # minutes, and its report has it
        self.name, self.data = system.run.dir.resolve().name, os.path.realpath(system.run.dataset_path)
        if isinstance(system, Reconstructs):
            self.kind = "translation" if isinstance(system, Translates) else "reconstruction"
        with contextlib.suppress(UserError):  # a shared run has none
            self.report = read_report(system.run.dir)


def _dataset(runs, dataset_root):
    """Open what all runs are judged on."""
    paths = {run.data: f"{run.name} from {run.data}" for run in runs}
    check(
        dataset_root or len(paths) == 1,
        f"they learned from different data ({', '.join(paths.values())}): name dataset_root",
    )
    return own_dataset(runs[0].system, dataset_root, way="name dataset_root")


def _share_windows(runs, dataset, horizon):
    """Let runs be judged on the same frames -> a line where these are not their own."""
    judges = [run.task.judge for run in runs]
    horizons = [judge.horizon for judge in judges]
    if runs[0].kind == "prediction":
        horizons = [horizon or min(horizons)] * len(runs)
    own = [judge.starts + judge.context for judge in judges]
    if horizons == [judge.horizon for judge in judges] and all(torch.equal(each, own[0]) for each in own):
        return []
    common = judges[0].held + judges[0].context
    for judge in judges:
        common = common[torch.isin(common, judge.held + judge.context)]
    if len(common):
        across = all(run.config.cross_cuts for run in runs)
        common, _ = reachable(dataset, common, 0, max(horizons), 0, across)
    way = "compare fewer runs, or at a smaller horizon"
    check(len(common), f"no {max(horizons)} frames in a row are held out by every one of the runs: {way}")
    targets = evenly(common, max(map(len, own)))
    for run, judge, length in zip(runs, judges, horizons, strict=True):
        run.task.judge = judge.on(targets, length)
        run.task.judge.median = getattr(judges[0], "median", None)  # of reconstructions there is none
    return ["these are frames that every run holds out: figures differ from each run's own report.json"]


def _baselines(run, dataset, notes):
    """What costs nothing, on the windows of a run, and learned from what it learned.

    A line is added to `notes` where one is left out.
    """
    judge, learned, length = run.task.judge, run.task.learned[0], run.system.needs().window
    targets = judge.starts + judge.context
    rows = len(dataset.frames)
    known = covered(rows, learned, length) & covered(rows, targets, judge.horizon)
    for name in BASELINES:
        if name == "nearest" and known.any():
            notes.append("nearest is left out: it would look up the very frames that are judged")
            continue
        system = fit_baseline(name, dataset, learned, length)
        task = copy.copy(run.task)
        task.judge = judge.on(targets, judge.horizon, system.needs())
        yield _Entry(system, task)


# ---- what is measured


def _section(runs, dataset, horizon, tick):
    """(what compare.json holds of runs of one kind, strips of frames)."""
    first, entries, notes = runs[0], list(runs), []
    kind = first.kind
    if kind != "translation":
        notes = _share_windows(runs, dataset, horizon)
    if kind == "prediction":
        entries += _baselines(first, dataset, notes)
    windows = len(first.task.judge.starts)
    real, likeness = _Seen(windows), None
    for entry in entries:
        entry.seen = entry.task.judge.look = _Seen(windows, real if entry is first else None)
        torch.manual_seed(0)
        entry.figures = {"life": entry.report["metrics"].get("life")}
        entry.figures |= entry.task.figures(entry.system, tick)
        clips, true = entry.seen.all("clips"), real.all("clips")
        likeness = likeness or Likeness(true, VIDEO)
        if min(clips.shape[1], true.shape[1]) > 1:  # a single frame is no clip
            entry.figures |= likeness(clips, tick)
    baselines = entries[len(runs) :]
    free = [entry.seen.all("mse") for entry in baselines]
    rows, flicker = [_row(entry, free) for entry in entries], real.mean("flicker")
    says = {row["run"]: compared(row, rows, flicker) for row in rows[: len(runs)]}
    for run in runs:
        if run.config.restitution or run.data != os.path.realpath(dataset.path):
            notes.append(f"{run.name} may have learned these frames: its data were {run.data}")
    for name in ("lpips_reason", "frechet_reason"):
        if why := first.figures.get(name):
            notes.append(f"{name.partition('_')[0]} is empty: {why}")
    section = {"kind": kind, "windows": windows, "flicker": flicker, "rows": rows, "says": says}
    best = sorted(baselines, key=lambda entry: entry.seen.mean("mse"))[:1]
    return section | {"notes": notes}, _strips(runs + best)


class _Seen:
    """What frames of so many windows show beyond the judge's figures, gathered some windows at a time.

    real: gathers what the truth shows.
    """

    def __init__(self, windows, real=None):
        self.every, self.real = -(-windows // LOOKED_AT), real
        self.parts = collections.defaultdict(list)

    def __call__(self, made, truth):
        some = evenly(made.shape[1], SHOWN)
        few, true = (frames[:: self.every] for frames in (made, truth))
        found = {
            "mse": errors_of(made, truth),
            "flicker": metrics.flicker(made),
            "warping_error": metrics.warping_error(few),
            "ms_ssim": metrics.ms_ssim(few[:, some[::2]], true[:, some[::2]]),
            "clips": few[:, some],
        }
        for name, values in found.items():
            self.parts[name].append(values)
        if self.real:
            self.real(truth, truth)

    def all(self, name):
        return torch.cat(self.parts[name])

    def mean(self, name):
        return self.all(name).mean().item()


def _row(entry, free):
    """A row of the table, and more. free: MSE of the baselines, `[windows, h]` each."""
    figures, seen = entry.figures, entry.seen
    psnr = metrics.psnr(seen.all("mse"))
    row = {"run": entry.name, "kind": entry.kind, "system": entry.system.name, "psnr": figures["psnr"]}
    row["psnr_low"], row["psnr_high"] = _interval(psnr)
    names = ("psnr_x_to_y", "psnr_y_to_x", "ssim", "lpips", VIDEO, "skill_db", "moving_skill_db")
    row |= {name: figures.get(name) for name in names}
    row["skill_best_db"] = metrics.skill_db(free, seen.all("mse")) if free else None
    row |= {name: seen.mean(name) for name in ("flicker", "warping_error", "ms_ssim", "mse")}
    row["frames_per_second"], row["gflop_per_frame"] = _speed(entry)
    row["parameters"] = sum(parameter.numel() for parameter in entry.system.parameters())
    row |= {name: entry.report.get(name) for name in ("peak_memory_mb", "train_seconds")}
    row["psnr_by_horizon"] = psnr.mean(0).tolist()
    row["psnr_interval_by_horizon"] = [_interval(each) for each in psnr.unbind(1)]
    return row | {"figures": figures}


def _interval(values):
    """[low, high] of a mean over windows; a single one leaves it open."""
    return metrics.interval(values) if len(values) > 1 else [None, None]


@torch.inference_mode()
def _speed(entry):
    """(frames a second of a single stream, GFLOP a frame)."""
    judge, seconds, counter = entry.task.judge, [], FlopCounterMode(display=False)
    one, length = judge.starts[:1], judge.horizon
    with counter:
        judge.made_by(entry.system, one, length)
    for _ in range(TIMED):
        began = time.perf_counter()
        judge.made_by(entry.system, one, length).cpu()
        seconds.append(time.perf_counter() - began)
    return length / statistics.median(seconds), counter.get_total_flops() / length / 1e9


def _strips(entries):
    """A picture: for one or two windows the truth, or what is translated, and what each makes of it."""
    previews = [entry.task.preview(entry.system) for entry in entries]
    (first, labels, columns), rows, names = previews[0], [], []
    for i, label in enumerate(labels):
        if label in (labels[0], "y"):  # where a window begins; the next row is what is made of it
            rows += [first[i], *(made[i + 1] for made, _, _ in previews)]
            names += [label, *(entry.name for entry in entries)]
    return media.strip(rows, names, columns)
