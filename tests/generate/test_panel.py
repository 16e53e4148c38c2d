"""The form, pressed without a browser: widgets are plain objects."""

import base64
import datetime
import io
import types
from pathlib import Path

import numpy as np
import pytest
from conftest import write_arcs
from PIL import Image
from rolling import open_toy, picture, write_rolling_arcs
from steered import QUICK, steered_run, write_recording

from mtld_core import media
from mtld_core.generate import panel
from mtld_core.systems import SYSTEMS
from mtld_core.train import train

NOW = datetime.datetime(2026, 1, 1, tzinfo=datetime.UTC)


@pytest.fixture
def form(tmp_path, monkeypatch):
    write_rolling_arcs(tmp_path / "data")
    open_toy(monkeypatch, tmp_path)
    for name in ("run", "second"):
        (tmp_path / "runs" / name / "checkpoints/step_00000007").mkdir(parents=True)
        (tmp_path / "runs" / name / "config.json").write_text("{}")
    return panel.GeneratePanel(str(tmp_path / "runs/run"), num_frames=5, fps=10)


def test_the_panel_offers_what_there_is(form, tmp_path):
    assert [Path(run).name for run in form.run.options] == ["run", "second"]
    assert Path(form.run.value).name == "run" and form.checkpoint.options[1:] == ("step_00000007",)
    assert (form.checkpoint.value, form.arc.value, form.frame.value) == (panel.NEWEST, "moves", 10)
    assert form.arc.options == ("moves", "other") and form.frame.options == tuple(range(10, 30))
    assert form.message.value == '<span style="color:inherit"></span>' and not form.button.disabled


def test_a_click_generates_beside_the_truth(form):
    form.arc.value, form.frame.value = "other", 15
    form.button.click()
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
    form.start.value, form.upload = "picture", types.SimpleNamespace(value=value)
    form.button.click()
    assert "psnr" not in form.result and "<video" in form.video.value
    first = media.read_image(Path(form.result["out_dir"]) / "frames/frame_0000.png")
    assert np.array_equal(first, picture())


def test_an_error_is_one_line_in_the_panel(form):
    form.start.value = "picture"
    form.button.click()
    assert "upload a picture first" in form.message.value and "#c00" in form.message.value
    assert form.video.value == "" and form.result is None and not form.button.disabled


def test_a_panel_without_runs_says_so(tmp_path):
    assert "there is no run yet" in panel.GeneratePanel(str(tmp_path / "runs/demo")).message.value


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
        form.upload.set_trait("value", {name: entry} if form.upload.value == {} else (entry,))

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


def test_what_was_generated_can_be_downloaded(form):
    form.button.click()
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
    sampler.button.click()
    assert sampler.result["source"] == "dataset:arc_0/0" and sampler.links.value.startswith(
        "generated · download"
    )
    sampler.start.value = "noise"
    fields = (sampler.picture, sampler.arc, sampler.upload)
    assert all(field.layout.display == "none" for field in fields)
    sampler.button.click()
    assert sampler.result["source"] == "noise" and sampler.result["num_frames"] == 5
    assert sampler.links.value.startswith("generated · download") and "<video" in sampler.video.value
    (tmp_path / "runs/run/config.json").unlink()
    steered = steered_run(
        monkeypatch, tmp_path, write_recording(tmp_path / "recording.h5", np.array([1, 0, 2, 1] * 5))
    )
    sampler.run.options = [*sampler.run.options, str(steered)]
    sampler.run.value = str(steered)  # which has no such start
    assert sampler.start.options == ("dataset", "picture") and sampler.start.value == "dataset"
    sampler.button.click()
    assert sampler.result["system"] == "steered"


def test_a_run_with_actions_follows_the_recording_or_a_script(form, tmp_path, monkeypatch):
    assert form.actions.layout.display == "none"
    run = steered_run(
        monkeypatch, tmp_path, write_recording(tmp_path / "recording.h5", np.array([1, 0, 2, 1] * 5))
    )
    monkeypatch.undo()
    monkeypatch.setitem(SYSTEMS, "steered", "steered:Steered")
    steered = panel.GeneratePanel(str(run), num_frames=5)
    steered.button.click()
    assert steered.result["actions"] == [0, 2, 1, 1] and steered.actions.layout.display == ""
    steered.actions.value = "[2, 2, 2, 2]"
    steered.button.click()
    assert steered.result["actions"] == [2, 2, 2, 2]
    steered.actions.value = "[7]"
    steered.button.click()
    assert "one action for each predicted frame: 4; 1 were given" in steered.message.value
