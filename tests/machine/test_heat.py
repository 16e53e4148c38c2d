"""Heat: what readings mean, by a clock that the test turns; the real NVML binding on a library of the tests'
own; the loop.
"""

import json
import os
import random
import shutil
import subprocess
import sys
import textwrap
import threading
import time
import types
from pathlib import Path

import pytest
import torch

from mtld_core.config import ConfigError, UserError
from mtld_core.judge.rollouts import Judge
from mtld_core.machine import heat as thermal
from mtld_core.machine.heat import Heat, Reading
from mtld_core.machine.threads import Threads
from mtld_core.runs.folder import read_pointer
from mtld_core.train import fit, train
from mtld_core.train import loop as train_module
from mtld_core.train.controls import Controls
from mtld_core.train.loop import Training
from mtld_core.train.settings import TrainConfig, build, open_data, plan

# ---- what readings mean


def seen(*readings, every=2.0, **settings):
    """A Heat that has seen `readings` (°C, or a whole Reading), `every` so many seconds, and the time of the
    last one.
    """
    heat = Heat(TrainConfig(**settings))
    for i, reading in enumerate(readings):
        heat.see(reading if isinstance(reading, Reading) else Reading(reading), i * every)
    return heat, (len(readings) - 1) * every


def states(*readings, **settings):
    """Whether training rests after each of the readings."""
    return [bool(seen(*readings[: i + 1], **settings)[0].resting) for i in range(len(readings))]


def test_training_rests_above_the_limit_until_it_is_below_the_lower_one():
    assert states(84, 85, 86, 80, 75, 74, 80, heat_rest_minutes=0) == [
        False,
        False,
        True,
        True,
        True,
        False,
        False,
    ]
    assert states(70, 71, 60, 59, max_temperature=70, resume_temperature=60, heat_rest_minutes=0) == [
        False,
        True,
        True,
        False,
    ]


def test_a_rest_takes_its_shortest_time():
    heat, _ = seen(90, 40, every=59.0)
    assert heat.resting == "cooling down: 40 °C"
    assert not seen(90, 40, every=60.0)[0].resting


def test_a_gpu_that_slows_down_because_of_heat_is_too_hot_at_any_temperature():
    slow, cool = Reading(70, slowed=True), Reading(70)
    assert states(cool, slow, slow, cool, heat_rest_minutes=0) == [False, True, True, False]
    assert "70 °C, and it slows down because of that" in seen(slow)[0].news[0]


def test_alerts_in_the_window_end_the_run_and_older_ones_are_forgotten():
    cycles = [90, 60] * 5
    heat, now = seen(*cycles[:7], every=30.0, heat_rest_minutes=0)
    assert heat.reason_to_end(now) == "" and heat.rests == 4
    heat, now = seen(*cycles[:9], every=30.0, heat_rest_minutes=0)
    said = heat.reason_to_end(now)
    assert said == "the GPU got too hot 5 times within 5 minutes: 90 °C, max_temperature=85"
    heat, now = seen(
        *cycles, every=40.0, heat_rest_minutes=0
    )  # 80 s apart: the first is out of the window at the fifth
    assert heat.reason_to_end(now) == "" and heat.rests == 5
    heat, now = seen(*cycles, every=40.0, heat_rest_minutes=0, heat_window_minutes=6)
    assert "5 times within 6 minutes" in heat.reason_to_end(now)
    heat, now = seen(90, 60, 90, heat_rest_minutes=0, heat_alerts=2)
    assert "2 times" in heat.reason_to_end(now)


def test_a_rest_in_vain_ends_the_run_whether_the_sensor_speaks_or_hangs():
    for readings in ([90], [90, 80]):
        heat, _ = seen(*readings, heat_patience_minutes=3)
        assert heat.reason_to_end(180) == ""
        said = heat.reason_to_end(180.1)
        assert said == (
            f"the GPU stays too hot: {readings[-1]} °C after 3 minutes of rest, max_temperature=85, "
            "resume_temperature=75"
        )
    assert seen(80)[0].reason_to_end(1e9) == ""


def test_a_sensor_lost_while_resting_lets_training_go_on_and_one_that_returns_counts_again():
    assert states(90, Reading(), 90, 60, heat_rest_minutes=0) == [True, False, True, False]
    heat, _ = seen(90, Reading(), heat_rest_minutes=0)
    assert heat.newest == Reading() and heat.facts() == {"rests": 1, "highest_temperature": 90}
    assert heat.news[-1] == "the GPU has rested for 2 s: temperature not known; training goes on"
    assert seen(90, Reading(), heat_rest_minutes=1)[0].resting == "cooling down: temperature not known"


def test_each_rest_from_heat_says_its_beginning_and_its_end():
    heat, _ = seen(90, 80, 74, 60, 91, every=60.0)
    assert list(heat.news) == [
        "the GPU is too hot: 90 °C; training rests until it is below 75 °C",
        "the GPU has rested for 120 s: 74 °C; training goes on",
        "the GPU is too hot: 91 °C; training rests until it is below 75 °C",
    ]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"max_temperature": -1}, "max_temperature must not be negative"),
        ({"max_temperature": float("nan")}, "max_temperature must not be negative"),
        (
            {"resume_temperature": 85},
            r"resume_temperature must be above 0 and below max_temperature=85.0, not 85",
        ),
        ({"max_temperature": 60}, r"below max_temperature=60, not 75.0"),
        ({"resume_temperature": 0}, "resume_temperature must be above 0"),
        ({"heat_poll_seconds": 0}, "heat_poll_seconds must be in"),
        ({"heat_poll_seconds": 61}, "heat_poll_seconds must be in"),
        ({"heat_rest_minutes": -1}, "heat_rest_minutes must not be negative"),
        ({"heat_rest_minutes": 15}, "heat_patience_minutes must be above heat_rest_minutes=15"),
        ({"heat_patience_minutes": float("inf")}, "at most 1440, not inf"),
        ({"heat_alerts": 0}, "heat_alerts must be at least 1"),
        ({"heat_window_minutes": 0}, "heat_window_minutes must be positive"),
    ],
)
def test_settings_that_make_no_sense_are_named(settings, message):
    with pytest.raises(ConfigError, match=message):
        TrainConfig(**settings)
    TrainConfig(max_temperature=0, resume_temperature=90)  # without a guard the lower limit does not matter


# ---- a thousand random schedules


class World:
    """A GPU that heats while it works, cools while it does not, and has sensors that come and go. Time is the
    test's.
    """

    TICK = 0.125  # seconds

    def __init__(self, seed):
        draw = self.draw = random.Random(seed)
        limit = draw.uniform(50, 95)
        self.config = {
            "max_temperature": limit, "resume_temperature": limit - draw.uniform(1, 20),
            "heat_poll_seconds": draw.choice([0.25, 0.5, 1, 2, 5]),
            "heat_rest_minutes": draw.choice([0, 0, 0.05, 0.3]), "heat_patience_minutes": draw.uniform(0.4, 2),
            "heat_alerts": draw.choice([2, 5, 20]), "heat_window_minutes": draw.uniform(0.5, 10),
        }  # fmt: skip
        self.step_seconds = self.TICK * draw.randint(1, 8)
        self.warms, self.often_slowed = draw.choice([(0,), (0, 0.1, 0.5, 2, 8)]), draw.choice([0, 0.1])
        self.degrees, self.now, self.until, self.polled = draw.uniform(30, limit + 5), 0.0, 0.0, -1e9
        self.hot_since, self.rested, self.longest_rest, self.longest_hot_work = None, 0.0, 0.0, 0.0
        self.lost_at_rest = 0

    def reading(self):
        return Reading() if self.lost else Reading(round(self.degrees), self.slowed)

    def pass_time(self, seconds, working):
        """Time goes by: weather, temperature, polls; and a record of what must not be."""
        end = self.now + seconds
        while self.now < end:
            if self.now >= self.until:  # other weather
                self.until = self.now + self.draw.uniform(1, 60)
                self.heats, self.cools = self.draw.choice(self.warms), self.draw.choice([0, 0.5, 1, 4, 10])
                self.lost, self.slowed = self.draw.random() < 0.15, self.draw.random() < self.often_slowed
            if self.now - self.polled >= self.config["heat_poll_seconds"]:
                self.polled = self.now
                self.heat.see(self.reading(), self.now)
            self.now += self.TICK
            self.degrees = min(120, self.degrees + self.heats * self.TICK) if working else max(
                25, self.degrees - self.cools * self.TICK)  # fmt: skip
            known = self.reading()
            hot = known.slowed or (known.temperature or 0) > self.config["max_temperature"]
            self.hot_since = (self.now if self.hot_since is None else self.hot_since) if hot else None
            if working and hot:
                self.longest_hot_work = max(self.longest_hot_work, self.now - self.hot_since)
            self.rested = 0.0 if working else self.rested + self.TICK
            self.longest_rest = max(self.longest_rest, self.rested)
            self.lost_at_rest += self.lost and not working

    def verify(self):
        """Never above the limit for longer than a poll (and the step that is not broken off), never at rest
        for ever.
        """
        assert self.longest_hot_work <= self.config["heat_poll_seconds"] + self.step_seconds + self.TICK, (
            self.config
        )
        assert self.longest_rest <= 60 * self.config["heat_patience_minutes"] + 2 * self.TICK, self.config


def kinds_of(world, end):
    """What a schedule led to, in words, so that a test can see that each kind was among them."""
    found = {"times": "alerts", "stays": "in vain"}
    kinds = {kind for word, kind in found.items() if word in end}
    kinds |= {"rested"} if world.heat.rests else {"never rested"}
    kinds |= {"lost at rest"} if world.lost_at_rest else set()
    kinds |= {"went on"} if world.heat.rests and not end else set()
    return kinds


ALL_KINDS = {"alerts", "in vain", "rested", "never rested", "lost at rest", "went on"}


class Waits(threading.Event):
    """An event for which waiting costs no time of the test's, only of the world's."""

    def wait(self, timeout=None):
        self.world.pass_time(World.TICK, working=False)
        return self.is_set()


@pytest.mark.versionless  # arithmetic
def test_a_thousand_random_schedules_keep_the_limit_and_the_time_and_save_before_an_emergency(
    arcs, tmp_path, monkeypatch
):
    """The real loop from its first step to its end; its steps only heat, and of a checkpoint only the step is
    kept.
    """

    def train_step(self):
        assert not self.heat.resting and not self.heat.emergency
        world.pass_time(world.step_seconds, working=True)

    def save(run_dir, step, *rest):
        saved.append(step)
        return f"checkpoints/step_{step:08d}"

    def write_report(self, status, reason):
        assert saved == [self.step]
        return {"ended": (status, reason), "verdict": ""}

    monkeypatch.setattr(train_module, "time", types.SimpleNamespace(monotonic=lambda: world.now))
    monkeypatch.setattr(train_module.checkpoints, "save", save)
    monkeypatch.setattr(train_module.checkpoints, "prune", lambda *rest: None)
    monkeypatch.setattr(Training, "_train_step", train_step)
    monkeypatch.setattr(Training, "_preview", lambda self: None)
    monkeypatch.setattr(Training, "_evaluate", lambda self, tick: None)
    monkeypatch.setattr(Training, "write_report", write_report)
    settings = {
        "save_every_steps": 0,
        "save_every_minutes": 0,
        "log_every_steps": 10**6,
        "interactive": False,
    }
    cls, config, general = plan("mtld", "tiny", settings, run_dir=str(tmp_path / "run"), steps=500)
    dataset = open_data(str(arcs), config)
    world, controls, kinds = World(0), Controls(say=lambda line: None), set()
    controls.stop = Waits()
    training = Training(
        build(cls, config, dataset), dataset, general, tmp_path / "run", controls, Threads(1), 0.0
    )
    for seed in range(1000):
        world = controls.stop.world = World(seed)
        training.heat = world.heat = Heat(TrainConfig(**world.config))
        training.step, training.saved, saved = 0, None, []
        training.logged_at = 0  # no first line: a fake step has no losses
        status, reason = training.run()["ended"]
        world.verify()
        if status == "finished":
            assert training.step == 500 and not world.heat.emergency
        else:
            assert (status, reason) == ("stopped", world.heat.emergency)
        kinds |= kinds_of(world, world.heat.emergency)
    assert kinds == ALL_KINDS


# ---- the real pynvml on a library of the tests' own

FIRST, SECOND = "GPU-11111111-1111-1111-1111-111111111111", "GPU-22222222-2222-2222-2222-222222222222"
PRELUDE = f"""
import json, os, sys, threading, time
from mtld_core.machine import heat as thermal
from mtld_core.machine.heat import Heat, Reading, Sensor

FIRST, SECOND = {FIRST!r}, {SECOND!r}
"""
PRELUDE += '''
def gpu(uuid, degrees, reasons=0, error=0, rest=0):
    return f"{uuid} {degrees} {reasons} {error} {rest}"

def world(*gpus, init=0):
    """What the library says from now on."""
    path = os.environ["FAKE_NVML"]
    with open(path + ".new", "w") as file:
        file.write("\\n".join([str(init), *gpus]))
    os.replace(path + ".new", path)

told = []
sensor = Sensor(SECOND, told.append)
'''


@pytest.fixture(scope="session")
def libraries(tmp_path_factory):
    """Folders with a libnvidia-ml.so.1: one as drivers have it now, one as old drivers had it."""
    compiler = shutil.which("cc") or shutil.which("gcc")
    if not compiler and not os.environ.get("CI"):
        pytest.skip("no C compiler here: install gcc to test the heat guard on NVML")
    assert compiler, "no C compiler on CI"
    folders = {}
    for name, flags in {"new": [], "old": ["-DOLD_DRIVER"]}.items():
        folders[name] = tmp_path_factory.mktemp(name)
        library, source = folders[name] / "libnvidia-ml.so.1", Path(__file__).parents[1] / "fake_nvml.c"
        subprocess.run(
            [compiler, *flags, "-shared", "-fPIC", "-Wall", "-Werror", "-o", library, source], check=True
        )
    return folders


@pytest.fixture
def nvml(tmp_path):
    """nvml(folder of the library, code): runs `code` in a process that finds NVML there, and returns what it
    prints.
    """

    def run(folder, code, *arguments):
        environment = os.environ | {"LD_LIBRARY_PATH": str(folder), "FAKE_NVML": str(tmp_path / "gpus")}
        command = [sys.executable, "-c", PRELUDE + textwrap.dedent(code), *map(str, arguments)]
        done = subprocess.run(
            command, env=environment, cwd=Path(__file__).parents[2], capture_output=True, text=True
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    return run


OLD_BINDING = """
import pynvml
for name in ("nvmlDeviceGetTemperatureV", "nvmlDeviceGetCurrentClocksEventReasons"):
    vars(pynvml).pop(name, None)
"""


@pytest.mark.parametrize(
    ("driver", "binding"), [("new", ""), ("old", ""), ("new", OLD_BINDING)], ids=["new", "old", "binding"]
)
def test_a_gpu_is_read_by_its_uuid_whatever_its_place(nvml, libraries, driver, binding):
    code = """
    world(gpu(FIRST, 40), gpu(SECOND, 70))
    assert sensor.read() == Reading(70)
    world(gpu(FIRST, 40), gpu(SECOND, 91, reasons=0x20))  # slowed by software because of heat
    assert sensor.read() == Reading(91, True)
    for reasons, slowed in ((0x40, True), (0x04 | 0x08 | 0x80, False), (0x44, True)):  # only heat counts, not power
        world(gpu(FIRST, 40, reasons=0x60), gpu(SECOND, 60, reasons=reasons))
        assert sensor.read().slowed is slowed, reasons
    sensor.close()
    world(gpu(SECOND, 50), gpu(FIRST, 80))
    assert sensor.read().temperature == 50
    assert not told
    """
    nvml(libraries[driver], binding + textwrap.dedent(code))


@pytest.mark.parametrize(
    ("trouble", "said"),
    [
        ("world(gpu(FIRST, 40), gpu(SECOND, 90, error=3))", "Not Supported"),
        ("world(gpu(FIRST, 40), gpu(SECOND, 90, error=4))", "Insufficient Permissions"),
        ("world(gpu(FIRST, 40), gpu(SECOND, 90, error=15))", "GPU is lost"),
        ("world(gpu(FIRST, 40), gpu(SECOND, 90, error=999))", "Unknown Error"),
        ("world(gpu(FIRST, 40), gpu(SECOND, 90, error=77))", "NVML Error with code 77"),
        ("world(gpu(FIRST, 40))", "GPU is lost"),
        ("sensor.close(); world(gpu(FIRST, 40))", "Not Found"),
        ("sensor.close(); world(init=18)", "RM has detected an NVML/RM version mismatch."),
        ("os.remove(os.environ['FAKE_NVML'])", "GPU is lost"),
        ("sensor.close(); os.remove(os.environ['FAKE_NVML'])", "Driver Not Loaded"),
    ],
)
@pytest.mark.versionless  # the tests below read by every version of pynvml
def test_whatever_fails_is_no_sensor_said_once_and_used_again_when_it_returns(nvml, libraries, trouble, said):
    code = f"""
    good = [gpu(FIRST, 40), gpu(SECOND, 70)]
    world(*good)
    assert sensor.read().temperature == 70
    for again in range(3):
        {trouble}
        assert [sensor.read(), sensor.read()] == [Reading()] * 2
        world(*good)
        assert sensor.read() == Reading(70)
    sensor.close()
    log = open(os.environ["FAKE_NVML"] + ".log").read()
    assert log.count("i") == log.count("s"), log  # every begin has its end: others in the process use NVML, too
    print(*told, sep="\\n")
    """
    line = f"no sensor for the GPU's temperature ({said}): training goes on without it for as long as that lasts\n"
    assert nvml(libraries["new"], code) == line


def test_a_library_that_is_not_there_is_no_sensor_until_it_is(nvml, libraries, tmp_path):
    code = """
    import shutil
    world(gpu(FIRST, 40), gpu(SECOND, 70))
    assert [sensor.read(), sensor.read()] == [Reading()] * 2
    shutil.copy(sys.argv[1], sys.argv[2])
    assert sensor.read().temperature == 70
    print(*told, sep="\\n")
    """
    (tmp_path / "empty").mkdir()
    out = nvml(tmp_path / "empty", code, libraries["new"] / "libnvidia-ml.so.1", tmp_path / "empty")
    assert (
        out.startswith("no sensor for the GPU's temperature (NVML Shared Library Not Found)")
        and out.count("\n") == 1
    )


def test_without_the_package_there_is_no_sensor(monkeypatch):
    monkeypatch.setitem(sys.modules, "pynvml", None)
    told = []
    sensor = thermal.Sensor(FIRST, told.append)
    assert [sensor.read(), sensor.read()] == [Reading()] * 2
    sensor.close()
    assert len(told) == 1 and "nvidia-ml-py is not installed" in told[0]


def test_a_slowdown_that_cannot_be_read_leaves_the_temperature(nvml, libraries):
    code = """
    world(gpu(FIRST, 40), gpu(SECOND, 70, reasons=0x40, rest=3))
    assert [sensor.read(), sensor.read()] == [Reading(70)] * 2
    world(gpu(FIRST, 40), gpu(SECOND, 70, reasons=0x40))
    assert sensor.read() == Reading(70, True)
    print(*told, sep="\\n")
    """
    lines = nvml(libraries["new"], code).splitlines()
    assert [line.partition(": ")[0] for line in lines] == [
        "no sensor for the GPU's thermal slowdown (Not Supported)",
    ]


def test_the_watched_gpu_is_the_one_that_cuda_uses_not_the_one_of_that_number(nvml, libraries):
    """CUDA_VISIBLE_DEVICES=1 makes NVML's second GPU CUDA's first."""
    code = """
    import types, torch
    from mtld_core.train.settings import TrainConfig
    def properties(device):
        assert device == torch.device("cuda:0")
        return types.SimpleNamespace(uuid=SECOND.removeprefix("GPU-"))
    torch.cuda.get_device_properties = properties
    world(gpu(FIRST, 90), gpu(SECOND, 60))
    heat = Heat(TrainConfig(heat_poll_seconds=0.01, heat_rest_minutes=0))
    def wait_until(true):
        deadline = time.monotonic() + 60
        while not true():
            assert time.monotonic() < deadline
            time.sleep(0.005)
    with thermal.watched(heat, torch.device("cuda:0")):
        wait_until(lambda: heat.newest.temperature == 60)
        assert not heat.resting
        world(gpu(FIRST, 30), gpu(SECOND, 90))
        wait_until(lambda: heat.resting == "cooling down: 90 °C")
        os.remove(os.environ["FAKE_NVML"])
        wait_until(lambda: not heat.resting)
        world(gpu(FIRST, 30), gpu(SECOND, 91))
        wait_until(lambda: heat.resting == "cooling down: 91 °C")
        world(gpu(FIRST, 30), gpu(SECOND, 60))
        wait_until(lambda: not heat.resting)
    assert not [thread for thread in threading.enumerate() if thread.name == "heat"]
    assert open(os.environ["FAKE_NVML"] + ".log").read() == "isis"
    """
    nvml(libraries["new"], code)


# ---- the thread


class Stub:
    """In the place of Sensor: `answer()` makes the readings."""

    answer = staticmethod(lambda: Reading(60))

    def __init__(self, uuid, tell):
        self.read = lambda: self.answer()
        self.close = lambda: None


def heat_threads():
    return [thread for thread in threading.enumerate() if thread.name == "heat"]


@pytest.fixture
def stub(monkeypatch):
    monkeypatch.setattr(thermal, "Sensor", Stub)
    monkeypatch.setattr(thermal, "uuid_of", lambda device: FIRST)
    return Stub


def test_a_run_that_fails_leaves_no_thread(stub, arcs, tmp_path, monkeypatch):
    def broken(self):
        assert heat_threads()
        raise UserError("broken")

    monkeypatch.setattr(Training, "_train_step", broken)
    cls, config, training = plan("mtld", "tiny", run_dir=str(tmp_path / "run"))
    dataset = open_data(str(arcs), config)
    with pytest.raises(UserError, match="broken"):
        fit(build(cls, config, dataset), dataset, training)
    assert not heat_threads()


def test_a_sensor_that_hangs_does_not_hold_the_end(stub, monkeypatch):
    never = threading.Event()
    monkeypatch.setattr(Stub, "answer", staticmethod(lambda: never.wait() and Reading()))
    monkeypatch.setattr(thermal, "SECONDS_TO_END", 0.1)
    began = time.monotonic()
    with thermal.watched(Heat(TrainConfig()), torch.device("cuda")):
        pass
    assert time.monotonic() - began < 10
    (thread,) = heat_threads()
    assert thread.daemon  # so that the process can end, too
    never.set()
    thread.join(30)


def test_there_is_no_thread_where_the_guard_is_off(stub):
    with thermal.watched(Heat(TrainConfig(max_temperature=0)), torch.device("cpu")):
        assert not heat_threads()
    with thermal.watched(Heat(TrainConfig()), torch.device("cpu")):  # the stub's name for it
        assert heat_threads()


def test_a_cpu_has_no_guard():
    with thermal.watched(Heat(TrainConfig()), torch.device("cpu")):
        assert not heat_threads()


# ---- from the sensor to the run's end

RUN = """
from mtld_core.train.controls import Controls
from mtld_core.train.settings import build, open_data, plan
from mtld_core.train import fit

thermal.uuid_of = lambda device: SECOND
arcs, run = sys.argv[1:]
over, controls = threading.Event(), Controls()

def physics():
    degrees = 65
    while not over.wait(0.005):
        degrees = max(65, degrees + (1 if controls.doing == "training" else -1))
        world(gpu(FIRST, 30), gpu(SECOND, degrees))

world(gpu(FIRST, 30), gpu(SECOND, 65))
weather = threading.Thread(target=physics)
weather.start()
try:
    overrides = {"heat_poll_seconds": 0.01, "heat_rest_minutes": 0, "heat_alerts": 3, "log_every_steps": 1}
    cls, config, training = plan("mtld", "tiny", overrides, run_dir=run, steps=500, save_every_steps=0)
    dataset = open_data(arcs, config)
    fit(build(cls, config, dataset), dataset, training, controls)
finally:
    over.set()
    weather.join()
assert not [thread for thread in threading.enumerate() if thread.name == "heat"]
"""


@pytest.mark.versionless  # our own pauses
def test_a_run_rests_goes_on_and_ends_saved_where_rests_do_not_help(nvml, libraries, arcs, tmp_path):
    run = tmp_path / "run"
    out = nvml(libraries["new"], RUN, arcs, run)
    report = json.loads((run / "report.json").read_text())
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert report["status"] == "stopped" and report["reason"].startswith(
        "the GPU got too hot 3 times within 5 minutes: "
    )
    assert report["reason"].endswith("max_temperature=85") and report["reason"] in out
    assert read_pointer(run / "latest.json")["step"] == report["step"] == lines[-1]["step"] >= 3
    assert (
        report["metrics"] == {} and "not judged yet" in out
    )  # a GPU that is too hot is not given the work of judging
    assert report["heat"]["rests"] == 3 and report["heat"]["highest_temperature"] >= 86
    assert report["paused_seconds"] > 0.1
    assert (
        min(line["temperature"] for line in lines) >= 65 and max(line["temperature"] for line in lines) > 80
    )
    said = [line for line in out.splitlines() if "the GPU" in line]
    assert [("is too hot" in line, "training goes on" in line) for line in said[:-1]] == [
        (True, False),
        (False, True),
    ] * 2
    assert (tmp_path / "gpus.log").read_text() == "is"  # NVML was begun and ended

    config = {"max_temperature": 0, "save_every_minutes": 0, "log_every_steps": 1}
    more = train("mtld", "tiny", str(arcs), config, run_dir=str(run), steps=report["step"] + 2)
    assert (
        more["status"] == "finished"
        and more["step"] == report["step"] + 2
        and more["metrics"]
        and more["heat"] is None
    )
    assert "temperature" not in json.loads((run / "metrics.jsonl").read_text().splitlines()[-1])


def test_judging_on_the_way_rests_and_is_given_up_in_an_emergency(stub, arcs, tmp_path, monkeypatch):
    """The GPU gets hot in the middle of judging, cools, and gets hot for good."""
    heard, pieces = [], []

    def judge(self, system, tick):
        for degrees in (60, 90, 60, 90):
            training.heat.see(Reading(degrees), time.monotonic())
            if training.heat.resting:
                cooler = threading.Timer(0.3, lambda: training.heat.see(Reading(60), time.monotonic()))
                cooler.start()
            tick()
            pieces.append(degrees)

    monkeypatch.setattr(Judge, "__call__", judge)
    settings = {"heat_rest_minutes": 0, "heat_alerts": 2, "eval_every_steps": 2, "save_every_steps": 0}
    cls, config, general = plan("mtld", "tiny", settings, run_dir=str(tmp_path / "run"), steps=9)
    dataset = open_data(str(arcs), config)
    system, controls = build(cls, config, dataset), Controls(heard.append)
    training = Training(system, dataset, general, tmp_path / "run", controls, Threads(1), 0.0)
    report = training.run()
    assert pieces == [60, 90, 60]  # the second heat ended it, and the end did not judge again
    assert (report["status"], report["step"]) == ("stopped", 2) and "2 times" in report["reason"]
    assert report["paused_seconds"] > 0.2 and read_pointer(tmp_path / "run" / "latest.json")["step"] == 2
