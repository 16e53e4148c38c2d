"""How long dreams last: a game of a ball and a paddle, and dreams of it that lose the ball, freeze or decay."""

import dataclasses
import json
import types

import numpy as np
import pytest
import torch
from conftest import drawn
from toys import ToyAutoencoder, ToyConfig, ToyPlayer, ToyStage

from mtld_core.data import Arc, Dataset
from mtld_core.frames import evenly, to_float
from mtld_core.judge import checkpoint
from mtld_core.judge.life import Life, falls_apart, sticky_actions, windows
from mtld_core.judge.rollouts import Judge
from mtld_core.judge.task import JudgeConfig, Task
from mtld_core.pages import table_html
from mtld_core.systems.base import Needs, System
from mtld_core.train import fit
from mtld_core.train.controls import Controls
from mtld_core.train.settings import TrainConfig, build

SIDE, PADDLE = 32, 6
EPISODES, FRAMES, HELD = 8, 150, 2  # the last ones are held out


def picture(ball, paddle):
    """uint8 `[32, 32, 3]`: a ball of 2x2 pixels and a paddle of 6x2 before a board of squares."""
    y, x = np.mgrid[:SIDE, :SIDE]
    frame = np.repeat((60 + 60 * ((y // 8 + x // 8) % 2))[..., None], 3, -1)
    frame[ball[0] : ball[0] + 2, ball[1] : ball[1] + 2] = (255, 250, 250)
    frame[paddle : paddle + PADDLE, SIDE - 2 :] = (0, 255, 0)
    return frame.astype(np.uint8)


def moved(ball, speed, paddle, action):
    """A step of the game: the ball bounces, the paddle goes up (1), down (2), or stays (0)."""
    speed = [-v if not 0 <= p + v <= SIDE - 4 else v for p, v in zip(ball, speed, strict=True)]
    ball = [p + v for p, v in zip(ball, speed, strict=True)]
    return ball, speed, min(max(paddle + (0, -1, 1)[int(action)], 0), SIDE - PADDLE)


def recording():
    chance = np.random.default_rng(0)
    frames, actions = [], sticky_actions(3, FRAMES, EPISODES).T.flatten()
    for episode in range(EPISODES):
        ball, speed = chance.integers(0, SIDE - 4, 2).tolist(), chance.choice([-1, 1], 2).tolist()
        paddle = int(chance.integers(SIDE - PADDLE))
        for t in range(FRAMES):
            frames.append(picture(ball, paddle))
            ball, speed, paddle = moved(ball, speed, paddle, actions[FRAMES * episode + t])
    arcs = [Arc(str(i), FRAMES * i, FRAMES * (i + 1), np.arange(FRAMES)) for i in range(EPISODES)]
    frames = torch.from_numpy(np.stack(frames))
    return Dataset("memory", "arcs", frames, arcs, np.zeros(0, np.int64), actions)


class Game(System):
    """Dreams of the game that know it: two frames tell where everything is and goes."""

    name, Config, action_space = "game", ToyConfig, 3

    def __init__(self, config=ToyConfig(SIDE, SIDE)):  # noqa: B008 (frozen)
        super().__init__(config)
        self.nothing = torch.nn.Parameter(torch.zeros(1))

    def needs(self):
        return Needs(window=3, context=2, actions=True)

    def _start(self, context, generator):
        balls, paddles = context[:, :, 2] > 0.9, context[:, -1, 0] < -0.99
        states = []
        for (before, now), paddle in zip(balls, paddles, strict=True):
            ball, earlier = (mask.nonzero().min(0).values.tolist() for mask in (now, before))
            speed = [a - b for a, b in zip(ball, earlier, strict=True)]
            states.append((ball, speed, int(paddle.nonzero()[0, 0])))
        return states, 0, generator

    def step(self, state, action=None):
        states, t, generator = state
        states = [moved(*each, a) for each, a in zip(states, action, strict=True)]
        frames = to_float(torch.from_numpy(np.stack([picture(ball, paddle) for ball, _, paddle in states])))
        return (states, t + 1, generator), self.seen(frames, t, generator)

    def seen(self, frames, t, generator):
        return frames


class WithoutBall(Game):
    def seen(self, frames, t, generator):
        board = to_float(torch.from_numpy(picture((0, 0), 0)))
        board[:, :2, :2] = board[:, 2:4, :2]  # where picture() put the ball
        return torch.cat([board[..., :-2].expand(len(frames), -1, -1, -1), frames[..., -2:]], -1)


class Hazy(Game):
    """The board alone is too bright, by four levels."""

    def seen(self, frames, t, generator):
        return torch.where(frames.abs() < 0.6, frames + 8 / 255, frames)


class Noisy(Game):
    """Noise grows, to a fifth of the range in 100 steps."""

    def seen(self, frames, t, generator):
        return frames + 4e-7 * t**3 * torch.randn(frames.shape, generator=generator)


class Frozen(Game):
    def step(self, state, action=None):
        states, *others = state
        frames = to_float(torch.from_numpy(np.stack([picture(ball, paddle) for ball, _, paddle in states])))
        return (states, *others), frames


@pytest.fixture(scope="module")
def dataset():
    return recording()


def life_of(dataset, system, horizon=100, held=HELD):
    learned = torch.arange(FRAMES * (EPISODES - held))
    needs = system.needs()
    starts = torch.cat([dataset.arc_windows(arc, 3) for arc in dataset.arcs[-HELD:]])
    return Life(dataset, starts, learned, dataset.frames[evenly(learned, 512)], needs, horizon)


def judged(dataset, system, **settings):
    return life_of(dataset, system, **settings)(system)


def test_the_game_itself_lasts_as_long_as_it_is_played(dataset):
    figures = judged(dataset, Game())
    for name in ("life", "life_recorded"):
        life = figures[name]
        assert (
            life["until"] == [16, 64, 100]
            and len({len(life[key]) for key in life if key[:5] != "real_"}) == 1
        )
        assert life["static_psnr"] == pytest.approx([life["real_static_psnr"]] * 3, abs=1)
        assert life["real_precision"] > 0.8
        assert life["motion"] == pytest.approx([1] * 3, abs=0.25)
        assert min(life["precision"]) > 0.8
        shares = np.array(life["coverage"]) / life["real_coverage"]
        assert shares[1:].min() > 0.8
    assert falls_apart(figures) == []


def test_a_dream_without_the_ball_covers_little_of_what_moves(dataset):
    figures = judged(dataset, WithoutBall())
    life = figures["life"]
    assert min(life["precision"]) > 0.9 and min(life["static_psnr"]) > 60  # all that it shows is right
    assert life["coverage"][-1] < 0.4 * life["real_coverage"][-1]
    [line] = falls_apart(figures)
    assert line.startswith("the dream falls apart after about 0 steps: in the end ")
    assert "it shows" in line and "looks like" not in line


def test_a_dream_that_decays_loses_static_and_precision_by_and_by(dataset):
    figures = judged(dataset, Noisy())
    life = figures["life"]
    assert life["static_psnr"][0] > 28 > life["static_psnr"][1] > 20 > life["static_psnr"][2]
    assert life["precision"][0] > 0.8 and life["precision"][2] < 0.2
    [line] = falls_apart(figures)
    assert "after about 16 steps" in line and "what is static is at" in line and "looks like" in line


def test_a_frozen_dream_does_not_move(dataset):
    figures = judged(dataset, Frozen())
    life = figures["life"]
    assert life["motion"] == [0, 0, 0] and min(life["precision"]) > 0.9
    assert life["coverage"][-1] < 0.5 * life["real_coverage"][-1]
    assert "it moves 0.0 times as much as the recording" in falls_apart(figures)[0]


def test_the_recorded_actions_lead_to_the_recorded_frames(dataset):
    system = Game()
    life = life_of(dataset, system, horizon=400)
    # eight windows go on so far, at the beginnings of two episodes
    assert life.reach == FRAMES - 2 - 3 and life.far.tolist() == [*range(900, 904), *range(1050, 1054)]
    actions = dataset.actions[torch.arange(life.reach)[:, None] + life.far + 1]
    for t, frames in enumerate(life._dream(system, life.far, life.reach, actions, lambda: None)):
        assert torch.equal(frames, dataset.frames[life.far + 2 + t])
    found = life(system)
    assert found["life"]["until"] == [16, 64, 128, 256, 400]
    assert found["life_recorded"]["until"] == [16, 64, 128, 145]


def test_a_clip_learned_by_heart_is_not_compared_with_itself(dataset):
    """Where all windows train and judge, each would be its own neighbour."""
    life = life_of(dataset, Game(), held=0)
    assert len(life.rows) == FRAMES * EPISODES // 2
    assert 0.5 < life.real["real_precision"] < 1
    assert len(life_of(dataset, Game()).rows) == FRAMES * (EPISODES - HELD)


def test_judging_is_the_same_every_time_and_samples(dataset):
    system = Noisy()
    one, other = (judged(dataset, system, horizon=10) for _ in range(2))
    assert one == other
    handed = []
    system.seen = lambda frames, t, generator: handed.append(generator) or frames
    judged(dataset, system, horizon=2)
    assert all(isinstance(each, torch.Generator) for each in handed) and len(handed) == 4


def test_a_system_without_actions_rolls_on(dataset):
    class Alone(Game):
        action_space = None

        def needs(self):
            return Needs(window=3, context=2)

        def step(self, state, action=None):
            assert action is None
            return super().step(state, [0] * len(state[0]))

    figures = judged(dataset, Alone(), horizon=20)
    assert list(figures) == ["life"] and figures["life"]["until"] == [16, 20]


def test_where_nothing_is_static_or_moves_there_is_nothing_to_say():
    chance = torch.Generator().manual_seed(0)
    noise = torch.randint(256, (60, SIDE, SIDE, 3), generator=chance).byte()
    still = torch.full_like(noise, 7)
    arcs = [Arc("all", 0, 60, np.arange(60))]
    found = []
    for frames in (noise, still):
        data = Dataset("memory", "arcs", frames, arcs, np.zeros(0, np.int64), torch.zeros(60).long())
        life = Life(data, torch.arange(40, 50), torch.arange(40), frames[:40], Game().needs(), 4)

        class Last(Game):
            def _start(self, context, generator):
                return context[:, -1]

            def step(self, state, action=None):
                return state, state

        figures = life(Last())
        found.append(figures["life"])
        json.dumps(figures, allow_nan=False)
        falls_apart(figures)
    assert found[0]["static_psnr"] == [None] and found[1]["static_psnr"] == [100]
    assert found[1]["motion"] == found[1]["precision"] == found[1]["coverage"] == [None]


def test_windows_of_time():
    assert windows(5) == [(0, 5)] and windows(16) == [(0, 16)]
    assert windows(1000)[-2:] == [(256, 512), (512, 1000)]
    assert windows(10_000)[-1] == (1000, 10_000) and windows(20_000)[-1] == (10_000, 20_000)


def test_random_actions_stick_and_are_the_same_every_time():
    actions = sticky_actions(4, 4000, 8)
    assert actions.shape == (4000, 8) and torch.equal(actions, sticky_actions(4, 4000, 8))
    assert actions.flatten().bincount().tolist() == pytest.approx([8000] * 4, rel=0.1)
    repeated = (actions[1:] == actions[:-1]).double().mean()
    assert repeated == pytest.approx(0.75 + 0.25 / 4, abs=0.01)
    controls = sticky_actions(([-1.0, 0.0], [1.0, 10.0]), 2000, 8)
    assert controls.shape == (2000, 8, 2) and controls.dtype == torch.float32
    assert controls.amin((0, 1)).tolist() == pytest.approx([-1, 0], abs=0.1)
    assert controls.amax((0, 1)).tolist() == pytest.approx([1, 10], abs=0.1)
    assert (controls[1:] == controls[:-1]).all(-1).double().mean() == pytest.approx(0.75, abs=0.02)


def test_a_few_steps_tell_how_long_all_take(dataset):
    system, ticks = Game(), []
    life = life_of(dataset, system)
    some = life.few(1 / 10)
    assert (some.horizon, some.reach, life.horizon, life.reach) == (10, 10, 100, 100)
    for each in (some, life):
        count = len(ticks)
        each(system, lambda: ticks.append(1))
        assert len(ticks) - count == each.horizon + each.reach  # so a tick may give it up at each step

    def give_up():
        raise TimeoutError

    with pytest.raises(TimeoutError):
        life(system, give_up)


def test_the_sheet_shows_dreams_of_several_ages(dataset):
    system = Game()
    life = life_of(dataset, system)
    life(system)
    rows, labels, columns = life.sheet
    assert labels == ["dream 1", "dream 2", "dream 3", "dream 4"] and columns == ["+0", "+64", "+100"]
    assert torch.equal(rows[0][0], dataset.frames[life.starts[0] + 1])


# ---- the setting, in a run


def train(tmp_path, dataset, cls=ToyPlayer, said=None, **settings):
    system = build(cls, ToyConfig(), dataset)
    config = TrainConfig(
        run_dir=str(tmp_path / "run"), steps=4, batch_size=4, save_every_minutes=0, eval_windows=4, **settings
    )
    return fit(system, dataset, config, Controls((said if said is not None else []).append))


def test_a_run_says_how_long_its_dreams_last(dataset, tmp_path):
    said = []
    small = dataclasses.replace(dataset, actions=dataset.actions.clamp(max=1))
    with drawn():
        report = train(tmp_path, small, said=said, life_horizon=20)
    assert report["metrics"]["life"]["until"] == report["metrics"]["life_recorded"]["until"] == [16, 20]
    assert (tmp_path / "run" / "previews" / "life_00000004.png").exists()
    [line] = [line for line in said if "falls apart" in line]
    assert line.startswith("warning: the dream falls apart after about 0 steps") and report["alarms"]
    assert "life" not in table_html(report["metrics"])
    judgement = (tmp_path / "run" / "judgement.png").stat().st_size
    with drawn():
        report = train(tmp_path / "without", small)
    assert not {"life", "life_recorded"} & report["metrics"].keys() and not falls_apart(report["metrics"])
    assert not list((tmp_path / "without" / "run" / "previews").glob("life*"))
    assert (tmp_path / "without" / "run" / "judgement.png").stat().st_size < judgement


def test_a_checkpoint_is_judged_for_longer_than_its_run_was(dataset, tmp_path, monkeypatch, capsys):
    system = Game()
    system.run = types.SimpleNamespace(dir=tmp_path, checkpoint="step_00000007", training={"eval_windows": 4})
    monkeypatch.setattr("mtld_core.judge.task.open_run", lambda *place: system)
    monkeypatch.setattr(checkpoint, "own_dataset", lambda *_, **__: dataset)
    assert "life" not in checkpoint.judge(tmp_path)
    assert checkpoint.main([str(tmp_path), "--life_horizon", "5"]) == 0
    assert json.loads(capsys.readouterr().out)["life"]["until"] == [5]


def test_what_rebuilds_has_no_dreams(dataset):
    plain = dataclasses.replace(dataset, actions=None)
    for cls, there in ((ToyAutoencoder, False), (ToyStage, True)):
        system = build(cls, ToyConfig(), plain)
        task = Task(system, plain, JudgeConfig(life_horizon=5, eval_windows=4))
        assert (task.life is not None) == there
        few, share = task.few(0.5)
        assert share == 0.5 and (not there or few.life.horizon == 2)
        assert ("life" in task.figures(system)) == there


# ---- skill over what moves


def test_the_skill_over_what_moves_sees_a_ball_that_is_gone(dataset):
    starts = torch.cat([dataset.arc_windows(arc, 10) for arc in dataset.arcs[-HELD:]])
    learned = dataset.frames[: FRAMES * (EPISODES - HELD)]
    judge = Judge(dataset, starts, Game().needs(), 4, learned, max_windows=16, reach=6)
    figures = {cls: judge(cls()) for cls in (Game, WithoutBall, Frozen, Hazy)}
    for each in figures.values():
        assert len(each["moving_skill_db_by_horizon"]) == 6
    assert figures[Game]["moving_skill_db"] > 60
    assert figures[WithoutBall]["moving_skill_db"] < 6
    assert figures[Frozen]["moving_skill_db"] <= 0
    # what is a little wrong where nothing moves, the whole frame alone sees
    assert figures[Hazy]["moving_skill_db"] > figures[Hazy]["skill_db"] + 10


def test_the_skill_over_what_moves_by_hand():
    """One pixel moves, and the model draws it at half of its brightness and a second one by mistake."""
    frames = torch.zeros(12, 8, 8, 3, dtype=torch.uint8)
    frames[torch.arange(12), 0, torch.arange(12) % 8] = 200

    class Half(Game):
        def _start(self, context, generator):
            return context[:, -1]

        def step(self, state, action=None):
            bright = (state + 1).roll(1, -1)
            frame = bright / 2 - 1
            frame[:, :, 5, 5] = 100 / 127.5 - 1
            frame[:, :, 7, 7] = 10 / 127.5 - 1  # too dark to count
            return bright - 1, frame

    data = Dataset(
        "m", "arcs", frames, [Arc("a", 0, 12, np.arange(12))], np.zeros(0, np.int64), torch.zeros(12)
    )
    judge = Judge(data, torch.arange(3), Half().needs(), 1, frames)
    figures = judge(Half(ToyConfig(8, 8)))
    # median: 200^2 at the pixel; model: 100^2 there, and 100^2 at the other
    assert figures["moving_skill_db"] == pytest.approx(10 * np.log10(200**2 / (100**2 + 100**2)))
    assert figures["moving_skill_db_by_horizon"] == [figures["moving_skill_db"]]
    still = dataclasses.replace(data, frames=torch.zeros_like(frames))
    figures = Judge(still, torch.arange(3), Half().needs(), 1, still.frames)(WithoutAnything(ToyConfig(8, 8)))
    assert figures["moving_skill_db"] is None and figures["moving_skill_db_by_horizon"] == [None]


class WithoutAnything(Game):
    def _start(self, context, generator):
        return context[:, -1]

    def step(self, state, action=None):
        return state, state
