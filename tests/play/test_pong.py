"""The shipped Pong run on a game that it never saw: it predicts better than copying, its paddle obeys, and
after a thousand steps it still is a game.
"""

import collections
from pathlib import Path

import av
import pong
import pytest
import torch
from dreams import approaches, dream, film, rebounds, turned
from pong import ball_place, goes_where_told, motion, obedience, paddle_row

from data_prep.record_game import record
from mtld_core.data import open_dataset
from mtld_core.judge.rollouts import Judge
from mtld_core.play import Play
from mtld_core.play.policies import ways
from mtld_core.systems.opening import open_run

pytestmark = pytest.mark.versionless  # what the shipped weights learned; test_play.py plays on every version
SHIPPED = Path(__file__).parents[2] / "examples" / "pong"


@pytest.fixture(scope="module")
def shipped():
    return open_run(SHIPPED, device="cpu")


@pytest.fixture(scope="module")
def unseen(tmp_path_factory):
    """Five episodes under another seed than the one that it learned from."""
    path = tmp_path_factory.mktemp("pong") / "unseen.h5"
    record("ALE/Pong-v5", 1500, path, seed=4711, episode_steps=300, progress=False)
    return open_dataset(path, progress=False)


def test_the_shipped_run_is_small_and_names_no_place():
    assert sum(file.stat().st_size for file in SHIPPED.iterdir()) <= 5e6
    for name in ("config.json", "report.json", "README.md"):
        assert "/root" not in (SHIPPED / name).read_text() and "/home" not in (SHIPPED / name).read_text()


def test_it_sees_further_than_copying(shipped, unseen):
    needs = shipped.needs()
    starts = torch.cat([unseen.arc_windows(arc, needs.context + 16)[::12] for arc in unseen.arcs])
    judge = Judge(unseen, starts, needs, 16, unseen.frames[::5], max_windows=24)
    figures = judge(shipped)
    assert figures["skill_db_by_horizon"][0] >= 2
    assert min(figures["skill_db_by_horizon"]) > 0
    assert figures["action_shuffle_gap_db"] > 0.1


# ---- a thousand steps


@pytest.fixture(scope="module")
def late(shipped, unseen):
    """Eight dreams under sticky random actions, in the last hundred of a thousand steps: [(state, frames)]."""
    return list(collections.deque(dream(shipped, unseen, 1000), maxlen=100))


def test_after_a_thousand_steps_it_still_is_a_game(late, unseen):
    found = pong.lasting(torch.stack([frame for _, frame in late], 1), unseen)
    assert found["static"] >= 40
    assert 0.6 <= found["motion"] <= 1.5
    assert 0.66 <= found["ball"] / found["real_ball"] <= 1.32


def test_a_dream_of_the_empty_field_is_found_out(unseen):
    still = unseen.frames[50].expand(2, 100, -1, -1, -1)
    found = pong.lasting(still, unseen)
    assert found["motion"] == 0 and found["ball"] in (0, 1) and 0.2 < found["real_ball"] < 0.8
    noise = torch.randint(256, (2, 100, 64, 64, 3), dtype=torch.uint8)
    assert pong.lasting(noise, unseen)["static"] < 12


def test_its_paddle_obeys_after_a_thousand_steps(late, shipped):
    share, tries = goes_where_told(shipped, late)
    assert tries == 200 and share >= 0.95


def test_its_ball_turns_where_the_real_one_turns(shipped, unseen):
    found = rebounds(shipped, unseen, pong)
    assert len(found) >= 10 and {name for name, *_ in found} >= {"top", "left"}
    assert all(really for _, really, _ in found)
    assert sum(dreamt for *_, dreamt in found) >= 0.8 * len(found), found


def test_a_ball_that_goes_through_a_wall_is_found_out():
    clip = torch.empty(20, 64, 64, 3, dtype=torch.uint8)
    clip[:] = torch.tensor([144, 72, 17], dtype=torch.uint8)
    for t in range(20):
        clip[t, (40 + 2 * t) % 64, 20 + t] = 236  # it leaves the field below, and comes from above
    ball = ball_place(clip)
    [(t, name)] = approaches(ball, pong.COURT, pong.paddles(clip))
    assert (t, name) == (8, "bottom") and not turned(ball[t + 1 :], pong.COURT, name)


# ---- the next frames


def test_the_paddle_obeys(shipped, unseen):
    share, tries = obedience(shipped, unseen, unseen.arcs)
    assert tries == 200 and share >= 0.95


def test_a_paddle_that_ignores_the_player_is_found_out(shipped, unseen, monkeypatch):
    rollout = shipped.rollout
    monkeypatch.setattr(
        shipped, "rollout", lambda context, n, actions: rollout(context, n, [a * 0 for a in actions])
    )
    assert obedience(shipped, unseen, unseen.arcs, tries=60)[0] < 0.7


def test_the_paddle_is_found_in_the_picture():
    frames = torch.full((3, 64, 64, 3), 0, dtype=torch.uint8)
    frames[:] = torch.tensor([144, 72, 17], dtype=torch.uint8)
    frames[0, 20:25, 56:58] = frames[1, 26:31, 56:58] = torch.tensor([92, 186, 92], dtype=torch.uint8)
    assert paddle_row(frames)[:2].tolist() == [22, 28] and paddle_row(frames)[2].isnan()


def test_motion_is_up_none_or_down(unseen):
    rows, moved = motion(unseen, unseen.arcs)
    assert set(moved.tolist()) == {0, 1, 2}
    rise = paddle_row(unseen.frames[rows[moved == 0] + 1]) - paddle_row(unseen.frames[rows[moved == 0]])
    assert rise.max() < 0  # rows count from the top


def test_it_can_be_played_at_once(shipped):
    play = Play(shipped)
    names = ["NOOP", "FIRE", "RIGHT", "LEFT", "RIGHTFIRE", "LEFTFIRE"]
    assert play.labels == names and ways(play) == {2: "UP", 3: "DOWN", 4: "UP", 5: "DOWN"}
    rally = ball_place(torch.stack([play.frames[0], *play.source.truth[:24]]))
    assert rally.isfinite().all(-1).float().mean() > 0.75  # it starts while the ball is in play
    for action in (2, 2, 3):
        play.act(action)
    assert len(play.frames) == 4 and not torch.equal(play.frames[0], play.frames[-1])


def test_dreams_are_filmed_side_by_side(shipped, unseen, tmp_path):
    film(shipped, unseen, 5, tmp_path / "dream.mp4")
    with av.open(tmp_path / "dream.mp4") as file:
        stream = file.streams.video[0]
        frames = [frame.to_ndarray(format="rgb24") for frame in file.decode(stream)]
        assert stream.average_rate == unseen.about["fps"]
    assert len(frames) == 5 and frames[0].shape == (4 * 64, 4 * 4 * 64, 3)


def test_one_setting_is_varied_seed_by_seed(tmp_path, monkeypatch):
    runs = []
    monkeypatch.setattr(pong, "run_stage", lambda *places, **settings: runs.append((*places, settings)))
    pong.vary(tmp_path, "pong.h5", "layers", ["2", "direct"], 5, [0, 1])
    assert [run[2].name for run in runs] == ["layers_2_0", "layers_direct_0", "layers_2_1", "layers_direct_1"]
    assert [run[3] for run in runs[:2]] == [{"layers": 2}, {"layers": "direct"}]
    assert runs[2][4] == {"steps": 5, "seed": 1}
