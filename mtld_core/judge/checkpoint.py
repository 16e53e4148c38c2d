"""Judging a saved checkpoint once more, as training judges it: the same windows, the same figures.

    python -m mtld_core.judge RUN [--checkpoint step_00001000] [--life_horizon 1000] [--dataset_root DATA]
    python -m mtld_core.judge --compare RUN RUN ... [--dataset_root DATA] [--horizon 16] [--out DIR]

The figures are printed, and written to `<run>/judgements/<checkpoint>.json` (of a read-only run into
`samples/<its name>/` here). With --compare runs are judged side by side, and the table is printed: see
`mtld_core.judge.compare`.
"""

import argparse
import dataclasses
import json
import os
import sys
from pathlib import Path

import torch

from mtld_core.config import check
from mtld_core.judge.task import Task, opened
from mtld_core.runs.folder import JUDGEMENTS, samples_of, write_part
from mtld_core.runtime import command, name_of, progress_bar
from mtld_core.systems.opening import own_dataset


def judge(run_dir, checkpoint="", device="auto", life_horizon=None, dataset_root=""):
    """Figures of a checkpoint of a run, a dict as report.json has it under "metrics".

    checkpoint: see `open_run`. life_horizon: steps that its dreams are played for; None: as the run has it.
    dataset_root: where its data lie, "" where the run says it.
    Where the run names a file of LPIPS weights that is not here (any more), torch's cache is looked into,
    which a line says. Raises UserError where run or checkpoint cannot be opened, or the dataset is gone.
    """
    system, config = opened(run_dir, checkpoint, device)
    if life_horizon is not None:
        config = dataclasses.replace(config, life_horizon=life_horizon)
    torch.manual_seed(0)
    dataset = own_dataset(system, dataset_root, way="name dataset_root")
    task = Task(system, dataset, config)
    with progress_bar(desc="judging", unit=" pieces") as bar:
        figures = task.figures(system, bar.update)
    figures["precision"] = name_of(system.precision)
    folder = system.run.dir
    if not os.access(folder, os.W_OK):
        folder = samples_of(folder)
    try:
        write_part(folder, f"{JUDGEMENTS}/{Path(system.run.checkpoint).stem}.json", figures)
    except OSError as error:  # figures that took long are not lost with the disk
        print(f"{folder} cannot be written ({error.strerror}): figures are not kept there", file=sys.stderr)
    return figures


@command
def main(arguments=None):
    parser = argparse.ArgumentParser(
        prog="python -m mtld_core.judge", description="Judge a checkpoint of a run once more."
    )
    which = parser.add_mutually_exclusive_group(required=True)
    which.add_argument("run", nargs="?", help="the run's folder")
    which.add_argument("--compare", nargs="+", metavar="RUN", help="judge several runs side by side")
    add = parser.add_argument
    add("--checkpoint", default="", help='its name, or "best"; the newest good one otherwise')
    add("--life_horizon", type=int, help="steps that dreams are played for; else as in training")
    add("--dataset_root", default="", help="where the data lie, if not where the runs learned them")
    add("--horizon", type=int, default=0, help="with --compare: frames to predict")
    add("--out", default="", help="with --compare: the folder for table and pictures")
    given = parser.parse_args(arguments)
    if given.compare:
        alone = given.checkpoint or given.life_horizon
        check(not alone, "--checkpoint and --life_horizon are for a single run: leave --compare out")
        from mtld_core.judge.compare import compare

        with progress_bar(desc="comparing", unit=" pieces") as bar:
            made = compare(given.compare, given.dataset_root, given.horizon, given.out, bar.update)
        print(Path(made["out_dir"], "table.md").read_text())
        return
    check(not (given.horizon or given.out), "--horizon and --out are for runs behind --compare")
    figures = judge(
        given.run, given.checkpoint, life_horizon=given.life_horizon, dataset_root=given.dataset_root
    )
    print(json.dumps(figures, indent=2))
