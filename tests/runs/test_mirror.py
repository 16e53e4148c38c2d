"""A run's copy on a Drive: whole, never in the way of the training, and brought back where the run is gone."""

import json
import os
import shutil
import threading
import time
from pathlib import Path

import pytest
import torch
from conftest import write_arcs

from mtld_core.config import UserError
from mtld_core.runs import checkpoint as checkpoints
from mtld_core.runs import mirror
from mtld_core.train import train

QUICK = {"eval_windows": 2, "log_every_steps": 1, "preview_every_steps": 0, "warmup_steps": 0}


def save(run_dir, step):
    checkpoints.save(run_dir, step, {"w": torch.full((3,), float(step))}, {"step": step}, {})


@pytest.fixture
def run(tmp_path):
    save(tmp_path / "run", 10)
    (tmp_path / "run/samples").mkdir()
    (tmp_path / "run/samples/video.mp4").touch()
    (tmp_path / "run/.lock").touch()
    (tmp_path / "drive").mkdir()
    return tmp_path / "run"


def test_the_copy_follows_the_run(run, tmp_path):
    copy, seen = tmp_path / "drive/mtld/run", {}
    mirror.update(run, copy, seen)
    assert sorted(path.name for path in copy.iterdir()) == ["checkpoints", "latest.json"]
    assert checkpoints.find(copy).name == "step_00000010"
    written = (copy / "checkpoints/step_00000010/model.safetensors").stat().st_mtime_ns
    for step in (20, 30):
        save(run, step)
        checkpoints.prune(run, 2)
        mirror.update(run, copy, seen)
    names = [path.name for path in checkpoints.list_checkpoints(copy)]
    assert names == ["step_00000030", "step_00000020"]
    assert json.loads((copy / "latest.json").read_text())["step"] == 30
    assert not list(copy.rglob(".*"))
    moved = {path.name: path.stat().st_mtime_ns for path in (copy / "checkpoints/step_00000020").iterdir()}
    mirror.update(run, copy, seen)  # nothing is copied twice
    assert {
        path.name: path.stat().st_mtime_ns for path in (copy / "checkpoints/step_00000020").iterdir()
    } == moved
    assert written < min(moved.values())


def test_a_copy_that_is_not_what_was_read_is_none(run, tmp_path, monkeypatch):
    copy = tmp_path / "drive/mtld/run"
    monkeypatch.setattr(mirror, "sha256", lambda path: "of something else")
    with pytest.raises(OSError, match="came out otherwise than it was read"):
        mirror.update(run, copy, {})
    assert (
        not checkpoints.list_checkpoints(copy)
        or checkpoints.newest_good(checkpoints.list_checkpoints(copy)) is None
    )


def test_what_is_pruned_while_it_is_copied_is_no_failure(run, tmp_path, monkeypatch):
    real = mirror._copy

    def copy(source, target):
        if source.name == "model.safetensors":
            shutil.rmtree(source.parent)
        real(source, target)

    monkeypatch.setattr(mirror, "_copy", copy)
    mirror.update(run, tmp_path / "drive/mtld/run", {})
    assert (tmp_path / "drive/mtld/run/latest.json").is_file()  # it went on behind what was gone


def test_a_drive_that_comes_late_is_tried_again_and_costs_nothing(run, tmp_path, monkeypatch):
    monkeypatch.setattr(mirror, "SECONDS_BETWEEN_LOOKS", 0.01)
    said, drive = [], tmp_path / "content/drive"
    with mirror.mirrored(run, str(drive / "mtld"), said.append):
        while not said:
            time.sleep(0.01)
        assert "No such file or directory; training goes on, and copying is tried again" in said[0]
        drive.mkdir(parents=True)
    assert said[1:] == [f"a copy is in {drive}/mtld/run"]
    assert checkpoints.find(drive / "mtld/run").name == "step_00000010"


def test_a_drive_that_hangs_or_stays_away_ends_with_the_run(run, tmp_path, monkeypatch):
    said = []
    with mirror.mirrored(run, str(tmp_path / "not/mounted"), said.append):
        pass
    assert "lacks what came last: " in said[-1]
    hangs = threading.Event()
    monkeypatch.setattr(mirror, "update", lambda *_: hangs.wait(60))
    monkeypatch.setattr(mirror, "SECONDS_FOR_THE_LAST", 0.1)
    began = time.monotonic()
    with mirror.mirrored(run, str(tmp_path / "drive"), said.append):
        pass
    assert time.monotonic() - began < 30
    assert said[-1].endswith("drive/run may lack what came last: copying takes longer than 0.1 s")
    hangs.set()


def test_a_training_is_mirrored_and_goes_on_from_the_copy(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    arcs = str(write_arcs(tmp_path / "arcs", [20] * 6))
    (tmp_path / "drive").mkdir()
    given = {"run_dir": "runs/demo", "mirror_dir": str(tmp_path / "drive/mtld")}
    train("mtld", "tiny", arcs, QUICK, steps=2, **given)
    copy = tmp_path / "drive/mtld/demo"
    for name in ("config.json", "report.json", "metrics.jsonl", "latest.json"):
        assert (copy / name).read_bytes() == Path("runs/demo", name).read_bytes()
    shutil.rmtree("runs")  # the session ends
    assert train("mtld", "tiny", arcs, QUICK, steps=3, **given)["step"] == 3
    lines = Path("runs/demo/metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == [1, 2, 3]
    assert checkpoints.find(copy).name == "step_00000003"


def test_only_what_is_gone_is_brought_back(run, tmp_path):
    mirror.update(run, tmp_path / "drive/run", {})
    save(run, 5)
    os.remove(run / "checkpoints/step_00000010/manifest.json")
    for run_dir, resume in ((run, "auto"), (tmp_path / "new/run", "never"), ("", "auto")):
        mirror.bring_back(run_dir, tmp_path / "drive", resume)
    assert not (run / "checkpoints/step_00000010/manifest.json").exists() and not (tmp_path / "new").exists()
    mirror.bring_back(tmp_path / "new/run", tmp_path / "drive")
    assert checkpoints.find(tmp_path / "new/run").name == "step_00000010"


def test_no_newer_checkpoint_is_lost_in_the_copy(run, tmp_path):
    mirror.update(run, tmp_path / "drive/run", {})
    new = tmp_path / "new/run"
    for make in (lambda: new.mkdir(parents=True), lambda: save(new, 5)):
        make()
        with (
            pytest.raises(
                UserError, match=r"drive/run has \['step_00000010'\], which is newer than all in .*new"
            ),
            mirror.mirrored(new, str(tmp_path / "drive"), print),
        ):
            pass
    assert checkpoints.find(tmp_path / "drive/run").name == "step_00000010"


def test_a_run_is_brought_back_whole_or_not_at_all(run, tmp_path, monkeypatch):
    mirror.update(run, tmp_path / "drive/run", {})
    new = tmp_path / "new/run"

    def interrupted(source, target, **options):
        Path(target, "checkpoints/step_00000010").mkdir(parents=True)
        raise KeyboardInterrupt

    with monkeypatch.context() as once:
        once.setattr(shutil, "copytree", interrupted)
        with pytest.raises(KeyboardInterrupt):
            mirror.bring_back(new, tmp_path / "drive")
    assert not new.exists()
    new.mkdir()
    (new / "mine.txt").touch()
    mirror.bring_back(new, tmp_path / "drive")
    assert [path.name for path in new.iterdir()] == ["mine.txt"]  # nothing takes its place
    (new / "mine.txt").unlink()
    mirror.bring_back(new, tmp_path / "drive")
    assert checkpoints.find(new).name == "step_00000010"
