"""The panel to play with, pressed without a browser: widgets are plain objects."""

import io
import json
import shutil
import time
from pathlib import Path

import numpy as np
import pytest
from conftest import write_arcs
from PIL import Image
from steered import QUICK, steered_run, write_recording

from mtld_core.pages import RED
from mtld_core.play.keys import keys_of
from mtld_core.play.panel import PlayPanel
from mtld_core.train import train


@pytest.fixture
def panel(tmp_path, monkeypatch):
    steered_run(monkeypatch, tmp_path, write_recording(tmp_path / "recording.h5", np.array([1, 0, 2, 1] * 5)))
    return PlayPanel(str(tmp_path / "runs/steered"), fps=10)


def shown(image):
    return np.asarray(Image.open(io.BytesIO(image.value)))


def test_it_begins_where_the_run_was_judged(panel):
    assert (Path(panel.run.value).name, panel.arc.value, panel.frame.value) == ("steered", "episode_3", 1)
    assert panel.arc.options == tuple(f"episode_{i}" for i in range(6)) and panel.frame.options == tuple(
        range(1, 20)
    )
    assert [button.description for button in panel.buttons] == ["NOOP [n]", "RIGHT [→]", "LEFT [←]"]
    assert panel.buttons[1].tooltip == "RIGHT: → or d or 2" and panel.dream.layout.max_width == "384px"
    assert "step 0 · no real game beside it: the recording names no game" in panel.message.value
    assert np.array_equal(shown(panel.dream), panel.play.frames[0])


def test_a_button_says_what_its_action_moves(panel, monkeypatch):
    monkeypatch.setattr("mtld_core.play.panel.ways", lambda play: {1: "UP", 2: "LEFT"})
    other = PlayPanel(panel.run.value)
    named = ["NOOP [n]", "RIGHT moves up [↑]", "LEFT [←]"]
    assert [button.description for button in other.buttons] == named
    assert other.buttons[1].tooltip == "RIGHT moves up: ↑ or w or → or d or 2"


def test_it_begins_at_the_notebooks_source(panel, tmp_path):
    run, picture = panel.run.value, tmp_path / "mine.png"
    other = PlayPanel(run, source="dataset:episode_1/7")
    assert (other.arc.value, other.frame.value) == ("episode_1", 7)
    Image.fromarray(np.full((16, 24, 3), 90, np.uint8)).save(picture)
    other = PlayPanel(run, source=str(picture))
    assert other.arc.value == "mine" and (shown(other.dream) == 90).all()
    other.arc.value = "episode_1"
    assert other.frame.value == 1 and np.array_equal(shown(other.dream), other.play.dataset.frames[21])
    other.arc.value = "mine"
    assert (shown(other.dream) == 90).all() and other.play.start is None


def test_one_click_is_one_step(panel):
    start = shown(panel.dream)
    for i, action in enumerate((1, 2, 0), 1):
        panel.buttons[action].click()
        assert len(panel.play.actions) == i
    assert np.array_equal(shown(panel.dream), np.roll(start, 3, 1))
    assert "step 3 · NOOP · " in panel.message.value and "frames/s" in panel.message.value
    panel.reset.click()
    assert np.array_equal(shown(panel.dream), start) and "step 0" in panel.message.value


def test_any_recorded_frame_can_be_the_start(panel, monkeypatch):
    resets = []
    monkeypatch.setattr(
        panel.play,
        "_bring_game",
        lambda: resets.append(panel.play.source.text) or setattr(panel.play, "alone", ""),
    )
    panel.buttons[1].click()
    panel.frame.value = 7
    assert np.array_equal(shown(panel.dream), panel.play.dataset.frames[60 + 7]) and panel.play.actions == []
    panel.arc.value = "episode_1"
    assert panel.frame.value == 1 and np.array_equal(shown(panel.dream), panel.play.dataset.frames[21])
    assert resets == ["dataset:episode_3/7", "dataset:episode_1/1"]  # each choice begins one game


def test_a_play_is_saved_to_look_at_and_to_keep(panel, tmp_path):
    panel.buttons[1].click()
    panel.save.click()
    names = sorted(path.name for path in (tmp_path / "runs/steered/samples").iterdir())
    assert [name.rpartition(".")[2] for name in names] == ["gif", "mp4"] and names[0].startswith(
        "play_episode_3_1_"
    )
    assert "<video" in panel.video.value and f'download="{names[1]}"' in panel.links.value
    panel.reset.click()
    assert panel.video.value == panel.links.value == ""


def test_an_error_is_one_line_and_the_play_goes_on(panel, monkeypatch):
    def broken(action):
        raise RuntimeError("out of\nluck")

    monkeypatch.setattr(panel.play, "act", broken)
    panel.buttons[1].click()
    assert "RuntimeError: out of luck" in panel.message.value and RED in panel.message.value
    monkeypatch.undo()
    panel.buttons[1].click()
    assert "step 1 · RIGHT" in panel.message.value


def test_only_runs_that_take_actions_are_offered(panel, tmp_path, monkeypatch):
    monkeypatch.setattr("mtld_core.play.panel.EXAMPLES", tmp_path / "examples")
    train(
        "mtld",
        "tiny",
        str(write_arcs(tmp_path / "arcs", [20] * 6)),
        QUICK,
        steps=1,
        run_dir=str(tmp_path / "runs/plain"),
    )
    for name, text in (("broken", "{"), ("foreign", '{"system": "nobody", "config": {}}'), ("empty", "{}")):
        (tmp_path / "runs" / name).mkdir()
        (tmp_path / "runs" / name / "config.json").write_text(text)
    other = PlayPanel(str(tmp_path / "runs/plain"))
    # by its name: of a long path a narrow field would show the beginning
    assert other.run.options == (("steered", str(tmp_path / "runs/steered")),) and other.run.value is None
    assert "choose a run" in other.message.value and other.buttons == []
    # what is wider than the page scrolls by itself; JupyterLab 3 cut the panel off
    assert (other.layout.width, other.layout.min_width) == ("0", "100%")
    other.run.value = str(tmp_path / "runs/steered")
    assert len(other.buttons) == 3 and "step 0" in other.message.value
    assert "there is no run with actions yet" in PlayPanel(str(tmp_path / "nowhere/run")).message.value
    shutil.copytree(tmp_path / "runs/steered", tmp_path / "examples/shared")
    assert PlayPanel(str(tmp_path / "nowhere/run")).run.options == (
        ("shared", f"{tmp_path}/examples/shared"),
    )


def test_a_run_whose_dataset_is_gone_says_so(panel, tmp_path):
    shutil.copytree(tmp_path / "runs/steered", tmp_path / "runs/again")
    both = PlayPanel(panel.run.value)
    (tmp_path / "recording.h5").unlink()
    both.run.value = str(tmp_path / "runs/again")
    assert (
        "recording.h5 is not there" in both.message.value
        and both.buttons == []
        and not both._actions.children
    )
    both.reset.click()
    both.save.click()
    assert "recording.h5 is not there" in both.message.value


def test_floats_are_played_with_buttons_too(tmp_path, monkeypatch):
    controls = np.array([[-1, 0], [1, 2], [0, 1]] * 6, np.float32)
    steered_run(monkeypatch, tmp_path, write_recording(tmp_path / "recording.h5", controls, about={}))
    panel = PlayPanel(str(tmp_path / "runs/steered"))
    assert [button.description for button in panel.buttons] == [
        "neutral [1]",
        "0 -1 [2]",
        "0 +1 [3]",
        "1 +2 [4]",
    ]
    start = shown(panel.dream)
    panel.buttons[3].click()
    assert np.array_equal(shown(panel.dream), np.roll(start, 2, 1)) and "1 +2" in panel.message.value


def test_keys():
    assert keys_of(["NOOP", "UP", "LEFT", "UPFIRE", "DOWN", "RIGHT"], {3: "UP", 4: "DOWN", 5: "RIGHT"}) == [
        ["KeyN", "Digit1"], ["ArrowUp", "KeyW", "Digit2"], ["ArrowLeft", "KeyA", "Digit3"], ["Digit4"],
        ["ArrowDown", "KeyS", "Digit5"], ["ArrowRight", "KeyD", "Digit6"],
    ]  # fmt: skip
    names = ["NOOP", "FIRE", "RIGHT", "LEFT", "RIGHTFIRE", "LEFTFIRE"]
    pong = keys_of(names, {2: "UP", 3: "DOWN", 4: "UP", 5: "DOWN"})
    assert pong[2] == ["ArrowUp", "KeyW", "ArrowRight", "KeyD", "Digit3"] and "ArrowDown" in pong[3]
    assert pong[1] == ["Space", "Digit2"] and pong[4] == ["Digit5"]
    assert keys_of(["0", "1"], {1: "LEFT"}) == [["Digit1"], ["ArrowLeft", "KeyA", "Digit2"]]
    many = keys_of([str(i) for i in range(12)], {})
    assert many[9:] == [["Digit0"], [], []]


def test_its_script_is_an_output_that_front_ends_may_leave_out(panel):
    [output] = [widget for widget in panel.children[0].children[0].children if hasattr(widget, "outputs")]
    assert json.dumps(output.outputs).count("<script>") == 1 and "mtld-play" in panel._dom_classes


# ---- dreaming on


@pytest.fixture
def quick(panel):
    """The panel, which goes on as fast as it can, and not longer than the test."""
    panel.fps.max = panel.fps.value = 10_000
    panel.player.value = "sticky"
    yield panel
    panel.stop()


def wait_until(true, seconds=30):
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.005)


def stays(panel):
    """The step that the play stays at."""
    step = panel.play.steps
    time.sleep(0.1)
    assert panel.play.steps == step
    return step


def test_a_dream_goes_on_and_what_is_pressed_meanwhile_counts(quick):
    quick.player.value = "hold"
    quick.buttons[1].click()
    quick.live.value = True
    wait_until(lambda: quick.play.steps > 5)
    quick.buttons[2].click()
    before = quick.play.steps
    wait_until(lambda: quick.play.steps > before + 5)
    quick.live.value = False
    step = stays(quick)
    actions = quick.play.actions
    assert set(actions[: actions.index(2)]) == {1} and set(actions[actions.index(2) :]) == {2}  # it is held
    assert f"step {step} · LEFT · " in quick.message.value
    assert np.array_equal(shown(quick.dream), quick.play.frames[-1])
    quick.live.value = True
    wait_until(lambda: quick.play.steps > step)


def test_live_it_plays_what_is_held_down(panel):
    for held, action in (
        ("0 0", 0),  # nothing was pressed: NOOP
        ("1 0 2 2", 2),
        ("1 0 2 2", 2),
        ("2 0 1 2 1", 1),  # the newest of two
        ("2 0 1 2", 2),
        ("2 0 1", 0),
        ("3 0 1", 1),  # pressed and up again since the last step
        ("3 0 1", 0),
    ):
        panel.held.value = held
        panel.step.click()
        assert panel.play.actions[-1] == action
    panel.held.value = "4 0 1 1"
    panel.live.value = True
    wait_until(lambda: panel.play.steps > 10)
    panel.step.click()  # pauses
    assert not panel.live.value and set(panel.play.actions[8:]) == {1} and stays(panel) > 10


def test_it_does_not_run_ahead_of_the_page(panel):
    panel.fps.value = 20
    panel.held.value = "0 1"
    panel.live.value = True
    wait_until(lambda: panel.play.steps == 12)
    assert stays(panel) == 12  # half a second more than the page showed
    panel.held.value = "0 12"
    wait_until(lambda: panel.play.steps > 22)
    panel.stop()


def test_sync_is_there_where_a_real_game_is(panel, monkeypatch):
    assert panel.sync.layout.display == panel.sync_when.layout.display == "none"
    panel.sync_when.value = "parted"
    panel.play.real = [panel.play.frames[0] // 2]
    monkeypatch.setattr(panel.play, "_step_game", lambda *_: panel.play.real.append(panel.play.real[0]))
    monkeypatch.setattr(type(panel.play), "parted", property(lambda play: play.steps == 2 or None))
    panel.buttons[1].click()
    assert panel.sync.layout.display == "" and not np.array_equal(shown(panel.dream), panel.play.real[0])
    panel.buttons[1].click()
    assert (
        np.array_equal(shown(panel.dream), panel.play.real[0]) and "synced at step 2" in panel.message.value
    )
    panel.buttons[1].click()
    panel.sync.click()
    assert (
        np.array_equal(shown(panel.dream), panel.play.real[0]) and "synced at step 3" in panel.message.value
    )


def test_chance_plays_where_it_is_chosen(quick):
    quick.live.value = True
    wait_until(lambda: set(quick.play.actions) == {0, 1, 2})
    quick.player.value = "hold"
    before = quick.play.steps
    wait_until(lambda: quick.play.steps > before + 20)
    assert len(set(quick.play.actions[-15:])) == 1


def test_reset_a_start_a_run_and_a_new_panel_stop_a_dream_that_goes_on(quick, tmp_path):
    def start_anew():
        quick.frame.value = 7

    def another_run():
        shutil.copytree(tmp_path / "runs/steered", tmp_path / "runs/again")
        quick.run.options = [*quick.run.options, ("again", str(tmp_path / "runs/again"))]
        quick.run.value = str(tmp_path / "runs/again")

    for stops in (quick.reset.click, start_anew, another_run):
        quick.live.value = True
        wait_until(lambda: quick.play.steps > 3)
        stops()
        assert not quick.live.value and stays(quick) == 0 and "step 0" in quick.message.value
    quick.live.value = True
    PlayPanel(str(tmp_path / "runs/steered"))
    assert not quick.live.value
    stays(quick)


def test_a_dream_that_fails_or_that_nobody_stops_ends(quick, monkeypatch):
    monkeypatch.setattr("mtld_core.play.panel.MOST_STEPS", 12)
    quick.live.value = True
    wait_until(lambda: not quick.live.value)
    assert stays(quick) == 12 and "step 12 · " in quick.message.value

    def broken(action):
        raise RuntimeError("out of\nluck")

    monkeypatch.setattr(quick.play, "act", broken)
    quick.live.value = True
    wait_until(lambda: not quick.live.value)
    assert "RuntimeError: out of luck" in quick.message.value and RED in quick.message.value


@pytest.mark.clocked
def test_a_dream_goes_on_at_the_panels_rate(panel):
    panel.fps.value = 20
    panel.live.value = True
    began = time.monotonic()
    wait_until(lambda: panel.play.steps > 20)
    seconds = time.monotonic() - began
    panel.stop()
    assert 0.9 < seconds < 2


def test_there_is_nothing_to_dream_on_without_a_run(tmp_path):
    assert PlayPanel(str(tmp_path / "nowhere/run")).live.disabled


def test_controls_that_chance_chose_are_named(tmp_path, monkeypatch):
    controls = np.array([[-1, 0], [1, 2], [0, 1]] * 6, np.float32)
    steered_run(monkeypatch, tmp_path, write_recording(tmp_path / "recording.h5", controls, about={}))
    panel = PlayPanel(str(tmp_path / "runs/steered"))
    panel.play.act([0.5, 1.25])
    assert "step 1 · +0.5 +1.2 · " in panel._shown()


def test_the_line_says_when_the_two_parted(panel, monkeypatch):
    monkeypatch.setattr(type(panel.play), "parted", property(lambda play: 2 if play.steps > 3 else None))
    for _ in range(3):
        panel.buttons[1].click()
    assert "parted" not in panel.message.value
    panel.buttons[1].click()
    assert "· parted from the real game at step 2" in panel.message.value


def test_the_line_says_how_the_real_game_failed(panel, monkeypatch):
    monkeypatch.setattr(type(panel.play), "over", True)
    panel.play.alone = "the engine fell over"
    panel.buttons[1].click()
    assert "the real game is over: the engine fell over" in panel.message.value
