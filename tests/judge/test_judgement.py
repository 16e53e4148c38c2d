"""How systems that are steered by actions are judged, the long horizon, and the alarms."""

import json

import numpy as np
import pytest
import torch
from conftest import drawn
from PIL import Image
from toys import ToyConfig, ToyPlayer

from mtld_core.data import Arc, Dataset
from mtld_core.judge import rollouts
from mtld_core.judge.rollouts import Judge, held_actions
from mtld_core.judge.windows import reachable
from mtld_core.systems.base import Needs, System
from mtld_core.train import fit
from mtld_core.train import report as alarms_module
from mtld_core.train.controls import Controls
from mtld_core.train.plots import draw_judgement
from mtld_core.train.settings import TrainConfig, build

SIDE = 8


class Mover(System):
    """The picture moves to the right by the action, in columns; nothing is learnt."""

    name, Config, action_space = "mover", ToyConfig, 3
    wanted = Needs(window=6, context=2, actions=True)

    def __init__(self, config=ToyConfig(SIDE, SIDE)):  # noqa: B008 (frozen)
        super().__init__(config)
        self.nothing = torch.nn.Parameter(torch.zeros(1))

    def needs(self):
        return self.wanted

    def _start(self, context, generator):
        return context[:, -1]

    def step(self, state, action=None):
        frame = torch.stack(
            [torch.roll(frame, round(float(a)), -1) for frame, a in zip(state, action, strict=True)]
        )
        return frame, frame


class Seer(Mover):
    """The same, but it asks for no actions: it sees them in the clip."""

    wanted = Needs(window=6, context=2)

    def infer_actions(self, frames):
        place = frames[:, :, 0, 0].argmax(-1)
        return (place[:, 1:] - place[:, :-1]) % SIDE


class Deaf(Mover):
    """It takes actions and moves by one all the same; by noise, too, where it is given a generator."""

    def _start(self, context, generator):
        return context[:, -1], generator

    def step(self, state, action=None):
        frame, chance = state
        frame = torch.roll(frame, 1, -1) + 0.1 * torch.randn(frame.shape, generator=chance)
        return (frame, chance), frame


class Slider(Mover):
    """Its action is a number in a range."""

    action_space = [0.0], [2.0]


def clip(actions, arcs=1):
    """A white column on black that moves by `actions` `[N]`; N frames in arcs of equal length."""
    place = torch.cat([torch.zeros(1, dtype=torch.int64), actions.cumsum(0)[:-1]]) % SIDE
    frames = torch.zeros(len(actions), SIDE, SIDE, 3, dtype=torch.uint8)
    frames[torch.arange(len(actions)), :, place] = 255
    each = len(actions) // arcs
    spans = [Arc(f"arc_{i}", each * i, each * (i + 1), np.arange(each)) for i in range(arcs)]
    return Dataset("memory", "arcs", frames, spans, np.zeros(0, np.int64), actions)


def random_actions(count):
    return torch.randint(3, (count,), generator=torch.Generator().manual_seed(1))


def judge(dataset, system, horizon=4, reach=0, **settings):
    needs = system.needs()
    starts = dataset.windows(needs.context + max(horizon, reach))
    return Judge(dataset, starts, needs, horizon, dataset.frames, reach=reach, **settings)


@pytest.mark.parametrize("kind", [Mover, Seer])
@pytest.mark.parametrize("reach", [0, 9])
def test_each_action_leads_to_its_own_frame(kind, reach):
    """The true rollout is exact; with the actions a frame earlier or later it is not, so a shift cannot
    hide.
    """
    dataset, system = clip(random_actions(80)), kind()
    judged = judge(dataset, system, reach=reach)
    figures = judged(system)
    assert figures["psnr_by_horizon"] == [100.0] * max(4, reach) and figures["skill_db"] > 50
    own = judged._actions(system, judged.starts, 4)
    assert torch.equal(own, dataset.actions[judged.starts[:, None] + 1 + torch.arange(4)])
    for shift in (-1, 1):
        made = judged.made_by(
            system, judged.starts, 3, dataset.actions[judged.starts[:, None] + 1 + shift + torch.arange(3)]
        )
        assert not torch.equal(made[:, 0], judged.truth(judged.starts)[:, 0])


def test_the_shuffle_gap_tells_who_obeys():
    dataset = clip(random_actions(80))
    obeys, ignores = (judge(dataset, system)(system) for system in (Mover(), Deaf()))
    assert obeys["action_shuffle_gap_db"] > 60
    assert ignores["action_shuffle_gap_db"] == 0  # exactly: even its noise is the same under all actions
    assert obeys["controllability_db"] > -3 and ignores["controllability_db"] < -60


def test_shuffled_actions_are_those_of_other_windows_every_one(monkeypatch):
    dataset, system, asked = clip(random_actions(40)), Mover(), []
    monkeypatch.setattr(rollouts, "TOGETHER", 7)
    judged = judge(dataset, system)
    honest = judged._actions
    monkeypatch.setattr(
        judged,
        "_actions",
        lambda system, starts, horizon: asked.append(starts) or honest(system, starts, horizon),
    )
    errors = torch.ones(len(judged.starts), 4)
    judged._steering(system, errors, errors, lambda: None)
    assert not (torch.cat(asked) == judged.starts).any()
    assert torch.equal(torch.cat(asked).sort().values, judged.starts)


def test_controllability_by_hand():
    """The column stands and moves by one in turn. Two different actions always part by 2 of 8 columns: MSE
    1/4.

    After one frame the truth has moved in half of the windows (1/8), after two in all (1/4).
    """
    dataset, system = clip(torch.arange(20) % 2), Mover()
    figures = judge(dataset, system, horizon=2)(system)
    assert figures["windows"] == 17  # an odd number would not give halves: 9 move, 8 stand
    wanted = [10 * np.log10(0.25 / (0.25 * 9 / 17)), 0]
    assert figures["controllability_db_by_horizon"] == pytest.approx(wanted)
    assert figures["controllability_db"] == pytest.approx(10 * np.log10(0.25 / (0.125 * 26 / 17)))


def test_which_actions_are_held():
    assert (
        held_actions(1).tolist() == [0]
        and held_actions(3).tolist() == [0, 1, 2]
        and held_actions(18).tolist() == [0, 6, 11, 17]
    )
    assert held_actions(([0.0, -1.0], [2.0, 1.0])).tolist() == [[0, -1], [1, 0], [2, 1]]


def test_actions_from_a_range_are_judged_alike():
    dataset = clip(random_actions(60))
    dataset.actions = dataset.actions[:, None].float()
    system = Slider()
    judged = judge(dataset, system)
    figures = judged(system)
    assert (
        figures["psnr"] == 100
        and figures["action_shuffle_gap_db"] > 60
        and figures["controllability_db"] > -3
    )
    rows, labels, columns = judged.steered(system)
    assert labels == ["all low", "middle", "all high"] and columns == ["+1", "+2", "+4"] and len(rows[0]) == 3


def test_a_single_window_or_action_gives_the_figures_that_it_can():
    dataset, system = clip(torch.zeros(6, dtype=torch.int64)), Mover()
    figures = judge(dataset, system)(system)
    assert (
        figures["windows"] == 1 and "controllability_db" in figures and "action_shuffle_gap_db" not in figures
    )
    system.action_space = 1
    dataset = clip(torch.zeros(9, dtype=torch.int64))
    judged = judge(dataset, system)
    assert "controllability_db" not in judged(system) and judged.steerable is None


def test_the_picture_of_held_actions_names_and_steers():
    dataset, system = clip(random_actions(80)), Mover()
    dataset.about = {"action_names": ["stay", "right"]}
    judged = judge(dataset, system)
    judged(system)
    rows, labels, columns = judged.steered(system)
    assert labels == ["stay", "right", "action 2"] and columns == ["+1", "+2", "+4"]
    now = int(judged._frames(judged.steerable, 1, 1)[0, 0, 0, :, 0].argmax())
    places = [[int(frame[0, :, 0].argmax()) for frame in row] for row in rows]
    assert places == [[(now + a * h) % SIDE for h in (1, 2, 4)] for a in range(3)]
    seer = Seer()
    seen = judge(dataset, seer)
    seen(seer)
    assert seen.steered(seer)[1] == [
        "action 0",
        "action 1",
        "action 2",
    ]  # its actions are no buttons of the recording


def test_judging_can_be_given_up_between_the_pieces_of_steering():
    dataset, system, calls = clip(random_actions(60)), Mover(), []
    judged = judge(dataset, system)
    errors = torch.ones(len(judged.starts), 4)
    judged._steering(system, errors, errors, lambda: calls.append(1))
    assert len(calls) == 4 + 2 * 3  # 55 windows shuffled in 4 pieces, 32 windows under 3 actions in 2


# ---- the long horizon


def test_a_long_horizon_lengthens_the_lists_and_leaves_the_averages():
    dataset, system = clip(random_actions(80)), Deaf()
    figures = judge(dataset, system, horizon=3, reach=10)(system)
    for name in ("psnr", "skill_db", "baseline_copy_psnr", "baseline_median_psnr"):
        assert len(figures[f"{name}_by_horizon"]) == 10
    for name in ("psnr", "baseline_copy_psnr", "baseline_median_psnr"):
        assert figures[name] == pytest.approx(np.mean(figures[f"{name}_by_horizon"][:3]))
    assert len(figures["controllability_db_by_horizon"]) == 3


def test_a_long_horizon_reaches_as_far_as_the_held_out_shots():
    dataset = clip(random_actions(60), arcs=2)  # rows 0..29 and 30..59
    held = torch.cat([torch.arange(10, 25), torch.arange(50, 55)])  # windows of 6 frames
    starts, reach = reachable(dataset, held, 2, 4, 0)
    assert reach == 4 and torch.equal(starts, held)
    starts, reach = reachable(dataset, held, 2, 4, 10)
    assert reach == 10 and starts.tolist() == list(
        range(10, 19)
    )  # a window from 18 ends with frame 18 + 2 + 10 - 1 = 29
    starts, reach = reachable(dataset, held, 2, 4, 40)
    assert reach == 11 and starts.tolist() == list(range(10, 18))  # eight windows are left
    dataset.cuts = np.array([20])
    assert (
        reachable(dataset, held[:1], 2, 4, 40)[1] == 8
        and reachable(dataset, held[:1], 2, 4, 40, cross_cuts=True)[1] == 18
    )


def five_arcs():
    """Of 24 frames; one is held out, with 22 windows of 3."""
    return clip(random_actions(120) % 2, arcs=5)


def run(tmp_path, dataset, said=None, **settings):
    system = build(ToyPlayer, ToyConfig(), dataset)
    settings = {"steps": 20, "batch_size": 4, "save_every_minutes": 0} | settings
    controls = Controls((said if said is not None else []).append)
    return fit(system, dataset, TrainConfig(run_dir=str(tmp_path / "run"), **settings), controls)


@pytest.mark.parametrize(("asked", "reached"), [(0, 2), (1, 2), (7, 7), (64, 16)])
def test_a_run_reaches_its_long_horizon_or_says_why_not(asked, reached, tmp_path):
    said, dataset = [], five_arcs()
    report = run(tmp_path, dataset, said, long_horizon=asked)
    metrics = report["metrics"]
    for name in ("psnr", "skill_db", "baseline_copy_psnr", "baseline_median_psnr"):
        assert len(metrics[f"{name}_by_horizon"]) == reached
    assert metrics["windows"] == 24 - reached
    assert ("judged up to horizon 16: too few held-out windows are longer" in said) == (asked == 64)
    [line] = [line for line in said if "to learn" in line]
    assert line.startswith("88 windows of 3 frames")  # a long horizon takes nothing from the training


# ---- pictures


@pytest.mark.parametrize("steered", [True, False])
def test_judgement_is_a_picture_of_whatever_was_measured(steered, tmp_path):
    predicted = {
        "psnr_by_horizon": [30.0, 28.0],
        "skill_db_by_horizon": [1.0, -1.0],
        "baseline_copy_psnr_by_horizon": [29, 29],
    }
    metrics = predicted | {"controllability_db": -3.0} if steered else {"psnr_by_horizon": [30.0]}
    (tmp_path / "judgement.png").write_bytes(draw_judgement(metrics))
    assert np.asarray(Image.open(tmp_path / "judgement.png")).shape[:2] == (795 if steered else 420, 720)


def test_a_run_writes_both_pictures_at_each_evaluation(tmp_path):
    with drawn():
        run(tmp_path, five_arcs(), eval_every_steps=10)
    names = sorted(path.name for path in (tmp_path / "run" / "previews").glob("actions_*.png"))
    assert names == ["actions_00000010.png", "actions_00000020.png"]
    assert (tmp_path / "run" / "judgement.png").stat().st_size > 5000


# ---- alarms


def test_nothing_is_an_alarm_while_training_begins(tmp_path, monkeypatch):
    said = []
    monkeypatch.setattr(ToyPlayer, "alarms", lambda self, figures: ["collapsed"] * ("loss" in figures))
    run(tmp_path, five_arcs(), said, log_every_steps=4)
    assert alarms_module.EARLY > 20 and not any("collapsed" in line for line in said)


def test_an_alarm_is_said_once_and_again_when_it_returns(tmp_path, monkeypatch):
    said, losses, early = [], [], 4

    def alarms(self, figures):
        if "loss" not in figures:  # an evaluation's
            return ["dull"] * (figures["psnr"] > 0)
        losses.append(figures["loss"])
        return ["collapsed"] * (len(losses) in (2, 3, 5)) + ["shrinking"] * (len(losses) == 3)

    monkeypatch.setattr(ToyPlayer, "alarms", alarms)
    monkeypatch.setattr(alarms_module, "EARLY", early)
    report = run(tmp_path, five_arcs(), said, log_every_steps=4, eval_every_steps=8)
    warnings = [
        line.removeprefix("warning: ")
        for line in said
        if line.startswith("warning: ") and "matter" not in line
    ]
    assert warnings == ["collapsed", "dull", "shrinking", "collapsed"] and len(losses) == 5
    assert [line for line in report["alarms"] if "matter" not in line] == ["collapsed", "dull"]
    assert report == json.loads((tmp_path / "run" / "report.json").read_text())


@pytest.mark.parametrize(("gap", "warned"), [(0.04, True), (-1.0, True), (0.06, False), (None, False)])
def test_actions_that_do_not_matter_are_an_alarm(gap, warned, tmp_path, monkeypatch):
    told = {} if gap is None else {"action_shuffle_gap_db": gap}
    monkeypatch.setattr(Judge, "_steering", lambda *_: told)
    said = []
    report = run(tmp_path, five_arcs(), said, eval_every_steps=10)
    lines = [line for line in said if "the actions do not matter" in line]
    assert len(lines) == warned == len(report["alarms"])
