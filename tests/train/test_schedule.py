"""When a run ends, and the learning rate on the way, by a clock that the test turns."""

import itertools
import math
import random
import threading
import types

import pytest

from mtld_core.config import ConfigError
from mtld_core.machine.threads import Threads
from mtld_core.train import loop as train_module
from mtld_core.train import schedule
from mtld_core.train.controls import Controls
from mtld_core.train.loop import Training
from mtld_core.train.schedule import MOST_RESERVED, Schedule
from mtld_core.train.settings import TrainConfig, build, open_data, plan

pytestmark = pytest.mark.versionless  # arithmetic by a clock of the test


class Clock:
    def __init__(self):
        self.now = 1000.0

    def monotonic(self):
        return self.now


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(schedule, "time", clock)
    return clock


def make(steps_per_epoch=7, stop=None, **settings):
    return Schedule(TrainConfig(**settings), steps_per_epoch, stop or threading.Event())


def run(plan, clock, seconds=1.0, first=None, idle=0.0, begin=0, most=100_000):
    """Steps of `seconds` each (the first one `first`), `idle` seconds beside each; returns (steps done, how
    it ended).
    """
    step = begin
    while (end := plan.reason_to_end(step)) is None:
        took = first if first is not None and step == begin else seconds
        step += 1
        clock.now += took + idle
        plan.read(took)
        plan.advance()
        assert step < most
    return step, end


# ---- the end


@pytest.mark.parametrize(
    ("settings", "total"),
    [
        ({"steps": 12}, 12),
        ({"epochs": 3}, 21),
        ({"steps": 12, "epochs": 3}, 12),
        ({"steps": 50, "epochs": 3}, 21),
    ],
)
def test_steps_or_epochs_whichever_comes_first(clock, settings, total):
    plan = make(**settings)
    assert plan.total == total == plan.last_step(3)
    assert run(plan, clock) == (total, ("finished", "all steps done"))


def test_nothing_that_says_how_long_is_an_error(clock):
    with pytest.raises(ConfigError, match="set steps, epochs or time_budget_minutes"):
        make()


@pytest.mark.parametrize("first", [None, 40.0])  # compiling, or the first convolution on a GPU
def test_a_budget_alone_is_used_up_whatever_the_first_step_takes(clock, first):
    plan = make(time_budget_minutes=10)
    step, end = run(plan, clock, seconds=0.1, first=first)
    assert end == ("finished", "time budget spent")
    assert 600 <= clock.now - 1000 <= 600.2
    assert plan.progress > 0.99 and plan.last_step(step) == step


def test_a_budget_alone_is_kept_with_much_beside_the_steps(clock):
    step, end = run(make(time_budget_minutes=10), clock, idle=0.5)
    assert end == ("finished", "time budget spent") and 398 <= step <= 402
    assert 599 <= clock.now - 1000 <= 602


def test_the_end_is_foreseen_once_two_steps_were_read(clock):
    plan = make(time_budget_minutes=10)
    for seconds in (40.0, 1.0):
        plan.read(seconds)
        plan.advance()
        assert plan.last_step(0) == 0 and plan.progress == 0
    plan.read(1.0)
    plan.advance()
    assert plan.last_step(3) == 603 and plan.progress == pytest.approx(1 / 600)
    clock.now += 300
    assert plan.last_step(3) == 303


def test_a_budget_beside_steps(clock):
    plan = make(steps=100, time_budget_minutes=1)
    assert run(plan, clock) == (60, ("stopped", "time budget spent"))
    assert plan.last_step(60) == 100  # a budget does not bend the learning rate of a run with a known end
    assert plan.state(60)["progress"] == 0.6
    assert run(make(steps=30, time_budget_minutes=1), clock) == (30, ("finished", "all steps done"))
    assert run(make(epochs=100, time_budget_minutes=1), clock) == (60, ("stopped", "time budget spent"))


def test_the_budget_counts_from_the_start_of_the_session(clock):
    clock.now += 5000
    plan = make(steps=100, time_budget_minutes=1)
    clock.now += 50  # judging, saving and the first picture count, too
    assert run(plan, clock) == (10, ("stopped", "time budget spent"))
    plan = Schedule(TrainConfig(steps=100, time_budget_minutes=1), 7, threading.Event(), began=clock.now - 55)
    assert run(plan, clock)[0] == 5


def test_a_stop_comes_before_all(clock):
    stop = threading.Event()
    plan = make(steps=3, time_budget_minutes=1, stop=stop)
    assert plan.reason_to_end(0) is None
    stop.set()
    assert plan.reason_to_end(0) == plan.reason_to_end(3) == ("stopped", "asked to stop")


# ---- the reserve


def test_the_end_has_as_much_time_kept_as_the_slowest_one_took(clock):
    plan = make(time_budget_minutes=10, steps=10_000)
    assert plan.reserve == 0
    plan.took("judging", 20.0)
    plan.took("saving", 5.0)
    plan.took("saving", 3.0)
    assert plan.reserve == 25
    assert run(plan, clock)[0] == 575
    plan.took("judging", 900.0)
    assert plan.reserve == MOST_RESERVED * 600


def test_what_is_expected_follows_the_speed_until_the_first_was_seen(clock):
    plan = make(time_budget_minutes=10)
    assert plan.reserve == 0
    for _ in range(3):
        assert not plan.lacks_expectations
        plan.read(2.0)  # a busy machine
    assert plan.lacks_expectations
    plan.expect("judging", 50.0)
    assert plan.reserve == 50 and not plan.lacks_expectations
    for _ in range(9):
        plan.read(0.5)
    assert plan.reserve == 12.5
    for _ in range(9):
        plan.read(9.0)
    assert plan.reserve == 50
    plan.took("judging", 13.0)
    assert plan.reserve == 13


def test_work_that_the_end_does_anyway_is_left_out_where_no_training_would_follow_it(clock):
    plan = make(time_budget_minutes=10)
    plan.took("judging", 50.0)
    clock.now += 499
    assert plan.has_room_for("judging") and plan.has_room_for("preview")
    clock.now += 2
    assert not plan.has_room_for("judging") and plan.has_room_for("preview")
    assert make(steps=5).has_room_for("judging")


def test_judging_on_the_way_counts_in_the_steps_that_are_left(clock):
    plan = make(time_budget_minutes=10, eval_every_steps=100, preview_every_steps=0, save_every_steps=0)
    for _ in range(3):
        plan.read(1.0)
    plan.took("judging", 50.0)  # half a second a step
    assert plan.steps_left() == pytest.approx(550 / 1.5)
    assert make(steps=5).steps_left() is None


def test_the_time_that_is_left_has_the_work_beside_the_steps_in_it(clock):
    plan = make(steps=1045, eval_every_steps=10, preview_every_steps=0, save_every_steps=0)
    assert plan.time_left(1000) == ""
    for _ in range(3):
        plan.read(2.0)
    assert plan.time_left(1015) == "0:01:00"
    plan.took("judging", 10.0)
    assert plan.time_left(1015) == "0:01:40"  # that of the end, too
    for _ in range(9):
        plan.read(6000.0)
    assert plan.time_left(1012) == "2 days, 7:00:40"
    plan = make(time_budget_minutes=10)
    assert plan.time_left(7) == ""
    for _ in range(3):
        plan.read(1.0)
    clock.now += 300
    assert plan.time_left(7) == "0:05:00"


# ---- resume


def resumed(step, state, total=0, seconds=0.0, **settings):
    plan = make(**settings)
    plan.resume(step, state, total, seconds)
    return plan


def test_a_cycle_that_had_not_ended_goes_on_and_one_that_had_is_followed_by_another(clock):
    first = make(time_budget_minutes=10, lr_schedule="cosine")
    for _ in range(250):
        clock.now += 1
        first.read(1.0)
        first.advance()
    second = resumed(250, first.state(250), time_budget_minutes=20, lr_schedule="cosine")
    assert second.learning_rate(250) == first.learning_rate(250)
    assert first.learning_rate(250) == pytest.approx(0.5 + 0.5 * math.cos(0.415 * math.pi), abs=0.01)
    began = clock.now
    step, _ = run(second, clock, begin=250)
    assert clock.now - began == 1200 and step == 1450
    second.finish()
    third = {"time_budget_minutes": 20, "lr_schedule": "cosine", "warmup_steps": 10}
    half = 0.5 + 0.5 * math.cos(math.pi * 1450 / 2650)  # as in the middle of one of 2,650 steps
    for seconds, rate in ((0, 1), (1450, half)):
        plan = resumed(step, second.state(step), seconds=seconds, **third)
        expected = pytest.approx([0.1 * rate, 0.5 * rate, rate, rate])
        assert [plan.learning_rate(step + i) for i in (0, 4, 9, 10)] == expected
        assert run(plan, clock, begin=step)[0] == step + 1200
        assert plan.learning_rate(step + 1199) < 0.01


@pytest.mark.parametrize(
    ("step", "total", "progress", "cycle"),
    [(400, 500, 0.8, 0), (500, 500, 0, 500), (460, 500, 0, 460), (3, 0, 0, 0)],
)
def test_runs_of_the_time_when_a_budget_fixed_the_steps(clock, step, total, progress, cycle):
    plan = resumed(step, None, total, time_budget_minutes=10)
    assert plan.state(step) == {"progress": progress, "cycle_step": cycle}
    assert run(plan, clock, begin=step)[0] == step + 600  # all of the new budget


def test_steps_that_this_session_names_decide(clock):
    plan = resumed(100, {"progress": 0.3, "cycle_step": 40}, steps=800, lr_schedule="cosine", warmup_steps=0)
    assert plan.learning_rate(400) == pytest.approx(0.5)
    assert run(plan, clock, begin=100)[0] == 800


def test_progress_moves_carefully_at_first_and_never_says_the_end_by_itself(clock):
    plan = make(time_budget_minutes=1)
    for seconds in (1.0, 40.0, 40.0):  # it compiles
        clock.now += 1
        plan.read(seconds)
        plan.advance()
    assert plan.progress == pytest.approx(1 / 9)
    run(plan, clock, seconds=0.1)
    assert 0.99 < plan.progress < 1


# ---- the learning rate


def test_warm_up_is_linear_and_ends_at_one(clock):
    plan = make(steps=1000, warmup_steps=10)
    assert [plan.learning_rate(step) for step in (0, 1, 4, 9, 10, 500, 999)] == pytest.approx(
        [0.1, 0.2, 0.5, 1, 1, 1, 1]
    )
    assert make(steps=1000, warmup_steps=0).learning_rate(0) == 1.0


def test_half_a_cosine(clock):
    plan = make(steps=1000, warmup_steps=0, lr_schedule="cosine")
    found = [plan.learning_rate(step) for step in (0, 250, 500, 750, 1000, 5000)]
    assert found == pytest.approx([1, (2 + math.sqrt(2)) / 4, 0.5, (2 - math.sqrt(2)) / 4, 0, 0], abs=1e-12)
    assert all(plan.learning_rate(step) > plan.learning_rate(step + 1) > 0 for step in range(998))


def test_warm_up_and_cosine_together(clock):
    plan = make(steps=100, warmup_steps=10, lr_schedule="cosine")
    assert plan.learning_rate(4) == pytest.approx(0.5 * (0.5 + 0.5 * math.cos(math.pi * 0.04)))
    assert plan.learning_rate(75) == pytest.approx(0.5 + 0.5 * math.cos(math.pi * 0.75))


def test_with_a_budget_alone_a_cosine_follows_the_time_and_a_constant_stays(clock):
    curved = make(time_budget_minutes=10, warmup_steps=0, lr_schedule="cosine")
    flat = make(time_budget_minutes=10, warmup_steps=0)
    assert curved.learning_rate(5) == 1.0
    for _ in range(302):
        clock.now += 1
        for each in (curved, flat):
            each.read(1.0)
            each.advance()
    assert curved.learning_rate(302) == pytest.approx(0.5, abs=0.01)
    assert flat.learning_rate(302) == 1


def test_epochs_know_the_end_of_a_cosine(clock):
    assert make(epochs=2, warmup_steps=0, lr_schedule="cosine").learning_rate(7) == pytest.approx(0.5)


# ---- five hundred random histories through the real loop


class Killed(Exception):
    pass


class World:
    """A machine on which nothing but the clock moves: its speed changes, people pause, sessions are
    killed.
    """

    def __init__(self, seed):
        draw = self.draw = random.Random(seed)
        self.now = draw.uniform(0, 1e6)
        self.budget = draw.choice([60, 600, 690 * 60])
        steps = draw.choice([100, 500, 1500])
        self.step_seconds = self.budget / steps
        self.judging = self.budget * draw.choice([0.001, 0.01, 0.03])
        self.saving = self.judging * draw.uniform(0, 0.3)
        self.preview = self.judging * draw.uniform(0, 0.1)
        every = round(steps * draw.choice([0.12, 0.3, 0.45, 5]))  # judging takes up to a quarter of the time
        self.settings = {
            "eval_every_steps": draw.choice([0, every]),
            "save_every_steps": draw.choice([0, every // 2]),
            "preview_every_steps": every // 3,
            "log_every_steps": 10**6,
            "save_every_minutes": 0,
            "lr_schedule": "cosine",
            "warmup_steps": draw.choice([0, 5]),
            "interactive": False,
        }
        self.all_work_slows = draw.random() < 0.5  # judging and saving, too

    def begin(self):
        """Another session, with another history of its speed."""
        draw = self.draw
        self.began, self.late_step, self.longest_step, self.since_step, self.foreseen = (
            self.now,
            0.0,
            0.0,
            0.0,
            0.0,
        )
        self.slow_start, self.slow_end = draw.choice([(1, 1), (10, 1), (1, 10), (3, 3), (0.2, 1)])
        self.first_step = draw.choice([1, 1, 20])
        self.pauses = draw.choice([0, 0, 0.002])
        self.killed_at = draw.choice([None, None, draw.uniform(0.05, 1) * self.budget])
        self.rates = []  # (step, learning rate)

    @property
    def slowness(self):
        share = (self.now - self.began) / self.budget
        if share < 0.1:
            return self.slow_start
        return self.slow_end if share > 0.85 else 1

    def work(self, seconds):
        """Judging, saving or a preview."""
        seconds *= self.slowness if self.all_work_slows else 1
        self.now += seconds
        self.since_step += seconds

    def step(self, training):
        if self.killed_at is not None and self.now - self.began > self.killed_at:
            raise Killed
        seconds = self.step_seconds * self.slowness * self.draw.uniform(0.9, 1.1)
        if not self.rates:
            seconds *= self.first_step
        if self.draw.random() < 0.01:
            seconds *= 5  # a hiccup
        self.rates.append((training.step, training.schedule.learning_rate(training.step)))
        self.now += seconds
        self.longest_step = max(self.longest_step, seconds)
        if self.now - self.began > 0.5 * self.budget:
            self.late_step = max(self.late_step, seconds)
        self.since_step, self.foreseen = 0.0, training.schedule.reserve
        if self.draw.random() < self.pauses:
            training.controls.pause.set()


class FakeTask:
    """Judging and previews that take their time and say nothing."""

    def __init__(self, world, share=1.0):
        self.world, self.share = world, share
        self.judge = types.SimpleNamespace(steerable=None)
        self.life = None

    def few(self, share):
        return FakeTask(self.world, share), share

    def figures(self, system, tick):
        self.world.work(0.05 * self.world.judging)  # to begin with, whatever the share
        for _ in range(10):
            tick()
            self.world.work(0.95 * self.share * self.world.judging / 10)
        return {"psnr": 1.0, "skill_db": 1.0, "baseline_copy_psnr": 0.0}

    def preview(self, system):
        self.world.work(self.world.preview)
        return [], [], []


class Waits(threading.Event):
    """A stop for which waiting costs no time of the test's; the pause is over some looks later."""

    def wait(self, timeout=None):
        self.world.now += 0.001 * self.world.budget
        if self.world.draw.random() < 0.1:
            self.controls.pause.clear()
        return self.is_set()


@pytest.fixture
def training(arcs, tmp_path, monkeypatch):
    """A `Training` whose steps, judging and saving only turn the clock of `training.world`.

    training.kept: what the newest checkpoint holds of the schedule.
    """
    controls = Controls(say=lambda line: None)
    controls.stop = Waits()
    controls.stop.controls = controls
    cls, config, general = plan("mtld", "tiny", {}, run_dir=str(tmp_path / "run"), steps=500)
    dataset = open_data(str(arcs), config)
    training = Training(
        build(cls, config, dataset), dataset, general, tmp_path / "run", controls, Threads(1), 0.0
    )

    def save(run_dir, step, weights, state, *rest):
        training.world.work(training.world.saving)
        training.kept = step, state["schedule"]
        return f"checkpoints/step_{step:08d}"

    class Silent:
        def __init__(self, *words):
            pass

        def close(self, step):
            training.world.left_loop = training.world.now

    now = types.SimpleNamespace(monotonic=lambda: training.world.now)
    monkeypatch.setattr(train_module, "time", now)
    monkeypatch.setattr(schedule, "time", now)
    monkeypatch.setattr(train_module.checkpoints, "save", save)
    for name in ("prune", "mark_best"):
        monkeypatch.setattr(train_module.checkpoints, name, lambda *rest: None)
    monkeypatch.setattr(train_module, "draw_judgement", lambda metrics: b"x")
    monkeypatch.setattr(Training, "_train_step", lambda self: self.world.step(self))
    monkeypatch.setattr(Training, "_save_strip", lambda self, *rest: None)
    monkeypatch.setattr(Training, "write_report", lambda self, *end: {"ended": end, "verdict": ""})
    monkeypatch.setattr(train_module, "Progress", Silent)
    return training


def session(training):
    """Go on where the newest checkpoint is, as a new process would; how it ended, None if it was killed."""
    training.world.begin()
    training.controls.pause.clear()
    training.step, state = training.kept
    training.logged_at = 0  # no first line: a fake step has no losses
    training.saved = training.judged_at = training.previewed_at = None
    training.session_step, training.session_seconds = training.step, training.train_seconds
    training.schedule = Schedule(training.config, 7, training.controls.stop, training.world.now)
    spent = training.world.budget if training.step else 0
    training.schedule.resume(training.step, state, seconds=spent)
    try:
        return training.run()["ended"]
    except Killed:
        return None


def look_at_rates(world, warm, result):
    """The rate never rises inside a cycle but in its warm-up, and where the cycle has ended it is below 2 %
    of the peak.

    It cannot be where the end came at once: by a step, or by work slower than any before it, of 2 % of the
    budget. Returns whether the end was looked at.
    """
    rates = [rate for _, rate in world.rates[warm:]]
    assert all(b <= a for a, b in itertools.pairwise(rates))
    if result is None or max(world.late_step, world.since_step - world.foreseen) > 0.02 * world.budget:
        return False
    assert rates[-1] < 0.02
    return True


@pytest.mark.versionless
def test_five_hundred_random_histories_use_their_budget_and_end_their_cosine(training):
    killed = finished = second_cycles = looked = 0
    for seed in range(500):
        world = training.world = training.controls.stop.world = World(seed)
        training.config = TrainConfig(time_budget_minutes=world.budget / 60, **world.settings)
        training.task = FakeTask(world)
        training.kept = 0, None
        for number in range(world.draw.choice([1, 2, 4])):
            step, state = training.kept
            goes_on = state is not None and state["progress"] < 1
            result = session(training)
            warm = world.settings["warmup_steps"]
            if goes_on:
                warm = max(0, state["cycle_step"] + warm - step)
            looked += look_at_rates(world, warm, result)
            if goes_on and world.rates and not warm:
                assert world.rates[0][1] <= 0.5 + 0.5 * math.cos(math.pi * state["progress"])
            if result is None:
                killed += 1
                continue
            finished += 1
            second_cycles += number > 0 and not goes_on
            if state is not None and not goes_on:  # after a night as long, in the middle of the curve of both
                assert all(rate <= 0.5 for _, rate in world.rates)
            assert result == ("finished", "time budget spent") and training.kept[1]["progress"] == 1
            room, used = world.budget - training.schedule.reserve, world.left_loop - world.began
            assert used >= 0.95 * room, f"history {seed}: {used:.0f} of {room:.0f} s"
            unforeseen = max(0.0, world.since_step - world.foreseen)  # an end slower than any before it
            over = world.now - world.began - world.budget - unforeseen
            assert over <= world.longest_step, f"history {seed}: {over:.0f} s over {world.budget} s"
    assert min(killed, second_cycles) > 50 and looked > 0.5 * finished, (
        killed,
        second_cycles,
        looked,
        finished,
    )
