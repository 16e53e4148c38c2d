"""How many threads a step uses: trials on a machine whose speed the test decides."""

import types

import pytest
import torch

from mtld_core.config import ConfigError
from mtld_core.machine import threads as threads_module
from mtld_core.machine.threads import BLOCK, Threads
from mtld_core.train.settings import TrainConfig

pytestmark = pytest.mark.versionless  # choices on a machine that the test makes up
QUIET = {1: 0.115, 2: 0.07, 4: 0.04}  # seconds a step
BUSY = {1: 0.1225, 2: 0.325, 4: 0.6}  # weight_rnn `small` on two cores, beside a program that uses one


@pytest.fixture(autouse=True)
def own_count():
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def begin(monkeypatch, free=2, cores=2, setting="auto", device="cpu", trials=True):
    """free: cores that are idle when the session begins, and then, less those that the steps use."""
    torch.set_num_threads(cores)

    def idle(look=None):
        return free if look else max(0, cores - torch.get_num_threads())

    monkeypatch.setattr(threads_module, "_idle_cores", idle)
    said = []
    return Threads(setting, torch.device(device), said.append, trials), said


def work(threads, machine, steps):
    """Seconds that so many steps take, each as long as the machine takes with the threads that torch then
    has.
    """
    taken = 0.0
    for _ in range(steps):
        seconds = machine[torch.get_num_threads()]
        taken += seconds
        threads.see(seconds)
    return taken


@pytest.mark.parametrize(
    ("machine", "best", "free"), [(QUIET, 2, 2), (QUIET, 2, 1), (BUSY, 1, 2), (BUSY, 1, 1)]
)
def test_the_faster_count_is_found_and_kept(monkeypatch, machine, best, free):
    threads, said = begin(monkeypatch, free)
    with threads:
        assert torch.get_num_threads() == free
        work(threads, machine, 20)
        assert threads.count == best and len(said) == threads.changes == (best != free)
        assert work(threads, machine, 2000) < 1.03 * 2000 * machine[best]
    assert threads.facts() == {"setting": "auto", "count": best, "changes": threads.changes}


def test_a_change_is_said_with_what_it_brings(monkeypatch):
    threads, said = begin(monkeypatch)
    with threads:
        work(threads, BUSY, 20)
    assert said == ["a step is faster with 1 thread just now: 122 ms instead of 325"]


def test_forty_steps_beside_a_busy_program_are_nearly_as_fast_as_with_the_best_count(monkeypatch):
    threads, _ = begin(monkeypatch, free=1)
    with threads:
        assert work(threads, BUSY, 40) < 1.15 * 40 * BUSY[1]


def test_a_machine_that_gets_busy_and_quiet_again_is_followed(monkeypatch):
    threads, _ = begin(monkeypatch)
    with threads:
        work(threads, QUIET, 100)
        assert threads.count == 2
        assert (
            work(threads, BUSY, 40) < 40 * BUSY[1] + 10 * BUSY[2]
        )  # it is seen at once, for steps get slower
        assert threads.count == 1
        work(
            threads, QUIET, 600
        )  # with one thread nothing tells that the other core is free: a later trial finds it
        assert threads.count == 2


def test_more_cores_are_climbed_from_count_to_count(monkeypatch):
    threads, _ = begin(monkeypatch, free=1, cores=4)
    with threads:
        work(threads, QUIET, 30)
        assert threads.count == 4
        assert threads.counts == [1, 2, 4]
        work(threads, {1: 0.1, 2: 0.06, 4: 0.2}, 60)
        assert threads.count == 2


def test_a_count_that_cannot_win_any_more_is_given_up(monkeypatch):
    threads, _ = begin(monkeypatch, free=1)
    seen = []
    with threads:
        for _ in range(1 + BLOCK + 10):
            seen.append(torch.get_num_threads())
            threads.see(BUSY[seen[-1]])
    assert seen.count(2) == 2  # 0.65 s are more than the 0.49 of four steps


def test_steps_of_changing_cost_are_compared_by_whole_blocks(monkeypatch):
    """rl_v2v: every fourth step costs twice as much. No count is better, so none is taken."""
    threads, said = begin(monkeypatch)
    with threads:
        for i in range(3000):
            threads.see(0.1 if i % BLOCK else 0.21)
    assert not said


@pytest.mark.parametrize(
    ("setting", "device", "cores"), [(1, "cpu", 2), (2, "cpu", 2), ("auto", "cuda", 2), ("auto", "cpu", 1)]
)
def test_a_number_a_gpu_or_a_single_core_leaves_nothing_to_try(monkeypatch, setting, device, cores):
    threads, said = begin(monkeypatch, 1, cores, setting, device)
    wanted = cores if setting == "auto" else setting
    with threads:
        for seconds in (0.1, 0.5, 0.1) * 50:
            assert torch.get_num_threads() == wanted == threads.count
            threads.see(seconds)
    assert torch.get_num_threads() == cores and not said


def test_without_trials_it_stays_as_it_begins(monkeypatch):
    threads, said = begin(monkeypatch, free=1, trials=False)
    with threads:
        work(threads, QUIET, 100)
        assert torch.get_num_threads() == 1 and not said


def test_work_that_is_no_step_uses_what_was_found(monkeypatch):
    threads, _ = begin(monkeypatch)
    with threads:
        work(threads, QUIET, 1 + BLOCK)
        assert torch.get_num_threads() == 1  # on trial
        with threads.settled():
            assert torch.get_num_threads() == 2
        assert torch.get_num_threads() == 1


def test_a_trial_goes_on_after_work_that_fails(monkeypatch):
    threads, _ = begin(monkeypatch)
    with threads:
        work(threads, QUIET, 1 + BLOCK)
        with pytest.raises(RuntimeError), threads.settled():
            raise RuntimeError
        assert torch.get_num_threads() == 1  # on trial again


@pytest.mark.parametrize("setting", [0, -1, True, "two", 1.5])
def test_a_setting_that_is_no_count_is_refused(setting):
    with pytest.raises(ConfigError, match="threads must be 'auto' or a number from 1"):
        TrainConfig(threads=setting)


def test_cores_that_others_use_are_not_idle_but_those_that_give_way_are(monkeypatch):
    import psutil

    monkeypatch.setattr(psutil, "cpu_count", lambda: 4)
    for idle, nice, cores in ((100.0, 0.0, 4), (50.0, 0.0, 2), (0.0, 0.0, 0), (0.0, 75.0, 3)):
        times = types.SimpleNamespace(idle=idle, nice=nice)
        monkeypatch.setattr(psutil, "cpu_times_percent", lambda interval, times=times: times)
        assert threads_module._idle_cores() == cores


def test_no_more_threads_are_tried_where_no_core_is_idle(monkeypatch):
    """Beside two programs that never rest: two threads look fast for some seconds, which is no reason to take
    them.
    """
    threads, said = begin(monkeypatch, free=1)
    monkeypatch.setattr(threads_module, "_idle_cores", lambda look=None: 1 if look else 0)
    with threads:
        for _ in range(200):
            assert torch.get_num_threads() == 1
            threads.see(0.25)
    assert not said
