"""What finds ball, paddle and bricks in frames of Breakout: the real game has no fault, and faults are found."""

import breakout
import pytest
import torch
from breakout import ball_place, bricks, paddle_column, shares, wrong_bricks
from dreams import approaches, turned

from data_prep.record_game import record
from mtld_core.data import open_dataset


@pytest.fixture(scope="module")
def unseen(tmp_path_factory):
    """Five episodes or more."""
    path = tmp_path_factory.mktemp("breakout") / "unseen.h5"
    record("ALE/Breakout-v5", 1500, path, seed=4711, episode_steps=300, progress=False)
    return open_dataset(path, progress=False)


@pytest.fixture(scope="module")
def full(unseen):
    """A frame with all bricks: the first one of a game."""
    return unseen.frames[unseen.arcs[0].start]


def test_the_real_game_has_no_fault(unseen, full):
    met = 0
    for arc in unseen.arcs:
        clip = unseen.frames[arc.start : arc.stop]
        assert wrong_bricks(clip, full) == 0
        ball = ball_place(clip)
        for t, name in approaches(ball, breakout.COURT, breakout.paddles(clip)):
            assert turned(ball[t + 1 : t + 8], breakout.COURT, name)
            met += 1
    assert met >= 15
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
