"""Runs side by side: the same figures as each report where the windows agree, common windows where not."""

import csv
import inspect
import json
import math
import shutil
import sys
import threading
from pathlib import Path
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import write_arcs
from ipywidgets import VBox
from PIL import Image
from steered import write_recording

from mtld_core import media, metrics
from mtld_core.config import UserError
from mtld_core.judge import checkpoint, frechet
from mtld_core.judge.compare import _strips, compare, runs_to_compare
from mtld_core.judge.panel import ComparePanel
from mtld_core.judge.rollouts import Judge
from mtld_core.judge.words import compared
from mtld_core.pages import RED, Cancellable, Panel
from mtld_core.systems import SYSTEMS
from mtld_core.systems.baselines import BASELINES
from mtld_core.train import train

QUICK = {"eval_every_steps": 0, "preview_every_steps": 0, "save_every_steps": 0, "eval_windows": 4}
SAME = {"context_frames": 2, "sequence_length": 6}
# four systems whose held-out windows agree: two frames given, four predicted
ALIKE = {
    "mtld": SAME,
    "tinydreams": {"context_frames": 2, "rollout_frames": 4},
    "latent_actions": SAME,
    "dynamics": SAME | {"tokenizer_run": "tokenizer"},
}


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """A folder with a recording of ten episodes, a tokenizer and the runs of `ALIKE`; their reports."""
    root = tmp_path_factory.mktemp("compared")
    write_recording(root / "data.h5", np.random.default_rng(0).integers(0, 3, 24), episodes=10)

    def make(system, **overrides):
        if "tokenizer_run" in overrides:
            overrides["tokenizer_run"] = str(root / overrides["tokenizer_run"])
        run_dir = str(root / overrides.pop("name", system))
        return train(system, "tiny", str(root / "data.h5"), QUICK | overrides, steps=2, run_dir=run_dir)

    make("tokenizer", sequence_length=4)
    reports = {system: make(system, **overrides) for system, overrides in ALIKE.items()}
    return root, reports, make


@pytest.fixture
def quick(monkeypatch):
    """Without what takes most of the time."""
    monkeypatch.setattr(metrics, "lpips_metric", lambda *_, **__: (None, "no weights here"))
    monkeypatch.setattr(metrics, "ssim", lambda a, b: torch.zeros(a.shape[:-3]))
    monkeypatch.setattr(metrics, "ms_ssim", metrics.ssim)
    monkeypatch.setattr(metrics, "warping_error", metrics.flicker)
    for kind in frechet.KINDS:
        monkeypatch.setitem(frechet.KINDS, kind, lambda device: (None, "no network here"))


def rows_of(section):
    return {row["run"]: row for row in section["rows"]}


def test_figures_are_those_of_each_report_where_the_windows_agree(runs, tmp_path):
    root, reports, _ = runs
    result = compare([root / name for name in (*ALIKE, "tokenizer")], out_dir=tmp_path / "out")
    predicted, rebuilt = result["sections"]
    rows = rows_of(predicted)
    assert list(rows) == [*ALIKE, *BASELINES] and predicted["windows"] == 4
    for name, report in reports.items():
        assert rows[name]["figures"].items() >= report["metrics"].items()  # to the bit
        assert rows[name]["psnr_by_horizon"] == report["metrics"]["psnr_by_horizon"]
        for figure in ("parameters", "peak_memory_mb", "train_seconds"):
            assert rows[name][figure] == report[figure]
    for figure, baseline in (("baseline_copy_psnr", "copy_last"), ("baseline_median_psnr", "median")):
        assert rows[baseline]["psnr"] == reports["mtld"]["metrics"][figure]
    best = min(rows[name]["mse"] for name in BASELINES)
    for row in rows.values():
        assert row["psnr_low"] <= row["psnr"] <= row["psnr_high"]
        assert row["skill_best_db"] == pytest.approx(10 * math.log10(best / row["mse"]))
        assert row["frames_per_second"] > 0
        assert row["run"] not in ALIKE or row["gflop_per_frame"] > 0
    assert rows["copy_last"]["gflop_per_frame"] == 0
    assert not any("differ" in note for note in predicted["notes"])

    assert rebuilt["kind"] == "reconstruction" and list(rows_of(rebuilt)) == ["tokenizer"]
    report = json.loads((root / "tokenizer/report.json").read_text())
    [row] = rebuilt["rows"]
    assert row["figures"].items() >= report["metrics"].items()
    assert row["skill_db"] is row["skill_best_db"] is None

    out = tmp_path / "out"
    kept = json.loads((out / "compare.json").read_text())
    assert kept | {"out_dir": str(out)} == json.loads(json.dumps(result))
    table = list(csv.DictReader((out / "table.csv").open()))
    assert [line["run"] for line in table] == [*rows, "tokenizer"]
    assert float(table[0]["psnr"]) == reports["mtld"]["metrics"]["psnr"] and table[-1]["skill_db"] == ""
    wanted = "system psnr ssim lpips frechet_video_efficientnet_lite0 skill_db flicker frames_per_second "
    wanted += "parameters peak_memory_mb train_seconds"
    assert set(wanted.split()) < set(table[0])
    text = (out / "table.md").read_text()
    for name in (*ALIKE, "tokenizer"):
        assert f"- **{name}**: " in text
    for picture in ("horizon", "strips", "horizon_reconstruction", "strips_reconstruction"):
        assert np.asarray(Image.open(out / f"{picture}.png")).std() > 5


def test_runs_that_do_not_agree_are_judged_on_what_all_hold_out(runs, tmp_path, monkeypatch, quick):
    root, reports, make = runs
    make("mtld", name="longer", context_frames=3, sequence_length=8, eval_windows=3)
    asked, plain = [], Judge.on
    monkeypatch.setattr(
        Judge, "on", lambda self, targets, *how: asked.append(targets) or plain(self, targets, *how)
    )
    result = compare([root / "mtld", root / "longer"], out_dir=tmp_path / "out")
    [section] = result["sections"]
    [note] = [note for note in section["notes"] if "differ" in note]
    assert "differ from" in note and note in (tmp_path / "out/table.md").read_text()
    rows = rows_of(section)
    assert all(len(row["psnr_by_horizon"]) == 4 for row in rows.values())  # the shortest of 4 and 5
    assert rows["mtld"]["psnr"] != reports["mtld"]["metrics"]["psnr"]
    assert section["windows"] == 4  # as many as the run that is judged on most
    assert len(asked) == 2 + len(BASELINES) and all(torch.equal(each, asked[0]) for each in asked)
    # of a held-out episode of 24 frames three are given, and five follow: what the longer run would judge
    assert (asked[0] % 24).tolist() == [3, 8, 14, 19]
    far = compare([root / "mtld"], horizon=9, out_dir=tmp_path / "far")["sections"][0]
    assert all(len(row["psnr_by_horizon"]) == 9 for row in far["rows"])
    with pytest.raises(UserError, match=r"no 30 frames in a row are held out by every one of the runs"):
        compare([root / "mtld"], horizon=30, out_dir=tmp_path / "none")
    assert not (tmp_path / "none").exists()


def test_translators_have_a_table_of_their_own(tmp_path, monkeypatch, quick):
    monkeypatch.setitem(SYSTEMS, "toy_translator", "toys:ToyTranslator")
    for domain in "XY":
        write_arcs(tmp_path / "data" / domain, [20] * 6)
    run = tmp_path / "toy"
    report = train("toy_translator", "tiny", str(tmp_path / "data"), QUICK, steps=2, run_dir=str(run))
    [section] = compare([run], out_dir=tmp_path / "out")["sections"]
    [row] = section["rows"]
    assert section["kind"] == row["kind"] == "translation"
    assert row["figures"].items() >= report["metrics"].items() and row["skill_db"] is None


def test_what_cannot_be_compared_is_said(runs, tmp_path, monkeypatch, quick):
    root, _, _ = runs
    other = tmp_path / "other"
    write_arcs(tmp_path / "arcs", [20] * 6)
    train("mtld", "tiny", str(tmp_path / "arcs"), QUICK, steps=1, run_dir=str(other))

    def refuses(words, *paths, **how):
        with pytest.raises(UserError, match=words):
            compare(paths, out_dir=tmp_path / "none", **how)

    refuses(
        r"learned from different data \(mtld from .*, other from .*\): name dataset_root",
        root / "mtld",
        other,
    )
    sizes = r"other has frames of \(16, 16\), mtld of \(16, 24\)"
    refuses(sizes, root / "mtld", other, dataset_root=str(root / "data.h5"))
    refuses("the dataset gone is not there", root / "mtld", dataset_root="gone")
    refuses("is not a run folder", tmp_path)
    refuses("name runs to compare")
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"out_dir=.*file/out cannot be made in .*file: choose another one"):
        compare([root / "mtld"], out_dir=tmp_path / "file/out", tick=pytest.fail)
    shutil.rmtree(tmp_path / "arcs")
    refuses(r"arcs is not there \(any more\): name dataset_root", other)
    assert not (tmp_path / "none").exists()


def test_a_figure_that_cannot_be_taken_is_empty_and_the_reason_is_there(runs, tmp_path, quick):
    [section] = compare([runs[0] / "mtld"], out_dir=tmp_path / "out")["sections"]
    assert {(row["lpips"], row[frechet.VIDEO]) for row in section["rows"]} == {(None, None)}
    text = (tmp_path / "out/table.md").read_text()
    assert "- lpips is empty: no weights here" in text and "- frechet is empty: no network here" in text


def test_a_run_that_may_have_seen_the_frames_is_named(runs, tmp_path, quick):
    root, _, make = runs
    make("mtld", name="by_heart", restitution=True)
    copy = shutil.copy(root / "data.h5", tmp_path / "copy.h5")
    line = f"may have learned these frames: its data were {root / 'data.h5'}"
    how = {"horizon": 1, "out_dir": tmp_path / "out"}
    [section] = compare([root / "by_heart"], **how)["sections"]
    assert f"by_heart {line}" in section["notes"]
    left_out = "nearest is left out: it would look up the very frames that are judged"
    assert left_out in section["notes"] and set(rows_of(section)) == {"by_heart", *BASELINES} - {"nearest"}
    [section] = compare([root / "mtld"], dataset_root=str(copy), **how)["sections"]
    assert f"mtld {line}" in section["notes"]
    [section] = compare([root / "mtld"], **how)["sections"]
    assert line not in str(section["notes"]) and left_out not in section["notes"]
    assert "nearest" in rows_of(section)


def row(name, **values):
    figures = {"psnr": 30, "skill_db": 1, "baseline_copy_psnr": 29, "baseline_median_psnr": 20}
    given = {
        "run": name,
        "kind": "prediction",
        "figures": figures,
        "skill_best_db": 1,
        "flicker": 2,
        "mse": 1,
    }
    given |= {"psnr": 30, "lpips": 0.1, "moving_skill_db": None, "frames_per_second": 10}
    return given | {"psnr_by_horizon": [1, 2, 3]} | values


def test_a_sentence_says_what_is_good_and_what_is_bad():
    rows = [
        row("good", psnr=31),
        row("poor", psnr=29, flicker=6, skill_best_db=-0.5),
        row("fast", frames_per_second=99),
        row("copy_last", kind="baseline", psnr=99),
        row("linear", kind="baseline", mse=0.5),
    ]
    good, poor, fast, *_ = (compared(each, rows, 2.0) for each in rows)
    assert good.startswith("better than repeating the last frame by 1.0 dB; the best of these in nearness to")
    assert good.endswith(" the truth; better by 1.0 dB than linear, the best that costs nothing")
    assert "; the best of these in speed; " in fast
    assert "; the last in nearness to the truth; worse by 0.5 dB than linear, the best that" in poor
    assert poor.endswith("it flickers 3 times as much as what really came")
    assert "of these" not in compared(rows[0], [rows[0], *rows[3:]], 2.0)


def test_the_command_prints_the_table(runs, tmp_path, capsys, quick, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    words = ["--compare", str(runs[0] / "mtld"), "--horizon", "2", "--out", "~/out"]
    assert checkpoint.main(words) == 0
    assert (tmp_path / "out/table.md").read_text() in capsys.readouterr().out
    assert json.loads((tmp_path / "out/compare.json").read_text())["sections"][0]["rows"][0]["run"] == "mtld"
    assert checkpoint.main([]) == 1 and checkpoint.main(["a", "--compare", "b"]) == 1


def test_without_names_it_is_what_learned_the_newest_data(runs, tmp_path, monkeypatch, quick):
    monkeypatch.chdir(tmp_path)
    [pong] = runs_to_compare()
    assert pong.endswith("examples/pong")
    write_arcs(tmp_path / "arcs", [20] * 6)
    train("mtld", "tiny", "arcs", QUICK, steps=1, run_dir="runs/old")
    for name in ("mtld", "tinydreams"):
        shutil.copytree(runs[0] / name, tmp_path / "runs" / name, copy_function=shutil.copyfile)
    (tmp_path / "runs/mtld/latest.json").unlink()  # nothing saved yet
    assert runs_to_compare() == ["runs/tinydreams"]


def test_runs_of_the_gallery_are_ticked_and_compared(runs, tmp_path, monkeypatch, quick):
    monkeypatch.chdir(tmp_path)
    root = runs[0]
    panel = ComparePanel([str(root / "mtld")], horizon=2, out_dir=str(tmp_path / "out"))
    # a front end makes ipywidgets call methods of its own by these names
    classes = ComparePanel, Cancellable, Panel
    own = {name for cls in classes for name, value in vars(cls).items() if inspect.isfunction(value)}
    assert {"_make", "_work", "attempt"} <= own and not [
        name for name in own - {"__init__"} if hasattr(VBox, name)
    ]
    ticks = {run.rpartition("/")[2]: tick for run, tick in panel.ticks.items()}
    assert {*ALIKE, "tokenizer", "pong"} <= set(ticks)
    assert [name for name, tick in ticks.items() if tick.value] == ["mtld"]

    def press():
        panel.button.click()
        panel.worker.join()
        assert not panel.button.disabled and panel.cancel.disabled
        return panel.message.value

    assert f"are in {tmp_path / 'out'}" in press()
    kinds = [next(iter(each["data"])) for each in panel.shown.outputs]
    assert kinds == ["text/markdown", "image/png", "image/png"]
    assert "- **mtld**: " in panel.shown.outputs[0]["data"]["text/markdown"]
    ticks["mtld"].value = False
    assert "name runs to compare" in press() and RED in panel.message.value and not panel.shown.outputs
    ticks["mtld"].value = ticks["pong"].value = True
    assert "learned from different data" in press()


def test_comparing_is_cancelled_from_a_notebook_that_stays_usable(runs, tmp_path, monkeypatch, quick):
    monkeypatch.chdir(tmp_path)
    panel = ComparePanel([str(runs[0] / "mtld")], horizon=2, out_dir=str(tmp_path / "out"))
    begun, go_on, honest = threading.Event(), threading.Event(), panel._count

    def count():
        honest()
        begun.set()
        assert go_on.wait(60)

    monkeypatch.setattr(panel, "_count", count)
    panel.button.click()
    assert begun.wait(60) and panel.worker.is_alive()
    assert panel.button.disabled and not panel.cancel.disabled
    panel.cancel.click()
    go_on.set()
    panel.worker.join()
    assert "cancelled after 1 pieces of work" in panel.message.value and RED in panel.message.value
    assert not panel.button.disabled and panel.cancel.disabled
    assert not (tmp_path / "out").exists() and not panel.shown.outputs


def test_on_colab_the_click_lasts_until_it_is_compared(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, "google.colab", ModuleType("google.colab"))
    panel, before = ComparePanel([]), threading.active_count()
    panel.button.click()
    assert "name runs to compare" in panel.message.value and threading.active_count() == before


@pytest.mark.parametrize(
    ("labels", "begins"),
    [
        (["truth", "rollout", "error x4"] * 2, [0, 3]),
        (["truth", "rollout", "error x4"], [0]),  # a single window is held out
        (["x", "x in y", "truth", "y", "y in x"], [0, 3]),  # the truth of one direction is not known
    ],
)
def test_rows_of_the_strips_are_what_they_are_called(labels, begins, monkeypatch):
    def entry(name):
        preview = [(name, i) for i in range(len(labels))], labels, ["+1"]
        return SimpleNamespace(name=name, system=None, task=SimpleNamespace(preview=lambda system: preview))

    monkeypatch.setattr(media, "strip", lambda rows, names, columns: (rows, names))
    rows, names = _strips([entry("a"), entry("b")])
    assert rows == [row for i in begins for row in (("a", i), ("a", i + 1), ("b", i + 1))]
    assert names == [name for i in begins for name in (labels[i], "a", "b")]


def test_what_is_no_run_is_passed_over(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name, text in (("other_program", '{"model_type": "bert"}'), ("damaged", "{")):
        (tmp_path / "runs" / name).mkdir(parents=True)
        (tmp_path / "runs" / name / "config.json").write_text(text)
        (tmp_path / "runs" / name / "latest.json").write_text("{}")
    assert [Path(path).name for path in runs_to_compare()] == ["pong"]
    panel = ComparePanel([])
    assert [Path(path).name for path in panel.ticks] == ["pong"]
    gallery = panel.children[0]
    _, _, words = gallery.children[0].children
    assert "example" in words.value and "ago" not in words.value  # not how old the clone is
