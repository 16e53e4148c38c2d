"""How large a batch a GPU gains by, seen by trying; and trials of a run in general."""

import contextlib
import copy
import dataclasses
import math
import tempfile
import threading
import time
from pathlib import Path

from mtld_core.judge.task import Task
from mtld_core.machine import backends, memory
from mtld_core.machine.threads import Threads
from mtld_core.runtime import pick_device
from mtld_core.train.controls import Controls
from mtld_core.train.loop import Training

STEPS, LONGEST = 10, 20.0  # that a batch is tried for, and seconds: the first ones are not replayed yet
GAIN = 1.15  # a batch twice as large is taken where so many times as many windows are trained in a second
MOST = 4  # times the batch that one begins with: the rule for the rates is not known to hold further
ROOM = 0.75  # of a GPU's memory that may be taken: judging needs some as well

_here = threading.Lock()  # held while a run trains in this process


@contextlib.contextmanager
def training_here():
    """While the block runs, a run trains in this process; of several at once the first one counts."""
    first = _here.acquire(blocking=False)
    try:
        yield
    finally:
        if first:
            _here.release()


def is_busy():
    """Whether a run trains in this process: a trial beside it would measure both, and may spoil its graph."""
    return _here.locked()


def tried(system, dataset, config, steps, longest, look_at_end=False):
    """A `Training` of a copy of the system after so many steps, or seconds. Nothing is left behind.

    look_at_end: also judge few windows, to see how long saving and judging will take.
    """
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        controls = Controls(say=lambda line: None)
        trial = dataclasses.replace(config, run_dir=folder, resume="never", preview_every_steps=0)
        device = pick_device(config.device, say=controls.say)
        with (
            Threads(config.threads, say=controls.say, trials=False) as threads,
            backends.set_to(device, **backends.chosen(device, config, system)),
        ):
            run = Training(
                copy.deepcopy(system), dataset, trial, Path(folder), controls, threads, time.monotonic()
            )
            run.try_out(steps, longest, look_at_end)
    return run


def fitted(system, dataset, config, say=print):
    """The `TrainConfig` whose batch fits the GPU, where `config.fit_batch` asks for it; on a CPU its own.

    The batch is doubled as long as that trains more windows a second, and as they fit. The learning rates are
    multiplied by the square root of how many times as large it is, as Adam's steps then keep their noise
    (Malladi et al. 2022). The steps stay as many, so each takes longer. While a run trains in this process
    nothing is tried, and the config is returned as it is.
    """
    if not config.fit_batch or is_busy():
        return config
    config = dataclasses.replace(config, fit_batch=False)
    first = config.batch_size
    device = pick_device(config.device, say=lambda line: None)
    if device.type != "cuda":
        return config
    windows = sum(len(starts) for starts in Task(system, dataset, config, lambda line: None).learned)
    speeds = {first: speed(system, dataset, config)}
    if not speeds[first]:
        say(f"batch_size={first}: no larger one is tried, for this one hardly fits")
        return config
    size, why = first, f"{MOST} times as many are the most that is tried"
    while size < MOST * first:
        larger = 2 * size
        if larger > windows:
            why = f"there are {windows} windows"
            break
        try:
            speeds[larger] = speed(system, dataset, dataclasses.replace(config, batch_size=larger))
        except Exception:  # a kernel that does not take so many: what is smaller has just run
            speeds[larger] = 0.0
        if not speeds[larger]:
            why = f"{larger} do not fit"
            break
        if speeds[larger] < GAIN * speeds[size]:
            why = f"{larger} gain {speeds[larger] / speeds[size] - 1:+.0%}"
            break
        size = larger
    scale = math.sqrt(size / first)
    say(
        f"batch_size={size}, by trying ({why}): {speeds[size] / speeds[first]:.1f} times the windows a "
        f"second of {first}; learning rates are {scale:.2f} times those of the preset"
    )
    return dataclasses.replace(config, batch_size=size, lr_scale=scale * config.lr_scale)


def speed(system, dataset, config):
    """Windows a second that a GPU trains in batches of this size; 0.0 where they do not fit."""
    memory.collect()
    memory.peak_share(pick_device(config.device, say=lambda line: None))  # from here on
    try:
        run = tried(system, dataset, config, STEPS, LONGEST)
    except Exception as error:
        if not memory.is_full(error):
            raise
        return 0.0
    split = max(run.stepper.splits.values()) > config.accumulate
    full = memory.peak_share(run.device) > ROOM
    return 0.0 if split or full else config.batch_size / run.schedule.step_seconds
