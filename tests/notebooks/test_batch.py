"""Notebooks without a browser: a mistake is one line, and several runs of one file end in a table."""

import json
import subprocess
import sys
from pathlib import Path

import batch
import pytest
from conftest import write_arcs

ROOT = Path(__file__).parents[2]
SWEEP = """
out: out
all: {preset: tiny, dataset_root: arcs, overrides: {eval_windows: 4}}
runs:
  short: {steps: 2}
  wrong: {steps: 2, overrides: {latent_dim: -1}}
  long: {steps: 3}
"""


def run(folder, *arguments):
    command = [sys.executable, str(ROOT / "notebooks/batch.py"), *arguments]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True)


@pytest.mark.versionless  # test_notebooks.py runs pages on every version
def test_of_three_runs_one_fails_and_the_table_says_it_at_its_top(tmp_path):
    write_arcs(tmp_path / "arcs", [20] * 6)
    (tmp_path / "sweep.yaml").write_text(SWEEP)
    done = run(tmp_path, "sweep.yaml")
    assert done.returncode == 1, done.stderr
    table = (tmp_path / "out/table.md").read_text()
    assert table in done.stdout
    lines = table.splitlines()
    assert lines[0] == "# out: 1 of 3 failed" and lines[2].startswith(
        "- **wrong** failed: latent_dim must not be negative"
    )
    short, wrong, long = lines[-3:]
    report = json.loads((tmp_path / "out/short/report.json").read_text())
    assert short.startswith("| short | finished | 2 | ") and f"| {report['metrics']['psnr']:.4g} |" in short
    assert wrong.startswith("| wrong | failed |  |") and long.startswith("| long | finished | 3 |")
    assert (tmp_path / "out/long.ipynb").is_file() and report["metrics"]["windows"] == 4


def test_what_has_finished_is_not_done_again(tmp_path, monkeypatch):
    done, report = [], {"status": "finished", "step": 2, "train_seconds": 30.0, "metrics": {"psnr": 20.0}}

    def run_page(page, out, parameters):
        done.append(parameters["steps"])
        Path(parameters["run_dir"]).mkdir(parents=True, exist_ok=True)
        Path(parameters["run_dir"], "report.json").write_text(json.dumps(report))

    monkeypatch.setattr(batch, "run_page", run_page)
    monkeypatch.chdir(tmp_path)
    for steps, wanted in ((2, [2]), (2, [2]), (3, [2, 3])):
        Path("sweep.yaml").write_text(f"out: out\nruns: {{a: {{steps: {steps}}}}}")
        assert batch.sweep("sweep.yaml") == 0 and done == wanted
    assert Path("out/table.md").read_text().endswith("| a | finished | 2 | 0.5 | 20 |  |  |  |  |\n")
    report |= {"given_up": True, "reason": "too hot"}
    Path("sweep.yaml").write_text("out: out\nruns: {b: {steps: 1}}")
    assert batch.sweep("sweep.yaml") == 1 and "- **b** failed: too hot" in Path("out/table.md").read_text()


@pytest.mark.versionless  # test_notebooks.py runs pages on every version
def test_a_mistake_is_one_line(tmp_path):
    done = run(tmp_path, "01_extract_frames", "page.ipynb", "-p", "hight", "16")
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert done.stderr.splitlines()[-1].startswith(
        "error: this notebook has no parameter 'hight'; did you mean"
    )
    assert (tmp_path / "page.ipynb").is_file()
    done = run(tmp_path, "04_dream")
    assert done.returncode == 1
    assert (
        done.stderr
        == "error: there is no notebook '04_dream'; there are: 01_extract_frames, 02_train, 03_generate, 04_compare\n"
    )


def test_a_fault_says_where_it_stands(tmp_path, monkeypatch):
    class Error(batch.PapermillExecutionError):
        def __init__(self):
            self.ename, self.evalue, self.exec_count = "ZeroDivisionError", "division\nby zero", 5

    def fail(*arguments, **options):
        raise Error

    monkeypatch.setattr(batch.papermill, "execute_notebook", fail)
    with pytest.raises(
        batch.Refused, match=r"^ZeroDivisionError: division by zero \(cell 5 of .*page.ipynb shows where\)$"
    ):
        batch.run_page("01.ipynb", tmp_path / "page.ipynb", {})


def test_every_run_with_each_value(tmp_path):
    file = tmp_path / "sweep.yaml"
    file.write_text(
        "out: runs/x\nall: {steps: 5, overrides: {a: 1, b: 2}}\nruns: {one: , two: {overrides: {b: 3}}}\n"
        "each: {seed: [0, 1], preset: tiny}"
    )
    out, runs = batch.read_sweep(file)
    assert out == Path("runs/x")
    assert list(runs) == [f"{name}_seed_{seed}_preset_tiny" for name in ("one", "two") for seed in (0, 1)]
    wanted = {"steps": 5, "overrides": {"a": 1, "b": 3}, "seed": 1, "preset": "tiny"}
    assert runs["two_seed_1_preset_tiny"] == wanted


def test_overrides_may_be_json_text_or_nothing_and_a_name_may_look_like_a_date(tmp_path):
    file = tmp_path / "sweep.yaml"
    file.write_text(
        """out: x\nall: {overrides: '{"a": 1}', dataset_root: 2024-01-01}\n"""
        """runs: {one: {overrides: }, two: {overrides: {b: 2}}}"""
    )
    _, runs = batch.read_sweep(file)
    assert runs["two"] == {"overrides": {"a": 1, "b": 2}, "dataset_root": "2024-01-01"}
    assert runs["one"] == {"overrides": {"a": 1}, "dataset_root": "2024-01-01"}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[1, 2", "sweep.yaml: while parsing a flow sequence"),
        ("runs", "wanted is a mapping with `out` and `runs`"),
        ("out: x", "wanted is a mapping with `out` and `runs`"),
        ("runs: {a: {}}", "`out` is missing"),
        ("out: x\nruns: [a]", "runs is none of out \\(str\\), all \\(dict\\), runs \\(dict\\)"),
        ("out: x\nruns: {a: 3}", "runs: a must be a mapping of parameters, not 3"),
        ("out: x\nruns: {a: {}}\nevery: {}", "every is none of"),
        ("out: x\nruns: {a: {overrides: latent}}", "runs: a: overrides must be a mapping, or JSON text"),
        ("out: x\nruns: {a: {overrides: [3]}}", "runs: a: overrides must be a mapping, or JSON text"),
        ("out: x\nruns: {a: {start: 2024-13-45}}", "month must be in 1..12"),
        (f"out: x\nruns: {{a: {{steps: {'9' * 5000}}}}}", "value has 5000 digits"),
        (f"out: x\nruns: {{a: {'[' * 2000}", "maximum recursion depth"),
        ("out: x\nruns: {..: }", "a folder cannot be called '..'"),
        (f"out: x\nruns: {{{'a' * 100}: }}\neach: {{seed: {'9' * 100}}}", "a folder cannot be called 'aaa"),
    ],
)
def test_a_file_that_is_no_sweep_is_one_line(tmp_path, text, message):
    file = tmp_path / "sweep.yaml"
    file.write_text(text)
    with pytest.raises(batch.Refused, match=message) as said:
        batch.read_sweep(file)
    assert "\n" not in str(said.value)


def test_values_are_what_they_look_like():
    given = {
        "3": 3,
        "2.5": 2.5,
        "True": True,
        "false": False,
        "1:30": "1:30",
        "{}": "{}",
        "[1]": "[1]",
        "a": "a",
    }
    assert {text: batch.value_of(text) for text in given} == given


def test_a_page_of_ones_own_is_run_and_not_the_projects(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    own = tmp_path / "my pages/02_train.ipynb"
    own.parent.mkdir()
    own.write_text("{}")
    pages = ROOT / "notebooks/02_train.ipynb"
    assert batch.page_of("my pages/02_train.ipynb") == Path("my pages/02_train.ipynb")
    for what in (
        "02_train",
        "02_train.ipynb",
        "notebooks/02_train.ipynb",
        "notebooks/02_train",
        "02_train.py",
    ):
        assert batch.page_of(what) == pages
    for what in ("my page/02_train.ipynb", "my pages/02_train", "2_train", ""):
        assert batch.page_of(what) is None


@pytest.mark.parametrize(
    ("runs", "message"),
    [
        ("runs: {a: {steps: 2}, a: {steps: 3}}", "'a' comes twice"),
        ("runs: {1: {steps: 2}, '1': {steps: 3}}", "'1' comes twice"),
        ("all: {steps: 2, steps: 3}\nruns: {a: }", "'steps' comes twice"),
        ("runs: {a: , a_seed_1: }\neach: {seed: [1, 1]}", "two runs are called 'a_seed_1'"),
        ("runs: {a: }\neach: {seed: []}", "a list without values leaves nothing to train"),
        ("runs: {a: {run_dir: mine}}", "run_dir is out/<the run's name>; leave it out"),
    ],
)
def test_no_run_is_lost_without_a_word(tmp_path, runs, message):
    file = tmp_path / "sweep.yaml"
    file.write_text(f"out: out\n{runs}")
    with pytest.raises(batch.Refused, match=message):
        batch.read_sweep(file)


def test_parts_may_be_empty_and_shared_and_names_stay_in_the_folder(tmp_path):
    file = tmp_path / "sweep.yaml"
    file.write_text(
        "out: out\nall:\nruns: {a: &a {steps: 2}, b: {<<: *a, seed: 3}}\neach: {dataset_root: [/d/x]}"
    )
    _, runs = batch.read_sweep(file)
    assert runs == {
        "a_dataset_root__d_x": {"steps": 2, "dataset_root": "/d/x"},
        "b_dataset_root__d_x": {"steps": 2, "seed": 3, "dataset_root": "/d/x"},
    }


@pytest.mark.parametrize("text", ["", '{"steps": ', "[1]"])
def test_a_damaged_note_of_what_was_asked_is_no_end_of_the_sweep(tmp_path, monkeypatch, text):
    report = {"status": "finished", "step": 2, "train_seconds": 30.0, "metrics": {}}
    folder = tmp_path / "a"
    folder.mkdir()
    (folder / "report.json").write_text(json.dumps(report))
    (tmp_path / "a.json").write_text(text)
    done = []
    monkeypatch.setattr(batch, "run_page", lambda *given: done.append(given))
    assert batch.train(tmp_path, "a", {"steps": 2})["status"] == "finished" and len(done) == 1
    assert batch.train(tmp_path, "a", {"steps": 2})["status"] == "finished" and len(done) == 1
