"""Several processes train as one does, end together, and leave a run that goes on with any number of them."""

import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import psutil
import pytest
import torch
from conftest import write_arcs
from together import BATCH, WAYS, pair, train, workers
from torch._subclasses import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from mtld_core.config import ConfigError, UserError
from mtld_core.data import open_dataset
from mtld_core.machine.group import GONE, Group
from mtld_core.runs.checkpoint import find, list_checkpoints, load_train_state, load_weights
from mtld_core.runs.folder import read_report
from mtld_core.systems.base import Place
from mtld_core.systems.rl_v2v.replay import Replay
from mtld_core.train import fit, launch
from mtld_core.train.controls import Controls
from mtld_core.train.settings import build, plan

ROOT = Path(__file__).parents[2]
STEPS = 10  # fewer than twenty: each counts for seven systems in seven processes
SHORT = {
    "eval_windows": 2,
    "eval_every_steps": 0,
    "log_every_steps": 1,
    "save_every_minutes": 0,
    "threads": 1,
}


def start(count, folder, steps, *names):
    """Train these systems in `count` processes up to `steps`, in folder/<name>. Waits for them."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={count}"]
    command += [str(ROOT / "tests" / "together.py"), str(folder), str(steps), *names]
    paths = os.pathsep.join([str(ROOT), str(ROOT / "tests")])
    environment = os.environ | {"PYTHONPATH": paths, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True, timeout=900)
    assert not done.returncode, done.stderr[-3000:]


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Folders of the same runs, by how many processes trained them.

    "2, 4": two until half of the steps, then four. The processes themselves see at each save that they hold
    the same to the bit.
    """
    folder = tmp_path_factory.mktemp("together")
    folders = {name: folder / name for name in ("1", "2", "2, 4")}
    before = torch.get_default_dtype()
    try:
        for name in WAYS:
            train(name, folders["1"] / name, STEPS)
    finally:
        torch.set_default_dtype(before)
    start(2, folders["2"], STEPS, *WAYS)
    shutil.copytree(folders["2"], folders["2, 4"])
    for name in WAYS:
        newest, half = list_checkpoints(folders["2, 4"] / name)
        assert half.name == f"step_{STEPS // 2:08d}"
        shutil.rmtree(newest)
    start(4, folders["2, 4"], STEPS, *WAYS)
    return folders


def state(run_dir):
    """Every tensor of a run's newest checkpoint but the clock's: weights, average, moments, slow copies."""
    folder = list_checkpoints(run_dir)[0]
    kept = load_train_state(folder)
    found = {"weights": load_weights(folder, ema=False), "average": load_weights(folder)}
    return found | {name: kept[name] for name in ("step", "batches", "optimizers", "extra")}


def apart(a, b):
    """The largest difference between nested dicts and lists of tensors and numbers."""
    if torch.is_tensor(a):
        return (a.double() - b.double()).abs().max().item() if a.numel() else 0.0
    if isinstance(a, dict):
        assert a.keys() == b.keys()
        return max((apart(a[name], b[name]) for name in a if name != "segments"), default=0.0)
    if isinstance(a, (list, tuple)):
        return max((apart(x, y) for x, y in zip(a, b, strict=True)), default=0.0)
    return 0.0 if a == b else float("inf")


@pytest.mark.parametrize("name", WAYS)
@pytest.mark.parametrize("processes", ["2", "2, 4"])
def test_several_processes_train_as_one_does(name, processes, runs):
    one, several = state(runs["1"] / name), state(runs[processes] / name)
    assert (
        one["step"] == STEPS
        and one["weights"].keys()
        and next(iter(one["weights"].values())).dtype == (torch.float64)
    )
    assert apart(one, several) < 1e-9


# ---- what a process is told


def test_a_batch_is_shared_evenly_or_not_at_all():
    assert [Group(rank, 4).share(8) for rank in range(4)] == [(0, 2), (2, 4), (4, 6), (6, 8)]
    with pytest.raises(ConfigError, match=r"batch_size=6 cannot be shared by 4 processes.* such as 8"):
        Group(0, 4).share(6)


def test_each_process_has_a_card_of_its_own(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert Group(3, 4, 1, 2).card("auto") == Group(3, 4, 1, 2).card("cuda") == "cuda:1"
    assert Group(3, 4, 1, 2).card("cpu") == "cpu" and Group().card("cuda:1") == "cuda:1"
    with pytest.raises(ConfigError, match="device='cuda:0' is one card for 4 processes"):
        Group(3, 4, 1, 2).card("cuda:0")


@pytest.mark.parametrize(
    ("devices", "cards", "batch", "wanted"),
    [(0, 2, 8, 2), (0, 8, 4, 4), (0, 2, 3, 1), (0, 0, 8, 1), (1, 2, 8, 1), (3, 0, 9, 3)],
)
def test_how_many_processes_there_are(devices, cards, batch, wanted, monkeypatch):
    """0: as many cards as a batch can be shared by."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: cards > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: cards)
    _, _, config = plan("mtld", "tiny", {"devices": devices, "batch_size": batch})
    assert launch.processes_for(config) == wanted


def test_data_in_memory_is_refused():
    cls, config, training = plan("rl_v2v", "tiny", {"devices": 2})
    with pytest.raises(ConfigError, match="devices=2: data in memory cannot be shared"):
        fit(build(cls, config, pair()), pair(), training)


# ---- buttons, and what dies


class Job:
    """A run in two processes that `fit` starts from a thread, as the panel does."""

    def __init__(self, folder, steps=10**6, **settings):
        arcs = folder / "arcs" if (folder / "arcs").exists() else write_arcs(folder / "arcs", [20] * 6)
        self.run_dir = folder / "run"
        overrides = SHORT | {"devices": 2, "steps": steps} | settings
        cls, config, training = plan("tokenizer", "tiny", overrides, run_dir=str(self.run_dir))
        dataset = open_dataset(arcs, progress=False)
        system = build(cls, config, dataset)
        self.said, self.report, self.error = [], None, None
        self.controls = Controls(self.said.append)
        self.thread = threading.Thread(target=self._fit, args=(system, dataset, training), daemon=True)
        self.thread.start()

    def _fit(self, *arguments):
        try:
            self.report = fit(*arguments, self.controls)
        except UserError as error:
            self.error = error

    def until(self, done, seconds):
        """Wait until done() holds; returns the seconds that took."""
        began = time.monotonic()
        while not done():
            assert time.monotonic() - began < seconds, (self.said, self.error, self.controls.doing)
            time.sleep(0.02)
        return time.monotonic() - began


@pytest.fixture
def job(tmp_path, monkeypatch):
    monkeypatch.setenv("MTLD_TEST", str(tmp_path))
    job = Job(tmp_path)
    job.until(lambda: job.controls.step > 2, 180)
    yield job
    job.controls.stop.set()
    job.thread.join(180)
    assert not workers(tmp_path)


@pytest.mark.versionless  # our own messages
def test_buttons_reach_all_and_one_speaks(job, tmp_path):
    controls = job.controls
    assert sorted(workers(tmp_path)) == [0, 1]
    controls.save.set()
    took = {"save": job.until(lambda: not controls.save.is_set(), 30)}
    assert list_checkpoints(job.run_dir)
    controls.pause.set()
    took["pause"] = job.until(lambda: controls.doing == "paused", 30)
    paused_at = controls.step
    controls.save.set()
    took["save while paused"] = job.until(lambda: not controls.save.is_set(), 30)
    time.sleep(1)
    assert controls.step == paused_at
    controls.pause.clear()
    took["go on"] = job.until(lambda: controls.step > paused_at, 30)
    controls.stop.set()
    took["stop"] = job.until(lambda: controls.doing != "training", 30)
    job.thread.join(180)
    assert job.report["status"] == "stopped" and job.report["reason"] == "asked to stop"
    assert job.report["processes"] == 2
    assert sum("2 processes, 2 of a batch's 4 windows on each" in line for line in job.said) == 1
    assert sum(line.startswith("run folder") for line in job.said) == 1
    assert max(took.values()) < 5, took  # each within 1 s on a core of its own


@pytest.mark.versionless  # our own watch
@pytest.mark.parametrize("rank", [0, 1])
def test_the_death_of_any_process_ends_the_run_with_a_line_and_it_goes_on(rank, job, tmp_path):
    job.controls.save.set()
    job.until(lambda: not job.controls.save.is_set(), 30)
    saved = find(job.run_dir)
    workers(tmp_path)[rank].kill()
    assert job.until(lambda: not job.thread.is_alive(), 60) < 60
    assert "another process of this run has died" in str(job.error) and "newest checkpoint" in str(job.error)
    assert find(job.run_dir) == saved
    again = Job(tmp_path, int(saved.name.removeprefix("step_")) + 1, devices=1)
    again.thread.join(180)
    assert again.report["status"] == "finished", again.error


def test_a_process_that_was_killed_without_a_word_is_told():
    said = ["stopped", "traceback : Signal 9 (SIGKILL) received by PID 6367", 60 * "="]
    assert launch._why(said, 1) == f"error: {GONE}"
    assert launch._why(["error: no such folder", *said], 1) == "error: no such folder"
    assert launch._why(["Segmentation fault"], 1) == "Segmentation fault"


PARENT = """
import sys
from pathlib import Path
sys.path[:0] = [{root!r}, {tests!r}]
from train.test_together import Job
job = Job(Path({folder!r}))
job.until(lambda: job.controls.step > 2, 180)
print("trains", flush=True)
job.thread.join()
"""


@pytest.mark.versionless  # our own watch
def test_no_process_outlives_the_one_who_started_it(tmp_path):
    """Killed without a word, like a notebook's kernel: the run is saved, judges nothing, and ends."""
    told = {"root": str(ROOT), "tests": str(ROOT / "tests"), "folder": str(tmp_path)}
    environment = os.environ | {"MTLD_TEST": str(tmp_path)}
    with subprocess.Popen(
        [sys.executable, "-c", PARENT.format(**told)], stdout=subprocess.PIPE, text=True, env=environment
    ) as parent:
        assert parent.stdout.readline().strip() == "trains"
        left = workers(tmp_path)
        assert len(left) == 2
        parent.send_signal(signal.SIGKILL)
        _, alive = psutil.wait_procs(left.values(), timeout=60)
        assert not alive
    report = read_report(tmp_path / "run")
    assert report["reason"] == "asked to stop" and report["judged_at_step"] is None
    assert find(tmp_path / "run").name == f"step_{report['step']:08d}"


def test_who_hears_of_it_later_judges_nothing_either(tmp_path, monkeypatch):
    """Another process may see first that the one who started the run is gone."""
    monkeypatch.setattr(Group, "agree", lambda group, **wishes: wishes | {"stop": True, "hurry": True})
    cls, config, training = plan("tokenizer", "tiny", SHORT, run_dir=str(tmp_path / "run"))
    dataset = open_dataset(write_arcs(tmp_path / "arcs", [20] * 6), progress=False)
    report = fit(build(cls, config, dataset), dataset, training)
    assert report["reason"] == "asked to stop" and report["judged_at_step"] is None
    assert find(tmp_path / "run")


# ---- nothing waits for the device


class Waits(TorchDispatchMode):
    """Collects what would make the host wait for the device."""

    def __init__(self):
        super().__init__()
        self.found = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        name = function.overloadpacket.__name__
        if name in ("_local_scalar_dense", "nonzero", "is_nonzero", "equal", "masked_select"):
            self.found.append(name)
        if name in ("_to_copy", "copy_"):
            source, target = (args[1], args[0]) if name == "copy_" else (args[0], result)
            waits = not (kwargs or {}).get("non_blocking") and not (name == "copy_" and True in args[2:])
            if source.device != target.device and waits:
                self.found.append(f"{source.device} to {target.device}")
        return result


def test_a_step_of_rl_v2v_waits_for_nothing(tmp_path, monkeypatch):
    """Both halves, forward: a backward pass needs a card."""
    cls, config, _ = plan("rl_v2v", "tiny", {"sigma1": 0.5})
    config = cls.fit_config(config, pair())
    monkeypatch.setattr(torch, "randint", lambda *_: 3)  # the moment, drawn on the host
    with FakeTensorMode(allow_non_fake_inputs=True):
        with torch.device("cuda:0"):
            system = cls(config).train()
        system.slow = {name: getattr(system, name) for name in "gpq"}  # fake networks cannot be copied
        system.replay = Replay(tmp_path, 100, (config.context_frames + 1, 16, 16, 3), "cuda:0")
        clips = torch.rand(BATCH, config.sequence_length, 3, 16, 16, device="cuda:0")
        batch = {"frames": clips, "frames_y": clips, "key": torch.arange(BATCH, device="cuda:0")}

        def step(phase, loss, batch):
            return loss(batch | {"place": Place(0, BATCH)})

        with Waits() as waits:
            system.training_step([batch], step)
            assert waits.found == [] and len(system.replay) == 2 * BATCH
            clips.cpu()
            assert waits.found == ["cuda:0 to cpu"]
