"""Judging one saved checkpoint by its name; how much is judged; epochs of a length of their own."""

import json
import os
import shutil
from pathlib import Path

import pytest
from conftest import write_arcs

from mtld_core import config, metrics
from mtld_core.config import UserError
from mtld_core.judge import checkpoint as judge
from mtld_core.runs.resume import checkpoint_to_resume
from mtld_core.train import train


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A tiny run with two checkpoints; moving averages make them differ little but surely."""
    root = tmp_path_factory.mktemp("judged")
    write_arcs(root / "arcs", [20] * 6)
    settings = {"save_every_steps": 10, "eval_every_steps": 10, "keep_checkpoints": 9}
    report = train("mtld", "tiny", str(root / "arcs"), settings, run_dir=str(root / "run"), steps=20)
    return root / "run", report


def test_a_checkpoint_is_judged_as_training_judged_it(run, capsys):
    folder, report = run
    assert judge.main([str(folder)]) == 0
    figures = json.loads(capsys.readouterr().out)
    assert figures == json.loads((folder / "judgements/step_00000020.json").read_text())
    assert figures["psnr"] == pytest.approx(report["metrics"]["psnr"], abs=1e-3)
    earlier = judge.judge(folder, "step_00000010")
    assert earlier["psnr"] != figures["psnr"] and (folder / "judgements/step_00000010.json").exists()


def test_a_run_that_is_found_elsewhere_or_cannot_be_written_to(run, tmp_path, monkeypatch):
    folder = shutil.copytree(run[0], tmp_path / "project/examples/run")
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.setattr(config, "places", [tmp_path / "project"])
    figures = judge.judge("examples/run")
    written = folder / "judgements/step_00000020.json"
    assert json.loads(written.read_text()) == figures and not list(Path.cwd().iterdir())
    written.unlink()
    monkeypatch.setattr(os, "access", lambda path, mode: mode != os.W_OK)
    assert judge.judge("examples/run") == figures and not written.exists()
    assert json.loads(Path("samples/run/judgements/step_00000020.json").read_text()) == figures


def test_figures_outlast_a_full_disk(run, monkeypatch, capsys):
    def full(folder, name, content):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(judge, "write_part", full)
    assert judge.main([str(run[0])]) == 0
    said = capsys.readouterr()
    assert json.loads(said.out)["psnr"] == pytest.approx(run[1]["metrics"]["psnr"], abs=1e-3)
    assert f"{run[0]} cannot be written (No space left on device): figures are not kept there" in said.err


def test_a_run_whose_data_have_moved_is_judged_where_they_are_now(run, tmp_path, monkeypatch, capsys):
    data = run[0].parent / "arcs"
    before = judge.judge(run[0])
    data.rename(tmp_path / "moved")
    try:
        with pytest.raises(UserError, match=r"arcs is not there \(any more\): name dataset_root$"):
            judge.judge(run[0])
        capsys.readouterr()
        assert judge.main([str(run[0]), "--dataset_root", str(tmp_path / "moved")]) == 0
        assert json.loads(capsys.readouterr().out) == before
    finally:
        (tmp_path / "moved").rename(data)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["RUN", "--out", "table"], "--horizon and --out are for runs behind --compare"),
        (["RUN", "--horizon", "4"], "--horizon and --out are for runs behind --compare"),
        (
            ["--compare", "RUN", "--checkpoint", "best"],
            "--checkpoint and --life_horizon are for a single run",
        ),
        (["--compare", "RUN", "--life_horizon", "9"], "--checkpoint and --life_horizon are for a single run"),
    ],
)
def test_no_option_is_passed_over(words, said, capsys):
    assert judge.main(words) == 1 and said in capsys.readouterr().err


def test_judging_changes_nothing_that_training_goes_on_from(run):
    folder, _ = run
    before = (folder / "report.json").read_bytes(), (folder / "latest.json").read_bytes()
    judge.judge(folder)
    assert before == ((folder / "report.json").read_bytes(), (folder / "latest.json").read_bytes())
    assert checkpoint_to_resume(folder, "auto")[0].name == "step_00000020"


def test_a_run_whose_lpips_weights_are_gone_is_judged_with_what_the_cache_has(
    run, tmp_path, capsys, monkeypatch
):
    folder = shutil.copytree(run[0], tmp_path / "run")
    about = json.loads((folder / "config.json").read_text())
    about["config"]["lpips_weights"] = "gone.pth"
    about["dataset"]["path"] = str(run[0].parent / "arcs")
    (folder / "config.json").write_text(json.dumps(about))
    asked = []
    monkeypatch.setattr(
        metrics, "lpips_metric", lambda device, weights="": asked.append(weights) or (None, "none here")
    )
    assert judge.main([str(folder)]) == 0
    said = capsys.readouterr()
    assert json.loads(said.out)["lpips_reason"] == "none here" and set(asked) == {""}
    assert said.err.startswith(
        "lpips_weights='gone.pth' is not here (any more): LPIPS takes what torch's cache has\n"
    )
    (tmp_path / "gone.pth").touch()
    monkeypatch.chdir(tmp_path)
    asked.clear()
    judge.judge(folder)
    assert set(asked) == {"gone.pth"} and "any more" not in capsys.readouterr().err


def test_a_name_that_is_not_there_is_said(run, capsys):
    with pytest.raises(UserError, match=r"no checkpoint 'step_7'; there are: step_00000020, step_00000010"):
        judge.judge(run[0], "step_7")
    assert judge.main([str(run[0] / "nowhere")]) == 1
    assert capsys.readouterr().err.startswith("error: ")


def test_eval_batches_are_batches_of_windows(tmp_path):
    write_arcs(tmp_path / "arcs", [20] * 6)
    for settings, windows in (({"eval_batches": 2}, 6), ({"eval_windows": 5}, 5)):
        run_dir = str(tmp_path / str(windows))
        report = train(
            "mtld", "tiny", str(tmp_path / "arcs"), settings, run_dir=run_dir, steps=1, batch_size=3
        )
        assert report["metrics"]["windows"] == windows


def test_an_epoch_has_as_many_steps_as_asked_for(tmp_path):
    write_arcs(tmp_path / "arcs", [20] * 6)
    settings = {"steps_per_epoch": 5, "epochs": 2}
    assert (
        train("mtld", "tiny", str(tmp_path / "arcs"), settings, run_dir=str(tmp_path / "run"))["step"] == 10
    )
