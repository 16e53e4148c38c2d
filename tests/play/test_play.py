"""A dream under somebody's hands, and the real game beside it."""

import builtins
import itertools
import json
import statistics
import time

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
from mtld_core.frames import to_float
from mtld_core.generate import rollout
from mtld_core.play import Play, dream, policies
from mtld_core.play.parting import Parting
from mtld_core.play.real_game import RealGame

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


def test_by_itself_it_starts_where_something_goes_on(begin):
    play = begin(np.array([0] * 60 + [1] * 60))
    assert play.start[0] == "episode_3" and 55 <= play.start[1] <= 70


def test_it_starts_at_a_source(begin, tmp_path):
    system, picture = begin().system, tmp_path / "mine.png"
    play = Play(system, source="dataset:episode_1/7")
    play.reset("episode_0", 3)
    play.reset()
    assert play.start == ("episode_1", 7) and play.frames[0].equal(play.dataset.frames[24 + 7])
    Image.fromarray(np.full((16, 24, 3), 90, np.uint8)).save(picture)
    play = Play(system, source=str(picture))
    assert play.start is None and play.alone == "it starts from no recorded frame"
    assert (play.frames[0] == 90).all() and (play.act(1) == 90).all()
    play.reset("episode_1", 7)
    assert play.start == ("episode_1", 7)
    with pytest.raises(UserError, match="no such image or video file"):
        Play(system, source="nowhere.png")


def test_actions_at_once():
    named = [(name, i) for i, name in enumerate(("NOOP", "FIRE", "RIGHT", "LEFT", "RIGHTFIRE"))]
    assert [dream.together(named, down) for down in ([2], [2, 1], [1, 2], [3, 1], [2, 3])] == [2, 4, 4, 1, 3]
    controls = [("neutral", [0, 0]), ("steer -1", [-1, 0]), ("steer +1", [1, 0]), ("gas +1", [0, 1])]
    assert dream.together(controls, [1, 3]) == [-1, 1] and dream.together(controls, [1, 2]) == [1, 0]
    assert controls[0] == ("neutral", [0, 0])


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


@pytest.mark.parametrize(
    ("path", "names"),
    [
        ("run.v2", ["run.v2.gif", "run.v2.mp4"]),  # a point in a name begins no kind of file
        ("run.MP4", ["run.gif", "run.mp4"]),
        ("run.gif", ["run.gif", "run.mp4"]),
        (".hidden", [".hidden.gif", ".hidden.mp4"]),
        ('it\'s "ü"', ['it\'s "ü".gif', 'it\'s "ü".mp4']),
    ],
)
def test_a_play_is_saved_under_the_name_that_was_given(begin, tmp_path, monkeypatch, path, names):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    play = begin()
    saved = [str(file) for file in play.save(f"~/{path}")]
    assert sorted(saved) == [str(tmp_path / "home" / name) for name in names]


@pytest.mark.parametrize(
    ("path", "fps", "message"),
    [
        ("file/clip", 12, "cannot be written"),
        ("n" * 300, 12, r"cannot be written \(File name too long\)"),
        ("taken", 12, r"cannot be written \(Is a directory\)"),
        ("clip", 0, "fps must be a number from 0.01 to 1000"),
        ("clip", 0.001, "fps must be a number from 0.01 to 1000"),
        ("clip", "12", "fps must be a number"),
        ("clip", float("nan"), "fps must be a number from 0.01 to 1000"),
    ],
)
def test_a_play_that_cannot_be_saved_says_so_and_leaves_nothing(
    begin, tmp_path, monkeypatch, path, fps, message
):
    play, folder = begin(), tmp_path / "here"
    (folder / "taken.gif").mkdir(parents=True)
    (folder / "file").touch()
    monkeypatch.chdir(folder)
    with pytest.raises(UserError, match=message):
        play.save(path, fps)
    assert sorted(file.name for file in folder.iterdir()) == ["file", "taken.gif"]


# ---- a dream that goes on


def test_a_dream_goes_on_by_itself(begin):
    play = begin()
    [frame] = play.dream_on(1, "hold")
    assert frame.equal(play.frames[-1]) and play.actions == [0]  # the first choice
    play.act(2)
    frames = list(play.dream_on(5, "hold"))
    assert play.actions == [0, *[2] * 6] and play.steps == 7
    assert all(frame.equal(kept) for frame, kept in zip(frames, play.frames[3:], strict=True))
    made = play.dream_on(100, "hold")  # one that is not asked for is not made
    assert play.steps == 7
    next(made)
    assert play.steps == 8
    list(play.dream_on(4, lambda play: play.steps % 3))
    assert play.actions[-4:] == [2, 0, 1, 2]


def test_sticky_actions_are_held_and_all_of_them_come(begin):
    play = begin()
    list(play.dream_on(2000))
    held = [a == b for a, b in itertools.pairwise(play.actions)]
    assert np.mean(held) == pytest.approx(0.75 + 0.25 / 3, abs=0.03)
    assert np.bincount(play.actions, minlength=3).min() > 500
    first = play.actions
    play.reset()
    list(play.dream_on(100))
    assert play.actions != first[:100]
    again = Play(play.system)  # what chance does is the same in every session
    list(again.dream_on(2000))
    assert again.actions == first


def test_sticky_controls_lie_in_their_range(begin):
    play = begin(CONTROLS, {})
    list(play.dream_on(400))
    low, high = np.min(play.actions, 0), np.max(play.actions, 0)
    assert low == pytest.approx([-1, 0], abs=0.1) and high == pytest.approx([1, 1], abs=0.1)


def table(paddle, ball):
    """A picture of a table with a paddle's and a ball's middle in these rows; None: without."""
    frame = torch.full((16, 24, 3), 60, dtype=torch.uint8)
    for row, column, size, colour in ((paddle, 20, 2, 200), (ball, 8, 1, 250)):
        if row is not None:
            frame[max(0, row - size) : row + size, column : column + 2] = colour
    return frame


@pytest.mark.parametrize(
    ("paddle", "ball", "chosen"),
    [
        (8, (2, 3), 2),  # up to it
        (8, (13, 12), 1),  # down to it
        (8, (3, 13), 1),  # where it will be, not where it is
        (8, (9, 8), 0),
        (8, (3, 3), 1),  # the ball rests: nothing moves by itself, so the last action again
        (8, (3, None), 1),
        (None, (2, 3), 1),  # no paddle
    ],
)
def test_tracking_follows_what_moves_by_itself(begin, monkeypatch, paddle, ball, chosen):
    play = begin()
    play.act(1)
    play.median, play.frames[-1] = table(None, None), table(paddle, ball[0])
    asked = []

    def imagine(system, context, num_frames, actions):
        asked.append(actions)
        assert system is play.system and context.equal(play.recent) and num_frames == 2
        moved = None if paddle is None else paddle + {0: 0, 1: 3, 2: -3}[actions[0]]
        return torch.stack([play.frames[-1], table(moved, ball[1])])

    monkeypatch.setattr(policies, "rollout", imagine)
    list(play.dream_on(1, "track"))
    assert play.actions == [1, chosen] and asked == [[0, 0], [1, 1], [2, 2]]


def test_what_an_action_moves_is_seen_in_what_it_leads_to(begin, monkeypatch):
    play = begin(about={"action_names": ["NOOP", "RIGHT", "LEFT", "FIRE"]}, action_count=4)
    play.median = table(None, None)
    places = []

    def imagine(system, context, num_frames, actions):
        places.append(context)
        moved = 8 + {0: 0, 1: -3, 2: 3, 3: -2}[actions[0]]
        return torch.stack([table(moved, 3)] * num_frames)  # the ball is where it is

    monkeypatch.setattr(policies, "rollout", imagine)
    assert policies.ways(play) == {1: "UP", 2: "DOWN"}  # FIRE's name says that it is no way
    assert len(places) == 5 * 4 and places[0].equal(play.source.context)
    monkeypatch.setattr(policies, "rollout", lambda *_: torch.stack([table(8, 3)]))
    assert policies.ways(play) == {}


def test_tracking_imagines_from_the_newest_frames(begin):
    play = begin()
    assert play.recent.equal(play.source.context)
    for action in (1, 2):
        play.act(action)
        frames = [*play.source.context, *play.frames[1:]]
        assert play.recent.equal(torch.stack(frames[-2:]))
    before = play.steps
    list(play.dream_on(3, "track"))  # all of the toy's picture is steered, so it holds
    assert play.actions == [1, 2, 2, 2, 2] and play.steps == before + 3


def test_controls_are_tracked_too(begin):
    play = begin(CONTROLS, {})
    list(play.dream_on(2, "track"))
    assert play.actions == [[0, 0]] * 2


@pytest.mark.parametrize("steps", [0, -1, 2.5, "9", None])
def test_a_number_of_steps_that_is_none(begin, steps):
    with pytest.raises(UserError, match="steps must be a whole number from 1 on"):
        begin().dream_on(steps)


@pytest.mark.parametrize("policy", ["holds", "", 3, None, ["hold"]])
def test_a_policy_that_is_none(begin, policy):
    with pytest.raises(UserError, match="is not 'rest', 'hold', 'sticky', 'track' or a function of a Play"):
        begin().dream_on(3, policy)


def test_a_policy_whose_action_is_none(begin):
    play = begin()
    with pytest.raises(UserError, match="must be an integer from 0 to 2"):
        list(play.dream_on(3, lambda _: 7))
    assert play.steps == 0


def test_each_reset_draws_anew_and_says_how_it_did(begin, monkeypatch):
    play, start = begin(), Steered._start
    drawn = []

    def noisy(self, context, generator):
        drawn.append(generator.initial_seed())
        return start(self, context, generator) + 0.2 * torch.randn(context[:, -1].shape, generator=generator)

    monkeypatch.setattr(Steered, "_start", noisy)
    seen = []
    for seed in (1, 2):
        play.reset("episode_1", 7)
        seen.append(play.act(1))
        assert play.seed == seed == drawn[-1]
        assert seen[-1].equal(rollout(play.system, play.source.context, 1, [1], seed)[0])
    assert not seen[0].equal(seen[1])


def test_what_is_kept_of_a_long_play_does_not_grow(begin, tmp_path, monkeypatch):
    play = begin()
    monkeypatch.setattr(dream, "ROOM", 10 * play.frames[0].nbytes + 1)
    made = list(play.dream_on(9))
    assert len(play.frames) == 10 and len(play.actions) == 9
    made += list(play.dream_on(50))
    assert len(play.frames) == 10 and len(play.actions) == 9 and play.steps == 59
    assert torch.stack(play.frames).equal(torch.stack(made[-10:]))
    for i, action in enumerate(play.actions):
        assert play.frames[i + 1].equal(play.frames[i].roll(action, 1))
    with Image.open(play.save(tmp_path / "newest")[1]) as image:
        assert image.n_frames == 10
    monkeypatch.setattr(dream, "ROOM", 1)  # two, however large they are
    play.act(2)
    assert len(play.frames) == 2 and play.actions == [2]


def test_a_play_of_ten_thousand_steps_is_kept_nearly_whole():
    assert dream.ROOM // (64 * 64 * 3) == 8192


@pytest.mark.clocked
def test_the_last_step_is_as_fast_as_the_first(begin):
    """In turn with a young dream, as the machine's speed changes."""
    old, young = begin(), begin()
    for _ in range(2900):
        old.act(1)

    def seconds(play):
        began = time.perf_counter()
        play.act(1)
        return time.perf_counter() - began

    ratio = statistics.median(seconds(old) / seconds(young) for _ in range(200))
    print(f"a late step takes {ratio:.2f} of an early one")
    assert ratio < 1.2


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
        assert (video.streams.video[0].width, video.streams.video[0].height) == (128 + 4 + 128, 30 + 128)


def test_the_dream_goes_on_from_the_real_game(pong, tmp_path, monkeypatch):
    play = Play(open_run(steered_run(monkeypatch, tmp_path, pong)))
    for action in (2, 2, 3, 2):
        play.act(action)
    assert play.parted and not play.frames[-1].equal(play.real[-1])
    play.sync()
    assert play.frames[-1].equal(play.real[-1]) and play.recent.equal(torch.stack(play.real[-2:]))
    assert play.parted is None and play.synced == 4 and len(play.frames) == len(play.real) == 5
    assert play.act(2).equal(play.real[-2].roll(2, 1))
    play.reset()
    play.sync()  # at once: the recorded frames
    assert play.act(3).equal(play.source.context[-1].roll(3, 1))

    play.reset()
    play.sync_when = 3
    for step in range(1, 8):
        shown = play.act(3)
        assert shown.equal(play.real[-1]) == (step % 3 == 0) and play.synced == (step // 3 * 3 or None)
    play.reset()
    play.sync_when = "parted"
    list(play.dream_on(20))
    assert play.parted is None and 3 <= play.synced <= 20
    play.sync_when = "12"
    with pytest.raises(
        UserError, match="sync_when must be None, 'parted' or a whole number of steps, not '12'"
    ):
        play.act(3)


def test_without_a_real_game_there_is_nothing_to_sync_with(begin):
    play = begin()
    play.sync_when = 1
    play.act(1)
    with pytest.raises(UserError, match="no real game to sync with: the recording names no game"):
        play.sync()


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


def test_a_real_game_that_fails_on_the_way_leaves_the_dream_going(dot, tmp_path, monkeypatch):
    def fail(self, *_):
        raise RuntimeError("the engine\nfell over")

    dot.reset("episode_2", 2)
    dot.act(dot.choices[1][1])
    with monkeypatch.context() as patch:
        patch.setattr(Dot, "step", fail)
        patch.setattr(Dot, "close", fail)
        list(dot.dream_on(3))
        assert dot.steps == 4 and len(dot.frames) == len(dot.real) == 5
        assert dot.over and dot.alone == "the engine fell over" and dot.real[-1].equal(dot.real[1])
        dot.save(tmp_path / "until then")
        with pytest.raises(UserError, match="the real game is over"):
            dot.sync()
        dot.reset()
    dot.reset("episode_2", 2)
    assert not dot.over and dot.alone == "" and len(dot.real) == 1


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


def test_a_dream_that_follows_the_real_game_has_not_parted(pong, tmp_path, monkeypatch):
    play = Play(open_run(steered_run(monkeypatch, tmp_path, pong)))
    play.reset("episode_2", 20)
    game = play.real, play._game
    follow_the_game(play, monkeypatch, lambda frame: frame)
    list(play.dream_on(60))
    assert play.parted is None and play.alone == "" and (play.real, play._game) == game
    assert torch.stack(play.real).equal(torch.stack(play.frames))


def follow_the_game(play, monkeypatch, change):
    """Let the dream show what the real game will: `change(frame)` of it, uint8 `[H, W, 3]`."""
    twin = RealGame(play.dataset, *play.start)

    def step(state, action):
        return state, to_float(change(twin.step(action[0])))[None]

    monkeypatch.setattr(play.system, "step", step)


def spot(size, weakness=0):
    """Draw a spot of `size` x `size` pixels, far from all that moves in Pong."""

    def draw(frame):
        frame = frame.clone()
        colour = torch.tensor([236, 236, 236]) if not weakness else frame[30, 32].int() + weakness
        frame[30 : 30 + size, 32 : 32 + size] = colour.to(torch.uint8)
        return frame

    return draw


@pytest.mark.versionless  # our own choice of pixels
def test_parted_is_when_something_is_in_one_picture_alone(pong, tmp_path, monkeypatch):
    system = open_run(steered_run(monkeypatch, tmp_path, pong))
    for change, first, last, parted in (
        (spot(2), 5, 40, 5),
        (spot(2), 5, 7, 5),
        (spot(2), 5, 6, None),  # for two steps
        (spot(1), 5, 40, None),  # a pixel
        (spot(20, weakness=25), 5, 40, None),  # as far from the median as a dream errs
        (spot(20, weakness=26), 5, 40, 5),
    ):
        play = Play(system)
        play.reset("episode_2", 20)

        def within(frame, play=play, change=change, first=first, last=last):
            return change(frame) if first <= play.steps + 1 <= last else frame

        with monkeypatch.context() as patch:
            follow_the_game(play, patch, within)
            list(play.dream_on(40, "hold"))
        assert play.parted == parted
        play.reset()
        assert play.parted is None


@pytest.mark.parametrize(
    ("moved", "side", "parted"), [(0, 64, None), (2, 64, None), (5, 64, 1), (5, 160, None), (8, 160, 1)]
)
def test_what_is_a_little_beside_has_not_parted(moved, side, parted):
    frames = torch.full((300, side, side, 3), 90, dtype=torch.uint8)
    frames[:100, 20:30, 20:30] = 200  # it is there for a third of the time
    parting = Parting(frames.median(0).values)
    for step in (1, 2, 3):
        parting.compare(step, frames[0], frames[0].roll(moved, 1))
    assert parting.step == parted


def test_a_dream_without_the_real_game_parts_from_nothing(begin):
    play = begin()
    list(play.dream_on(5))
    assert play.real is None and play.parted is None


def test_the_real_game_is_kept_as_long_as_the_dream(dot, tmp_path, monkeypatch):
    dot.reset("episode_2", 2)
    monkeypatch.setattr(dream, "ROOM", 5 * dot.frames[0].nbytes)
    list(dot.dream_on(12, "hold"))
    assert len(dot.real) == len(dot.frames) == 5 and dot.over
    dot.save(tmp_path / "over")
