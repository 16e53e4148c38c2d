"""When a run ends, and the learning rate on the way, by a clock that the test turns."""

import math
import threading

import pytest

from mtld_core import schedule
from mtld_core.config import ConfigError
from mtld_core.schedule import Schedule
from mtld_core.settings import TrainConfig


class Clock:
    def __init__(self):
        self.now = 1000.0

    def monotonic(self):
        return self.now


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(schedule.time, "monotonic", clock.monotonic)
    return clock


def make(steps_per_epoch=7, stop=None, **settings):
    return Schedule(TrainConfig(**settings), steps_per_epoch, stop or threading.Event())


def run(plan, clock, seconds=1.0, first=None, idle=0.0, begin=0, most=100_000):
    """Steps of `seconds` each (the first one `first`), `idle` seconds beside each; returns (steps done, how it ended)."""
    step, trained = begin, 0.0
    while (end := plan.reason_to_end(step, step - begin, trained)) is None:
        took = first if first is not None and step == begin else seconds
        step, trained = step + 1, trained + took
        clock.now += took + idle
        assert step < most
    return step, end


# ---- the end


@pytest.mark.parametrize(
    ("settings", "total"),
    [({"steps": 12}, 12), ({"epochs": 3}, 21), ({"steps": 12, "epochs": 3}, 12), ({"steps": 50, "epochs": 3}, 21)],
)
def test_steps_or_epochs_whichever_comes_first(clock, settings, total):
    plan = make(**settings)
    assert plan.total == total
    assert run(plan, clock) == (total, ("finished", "all steps done"))


def test_nothing_that_says_how_long_is_an_error(clock):
    with pytest.raises(ConfigError, match="set steps, epochs or time_budget_minutes"):
        make()


def test_a_budget_alone_fixes_the_total_once(clock):
    plan = make(time_budget_minutes=10)
    assert plan.total == 0
    step, trained, totals = 0, 0.0, []
    while plan.reason_to_end(step, step, trained) is None:
        seconds = 1.0 if step < 300 else 0.5  # the speed changes later on; the total does not
        step, trained, clock.now = step + 1, trained + seconds, clock.now + seconds
        totals.append(plan.total)
    fixed = sorted(set(totals))
    assert len(fixed) == 2 and fixed[0] == 0 and totals.count(0) <= 75  # known after about a tenth of the time
    assert 0.95 * 600 <= fixed[1] <= 600
    assert plan.reason_to_end(step, step, trained) == ("finished", "all steps done")


def test_a_budget_alone_is_kept_when_training_slows_down(clock):
    plan = make(time_budget_minutes=10)
    step, end = run(plan, clock, idle=0.5)  # judging and saving beside the steps
    assert end == ("finished", "time budget spent") and 398 <= step <= 402
    assert 595 <= clock.now - 1000 <= 602


def test_the_total_waits_for_five_steps(clock):
    plan = make(time_budget_minutes=1)
    for step in range(5):
        assert plan.reason_to_end(step, step, 2.0 * step) is None and plan.total == 0
        clock.now += 2
    plan = make(time_budget_minutes=1)
    assert run(plan, clock, seconds=2.0)[0] in range(28, 31) and plan.total in range(28, 31)


def test_a_slow_first_step_does_not_cut_a_budget_short(clock):
    """Compiling, or the first convolution on a GPU: 40 s once, then a tenth of a second a step."""
    plan = make(time_budget_minutes=10)
    step, _ = run(plan, clock, seconds=0.1, first=40.0)
    assert clock.now - 1000 > 0.8 * 600, f"stopped after {clock.now - 1000:.0f} of 600 s, at step {step}"


def test_a_budget_beside_steps(clock):
    plan = make(steps=100, time_budget_minutes=1)
    assert run(plan, clock) == (60, ("stopped", "time budget spent"))
    assert plan.total == 100  # a budget does not bend the learning rate of a run with a known end
    assert run(make(steps=30, time_budget_minutes=1), clock) == (30, ("finished", "all steps done"))
    assert run(make(epochs=100, time_budget_minutes=1), clock) == (60, ("stopped", "time budget spent"))


def test_the_budget_counts_from_the_start_of_the_session(clock):
    clock.now += 5000
    plan = make(steps=100, time_budget_minutes=1)
    clock.now += 50  # judging, saving and the first picture count, too
    assert run(plan, clock) == (10, ("stopped", "time budget spent"))


def test_a_stop_comes_before_all(clock):
    stop = threading.Event()
    plan = make(steps=3, time_budget_minutes=1, stop=stop)
    assert plan.reason_to_end(0, 0, 0.0) is None
    stop.set()
    assert plan.reason_to_end(0, 0, 0.0) == plan.reason_to_end(3, 3, 3.0) == ("stopped", "asked to stop")


# ---- resume


def test_a_resumed_run_keeps_its_total(clock):
    plan = make(time_budget_minutes=10)
    plan.resume(100, 500)
    assert plan.total == 500
    assert run(plan, clock, begin=400) == (500, ("finished", "all steps done"))


def test_what_this_session_says_comes_before_the_earlier_total(clock):
    plan = make(steps=800)
    plan.resume(100, 500)
    assert plan.total == 800
    plan = make(time_budget_minutes=10)
    plan.resume(100, 0)  # stopped before the total was known
    assert run(plan, clock, begin=3)[0] == pytest.approx(3 + 595, abs=12)


def test_the_speed_is_measured_in_this_session_alone(clock):
    plan = make(time_budget_minutes=10)
    run(plan, clock, begin=100_000, most=200_000)
    assert plan.total == pytest.approx(100_000 + 590, abs=12)


# ---- the learning rate


def test_warm_up_is_linear_and_ends_at_one(clock):
    plan = make(steps=1000, warmup_steps=10)
    assert [plan.learning_rate(step) for step in (0, 1, 4, 9, 10, 500, 999)] == pytest.approx([0.1, 0.2, 0.5, 1, 1, 1, 1])
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


def test_a_cosine_without_a_known_end_waits_for_it(clock):
    plan = make(time_budget_minutes=10, warmup_steps=0, lr_schedule="cosine")
    assert plan.learning_rate(5) == 1.0
    plan.resume(5, 10)
    assert plan.learning_rate(5) == pytest.approx(0.5)


def test_epochs_know_the_end_of_a_cosine(clock):
    assert make(epochs=2, warmup_steps=0, lr_schedule="cosine").learning_rate(7) == pytest.approx(0.5)
