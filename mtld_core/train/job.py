"""Training: `train` is the whole job, `fit` its last step: from a system and a dataset to a run folder.

`python -m mtld_core.train --config config.json` runs `train` with the arguments in that file (a JSON object).
"""

import argparse
import contextlib
import copy
import dataclasses
import tempfile
import time
from pathlib import Path

from mtld_core.config import RunGivenUp, UserError, check, parse_object
from mtld_core.machine import backends
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
    peak_memory_mb,
    pick_device,
    stop_on_signal,
    warm_memory,
)
from mtld_core.train.controls import Controls
from mtld_core.train.loop import Training
from mtld_core.train.report import backends_of, peak_gpu_memory_mb
from mtld_core.train.schedule import clock
from mtld_core.train.settings import TrainConfig, build, open_data, plan

TRIED, LONGEST_TRY = 6, 10.0  # steps that `outlook` tries at most, and seconds after which it tries no more


def train(system="mtld", preset="small", dataset_root="sample", overrides="{}", **settings):
    """From names to a trained run; returns what report.json holds.

    settings: any field of `TrainConfig` (run_dir, steps, time_budget_minutes, seed, ...). overrides: see
    `plan`. Raises UserError or ConfigError for anything the caller can mend.
    """
    for name, value in {"system": system, "preset": preset, "dataset_root": dataset_root}.items():
        check(isinstance(value, (str, Path)), f"{name} must be a text, not {value!r}")
    cls, config, training = plan(system, preset, overrides, **settings)
    dataset = open_data(dataset_root, config, training.controls_lead_to)
    return fit(build(cls, config, dataset, training.seed), dataset, training)


def fit(system, dataset, config=TrainConfig(), controls=None):  # noqa: B008 (frozen)
    """Train `system` on `dataset` into `config.run_dir`; returns what report.json holds.

    controls: events with which another thread stops it (status "stopped"), pauses it or has it saved. Ctrl-C,
    SIGINT and SIGTERM stop it, too, after the step in progress; a second Ctrl-C interrupts at once.
    """
    began = time.monotonic()
    run_dir = folder_of(config.run_dir, system.name)
    check(
        run_dir.resolve() != Path(dataset.path).resolve(),
        f"run_dir={run_dir} is the dataset's own folder; choose another",
    )
    controls = controls or Controls()
    device = pick_device(config.device, say=lambda line: None)
    threads = Threads(config.threads, device, controls.say, trials=not config.compile)
    with (
        run_lock(run_dir, controls.say, controls.stop),
        mirrored(run_dir, config.mirror_dir, controls.say),
        disk_errors(run_dir),
        stop_on_signal(controls.stop),
        warm_memory(),
        threads,
        backends.set_to(device, **backends_of(config, device, system)),
    ):
        training = Training(system, dataset, config, run_dir, controls, threads, began)
        try:
            with watched(training.heat, training.device):
                return training.run()
        except BaseException as error:
            with contextlib.suppress(OSError):  # on a full disk the report must not hide what happened
                training.write_report("failed", f"{type(error).__name__}: {error}")
            raise


def outlook(system, dataset, config):
    """One paragraph: parameters, memory, time, how often it saves, draws and judges. Nothing is left behind.

    It takes what `fit` does. A copy of the system trains for some steps in a folder that goes again, and is
    judged on few windows. Raises UserError where training would, before its first step.
    """
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        controls = Controls(say=lambda line: None)
        trial = dataclasses.replace(config, run_dir=folder, resume="never", preview_every_steps=0)
        with Threads(config.threads, say=controls.say, trials=False) as threads:
            run = Training(
                copy.deepcopy(system), dataset, trial, Path(folder), controls, threads, time.monotonic()
            )
            run.try_out(TRIED, LONGEST_TRY)
    schedule = run.schedule
    steps = schedule.last_step(0)
    megabytes = peak_gpu_memory_mb(run.device) or peak_memory_mb() or 0
    lasts = schedule.time_left(0) or "an unknown time"
    if config.time_budget_minutes:
        lasts = f"at most {config.time_budget_minutes:g} minutes"
    judging = schedule.cost("judging")
    takes = f" (about {clock(judging)})" if judging else ""
    return (
        f"{run.parameters:,} parameters, which take about {megabytes / 1000:.1f} GB of memory on "
        f"{run.device} in {run.precision}. {steps:,} steps of {schedule.step_seconds:.2g} s take {lasts}, "
        f"judging included. It saves {_every(config.save_every_steps, config.save_every_minutes)}, draws a "
        f"preview {_every(config.preview_every_steps)} and judges it on {len(run.task.judge.starts)} windows"
        f"{takes} {_every(config.eval_every_steps)}."
    )


def _every(steps, minutes=0):
    often = []
    if steps:
        often.append(f"every {steps:,} steps")
    if minutes:
        often.append(f"every {minutes:g} minutes")
    return " and ".join([*often, "at the end"])


@command
def main(arguments=None):
    parser = argparse.ArgumentParser(
        prog="python -m mtld_core.train", description="Train a system from a file of settings."
    )
    parser.add_argument(
        "--config", required=True, help="JSON object with the arguments of mtld_core.train.train"
    )
    path = parser.parse_args(arguments).config
    try:
        text = Path(path).read_text()
    except UnicodeDecodeError:
        raise UserError(f"--config {path} is no text file") from None
    except OSError as error:
        raise UserError(f"--config {path}: {error.strerror}") from None
    ended = train(**parse_object(text, path))
    if ended["given_up"]:
        raise RunGivenUp(ended["reason"])
    return ASKED_TO_STOP if ended["reason"] == "asked to stop" else ENDED
