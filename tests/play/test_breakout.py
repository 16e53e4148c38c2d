"""The shipped Breakout run after a thousand steps: ball, paddle and bricks are still those of the game."""

import collections
from pathlib import Path

import breakout
import pytest
import torch
from breakout import ball_place, bricks, goes_where_told, met, paddle_column, shares, wrong_bricks
from dreams import dream

from data_prep.record_game import record
from mtld_core.data import open_dataset
from mtld_core.judge.life import Life
from mtld_core.systems.opening import open_run

SHIPPED = Path(__file__).parents[2] / "examples" / "breakout"


@pytest.fixture(scope="module")
def shipped():
    return open_run(SHIPPED, device="cpu")


@pytest.fixture(scope="module")
def unseen(tmp_path_factory):
    """Five episodes or more under another seed than the one that it learned from."""
    path = tmp_path_factory.mktemp("breakout") / "unseen.h5"
    record("ALE/Breakout-v5", 1500, path, seed=4711, episode_steps=300, progress=False)
    return open_dataset(path, progress=False)


@pytest.fixture(scope="module")
def full(unseen):
    """A frame with all bricks: the first one of a game."""
    return unseen.frames[unseen.arcs[0].start]


@pytest.fixture(scope="module")
def late(shipped, unseen):
    """Eight dreams of a thousand steps under sticky random actions: (late states, all frames)."""
    states, frames = [], []
    for step, (state, frame) in enumerate(dream(shipped, unseen, 1000)):
        frames.append(frame)
        if step >= 900 and step % 2 == 0:
            states.append(state)
    return states, torch.stack(frames, 1)


def test_after_a_thousand_steps_it_still_is_a_game(late, unseen, shipped):
    starts = torch.cat([unseen.arc_windows(arc, shipped.needs().context) for arc in unseen.arcs])
    life = Life(unseen, starts, starts, unseen.frames[::5], shipped.needs(), 1)
    frames = late[1][:, 900:]
    assert life._static_psnr(frames.flatten(0, 1)).mean() >= 40
    moved = (frames[:, 1:].int() - frames[:, :-1].int()).abs().double().mean() / life.motion
    assert 0.6 <= moved <= 1.5
    share, real = (ball_place(f).isfinite().all(-1).float().mean() for f in (frames, unseen.frames))
    assert 0.66 <= share / real <= 1.32


def test_its_ball_turns_at_walls_bricks_and_paddle(late):
    found = collections.Counter(turned for clip in late[1] for _, turned in met(clip))
    assert found.total() >= 10 and found[True] >= 0.8 * found.total(), found


def test_its_paddle_obeys_after_a_thousand_steps(late, shipped):
    share, tries = goes_where_told(shipped, late[0])
    assert tries == 200 and share >= 0.95


def test_its_bricks_stay_until_they_are_hit_and_then_stay_gone(late, full):
    wrong = [wrong_bricks(clip, full) for clip in late[1]]
    assert sum(wrong) / len(wrong) < 0.05, wrong


# ---- what finds them


def test_the_real_game_has_no_fault(unseen, full):
    found = collections.Counter()
    for arc in unseen.arcs:
        clip = unseen.frames[arc.start : arc.stop]
        assert wrong_bricks(clip, full) == 0
        found.update(turned for _, turned in met(clip))
    assert found[True] == found.total() >= 15
    assert paddle_column(unseen.frames).isfinite().all()


def without(frame, row, column):
    """The frame without a brick."""
    down, across = shares()
    return (frame * (1 - torch.outer(down[row], across[column]))[..., None]).byte()


def test_a_brick_that_comes_back_or_goes_by_itself_is_found_out(full):
    hole = without(full, 5, 4)
    assert bricks(hole, full)[5, 4] < breakout.GONE
    stays = full.expand(40, -1, -1, -1)
    goes = torch.cat([stays, hole.expand(40, -1, -1, -1)])
    hit = goes.clone()
    hit[36:40, 31, 15:18, 0] = 200  # the ball, just below
    assert wrong_bricks(stays, full) == 0
    assert wrong_bricks(hit, full) == 0
    assert wrong_bricks(goes, full) == pytest.approx(1 / 108)
    assert wrong_bricks(torch.cat([hit, stays]), full) == pytest.approx(1 / 108)
    assert wrong_bricks(torch.lerp(hit.float(), full.float(), 0.3).byte(), full) > 0  # half there
