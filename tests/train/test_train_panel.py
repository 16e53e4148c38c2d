"""The panel that trains, pressed without a browser: widgets are plain objects."""

import base64
import dataclasses
import json
import threading
import time
import types

import ipywidgets as widgets
import numpy as np
import pytest
from PIL import Image

from mtld_core.judge.rollouts import Judge
from mtld_core.pages import RED
from mtld_core.runs.folder import read_pointer
from mtld_core.train import panel as train_panel
from mtld_core.train.plots import Log, draw
from mtld_core.train.settings import build, open_data, plan

pytestmark = pytest.mark.clocked

LASTING = {"save_every_minutes": 0, "log_every_steps": 1, "eval_windows": 2}


@pytest.fixture
def panel(arcs, tmp_path):
    """A panel that trains without an end, some steps later."""
    panel = begin(arcs, tmp_path, LASTING, steps=10**6)
    wait_until(lambda: panel.controls.step > 3)
    yield panel
    panel.controls.stop.set()
    panel.thread.join(60)


def begin(arcs, tmp_path, overrides, **settings):
    cls, config, training = plan("mtld", "tiny", overrides, run_dir=str(tmp_path / "run"), **settings)
    dataset = open_data(str(arcs), config)
    return train_panel.train_panel(build(cls, config, dataset), dataset, training)


def wait_until(true, seconds=60):
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def end(panel):
    panel.thread.join(60)
    panel.refresh()


def test_pause_go_on_save_and_stop_act_within_a_second(panel):
    began = time.monotonic()
    panel.pause.click()
    assert (
        panel.controls.doing == "paused"
        and "<b>paused</b>" in panel.status.value
        and panel.pause.description == "Go on"
    )
    assert time.monotonic() - began < 1
    held, began = panel.controls.step, time.monotonic()
    panel.save.click()
    assert (
        read_pointer(panel.run_dir / "latest.json")["step"] == held
        and f"saved at step {held}" in panel.status.value
    )
    assert time.monotonic() - began < 1
    began = time.monotonic()
    panel.pause.click()
    wait_until(lambda: panel.controls.step > held, 1)
    panel.stop.click()
    wait_until(lambda: panel.controls.doing != "training", 1)  # out of the loop: saving, then judging
    assert time.monotonic() - began < 2
    end(panel)
    assert (
        json.loads((panel.run_dir / "report.json").read_text())["status"] == "stopped" and panel.error == ""
    )
    assert "stopped: asked to stop" in panel.status.value and "psnr" in panel.figures.value
    assert (panel.pause.disabled, panel.stop.disabled, panel.save.disabled) == (False, True, True)


def test_go_on_after_a_stop_trains_on_from_there(panel):
    panel.stop.click()
    end(panel)
    stopped = panel.report["step"]
    panel.pause.click()
    wait_until(lambda: panel.controls.step > stopped + 2)
    panel.refresh()
    assert panel.training and "going on at step" in panel.said.value


def test_a_run_to_its_end_shows_curves_preview_and_figures(arcs, tmp_path, capsys):
    panel = begin(arcs, tmp_path, {"eval_windows": 2, "log_every_steps": 2}, steps=6)
    empty = panel.curves.value
    end(panel)
    assert panel.curves.value != empty and bytes(panel.curves.value[:4]) == b"\x89PNG"
    shown = panel.pictures.value
    for name in ("previews/step_00000006.png", "judgement.png"):
        assert base64.b64encode((panel.run_dir / name).read_bytes()).decode() in shown
    assert "preview, step 6<" in shown and shown.count("<img") == 2  # this system takes no actions
    assert "finished: all steps done" in panel.status.value and "skill_db" in panel.figures.value
    assert panel.report["verdict"] in panel.verdict.value and 'title="gain over' in panel.figures.value
    assert panel.pause.disabled and (panel.bar.value, panel.bar.bar_style) == (6, "success")
    assert (
        "finished at step 6" in panel.said.value and capsys.readouterr().out == ""
    )  # the page is not flooded


def test_the_same_cell_again_shows_the_panel_that_trains(panel, arcs, tmp_path):
    assert begin(arcs, tmp_path, LASTING, steps=10**6) is panel
    panel.stop.click()
    end(panel)
    again = begin(arcs, tmp_path, LASTING, steps=panel.report["step"] + 2)
    assert again is not panel
    end(again)
    assert again.report["status"] == "finished"


def test_a_system_is_never_trained_by_two_panels(panel, tmp_path):
    elsewhere = dataclasses.replace(panel.config, run_dir=str(tmp_path / "another"))
    assert train_panel.train_panel(panel.system, panel.dataset, elsewhere) is panel


def test_settings_that_changed_are_said_and_taken_on_a_click(panel, arcs, tmp_path):
    begin(arcs, tmp_path, LASTING, steps=10**6)
    assert panel.proposal.layout.display == "none"  # nothing has changed
    assert begin(arcs, tmp_path, LASTING | {"log_every_steps": 2}, steps=10**6 + 1) is panel
    said = panel.changes.value
    assert "steps 1000001 instead of 1000000" in said and "log_every_steps 2 instead of 1" in said
    assert said.count("instead") == 2 and panel.proposal.layout.display == "" and panel.training
    first = panel.thread
    panel.switch.click()
    wait_until(lambda: panel.thread is not first and panel.controls.step > 3)
    panel.refresh()
    assert panel.config.steps == 10**6 + 1 and panel.config.log_every_steps == 2
    assert "going on at step" in panel.said.value and panel.proposal.layout.display == "none"


def test_a_run_in_the_background_of_another_is_shown(panel, arcs, tmp_path):
    assert panel.other.value == ""
    (tmp_path / "two").mkdir()
    other = begin(arcs, tmp_path / "two", LASTING, steps=10**6)
    other.refresh()
    assert f"In the background trains {panel.run_dir}, step " in other.other.value
    assert other.background.layout.display == "" and panel.background.layout.display == "none"
    other.halt.click()
    end(panel)
    assert panel.report["reason"] == "asked to stop" and other.training
    other.refresh()
    assert other.background.layout.display == "none"
    other.controls.stop.set()
    end(other)


def test_a_run_of_another_process_is_asked_to_stop_and_then_gone_on_with(panel, monkeypatch):
    """Here it is this process, whose lock does not know that."""
    monkeypatch.setattr(train_panel, "_panels", {})
    other = train_panel.TrainPanel(panel.system, panel.dataset, panel.config)
    end(other)
    assert "is in use" in other.status.value and "Another process trains" in other.other.value
    assert other.background.layout.display == "" and panel.training
    other.halt.click()
    end(panel)
    assert panel.report["reason"] == "asked to stop"
    other.look.click()
    other.pause.click()  # Go on
    wait_until(lambda: other.controls.step > panel.report["step"])
    other.refresh()
    assert other.background.layout.display == "none" and other.error == ""
    other.controls.stop.set()
    end(other)


def test_so_many_steps_more_after_the_end(arcs, tmp_path):
    panel = begin(arcs, tmp_path, {"eval_windows": 2}, steps=4)
    end(panel)
    assert panel.after.layout.display == "" and panel.more.value == 4
    panel.more.value = 3
    panel.train_on.click()
    assert panel.after.layout.display == "none"
    end(panel)
    assert panel.report["step"] == 7 and panel.report["status"] == "finished"


def test_every_button_says_what_it_does(panel):
    buttons = [part for row in panel.children for part in getattr(row, "children", ())]
    buttons = [part for part in buttons if isinstance(part, widgets.Button)]
    assert len(buttons) == 7 and all(button.tooltip for button in buttons)


def test_what_the_run_has_come_to_is_put_into_the_page(arcs, tmp_path, monkeypatch):
    shown = []
    handle = types.SimpleNamespace(update=lambda content: shown.append(content.data))
    monkeypatch.setattr(
        train_panel, "display", lambda *_, **options: handle if "display_id" in options else None
    )
    panel = begin(arcs, tmp_path, {"eval_windows": 2}, steps=4)
    panel._ipython_display_()
    end(panel)
    wait_until(lambda: shown)
    assert shown[-1].count("<img") == 3 and panel.report["verdict"] in shown[-1]
    for words in (panel.report["date"], panel.report["machine"], "torch", str(arcs), "skill_db"):
        assert words in shown[-1]


def test_while_the_end_is_judged_only_stop_is_left_and_gives_that_up(arcs, tmp_path, monkeypatch):
    judging, honest = threading.Event(), Judge.__call__

    def slow(self, system, tick):
        def asked():
            judging.set()
            while not panel.controls.stop.is_set():
                time.sleep(0.01)
            tick()

        return honest(self, system, asked)

    monkeypatch.setattr(Judge, "__call__", slow)
    panel = begin(arcs, tmp_path, LASTING, steps=3)
    assert judging.wait(30)
    panel.refresh()
    assert panel.pause.disabled and panel.save.disabled and not panel.stop.disabled
    assert read_pointer(panel.run_dir / "latest.json")["step"] == 3
    panel.stop.click()
    end(panel)
    assert panel.report["status"] == "finished" and panel.report["metrics"] == {}
    assert panel.report["judged_at_step"] is None


def test_a_damaged_checkpoint_is_said_in_the_panel(panel, arcs, tmp_path):
    panel.save.click()
    panel.stop.click()
    end(panel)
    newest = panel.run_dir / read_pointer(panel.run_dir / "latest.json")["checkpoint"] / "model.safetensors"
    newest.write_bytes(newest.read_bytes()[:-1])
    again = begin(arcs, tmp_path, LASTING, steps=panel.report["step"])
    end(again)
    assert "damaged" in again.said.value


def test_an_error_is_one_line_in_the_panel(panel):
    other = train_panel.TrainPanel(panel.system, panel.dataset, panel.config)  # the folder is locked
    end(other)
    assert "is in use by another training process" in other.status.value and RED in other.status.value
    assert (
        "UserError" not in other.status.value
        and "Traceback" in other.said.value
        and other.bar.bar_style == "danger"
    )


def test_an_error_of_the_program_names_its_kind(arcs, tmp_path, monkeypatch):
    monkeypatch.setattr(train_panel, "fit", lambda *_: {}["lost"])
    panel = begin(arcs, tmp_path, {}, steps=2)
    end(panel)
    assert "KeyError: &#x27;lost&#x27;" in panel.status.value and panel.pause.disabled


def test_a_log_is_read_as_it_grows_and_anew_when_it_is_replaced(tmp_path):
    log = Log(tmp_path / "metrics.jsonl")
    assert not log.read()
    log.path.write_text('{"step": 1}\n{"step": 2}\n{"st')
    assert log.read() and [line["step"] for line in log.lines] == [1, 2] and not log.read()
    with open(log.path, "a") as file:
        file.write('ep": 3}\n')
    assert log.read() and [line["step"] for line in log.lines] == [1, 2, 3]
    (tmp_path / "new").write_text('{"step": 1}\n{"step": 7}\n{"step": 8}\n{"step": 9}\n')
    (tmp_path / "new").replace(log.path)
    assert log.read() and [line["step"] for line in log.lines] == [1, 7, 8, 9]


def brightness(colour):
    """Relative luminance of "#rrggbb", as WCAG defines it."""
    parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    parts = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return 0.2126 * parts[0] + 0.7152 * parts[1] + 0.0722 * parts[2]


@pytest.mark.parametrize("behind", ["#ffffff", "#111111"], ids=["light", "dark"])
def test_an_error_can_be_read_in_both_themes_of_jupyterlab(behind):
    darker, brighter = sorted(map(brightness, (RED, behind)))
    assert (brighter + 0.05) / (darker + 0.05) > 4.2  # 4.35 is what one colour can have on both


def test_the_names_of_the_losses_are_within_the_picture(tmp_path):
    names = ("l1", "reconstruction", "latent", "adversarial", "feature_matching", "discriminator")  # of mtld
    (tmp_path / "curves.png").write_bytes(draw([{"step": 5} | dict.fromkeys(names, 0.5)]))
    picture = np.asarray(Image.open(tmp_path / "curves.png").convert("RGB"))
    assert (picture[:, [0, 1, 2, 3, -4, -3, -2, -1]] == 255).all()


@pytest.mark.parametrize("count", [0, 1, 5000])
@pytest.mark.parametrize("low", [0.1, -1.0])
def test_curves_of_any_log(count, low, tmp_path):
    lines = [{"step": i, "seconds": i, "loss": low + i, "other": None, "lr_model": 1.0} for i in range(count)]
    (tmp_path / "curves.png").write_bytes(draw(lines))
    assert np.asarray(Image.open(tmp_path / "curves.png")).shape[:2] == (420, 720)
