"""Recording games: what is written opens, plays again exactly, and is the same for the same seed. Real Atari,
and toys.
"""

import importlib
import json
import math
import subprocess
import sys
from collections import namedtuple
from pathlib import Path

import gymnasium
import h5py
import numpy as np
import pytest
import torch
from gymnasium import spaces

from data_prep import record_game
from data_prep.games import frame_of, game_options, make_env
from data_prep.players import player
from data_prep.record_game import record
from mtld_core.config import UserError
from mtld_core.data import open_dataset

ROOT = Path(__file__).parents[2]
PONG = "ALE/Pong-v5"


class Dot(gymnasium.Env):
    """A dot that goes where it is sent; what is observed are its coordinates, the picture is rendered."""

    metadata = {"render_modes": ["rgb_array"], "render_fps": 10}  # noqa: RUF012

    def __init__(self, space, render_mode=None, broken=None):
        self.action_space, self.render_mode, self.broken = space, render_mode, broken
        self.observation_space = spaces.Box(0, 1, [2])

    def reset(self, seed=None, options=None):
        super().reset(seed=seed)
        self.place, self.time = self.np_random.random(2), 0
        return self.place, {}

    def step(self, action):
        move = action if isinstance(self.action_space, spaces.Box) else [action - 1, 0]
        self.place, self.time = np.clip(self.place + 0.1 * np.asarray(move), 0, 1), self.time + 1
        return self.place, 0.0, self.time >= 7, False, {}

    def render(self):
        picture = np.full((20, 30, 3), 50, np.uint8)
        row, column = (self.place * (19, 29)).astype(int)
        picture[row, column] = 255
        return picture if self.broken is None else self.broken


TOYS = {
    "Dot-v0": {"space": spaces.Discrete(3)},
    "DotBox-v0": {"space": spaces.Box(-1, 1, [2])},
    "DotBoth-v0": {"space": spaces.MultiDiscrete([2, 2])},
    "DotFar-v0": {"space": spaces.Box(-math.inf, 1, [2])},
    "DotShift-v0": {"space": spaces.Discrete(3, start=1)},
    "DotBytes-v0": {"space": spaces.Box(0, 255, [2], np.uint8)},
    "DotBlind-v0": {"space": spaces.Discrete(3), "broken": np.zeros((4, 4), np.float32)},
}


@pytest.fixture(autouse=True)
def toys():
    for name, options in TOYS.items():
        gymnasium.register(name, entry_point=Dot, kwargs=options)
    yield
    for name in TOYS:
        del gymnasium.registry[name]


def play(out, env=PONG, steps=40, **options):
    """Record and open: (what `record` says, the dataset)."""
    done = record(env, steps, out, progress=False, **{"size": 16, "episode_steps": 15} | options)
    return done, open_dataset(done["path"], progress=False)


def content(path):
    files = (
        [path]
        if path.is_file()
        else sorted(file for file in path.rglob("*") if file.is_file() and file.suffix != ".pyc")
    )
    return {str(file.relative_to(path)): file.read_bytes() for file in files}


# ---- what is written


@pytest.mark.parametrize(
    ("env", "policy"),
    [(PONG, "sticky"), (PONG, "lookahead"), ("Dot-v0", "sticky"), ("DotBox-v0", "sticky")],
)
@pytest.mark.parametrize("format", ["h5", "jsonl"])
def test_a_recording_opens_and_plays_again_exactly(tmp_path, env, policy, format):
    done, data = play(tmp_path / "out", env, format=format, policy=policy)
    assert data.about["env"] == env and data.warnings == [] and data.size == (16, 16)
    assert len(data.frames) == done["frames"] == 40 and len(data.arcs) == done["episodes"] == (
        3 if env == PONG else 6
    )
    bounds, actions = data.about.get("bounds"), data.actions
    assert (actions.dtype, actions.shape) == ((torch.float32, (40, 2)) if bounds else (torch.int64, (40,)))
    game = make_env(data.about["env"], data.about["env_options"])
    for arc, seed in zip(data.arcs, data.about["episode_seeds"], strict=True):
        observation, _ = game.reset(seed=seed)
        for row in range(arc.start, arc.stop):
            assert np.array_equal(frame_of(game, observation, data.about["size"]), data.frames[row]), (
                arc.name,
                row,
            )
            observation, *_ = game.step(actions[row].numpy() if bounds else int(actions[row]))
    game.close()


def test_both_formats_hold_the_same(tmp_path):
    (one, h5), (other, jsonl) = play(tmp_path / "a"), play(tmp_path / "b", format="jsonl")
    assert torch.equal(h5.frames, jsonl.frames) and torch.equal(h5.actions, jsonl.actions)
    assert h5.about == {k: v for k, v in jsonl.about.items() if k != "controls_lead_to"} and [
        arc.name for arc in h5.arcs
    ] == [arc.name for arc in jsonl.arcs]
    assert one["path"] == tmp_path / "a/recording.h5" and other["path"] == tmp_path / "b"
    lines = [json.loads(line) for line in (tmp_path / "b/recording_log.jsonl").read_text().splitlines()]
    assert lines[3]["controls"][lines[3]["action"]] == sum(lines[3]["controls"]) == 1
    assert lines[30]["timestamp"] == 30 * 4 / 60 and lines[30]["episode"] == 2
    pairs = [(h5.frames[row].double(), h5.frames[row + 1].double()) for row in h5.windows(2, cross_cuts=True)]
    error = np.mean([((a - b) / 255).square().mean() for a, b in pairs])
    assert one["copy_psnr"] == pytest.approx(-10 * np.log10(error))


def test_what_it_says_about_itself(tmp_path):
    _, data = play(tmp_path / "a.h5", steps=20, seed=5, repeat_probability=0.25, frameskip=3, policy="random")
    about = data.about
    assert about["env_options"] == {"frameskip": 3, "repeat_action_probability": 0.25, "obs_type": "rgb"}
    assert about["action_names"] == ["NOOP", "FIRE", "RIGHT", "LEFT", "RIGHTFIRE", "LEFTFIRE"]
    assert (about["frameskip"], about["fps"], about["seed"], about["policy"]) == (3, 20, 5, "random")
    _, data = play(tmp_path / "b.h5", "DotBox-v0", steps=20)
    assert data.about["action_names"] == ["0", "1"] and data.about["bounds"] == [[-1, -1], [1, 1]]
    assert (data.about["frameskip"], data.about["fps"]) == (1, 10)


@pytest.mark.parametrize("format", ["h5", "jsonl"])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"policy": "random"},
        {"policy": "lookahead", "repeat_probability": 0.5},
        {"env": "DotBox-v0"},
        {"repeat_probability": 0.5},
    ],
)
def test_the_same_seed_makes_the_same_bytes(tmp_path, format, options):
    paths = [
        play(tmp_path / name, format=format, seed=seed, **options)[0]["path"]
        for name, seed in (("a", 3), ("b", 3), ("c", 4))
    ]
    first, again, other = map(content, paths)
    assert first == again and first != other


def test_sticky_actions_are_held_and_random_ones_are_not(tmp_path):
    for policy, low, high in (("sticky", 5, 9), ("random", 1.2, 1.8)):
        _, data = play(tmp_path / policy, "Dot-v0", steps=600, policy=policy)
        changes = int((data.actions.diff() != 0).sum()) + 1
        assert low < 600 / changes < high, policy
        assert set(data.actions.tolist()) == {0, 1, 2}


def test_one_who_looks_ahead_keeps_his_points(tmp_path):
    def score(policy):
        """Points won less points lost, in a Pong of 300 steps."""
        game = make_env(PONG, game_options(PONG))
        choose = player(policy, game, np.random.default_rng(0))
        observation, info = game.reset(seed=3)
        total = 0
        for _ in range(300):
            observation, reward, _, _, info = game.step(choose(observation, info, None))
            total += reward
        return total

    assert score("lookahead") >= score("sticky") + 3
    refused(tmp_path / "out", "policy='lookahead' tries futures out, and Dot-v0 cannot", policy="lookahead")


def test_a_policy_of_ones_own(tmp_path, monkeypatch):
    (tmp_path / "mine.py").write_text(
        "def right(observation, info, rng):\n    return 2 if observation[1] < 0.5 else rng.integers(3)\n"
        "def left(observation, info, rng):\n    return 0\ndef up(observation, info, rng):\n    return 1\n"
        "def far(observation, info, rng):\n    return 3\ndef none(observation, info, rng):\n    pass\n"
        "def word(*_):\n    return 'up'\ndef ragged(*_):\n    return [[1], 2]\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    importlib.invalidate_caches()
    _, data = play(tmp_path / "a", "Dot-v0", policy="mine:right")
    assert (data.actions == 2).float().mean() > 0.4
    _, data = play(tmp_path / "turns", "Dot-v0", policy="mine:left,mine:up", steps=21)
    assert [data.actions[arc.start : arc.stop].unique().tolist() for arc in data.arcs] == [[0], [1], [0]]
    for name, chosen in (("mine:far", "3"), ("mine:none", "None")):
        refused(
            tmp_path / "b",
            rf"policy='{name}' chose {chosen}, which is no action of Discrete\(3\)",
            policy=name,
        )
    for name, chosen in (("mine:word", "'up'"), ("mine:ragged", r"\[\[1\], 2\]"), ("mine:none", "None")):
        match = rf"policy='{name}' chose {chosen}, which is no action of Box"
        refused(tmp_path / "b", match, "DotBox-v0", policy=name)
    refused(tmp_path / "b", "policy=':left' cannot be loaded", policy=":left")
    refused(tmp_path / "b", "policy='mine:down' cannot be loaded", policy="mine:down")
    refused(tmp_path / "b", "policy='nobody:left' cannot be loaded", policy="nobody:left")
    refused(tmp_path / "b", "policy='best' is not 'random', 'sticky', 'lookahead'", policy="best")


def test_a_game_of_another_package_is_found_by_its_module(tmp_path, monkeypatch):
    (tmp_path / "my_games.py").write_text(
        "import gymnasium\nfrom test_record_game import Dot\n"
        "gymnasium.register('DotMine-v0', Dot, kwargs={'space': gymnasium.spaces.Discrete(3)})\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.syspath_prepend(Path(__file__).parent)
    importlib.invalidate_caches()
    try:
        done, data = play(tmp_path / "out", "my_games:DotMine-v0")
    finally:
        gymnasium.registry.pop("DotMine-v0", None)
    assert done["frames"] == len(data.frames) == 40
    refused(tmp_path / "no", "is not known to Gymnasium: No module named 'no_games'", env="no_games:Dot-v0")


def test_where_no_frame_has_one_before_it_no_figure_is_made_up(tmp_path, monkeypatch, capsys):
    done = record("Dot-v0", 1, tmp_path / "one", size=16, progress=False)
    assert done["copy_psnr"] is None and done["frames"] == 1
    done = record("Dot-v0", 3, tmp_path / "apart", size=16, episode_steps=1, progress=False)
    assert done["copy_psnr"] is None and done["episodes"] == 3
    monkeypatch.setattr(
        sys, "argv", f"record_game --env Dot-v0 --steps 1 --size 16 --out {tmp_path}/c".split()
    )
    assert record_game.main() == 0
    assert capsys.readouterr().out.endswith("recording.h5: 1 frames in 1 episodes, 0.0 MB\n")


@pytest.mark.parametrize("format", ["h5", "jsonl"])
def test_a_game_that_names_no_rate_has_thirty_frames_a_second(tmp_path, monkeypatch, format):
    monkeypatch.setitem(Dot.metadata, "render_fps", None)
    _, data = play(tmp_path / "out", "Dot-v0", format=format)
    assert data.about["fps"] == 30


# ---- what is refused


def refused(out, match, env="Dot-v0", **options):
    """Refused in one line, and no file is left."""
    there = content(out.parent)
    with pytest.raises(UserError, match=match) as caught:
        play(out, env, **options)
    assert "\n" not in str(caught.value) and content(out.parent) == there


@pytest.mark.parametrize("format", ["h5", "jsonl"])
@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"steps": 0}, "steps must be 1 or more, not 0"),
        ({"size": 0}, "size must be 1 or more"),
        ({"repeat_probability": 1}, "repeat_probability must be from 0 to below 1"),
        ({"repeat_probability": 0.5}, "repeat_probability=0.5 is for Atari"),
        ({"env": "ALE/Pnog-v5"}, "env='ALE/Pnog-v5' is not known to Gymnasium: .*Did you mean"),
        ({"env": "nobody:Pong-v5"}, "env='nobody:Pong-v5' is not known"),
        ({"env": "DotBoth-v0"}, r"has actions MultiDiscrete\(\[2 2\]\); wanted is Discrete"),
        ({"env": "DotFar-v0"}, r"has actions Box\(.*a bounded Box"),
        ({"env": "DotShift-v0"}, r"has actions Discrete\(3, start=1\); wanted is Discrete from 0 on"),
        ({"env": "DotBytes-v0"}, r"has actions Box\(0, 255, \(2,\), uint8\)"),
        ({"env": "DotBlind-v0"}, r"shows float32 \[4, 4\]; wanted are pictures"),
    ],
)
def test_refusals(tmp_path, options, match, format):
    refused(tmp_path / "out", match, format=format, **options)


def test_the_format_has_to_be_known(tmp_path):
    refused(tmp_path / "out", "format must be 'h5' or 'jsonl', not 'mp4'", format="mp4")


def test_nothing_is_overwritten(tmp_path):
    for format in ("h5", "jsonl"):
        (tmp_path / format).mkdir()  # an empty folder is no recording
        play(tmp_path / format, "Dot-v0", format=format)
        refused(tmp_path / format, "is there already .* name another --out, or delete it", format=format)


def test_a_disk_without_room_is_told_before_playing(tmp_path, monkeypatch):
    monkeypatch.setattr(record_game.shutil, "disk_usage", lambda path: namedtuple("Usage", "free")(30_000))
    refused(tmp_path / "new/out", r"frames take up to 0.00 GB and .* of room: use fewer --steps", steps=40)
    play(tmp_path / "new/out", "Dot-v0", steps=39)


def test_without_gymnasium_or_ale(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "ale_py", None)
    refused(
        tmp_path / "out", "env='ALE/Pong-v5': Atari games need ale-py: pip install gymnasium ale-py", env=PONG
    )
    play(tmp_path / "dot", "Dot-v0")
    monkeypatch.setitem(sys.modules, "gymnasium", None)
    refused(tmp_path / "out", "pip install gymnasium ale-py")


def test_a_game_that_fails_on_the_way_leaves_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(Dot, "step", lambda self, action: 1 / 0)
    for format in ("h5", "jsonl"):
        with pytest.raises(ZeroDivisionError):
            play(tmp_path / "out", "Dot-v0", format=format)
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


def command(*words):
    return subprocess.run(
        [sys.executable, "data_prep/record_game.py", *map(str, words)],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )


def test_the_script(tmp_path):
    words = (
        "--env",
        PONG,
        "--steps",
        40,
        "--out",
        tmp_path / "a.h5",
        "--size",
        32,
        "--seed",
        3,
        "--episode-steps",
        30,
    )
    done = command(*words)
    assert done.returncode == 0, done.stderr
    said = f"{tmp_path / 'a.h5'}: 40 frames in 2 episodes, 0.0 MB; a copy of the frame before makes "
    assert done.stdout.startswith(said) and done.stdout.count("\n") == 1
    with h5py.File(tmp_path / "a.h5") as file:
        assert file["frames"].chunks == (16, 32, 32, 3) and file["frames"].compression == "gzip"
    own, _ = play(tmp_path / "b.h5", size=32, seed=3, episode_steps=30)
    assert content(own["path"]) == content(tmp_path / "a.h5"), (
        "the function and the script have the same defaults"
    )
    again = command(*words)
    assert again.returncode == 1 and "Traceback" not in again.stderr
    assert "is there already" in again.stderr.strip().splitlines()[-1]
