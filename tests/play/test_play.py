"""A dream under somebody's hands, and the real game beside it."""

import builtins
import json

import av
import gymnasium
import numpy as np
import pytest
import torch
from conftest import shown
from PIL import Image
from rolling import Toy, ToyConfig
from steered import ABOUT, Steered, steered_run, write_recording

from data_prep.record_game import record
from mtld_core import open_run
from mtld_core.config import UserError
from mtld_core.data import open_dataset
from mtld_core.generate import rollout
from mtld_core.play import Play

MOVES = np.array([1, 0, 2, 1, 1, 2, 0, 1] * 3)
CONTROLS = np.stack([MOVES - 1, MOVES / 2], 1).astype(np.float32)  # from -1 to 1, and from 0 to 1


@pytest.fixture
def begin(tmp_path, monkeypatch):
    """`begin(actions)` -> a `Play` of a toy trained on a recording of them; more: fields of the toy's
    config.
    """

    def begin(actions=MOVES, about=ABOUT, **config):
        recording = write_recording(tmp_path / "recording.h5", actions, about=about)
        return Play(open_run(steered_run(monkeypatch, tmp_path, recording, **config)))

    return begin


@pytest.fixture(scope="module")
def pong(tmp_path_factory):
    path = tmp_path_factory.mktemp("pong") / "pong.h5"
    record("ALE/Pong-v5", 300, path, episode_steps=50, progress=False)
    return path


def test_every_action_leads_on_from_the_frame_before(begin):
    play = begin()
    start = play.frames[0]
    assert play.labels == ["NOOP", "RIGHT", "LEFT"] and play.actions == [] and play.frames_per_second is None
    for t, action in enumerate([1, 2, 2, 0], 1):
        frame = play.act(action)
        assert (
            frame.dtype == torch.uint8
            and frame.equal(start.roll(sum(play.actions), 1))
            and len(play.frames) == t + 1
        )
    assert play.actions == [1, 2, 2, 0] and play.frames_per_second > 0
    assert torch.stack(play.frames[1:]).equal(rollout(play.system, play.source.context, 4, play.actions))


def test_a_step_waits_for_no_second_thread(begin, monkeypatch):
    play, before, step = begin(), torch.get_num_threads(), Steered.step
    seen = []
    monkeypatch.setattr(Steered, "step", lambda *given: seen.append(torch.get_num_threads()) or step(*given))
    torch.set_num_threads(2)
    try:
        play.act(1)
        assert seen == [1] and torch.get_num_threads() == 2
        with pytest.raises(UserError):
            play.act(99)
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


def test_it_starts_where_one_likes(begin):
    play = begin()
    assert play.source.text == "dataset:episode_3/1"  # the held-out one of six; two context frames
    assert play.starts.keys() == {f"episode_{i}" for i in range(6)} and play.starts["episode_1"] == list(
        range(1, 24)
    )
    play.act(1)
    play.reset("episode_1", 7)
    assert play.frames[0].equal(play.dataset.frames[24 + 7]) and len(play.frames) == 1 and play.actions == []
    for arc, number, said in (
        ("episode_1", 0, "starts from 2 frames"),
        ("episode_9", 3, "no arc"),
        ("episode_1", 99, "no frame 99"),
    ):
        with pytest.raises(UserError, match=said):
            play.reset(arc, number)


@pytest.mark.parametrize("action", [3, -1, 0.5, "up", [0, 1], None, float("nan")])
def test_an_action_out_of_range(begin, action):
    play = begin()
    with pytest.raises(UserError, match=r"must be an integer from 0 to 2"):
        play.act(action)
    assert len(play.frames) == 1 and play.actions == []
    play.act(2)


def test_controls_become_a_few_buttons(begin):
    play = begin(CONTROLS, {"action_names": ["steer", "gas"]})
    assert play.choices == [
        ("neutral", [0, 0]),
        ("steer -1", [-1, 0]),
        ("steer +1", [1, 0]),
        ("gas +1", [0, 1]),
    ]
    start = play.frames[0]
    assert play.act([-1, 0]).equal(start.roll(-1, 1))
    for wrong in ([0.5], [0, 0, 0], [0, 2], 1, [float("nan"), 0]):
        with pytest.raises(UserError, match="must be 2 numbers from"):
            play.act(wrong)


def test_a_control_that_never_is_zero_rests_in_the_middle(begin):
    assert begin(CONTROLS + 2, {}).choices[:2] == [("neutral", [2.0, 2.5]), ("0 +1", [1.0, 2.5])]


def test_a_run_that_invents_its_actions(begin):
    play = begin(invents=True)
    assert play.labels == ["0", "1", "2"] and play.real is None and "its own, not the game's" in play.alone
    report = json.loads((play.system.run.dir / "report.json").read_text())
    report["metrics"]["action_labels"] = ["stay", "slow", "fast"]  # as a run learns them from a recording
    (play.system.run.dir / "report.json").write_text(json.dumps(report))
    assert Play(play.system).labels == ["stay", "slow", "fast"]


def test_a_run_without_actions_or_without_its_dataset(begin, tmp_path):
    with pytest.raises(UserError, match="toy takes no actions"):
        Play(Toy(ToyConfig()))
    play = begin()
    (tmp_path / "recording.h5").unlink()
    with pytest.raises(UserError, match=r"recording\.h5 is not there"):
        Play(play.system)
    assert Play(play.system, play.dataset).labels == play.labels


def test_a_play_is_saved(begin, tmp_path):
    play = begin()
    for action in (1, 1, 2):
        play.act(action)
    mp4, gif = play.save(tmp_path / "deep/play", fps=10)
    with av.open(str(mp4)) as video:
        frames = [shown(frame) for frame in video.decode(video=0)]
    with Image.open(gif) as image:
        assert image.n_frames == 4
    assert (
        len(frames) == 4 and np.abs(frames[3].astype(int) - play.frames[3].numpy()).mean() < 12
    )  # colours at half the resolution


# ---- the real game


def test_the_real_game_runs_beside_the_dream(pong, tmp_path, monkeypatch):
    play = Play(open_run(steered_run(monkeypatch, tmp_path, pong)))
    assert play.alone == "" and play.real[0].equal(play.frames[0])
    first = play.dataset.row("episode_2", 20)
    play.reset("episode_2", 20)
    for action in play.dataset.actions[first : first + 29].tolist():
        play.act(action)
    assert torch.stack(play.real).equal(
        play.dataset.frames[first : first + 30]
    )  # what was recorded under the same actions
    ends = []
    for action in (2, 3):
        play.reset("episode_2", 20)
        for _ in range(15):
            play.act(action)
        ends.append(play.real[-1])
    assert not ends[0].equal(ends[1]) and not play.over
    with av.open(str(play.save(tmp_path / "pair")[0])) as video:
        assert (video.streams.video[0].width, video.streams.video[0].height) == (64 + 64 + 2, 64)


def test_a_smaller_dream_sees_a_smaller_game(pong, tmp_path, monkeypatch):
    play = Play(open_run(steered_run(monkeypatch, tmp_path, pong, height=32, width=32)))
    assert play.alone == "" and play.real[0].shape == (32, 32, 3) and play.act(0).shape == (32, 32, 3)


class Dot(gymnasium.Env):
    """A bright dot on a dark field, moved by two floats from where the seed puts it; over after nine
    steps.
    """

    metadata, render_mode = {"render_modes": ["rgb_array"], "render_fps": 5}, "rgb_array"
    observation_space, action_space = (gymnasium.spaces.Box(low, 1, (2,), np.float32) for low in (0, -1))

    def __init__(self, render_mode):
        pass

    def reset(self, seed=None, options=None):
        super().reset(seed=seed)
        self.place, self.time = self.np_random.uniform(size=2), 0
        return self.place, {}

    def step(self, action):
        assert action.dtype == np.float32
        self.place, self.time = (self.place + 0.2 * action) % 1, self.time + 1
        return self.place, 0.0, self.time == 9, False, {}

    def render(self):
        y, x = np.mgrid[:16, :16] / 16
        near = np.exp(-50 * ((x - self.place[0]) ** 2 + (y - self.place[1]) ** 2))
        return np.repeat((20 + 200 * near).astype(np.uint8)[..., None], 3, -1)


@pytest.fixture
def dot(tmp_path, monkeypatch):
    gymnasium.register("Dot-v0", Dot)
    record("Dot-v0", 60, tmp_path / "dot.h5", size=16, progress=False)
    yield Play(open_run(steered_run(monkeypatch, tmp_path, tmp_path / "dot.h5")))
    gymnasium.registry.pop("Dot-v0")


def test_a_game_of_floats(dot):
    first = dot.dataset.row("episode_2", 2)
    dot.reset("episode_2", 2)
    for action in dot.dataset.actions[first : first + 5].tolist():
        dot.act(action)
    assert dot.alone == "" and torch.stack(dot.real).equal(dot.dataset.frames[first : first + 6])


def test_a_real_game_that_ends_stays_as_it_was(dot, tmp_path):
    dot.reset("episode_2", 2)
    for t in range(12):
        assert dot.over == (t >= 7)
        dot.act(dot.choices[1][1])
    assert (
        len(dot.real) == len(dot.frames) == 13
        and dot.real[-1].equal(dot.real[7])
        and not dot.real[7].equal(dot.real[6])
    )
    dot.save(tmp_path / "over")
    dot.reset()
    assert not dot.over


@pytest.mark.parametrize(
    ("about", "said"),
    [
        ({"env": None}, "names no game"),
        ({"episode_seeds": None}, "does not say how this episode was seeded"),
        ({"episode_seeds": [1, 2, 3]}, "does not say how this episode was seeded"),
        ({"env": "ALE/Nowhere-v5"}, "Nowhere"),
        ({"env_options": {"frameskip": 3, "obs_type": "rgb"}}, "another picture here than the recording"),
        ({"env_options": {"colour": 3}}, "cannot be made"),
    ],
)
def test_a_game_that_cannot_be_brought_there_is_left_out(pong, tmp_path, monkeypatch, about, said):
    system = open_run(steered_run(monkeypatch, tmp_path, pong))
    dataset = open_dataset(pong, progress=False)
    dataset.about = {name: value for name, value in (dataset.about | about).items() if value is not None}
    play = Play(system, dataset)
    play.reset("episode_3", 40)
    assert play.real is None and said in play.alone and "\n" not in play.alone
    play.act(2)


def test_a_gap_and_a_missing_gymnasium(pong, tmp_path, monkeypatch):
    play = Play(open_run(steered_run(monkeypatch, tmp_path, pong)))
    play.dataset.arcs[4].name = "episode_4b"
    play.reset("episode_4b", 10)
    assert play.alone == "the recording has a gap before this frame"
    play.dataset.arcs[4].name = "second/episode_4"  # of several files
    play.reset("second/episode_4", 10)
    assert play.alone == "the recording does not say how this episode was seeded"
    real_import = builtins.__import__

    def without(name, *rest):
        if name == "gymnasium":
            raise ImportError
        return real_import(name, *rest)

    monkeypatch.setattr(builtins, "__import__", without)
    play.reset("episode_2", 10)
    assert play.real is None and "pip install gymnasium" in play.alone
