"""Training: `train` is the whole job, `fit` its last step: from a system and a dataset to a run folder.

`python -m mtld_core.train --config config.json` runs `train` with the arguments in that file (a JSON object).
"""

import argparse
import contextlib
import io
import time
from pathlib import Path

import torch

from mtld_core.config import RunGivenUp, UserError, check, parse_object
from mtld_core.machine import backends, memory
from mtld_core.machine.group import ALONE, joined
from mtld_core.machine.heat import watched
from mtld_core.machine.threads import Threads
from mtld_core.runs.checkpoint import disk_errors
from mtld_core.runs.folder import folder_of
from mtld_core.runs.lock import run_lock
from mtld_core.runs.mirror import mirrored
from mtld_core.runtime import (
    ASKED_TO_STOP,
    ENDED,
    command,
    pick_device,
    stop_on_signal,
    warm_memory,
)
from mtld_core.train.controls import Controls
from mtld_core.train.fitting import fitted, is_busy, training_here, tried
from mtld_core.train.launch import launch, obeying, processes_for
from mtld_core.train.loop import Training
from mtld_core.train.report import peak_gigabytes
from mtld_core.train.schedule import clock
from mtld_core.train.settings import TrainConfig, build, open_data, plan

TRIED, LONGEST_TRY = 8, 10.0  # steps that `outlook` tries at most, and seconds after which it tries no more


def train(
    system="mtld",
    preset="small",
    dataset_root="sample",
    overrides="{}",
    controls=None,
    group=ALONE,
    **settings,
):
    """From names to a trained run; returns what report.json holds.

    settings: any field of `TrainConfig` (run_dir, steps, time_budget_minutes, seed, ...). overrides: see
    `plan`. controls, group: see `fit`. Raises UserError or ConfigError for anything the caller can mend.
    """
    for name, value in {"system": system, "preset": preset, "dataset_root": dataset_root}.items():
        check(isinstance(value, (str, Path)), f"{name} must be a text, not {value!r}")
    with group.in_turn(min(1, group.rank), 2):  # the first one brings back what a mirror has
        cls, config, training = plan(system, preset, overrides, **settings)
    # the others find its frames decoded, and see what memory is left
    with group.in_turn(group.place, group.here):
        dataset = open_data(dataset_root, config, training.controls_lead_to)
    return fit(build(cls, config, dataset, training.seed), dataset, training, controls, group)


def fit(system, dataset, config=TrainConfig(), controls=None, group=ALONE):  # noqa: B008 (frozen)
    """Train `system` on `dataset` into `config.run_dir`; returns what report.json holds.

    controls: events with which another thread stops it (status "stopped"), pauses it or has it saved. Ctrl-C,
    SIGINT and SIGTERM stop it, too, after the step in progress; a second Ctrl-C interrupts at once. group: of
    the processes that train together, this one among them, each with the same arguments. Where there is no
    group yet and `config.devices` asks for several, they are started: these train a system that they build by
    config and seed, and `system` stays as it is.
    """
    began = time.monotonic()
    controls = controls or Controls()
    if group.alone and (count := processes_for(config)) > 1:
        return launch(system, dataset, config, controls, count)
    run_dir = Path(group.told(str(folder_of(config.run_dir, system.name))))
    check(
        run_dir.resolve() != Path(dataset.path).resolve(),
        f"run_dir={run_dir} is the dataset's own folder; choose another",
    )
    if not group.leads:
        controls.say = lambda line: None
    if group.alone:
        config = fitted(system, dataset, config, controls.say)
    device = pick_device(group.card(config.device), say=lambda line: None)
    setting, trials = config.threads, not config.compile
    if not group.alone and setting == "auto":  # under another count sums differ in their last bits
        setting, trials = group.told(torch.get_num_threads()), False
    threads = Threads(setting, device, controls.say, trials)
    with contextlib.ExitStack() as stack:
        enter = stack.enter_context
        memory.collect()  # that of trials
        stack.callback(memory.collect)
        enter(training_here())
        if group.leads:
            enter(run_lock(run_dir, controls.say, controls.stop))
            enter(mirrored(run_dir, config.mirror_dir, controls.say))
        enter(disk_errors(run_dir))
        enter(stop_on_signal(controls.stop))
        enter(warm_memory())
        enter(threads)
        enter(backends.set_to(device, **backends.chosen(device, config, system)))
        training = Training(system, dataset, config, run_dir, controls, threads, began, group)
        try:
            with watched(training.heat, training.device):
                written = training.run()
        except BaseException as error:
            if group.leads:
                with contextlib.suppress(OSError):  # on a full disk the report must not hide what happened
                    training.write_report("failed", f"{type(error).__name__}: {error}")
            raise
        group.meet()
        training = None  # which the end of this block frees
        return written


def outlook(system, dataset, config):
    """One paragraph: parameters, memory, time, how often it saves, draws and judges. Nothing is left behind.

    It takes what `fit` does. A copy of the system trains for some steps in a folder that goes again, and is
    judged on few windows. While another run trains in this process nothing is tried, and the paragraph says
    so. Raises UserError where training would, before its first step.
    """
    if is_busy():
        return "Another run trains here: what this one will take is not tried out beside it."
    run = tried(system, dataset, config, TRIED, LONGEST_TRY, look_at_end=not config.time_budget_minutes)
    schedule = run.schedule
    lasts = schedule.time_left(0) or "an unknown time"
    if config.time_budget_minutes:
        lasts = f"at most {config.time_budget_minutes:g} minutes"
    judging = schedule.cost("judging")
    takes = f" (about {clock(judging)})" if judging else ""
    return (
        f"{run.parameters:,} parameters, which take about {peak_gigabytes(run.device):.1f} GB of memory on "
        f"{run.device} in {run.precision}. {schedule.last_step(0):,} steps of {schedule.step_seconds:.2g} s "
        f"take {lasts}, judging included. It saves "
        f"{_every(config.save_every_steps, config.save_every_minutes)}, draws a preview "
        f"{_every(config.preview_every_steps)} and judges it on {len(run.task.judge.starts)} windows{takes} "
        f"{_every(config.eval_every_steps)}."
    )


def _every(steps, minutes=0):
    often = []
    if steps:
        often.append(f"every {steps:,} steps")
    if minutes:
        often.append(f"every {minutes:g} minutes")
    return " and ".join([*often, "at the end"])


def _say(line):
    with contextlib.suppress(OSError):  # whoever listened may be gone
        print(line, flush=True)


@command
def main(arguments=None):
    parser = argparse.ArgumentParser(
        prog="python -m mtld_core.train", description="Train a system from a file of settings."
    )
    parser.add_argument(
        "--config", required=True, help="JSON object with the arguments of mtld_core.train.train"
    )
    parser.add_argument("--control", help="a folder through which `devices` above 1 asks and is told")
    args = parser.parse_args(arguments)
    path = args.config
    try:
        text = Path(path).read_text()
    except UnicodeDecodeError:
        raise UserError(f"--config {path} is no text file") from None
    except OSError as error:
        raise UserError(f"--config {path}: {error.strerror}") from None
    controls = Controls(_say) if args.control else Controls()
    with joined() as group, contextlib.ExitStack() as stack:
        if not group.leads:
            stack.enter_context(contextlib.redirect_stdout(io.StringIO()))  # one voice is enough
        if args.control:
            stack.enter_context(obeying(args.control, controls, group.leads))
        ended = train(**parse_object(text, path), controls=controls, group=group)
    if args.control:  # the report tells
        return ENDED
    if ended["given_up"]:
        raise RunGivenUp(ended["reason"])
    if not group.alone:  # torchrun takes any other code for a process that failed
        return ENDED
    return ASKED_TO_STOP if ended["reason"] == "asked to stop" else ENDED
