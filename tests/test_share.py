"""A run to give away: opened and played somewhere else, without a word about this machine."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
from conftest import write_arcs
from safetensors.torch import load_file
from steered import QUICK, steered_run, write_recording

from data_prep.record_game import record
from mtld_core import config, open_run
from mtld_core.config import UserError
from mtld_core.data import open_dataset
from mtld_core.generate import generate, rollout
from mtld_core.generate.panel import GeneratePanel
from mtld_core.judge import judge
from mtld_core.play import Play
from mtld_core.share import main, share, share_weights, without_places
from mtld_core.systems import SYSTEMS
from mtld_core.train import train

ROOT = Path(__file__).parents[1]
ALL = [
    "README.md",
    "config.json",
    "judgement.png",
    "model.safetensors",
    "preview.png",
    "recording.h5",
    "report.json",
]


def names(folder):
    return sorted(path.name for path in folder.iterdir())


@pytest.fixture
def run(tmp_path, monkeypatch):
    recording = write_recording(tmp_path / "home/recording.h5", np.array([1, 0, 2, 1] * 5))
    return steered_run(monkeypatch, tmp_path / "home", recording)


@pytest.fixture(autouse=True)
def home(tmp_path):
    (tmp_path / "home").mkdir()


def test_a_shared_run_is_played_on_another_machine(run, tmp_path):
    before = Play(open_run(run))
    share(run, tmp_path / "out", 12)
    shutil.move(tmp_path / "out", tmp_path / "elsewhere")
    shutil.rmtree(tmp_path / "home")
    assert names(tmp_path / "elsewhere") == ALL
    play = Play(open_run(tmp_path / "elsewhere"))
    assert (
        play.labels == before.labels and play.system.run.step == 1 and play.source.text == before.source.text
    )
    assert play.frames[0].equal(before.frames[0]) and play.act(2).equal(before.act(2))
    assert list(play.starts) == ["episode_3"] and play.starts["episode_3"] == list(range(1, 12))
    result = generate(str(tmp_path / "elsewhere"), num_frames=6)
    assert (
        result["actions"] == [0, 2, 1, 1, 0]
        and result["step"] == 1
        and result["checkpoint"] == "model.safetensors"
    )
    assert (tmp_path / "elsewhere/samples/episode_3_1_1/video.mp4").is_file()


def test_a_run_that_lies_in_the_project_is_shared_from_another_folder(run, tmp_path, monkeypatch):
    monkeypatch.setattr(config, "places", [Path(run).parent])
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    assert names(share(Path(run).name, "out", 12)) == ALL
    assert share_weights(Path(run).name, "weights.pth").is_file()


def test_weights_in_half_precision_dream_the_same(run, tmp_path):
    played = []
    for name, half, dtype in (("whole", False, torch.float32), ("half", True, torch.float16)):
        out = share(run, tmp_path / name, half=half)
        weights = safetensors.torch.load_file(out / "model.safetensors")
        assert {value.dtype for value in weights.values()} == {dtype}
        system = open_run(out)
        assert {value.dtype for value in system.parameters()} == {torch.float32}
        played.append(Play(system).act(2).int())
    assert (played[0] - played[1]).abs().max() <= 2


def test_nothing_names_a_place_on_this_machine(run, tmp_path):
    report = json.loads((run / "report.json").read_text())
    report["metrics"]["lpips_reason"] = f"{tmp_path}/lpips/vgg.pth is not there"
    (run / "report.json").write_text(json.dumps(report))
    out = share(run, tmp_path / "out", 12)
    for file in out.iterdir():
        assert str(tmp_path).encode() not in file.read_bytes() and b"/home" not in file.read_bytes(), file
    config, report = (json.loads((out / name).read_text()) for name in ("config.json", "report.json"))
    assert (
        config["dataset"]["path"] == report["dataset"]["path"] == "recording.h5" and report["run_dir"] == "."
    )
    assert "lpips_reason" not in report["metrics"]


def test_of_an_absolute_path_the_name_is_left():
    places = {"a": ["/home/me/My Runs/best", "runs/best", "and/or"], "n": 3}
    assert without_places(places) == {"a": ["best", "runs/best", "and/or"], "n": 3}


def test_the_readme_says_what_it_is(run, tmp_path):
    text = (share(run, tmp_path / "out", 12) / "README.md").read_text()
    report = json.loads((run / "report.json").read_text())
    metrics, parameters = report["metrics"], sum(p.numel() for p in open_run(run).parameters())
    assert f": {parameters:,} parameters,\n" in text and "1 steps" in text  # of small ones, too
    assert "{" not in text and "}" not in text
    assert text.startswith("---\n") and "`steered`" in text and 'open_run("out")' in text
    assert (
        f"psnr {metrics['psnr']:.2f} dB" in text
        and f"| ssim | {metrics['ssim']:.4g} |" in text
        and "held-out" in text
    )


def test_without_a_recording_it_starts_from_pictures(run, tmp_path):
    out = share(run, tmp_path / "out", 0)
    assert names(out) == [name for name in ALL if name != "recording.h5"]
    with pytest.raises(UserError, match=r"out/recording\.h5 is not there \(any more\): name an image file"):
        generate(str(out), num_frames=4)


def test_a_run_on_a_folder_of_frames(tmp_path):
    write_arcs(tmp_path / "arcs", [20] * 6)
    train("mtld", "tiny", str(tmp_path / "arcs"), QUICK, steps=2, run_dir=str(tmp_path / "run"))
    out = share(tmp_path / "run", tmp_path / "out")
    here, there = open_run(tmp_path / "run"), open_run(out)
    assert all(value.equal(there.state_dict()[name]) for name, value in here.state_dict().items())
    shared = open_dataset(out / "recording.h5", progress=False)
    assert shared.about == {"held_out": True} and shared.frames.equal(
        open_dataset(tmp_path / "arcs").frames[60:80]
    )
    assert generate(str(out), num_frames=5)["psnr"] == generate(str(tmp_path / "run"), num_frames=5)["psnr"]


def toy_run(monkeypatch, name, cls, data, folder):
    monkeypatch.setitem(SYSTEMS, name, f"toys:{cls}")
    train(name, "tiny", str(data), QUICK, steps=2, run_dir=str(folder))
    return folder


def test_a_shared_translator_brings_a_clip_of_each_domain_and_takes_others(tmp_path, monkeypatch):
    for domain in "XY":
        write_arcs(tmp_path / "home/data" / domain, [20] * 6)
    run = toy_run(
        monkeypatch, "toy_translator", "ToyTranslator", tmp_path / "home/data", tmp_path / "home/run"
    )
    shutil.move(share(run, tmp_path / "out"), tmp_path / "elsewhere")
    shutil.move(tmp_path / "home/data/Y/arc_1", tmp_path / "clip")
    shutil.rmtree(tmp_path / "home")
    assert names(tmp_path / "elsewhere") == sorted(
        ["X", "Y", *(name for name in ALL if name != "recording.h5")]
    )
    text = (tmp_path / "elsewhere/README.md").read_text()
    assert "`toy_translator`" in text and "(reconstruction)" in text and "flicker_y_to_x" in text
    result = generate(str(tmp_path / "elsewhere"), str(tmp_path / "clip"), direction="y_to_x")
    assert result["num_frames"] == 20 and result["comparison"] == "source | translated"
    for direction in ("x_to_y", "y_to_x"):
        assert generate(str(tmp_path / "elsewhere"), direction=direction)["num_frames"] == 20
    assert judge(tmp_path / "elsewhere")["flicker_x_to_y"] > 0


def test_a_shared_sampler_draws_the_same(tmp_path, monkeypatch):
    data = write_arcs(tmp_path / "home/data", [20] * 6)
    run = toy_run(monkeypatch, "toy_sampler", "ToySampler", data, tmp_path / "home/run")
    drawn = rollout(open_run(run), None, 3, seed=5)
    shutil.move(share(run, tmp_path / "out"), tmp_path / "elsewhere")
    shutil.rmtree(tmp_path / "home")
    assert names(tmp_path / "elsewhere") == ALL and rollout(
        open_run(tmp_path / "elsewhere"), None, 3, seed=5
    ).equal(drawn)
    assert generate(str(tmp_path / "elsewhere"), num_frames=3)["source"] == "noise"
    assert generate(str(tmp_path / "elsewhere"), "dataset:episode_0/4", 3)["num_frames"] == 3


def test_the_tail_of_a_long_episode(tmp_path, monkeypatch):
    """Held out is its end, to which no game can be brought."""
    about = {"action_names": ["a", "b", "c"], "episode_seeds": [3], "env": "ALE/Pong-v5"}
    recording = write_recording(tmp_path / "home/recording.h5", np.array([1, 0, 2, 1] * 20), 1, about)
    run = steered_run(monkeypatch, tmp_path / "home", recording)
    shared = open_dataset(share(run, tmp_path / "out") / "recording.h5", progress=False)
    whole = open_dataset(recording, progress=False)
    assert shared.frames.equal(whole.frames[-len(shared.frames) :]) and shared.actions.equal(
        whole.actions[-len(shared.frames) :]
    )
    assert (
        len(shared.frames) == 8
        and "episode_seeds" not in shared.about
        and shared.about["action_names"] == ["a", "b", "c"]
    )


@pytest.mark.versionless  # our own command line
def test_a_real_pong_from_the_command_line(tmp_path):
    record("ALE/Pong-v5", 300, tmp_path / "pong.h5", episode_steps=50, progress=False)
    train("tinydreams", "tiny", str(tmp_path / "pong.h5"), QUICK, steps=1, run_dir=str(tmp_path / "run"))
    command = [
        sys.executable,
        "-m",
        "mtld_core.share",
        str(tmp_path / "run"),
        str(tmp_path / "out"),
        "--frames",
        "60",
    ]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.startswith(f"{tmp_path / 'out'}: 0.")
    (tmp_path / "pong.h5").unlink()
    play = Play(open_run(tmp_path / "out"))
    assert play.alone == "" and list(play.starts) == ["episode_3"]  # and the real game runs beside the dream
    play.act(2)
    refused = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert refused.returncode != 0 and refused.stderr.splitlines()[-1].endswith(
        "is there already: name another folder, or delete it"
    )


@pytest.mark.parametrize("frames", [1, -5])
def test_too_few_frames(run, tmp_path, frames):
    with pytest.raises(UserError, match="frames must be 0, or at least 3"):
        share(run, tmp_path / "out", frames)
    assert not (tmp_path / "out").exists()


def test_what_cannot_be_shared(run, tmp_path):
    with pytest.raises(UserError, match="not a run folder"):
        share(tmp_path / "nowhere", tmp_path / "out")
    report = json.loads((run / "report.json").read_text())
    del report["parameters"]
    for lacking, words in ((report, r"report\.json lacks parameters: train on"), ([], "missing or damaged")):
        (run / "report.json").write_text(json.dumps(lacking))
        with pytest.raises(UserError, match=words):
            share(run, tmp_path / "out")
    (run / "report.json").unlink()
    with pytest.raises(UserError, match=r"report\.json is missing or damaged"):
        share(run, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["OUT", "--send"], "--send needs --hub or --kaggle, which say where to"),
        (["OUT.pth", "--hub", "me/pong"], "OUT.pth is a file: what is uploaded is a folder"),
    ],
)
def test_no_option_is_passed_over(words, said, capsys):
    assert main(["RUN", *words]) == 1 and said in capsys.readouterr().err


def test_a_full_disk_leaves_no_half_of_a_run(run, tmp_path, monkeypatch):
    def full(out, *about):
        assert (out / "recording.h5").is_file() and not (out / "config.json").exists()  # which makes it a run
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("mtld_core.share._card", full)
    with pytest.raises(UserError, match=r"out cannot be written \(No space left on device\); make room"):
        share(run, tmp_path / "out", 12)
    assert not (tmp_path / "out").exists()


def test_data_that_are_gone_are_no_end(run, tmp_path, monkeypatch):
    (tmp_path / "home/recording.h5").unlink()
    with pytest.raises(UserError, match=r"bring it back, or share with frames=0$"):
        share(run, tmp_path / "out")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert names(share(run, "~/out", 0)) == [name for name in ALL if name != "recording.h5"]
    assert (tmp_path / "out").is_dir()


def test_damaged_or_foreign_shared_weights(run, tmp_path):
    out = share(run, tmp_path / "out", 12)
    (out / "model.safetensors").write_bytes(b"version https://git-lfs")
    with pytest.raises(UserError, match=r"model\.safetensors is no file of weights"):
        open_run(out)
    (out / "model.safetensors").unlink()
    with pytest.raises(UserError, match="holds no checkpoint yet"):
        open_run(out)


# ---- the weights alone


def test_the_weights_as_a_pth_from_the_command_line(tmp_path):
    write_arcs(tmp_path / "arcs", [20] * 6)
    run = tmp_path / "run"
    train("mtld", "tiny", str(tmp_path / "arcs"), QUICK | {"ema_decay": 0.5}, steps=2, run_dir=str(run))
    command = [sys.executable, "-m", "mtld_core.share", str(run), str(run / "weights.pth")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert (run / "weights.pth").is_file() and done.stdout.startswith(f"{run / 'weights.pth'}: 0.")
    averaged, newest = (
        load_file(run / f"checkpoints/step_00000002/{name}.safetensors") for name in ("ema", "model")
    )
    written = torch.load(run / "weights.pth", weights_only=True)
    assert written.keys() == averaged.keys() and all(
        value.equal(averaged[name]) for name, value in written.items()
    )
    assert not all(value.equal(written[name]) for name, value in newest.items())
    for name in ("weights.pth", run / "weights.pth"):  # in the run's folder, or by its path
        opened = open_run(run, name, device="cpu")
        assert opened.run.checkpoint == "weights.pth"
        assert all(value.equal(averaged[name]) for name, value in opened.state_dict().items())
    newest = generate(str(run), num_frames=4, out_dir=str(tmp_path / "newest"))
    again = generate(str(run), num_frames=4, out_dir=str(tmp_path / "again"), checkpoint="weights.pth")
    assert again["checkpoint"] == "weights.pth" and again["psnr"] == newest["psnr"]
    form = GeneratePanel(str(run))
    assert [name for _, name in form.checkpoint.options] == ["", "best", "step_00000002", "weights.pth"]
    refused = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert (
        refused.returncode == 1
        and refused.stderr.count("\n") == 1
        and "name another file, or delete it" in refused.stderr
    )


def test_a_shared_run_gives_its_weights_on(run, tmp_path):
    shared = share(run, tmp_path / "out", 12)
    share_weights(shared, tmp_path / "weights.pth")
    before, after = open_run(run).state_dict(), open_run(shared, str(tmp_path / "weights.pth")).state_dict()
    assert all(value.equal(after[name]) for name, value in before.items())


def test_weights_that_cannot_be_written_or_found(run, tmp_path):
    with pytest.raises(UserError, match="no such run folder"):
        share_weights(tmp_path / "nowhere", tmp_path / "a.pth")
    (tmp_path / "taken").write_text("a file")
    with pytest.raises(UserError, match=r"taken/a\.pth cannot be written"):
        share_weights(run, tmp_path / "taken/a.pth")
    with pytest.raises(UserError, match=r"checkpoint a\.pth: no such file, here or in"):
        open_run(run, "a.pth")
    assert not (tmp_path / "a.pth").exists()
