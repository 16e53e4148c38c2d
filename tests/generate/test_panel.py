"""The form, pressed without a browser: widgets are plain objects."""

import base64
import datetime
import io
import json
import os
import shutil
import sys
import time
import types
from pathlib import Path

import numpy as np
import pytest
from conftest import write_arcs, write_video
from PIL import Image
from rolling import ABOUT, Toy, open_toy, picture, press_generate, write_rolling_arcs
from steered import QUICK, steered_run, write_recording

from mtld_core import media
from mtld_core.generate import panel
from mtld_core.pages import RED
from mtld_core.runs import folder
from mtld_core.systems import SYSTEMS
from mtld_core.train import train

NOW = datetime.datetime(2026, 1, 1, tzinfo=datetime.UTC)


@pytest.fixture
def form(tmp_path, monkeypatch):
    for module in (panel, folder):
        monkeypatch.setattr(module, "EXAMPLES", tmp_path / "examples")
    write_rolling_arcs(tmp_path / "runs/data")
    for name in ("runs/run", "runs/second", "examples/shared"):
        (tmp_path / name / "checkpoints/step_00000007").mkdir(parents=True)
        (tmp_path / name / "config.json").write_text(ABOUT)
    open_toy(monkeypatch, tmp_path / "runs")
    return panel.GeneratePanel(str(tmp_path / "runs/run"), num_frames=5, fps=10)


def test_the_panel_offers_what_there_is(form, tmp_path):
    runs = ["run · just now", "second · just now", "shared · example"]
    assert [label for label, _ in form.run.options] == runs and Path(form.run.value).name == "run"
    assert form.checkpoint.options == ((panel.NEWEST, ""), ("step_00000007", "step_00000007"))
    assert (form.checkpoint.value, form.arc.value, form.frame.value) == ("", "moves", 10)
    assert form.arc.options == ("moves", "other") and form.frame.options == tuple(range(10, 30))
    assert form.message.value == '<span style="color:inherit"></span>' and not form.button.disabled


def test_a_click_generates_beside_the_truth(form):
    form.arc.value, form.frame.value = "other", 15
    press_generate(form)
    assert (
        form.result["source"] == "dataset:other/15"
        and form.result["num_frames"] == 5
        and form.result["psnr"] == 100
    )
    assert (
        "<video" in form.video.value and "truth | generated" in form.links.value and not form.button.disabled
    )


@pytest.mark.parametrize("version", [7, 8])
def test_an_uploaded_picture_in_both_versions_forms(form, version, tmp_path):
    Image.fromarray(picture()).save(tmp_path / "up.png")
    content = (tmp_path / "up.png").read_bytes()
    value = (
        {"up.png": {"content": content}}
        if version == 7
        else ({"name": "up.png", "content": memoryview(content)},)
    )
    form.upload = types.SimpleNamespace(value=value, layout=types.SimpleNamespace())
    form._uploaded()
    press_generate(form)
    assert "psnr" not in form.result and "<video" in form.video.value
    first = media.read_image(Path(form.result["out_dir"]) / "frames/frame_0000.png")
    assert np.array_equal(first, picture())


def test_an_error_is_one_line_in_the_panel(form):
    form.start.value = "picture"
    press_generate(form)
    assert "upload a picture first" in form.message.value and RED in form.message.value
    assert form.video.value == "" and form.result is None and not form.button.disabled


def test_a_panel_without_runs_says_so(tmp_path, monkeypatch):
    monkeypatch.setattr(panel, "EXAMPLES", tmp_path / "examples")
    assert "there is no run yet" in panel.GeneratePanel(str(tmp_path / "runs/demo")).message.value


def test_a_run_from_the_hub_is_chosen_by_its_id(form, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shutil.copytree("runs/run", "runs/me--moves")  # as it lies once it was fetched
    chosen = panel.GeneratePanel("hf://me/moves").run
    assert chosen.value == "runs/me--moves" and len(chosen.options) == 4


def test_the_form_shows_what_it_will_start_from(form, tmp_path):
    def shown():
        return np.asarray(Image.open(io.BytesIO(form.picture.value)))

    form.frame.value = 12
    before = shown()
    form.frame.value = 17
    assert before.shape == picture().shape and not np.array_equal(before, shown())
    form.start.value = "picture"
    assert form.picture.layout.display == "none" and form.arc.layout.display == "none"
    form.start.value = "dataset"
    assert form.picture.layout.display == "" and form.upload.layout.display == "none"


@pytest.fixture
def upload(form):
    """`upload(name, bytes)`: what a person's upload sets, in the form of the installed ipywidgets."""

    def upload(name, content):
        entry = {"name": name, "content": content, "type": "", "size": len(content), "last_modified": NOW}
        form.upload.set_trait("value", {name: entry} if isinstance(form.upload.value, dict) else (entry,))

    return upload


def test_who_uploads_a_picture_wants_to_start_from_it(form, upload):
    Image.fromarray(picture()).save(file := io.BytesIO(), "png")
    upload("up.png", file.getvalue())
    assert form.start.value == "picture" and form.picture.layout.display == ""
    assert np.array_equal(Image.open(io.BytesIO(form.picture.value)), picture())


def test_an_upload_that_is_no_picture_is_said_at_once(form, upload):
    upload("notes.png", b"no picture")
    assert "notes.png cannot be read as a picture" in form.message.value and "/tmp" not in form.message.value
    assert form.picture.layout.display == "none"


def send(form, name, size, **more):
    """What the page's script does with a file that somebody chose."""
    form.sent.value = json.dumps({"name": name, "size": size} | more)


def test_a_picture_that_the_browser_made_smaller(form):
    Image.fromarray(picture()).save(file := io.BytesIO(), "png")
    send(form, "big.jpg", 20_000_000, content=base64.b64encode(file.getvalue()).decode())
    assert form.start.value == "picture" and form.sent.value == ""
    assert "big.jpg: 20,000 kB, of which your browser sent 1 kB" in form.message.value
    assert np.array_equal(Image.open(io.BytesIO(form.picture.value)), picture())
    press_generate(form)
    assert Path(form.result["source"]).name == "big.jpg"
    send(form, "IMG_1.HEIC", 3_000_000)
    assert (
        "IMG_1.HEIC: 3,000 kB, and no picture that this browser can read; save it as JPEG"
        in form.message.value
    )
    assert "JupyterLab takes at most 10 MB and Colab 1 MB" in form.limit.value


def test_a_path_goes_before_an_upload_until_the_next_one(form, upload, tmp_path):
    write_video(tmp_path / "film.mp4", [picture(seed=i) for i in range(4)])
    Image.fromarray(picture()).save(file := io.BytesIO(), "png")
    upload("up.png", file.getvalue())
    form.path.value = f"  {tmp_path / 'film.mp4'} "
    assert not np.array_equal(Image.open(io.BytesIO(form.picture.value)), picture())
    press_generate(form)
    assert form.result["source"] == str(tmp_path / "film.mp4")
    form.path.value = "nowhere.png"
    assert "nowhere.png: no such image or video file" in form.message.value
    upload("up.png", file.getvalue() + b" ")
    assert form.path.value == "" and np.array_equal(Image.open(io.BytesIO(form.picture.value)), picture())


def test_a_generation_can_be_cancelled(form, monkeypatch):
    step = Toy.step

    def slow(self, state, action=None):
        if form.bar.value == 3:
            form.cancel.click()
        return step(self, state, action)

    monkeypatch.setattr(Toy, "step", slow)
    form.num_frames.value = 100
    press_generate(form)
    assert "cancelled after 3 frames; nothing of it is kept" in form.message.value
    assert form.gallery.children == () and form.cancel.disabled and not form.button.disabled
    form.num_frames.value = 3  # which it reaches, and the next one is not cancelled
    press_generate(form)
    assert form.result["num_frames"] == 3 and form.bar.max == 3 and form.bar.layout.display == "none"


def test_on_colab_a_click_waits_for_its_video(form, monkeypatch):
    monkeypatch.setitem(sys.modules, "google.colab", types.ModuleType("google.colab"))
    form.button.click()
    assert form.worker.ident is None and "<video" in form.video.value


def choices(hung):
    return {button.description: button for button in hung.children[2].children}


def test_three_hang_in_the_gallery_and_delete_asks_first(form, tmp_path):
    for length in (3, 4, 5):
        form.num_frames.value = length
        press_generate(form)
    hung = form.gallery.children
    assert "x_to_y" not in hung[0].children[1].value  # a direction is a translation's
    assert [f"{length} frames" in one.children[1].value for length, one in zip((5, 4, 3), hung, strict=True)]
    first = hung[2]
    assert bytes(first.children[0].value) == (tmp_path / "runs/run/samples/moves_10_7/video.gif").read_bytes()
    for words in ("dataset:moves/10", "step 7, 3 frames, 10 fps", "seed 0, just now", "psnr 100.00 dB"):
        assert words in first.children[1].value
    before = form.video.value
    choices(first)["Show"].click()
    assert form.video.value != before and "samples/moves_10_7" in form.message.value
    choices(first)["Delete"].click()
    assert list(choices(first)) == ["Keep", "Really delete"]
    choices(first)["Keep"].click()
    assert list(choices(first)) == ["Show", "Delete"] and len(form.gallery.children) == 3
    choices(first)["Delete"].click()
    choices(first)["Really delete"].click()
    assert len(form.gallery.children) == 2 and not (tmp_path / "runs/run/samples/moves_10_7").exists()
    other = panel.GeneratePanel(str(tmp_path / "runs/run"))
    assert len(other.gallery.children) == 2
    other.run.value = str(tmp_path / "runs/second")
    assert other.gallery.children == ()
    (tmp_path / "runs/run/samples/moves_10_7-2/video.gif").unlink()  # by somebody who needed the room
    (tmp_path / "runs/run/samples/moves_10_7-3/generation.json").write_text("{")
    other.run.value = str(tmp_path / "runs/run")
    assert other.gallery.children == () and RED not in other.message.value


def test_checkpoints_and_runs_come_with_their_figures(form, tmp_path):
    run = tmp_path / "runs/run"
    figures = {"psnr": 31.234, "skill_db": 1.5, "baseline_copy_psnr": 30.0}
    report = {"system": "toy", "step": 9000, "judged_at_step": 7, "metrics": figures}
    (run / "report.json").write_text(json.dumps(report))
    best = {"checkpoint": "checkpoints/step_00000007", "step": 7, "metric": "skill_db", "value": 1.5}
    (run / "best.json").write_text(json.dumps(best))
    (run / "checkpoints/step_00000003").mkdir()
    (run / "previews").mkdir()
    for step in (3, 7):
        Image.fromarray(picture(seed=step)).save(run / f"previews/step_{step:08d}.png")
    os.utime(run / "config.json", (0, time.time() - 7300))
    form = panel.GeneratePanel(str(run))
    labels = [label for label, _ in form.checkpoint.options]
    assert labels[1] == "best: step 7, skill_db 1.50"
    assert labels[2].startswith("step_00000007: psnr 31.23 dB") and labels[3] == "step_00000003"
    assert form.run.options[0][0] == "run · skill +1.5 dB · 2 hours ago"
    newest = base64.b64encode((run / "previews/step_00000007.png").read_bytes()).decode()
    for words in ("toy: psnr 31.23 dB", "skill +1.50 dB", newest):
        assert words in form.about.value
    form.checkpoint.value = "best"
    press_generate(form)
    assert form.result["num_frames"] == 48
    unjudged = {"system": "toy", "judged_at_step": None, "metrics": {}}
    (tmp_path / "runs/second/report.json").write_text(json.dumps(unjudged))
    shutil.copy(
        run / "previews/step_00000003.png", tmp_path / "runs/second/preview.png"
    )  # as share leaves it
    form.run.value = str(tmp_path / "runs/second")
    assert "toy: not judged yet" in form.about.value and form.checkpoint.value == ""
    assert base64.b64encode((run / "previews/step_00000003.png").read_bytes()).decode() in form.about.value
    assert RED not in form.message.value


def test_what_was_generated_can_be_downloaded(form):
    press_generate(form)
    folder = Path(form.result["out_dir"])
    for name, kind in (("video.mp4", "video/mp4"), ("video.gif", "image/gif")):
        data = base64.b64encode((folder / name).read_bytes()).decode()
        assert f'download="{name}" href="data:{kind};base64,{data}"' in form.links.value
    assert bytes(form.strip.value) == (folder / "strip.png").read_bytes()


def test_a_run_that_draws_from_noise_offers_that_start(form, tmp_path, monkeypatch):
    assert form.start.options == ("dataset", "picture") and form.direction.layout.display == "none"
    monkeypatch.undo()
    monkeypatch.setitem(SYSTEMS, "toy_sampler", "toys:ToySampler")
    write_arcs(tmp_path / "arcs", [20] * 6)
    train(
        "toy_sampler", "tiny", str(tmp_path / "arcs"), QUICK, steps=1, run_dir=str(tmp_path / "runs/sampler")
    )
    sampler = panel.GeneratePanel(str(tmp_path / "runs/sampler"), num_frames=5)
    assert (
        sampler.start.options == ("dataset", "picture", "noise")
        and sampler.direction.layout.display == "none"
    )
    press_generate(sampler)
    assert sampler.result["source"] == "dataset:arc_0/0" and sampler.links.value.startswith(
        "generated · download"
    )
    sampler.start.value = "noise"
    fields = (sampler.picture, sampler.arc, sampler.upload)
    assert all(field.layout.display == "none" for field in fields)
    press_generate(sampler)
    assert sampler.result["source"] == "noise" and sampler.result["num_frames"] == 5
    assert sampler.links.value.startswith("generated · download") and "<video" in sampler.video.value
    (tmp_path / "runs/run/config.json").unlink()
    steered = steered_run(
        monkeypatch, tmp_path, write_recording(tmp_path / "recording.h5", np.array([1, 0, 2, 1] * 5))
    )
    sampler.run.options = [*sampler.run.options, str(steered)]
    sampler.run.value = str(steered)  # which has no such start
    assert sampler.start.options == ("dataset", "picture") and sampler.start.value == "dataset"
    press_generate(sampler)
    assert sampler.result["system"] == "steered"


def test_a_run_with_actions_follows_the_recording_or_a_script(form, tmp_path, monkeypatch):
    assert form.actions.layout.display == "none"
    run = steered_run(
        monkeypatch, tmp_path, write_recording(tmp_path / "recording.h5", np.array([1, 0, 2, 1] * 5))
    )
    monkeypatch.undo()
    monkeypatch.setitem(SYSTEMS, "steered", "steered:Steered")
    steered = panel.GeneratePanel(str(run), num_frames=5)
    press_generate(steered)
    assert steered.result["actions"] == [0, 2, 1, 1] and steered.actions.layout.display == ""
    steered.actions.value = "[2, 2, 2, 2]"
    press_generate(steered)
    assert steered.result["actions"] == [2, 2, 2, 2]
    steered.actions.value = "[7]"
    press_generate(steered)
    assert "one action for each predicted frame: 4; 1 were given" in steered.message.value
