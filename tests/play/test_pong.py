"""The shipped Pong run, and what finds ball and paddles in frames of Pong."""

import pong
import torch
from dreams import approaches, turned
from pong import ball_place, motion, obedience, paddle_row
from shipped import Shipped


class TestShipped(Shipped):
    game = pong
    env = "ALE/Pong-v5"
    met = frozenset({"top", "bottom", "left", "right"})

    def test_the_paddle_obeys(self, shipped, random):
        share, tries = obedience(shipped, random, random.arcs)
        assert tries == 200 and share >= 0.95

    def test_a_paddle_that_ignores_the_player_is_found_out(self, shipped, random, monkeypatch):
        rollout = shipped.rollout
        monkeypatch.setattr(
            shipped, "rollout", lambda context, n, actions: rollout(context, n, [a * 0 for a in actions])
        )
        assert obedience(shipped, random, random.arcs, tries=60)[0] < 0.7

    def test_motion_is_up_none_or_down(self, random):
        rows, moved = motion(random, random.arcs)
        assert set(moved.tolist()) == {0, 1, 2}
        rise = paddle_row(random.frames[rows[moved == 0] + 1]) - paddle_row(random.frames[rows[moved == 0]])
        assert rise.max() < 0  # rows count from the top


def test_a_ball_that_goes_through_a_wall_is_found_out():
    clip = torch.empty(20, 64, 64, 3, dtype=torch.uint8)
    clip[:] = torch.tensor([144, 72, 17], dtype=torch.uint8)
    for t in range(20):
        clip[t, (40 + 2 * t) % 64, 20 + t] = 236  # it leaves the field below, and comes from above
    ball = ball_place(clip)
    [(t, name)] = approaches(ball, pong.COURT, pong.paddles(clip))
    assert (t, name) == (8, "bottom") and not turned(ball[t + 1 :], pong.COURT, name)


def test_the_paddle_is_found_in_the_picture():
    frames = torch.full((3, 64, 64, 3), 0, dtype=torch.uint8)
    frames[:] = torch.tensor([144, 72, 17], dtype=torch.uint8)
    frames[0, 20:25, 56:58] = frames[1, 26:31, 56:58] = torch.tensor([92, 186, 92], dtype=torch.uint8)
    assert paddle_row(frames)[:2].tolist() == [22, 28] and paddle_row(frames)[2].isnan()


def test_one_setting_is_varied_seed_by_seed(tmp_path, monkeypatch):
    runs = []
    monkeypatch.setattr(pong, "run_stage", lambda *places, **settings: runs.append((*places, settings)))
    pong.vary(tmp_path, "pong.h5", "layers", ["2", "direct"], 5, [0, 1])
    assert [run[2].name for run in runs] == ["layers_2_0", "layers_direct_0", "layers_2_1", "layers_direct_1"]
    assert [run[3] for run in runs[:2]] == [{"layers": 2}, {"layers": "direct"}]
    assert runs[2][4] == {"steps": 5, "seed": 1}
