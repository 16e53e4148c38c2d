"""Several processes on this machine for one run: started as children, also where this one has used the GPU.

`python -m torch.distributed.run` starts `python -m mtld_core.train` once a card. Buttons, and whether this
process still lives, go through one small file that it renews; how the run goes comes back through another.
"""

import collections
import contextlib
import os
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import torch

from mtld_core.config import ROOT, RunGivenUp, UserError, check, to_dict
from mtld_core.files import read_json, write_json
from mtld_core.machine.group import GONE
from mtld_core.runs.folder import folder_of, read_report
from mtld_core.runtime import GIVEN_UP, core_count, in_background, stop_on_signal

JOB, ASKED, ANSWER = "job.json", "asked.json", "told.json"  # files in a folder of the session's own
BEAT = 0.2  # seconds between two looks at what the other side has written
SILENCE = 20  # seconds without a beat, after which the one who started all this is gone: save and end
DEATH = 45  # seconds after which a process that could not end by then is ended
TOLD = ("doing", "step", "total", "pace", "ending")  # what comes back
LAST_WORDS = 200  # lines of what went wrong that are looked through
FAILED = ("error: ", "given up: ")  # how the last line of a command that failed begins
KILLED = " received by PID "


def processes_for(config):
    """How many processes `devices` asks for: 0 is one for each card, for as many as can share a batch."""
    if config.devices or config.device == "cpu" or not torch.cuda.is_available():
        return max(1, config.devices)
    cards = min(torch.cuda.device_count(), config.batch_size)
    return max(count for count in range(1, cards + 1) if config.batch_size % count == 0)


def launch(system, dataset, config, controls, count):
    """Train a system like this one in `count` processes. Takes what `fit` does, returns what report.json has.

    Raises UserError where they fail, with the line that the first one to fail ended with, or RunGivenUp.
    """
    check(
        os.path.exists(dataset.path),
        f"devices={config.devices}: data in memory cannot be shared; open it from a path, or use devices=1",
    )
    run_dir = folder_of(config.run_dir, system.name)
    settings = to_dict(system.config) | to_dict(config) | {"run_dir": str(run_dir), "interactive": False}
    job = {"system": system.name, "preset": "tiny", "dataset_root": dataset.path, "overrides": settings}
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder, stop_on_signal(controls.stop):
        write_json(Path(folder) / JOB, job)
        code, said = _follow(Path(folder), controls, count)
    if not code:
        return read_report(run_dir)
    line = _why(said, code)
    if line.startswith("given up: "):
        raise RunGivenUp(line.removeprefix("given up: "))
    raise UserError(line.removeprefix("error: "))


def _follow(folder, controls, count):
    """Start the processes, and pass on what is asked and told until they end: (exit code, last words)."""
    said = collections.deque(maxlen=LAST_WORDS)
    line = Line(folder, controls)
    line.ask()
    with _started(folder, count) as child:
        readers = [_reader(child.stdout, controls.say), _reader(child.stderr, said.append)]
        while child.poll() is None:
            line.ask()
            line.hear()
            time.sleep(BEAT)
        for reader in readers:
            reader.join(1)
    line.hear()
    return child.returncode, list(said)


@contextlib.contextmanager
def _started(folder, count):
    """The processes, in a session of their own: a Ctrl-C here reaches them as a wish to stop."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={count}"]
    command += ["--max-restarts=0", "-m", "mtld_core.train", "--config", str(folder / JOB)]
    command += ["--control", str(folder)]
    paths = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    threads = os.environ.get("OMP_NUM_THREADS", max(1, core_count() // count))
    told = {"PYTHONPATH": os.pathsep.join(paths), "OMP_NUM_THREADS": str(threads), "PYTHONUNBUFFERED": "1"}
    child = subprocess.Popen(
        command,
        env=os.environ | told,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        errors="replace",
        start_new_session=True,
    )
    try:
        yield child
    finally:
        if child.poll() is None:  # an error here, or a second Ctrl-C
            child.terminate()
            child.wait()


def _reader(stream, say):
    """A thread that says each line of a stream."""

    def read():
        for line in stream:
            say(line.rstrip("\n"))

    return in_background(read)


def _why(said, code):
    """The line that says why the processes failed: that one's who did not only miss another one."""
    failed = [line for line in said if line.startswith(FAILED)]
    first_hand = [line for line in failed if GONE not in line]
    # torchrun's words for one that died without any; it may have ended the others before they missed it
    killed = [f"error: {GONE}" for line in said if KILLED in line]
    last = [line.strip() for line in said if line.strip()][-1:]
    for line in (*first_hand, *failed, *killed, *last):
        return line
    return f"the processes ended with code {code} and said nothing"


# ---- the two ends of a line between processes


class Line:
    """The end of the one who started the run. controls: those of a person.

    asked.json holds what they ask for, and its time is the beat; told.json how the run goes.
    """

    saves = 0  # how often a save was asked for
    saving = False
    asked = None

    def __init__(self, folder, controls):
        self.folder, self.controls = folder, controls

    def ask(self):
        """Pass on what is asked for, or that nothing is new."""
        controls = self.controls
        if controls.save.is_set() and not self.saving:
            self.saves += 1
            self.saving = True
        asked = {
            "stop": controls.stop.is_set(),
            "pause": controls.pause.is_set(),
            "saves": self.saves,
        }
        if asked == self.asked:
            os.utime(self.folder / ASKED)
        else:
            write_json(self.folder / ASKED, asked)
            self.asked = asked

    def hear(self):
        """Take over how the run goes, where it has told anything."""
        with contextlib.suppress(OSError, ValueError):
            told = read_json(self.folder / ANSWER)
            for name in TOLD:
                setattr(self.controls, name, told[name])
            if self.saving and told["saves"] == self.saves:
                self.saving = False
                self.controls.save.clear()


@contextlib.contextmanager
def obeying(folder, controls, leads):
    """While the block runs, a thread does what is asked in `folder`, and where this process leads tells how
    it goes.

    Where nothing is heard for long, whoever started this is gone: the run is saved and ends, and a process
    that hangs is ended. controls: those of the loop.
    """
    over = threading.Event()
    thread = in_background(_obey, Path(folder), controls, leads, over)
    try:
        yield
    finally:
        over.set()
        thread.join()


def _obey(folder, controls, leads, over):
    beat, heard, saves, told = None, time.monotonic(), 0, None
    while not over.wait(BEAT):
        with contextlib.suppress(OSError, ValueError):
            newest = os.stat(folder / ASKED).st_mtime_ns
            if newest != beat:
                beat, heard = newest, time.monotonic()
            if leads:
                saves = _do(read_json(folder / ASKED), controls, saves)
                done = saves - controls.save.is_set()
                now = {name: getattr(controls, name) for name in TOLD} | {"saves": done}
                if now != told:
                    write_json(folder / ANSWER, now)
                    told = now
        silent = time.monotonic() - heard
        if silent > SILENCE:
            controls.hurry = True
            controls.stop.set()
        if silent > DEATH:
            os._exit(GIVEN_UP)


def _do(asked, controls, saves):
    """Set the events as asked; returns how many saves were asked for by now."""
    if asked["stop"]:
        controls.stop.set()
    if asked["pause"]:
        controls.pause.set()
    else:
        controls.pause.clear()
    if asked["saves"] > saves:
        controls.save.set()
    return asked["saves"]
