"""The shipped Breakout run, and what finds ball, paddle and bricks: the real game has no fault, and faults are found."""

import breakout
import pytest
import torch
from breakout import ball_place, bricks, paddle_column, shares, wrong_bricks
from dreams import approaches, turned
from shipped import Shipped, recorded


class TestShipped(Shipped):
    game = breakout
    env = "ALE/Breakout-v5"
    met = frozenset({"bricks", "paddle", "left", "right"})

    def test_bricks_stay_until_they_are_hit(self, dreams, random):
        full = random.frames[random.arcs[0].start]
        wrong = [wrong_bricks(clip, full) for clip in dreams[0]]
        assert sum(wrong) / len(wrong) < 0.05


@pytest.fixture(scope="module", params=["sticky", "lookahead"])
def unseen(request, tmp_path_factory):
    return recorded(tmp_path_factory.mktemp("breakout"), "ALE/Breakout-v5", request.param)


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
