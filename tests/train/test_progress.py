"""A bar where somebody watches, a line every half minute where nobody does."""

import io
import sys

import pytest

from mtld_core.train import controls as progress
from mtld_core.train.controls import Progress


@pytest.fixture
def clock(monkeypatch):
    now = [1000.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    return now


class Terminal(io.StringIO):
    def isatty(self):
        return True


def steps(bar, clock, first, last, total, seconds=1.0):
    for step in range(first + 1, last + 1):
        clock[0] += seconds
        left = f"{total - step} s" if total else ""
        bar.update(step, total, left, f"loss {step / 10:.1f}")


def test_without_a_watcher_a_line_every_half_minute(clock, capsys):
    bar = Progress(0)
    steps(bar, clock, 0, 29, 200)
    assert capsys.readouterr().out == ""
    steps(bar, clock, 29, 100, 200)
    bar.close(100)
    out, err = capsys.readouterr()
    assert err == "" and "\r" not in out and out.endswith("\n")
    assert out.splitlines() == [
        "step 30/200  15 %  left 170 s  loss 3.0",
        "step 60/200  30 %  left 140 s  loss 6.0",
        "step 90/200  45 %  left 110 s  loss 9.0",
    ]


@pytest.mark.parametrize("seconds", [0.01, 7.0, 29.0, 31.0, 400.0])
def test_never_more_than_a_line_in_half_a_minute(clock, capsys, seconds):
    bar, began = Progress(0), clock[0]
    steps(bar, clock, 0, 50, 50, seconds)
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) <= (clock[0] - began) / 30
    assert len(lines) >= min(50, (clock[0] - began) // (30 + seconds))


def test_without_a_known_end_the_step_alone(clock, capsys):
    steps(Progress(0), clock, 0, 30, 0)
    assert capsys.readouterr().out == "step 30  loss 3.0\n"


def test_without_a_known_speed_the_step_alone(clock, capsys):
    bar = Progress(7)
    clock[0] += 60
    bar.update(7, 100, "", "loss 1.0")
    assert capsys.readouterr().out == "step 7  loss 1.0\n"


@pytest.mark.parametrize("watched", ["asked", "terminal"])
def test_somebody_who_watches_gets_a_bar(monkeypatch, capsys, watched):
    stream = Terminal() if watched == "terminal" else io.StringIO()
    monkeypatch.setattr(sys, "stderr", stream)
    bar = Progress(10, interactive=True if watched == "asked" else "auto")
    assert type(bar.bar).__name__.startswith("tqdm") and bar.bar.n == 10
    bar.update(12, 0, "", "loss 1.5")
    assert (bar.bar.n, bar.bar.total) == (12, None)
    bar.update(40, 100, "0:01:00", "loss 0.5")
    assert (bar.bar.n, bar.bar.total) == (40, 100)
    bar.close(40)  # stopped early: what was done is whole, not a failure
    assert (bar.bar.n, bar.bar.total) == (40, 40) and "loss 0.5" in stream.getvalue()
    assert capsys.readouterr().out == ""


def test_not_interactive_means_lines(clock, capsys):
    bar = Progress(0, interactive=False)
    assert bar.bar is None
    bar.close(0)
    assert capsys.readouterr() == ("", "")
