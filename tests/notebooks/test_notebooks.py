"""The notebooks: each .ipynb equals its .py, and each runs through papermill at tiny size."""

import ast
import json
import os
import re
import subprocess
import sys
import types
from pathlib import Path

import jupytext
import pytest
from conftest import write_arcs

from data_prep.extract_frames import extract
from mtld_core import pages
from mtld_core.config import UserError
from mtld_core.data import open_dataset
from mtld_core.runs.folder import read_config
from mtld_core.share import share_weights
from mtld_core.train.settings import open_data

ROOT = Path(__file__).parents[2]
PAGES = sorted((ROOT / "notebooks").glob("[0-9]*.py"))
NAMES = {  # the parameters that INTERFACE promises
    "01_extract_frames": "source dataset_root fps height width fit start duration drop_duplicates split_scenes workers",
    "02_train": "system preset dataset_root run_dir steps time_budget_minutes batch_size seed resume devices interactive "
    "overrides",
    "03_generate": "run_dir checkpoint source direction num_frames actions out_dir fps seed interactive",
    "04_compare": "run_dirs dataset_root horizon out_dir interactive",
}


def cells(notebook):
    return [(cell.cell_type, cell.source.strip(), cell.metadata.get("tags", [])) for cell in notebook.cells]


def parameters_cell(page):
    [cell] = [cell for cell in jupytext.read(page).cells if "parameters" in cell.metadata.get("tags", [])]
    return cell.source


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_pair_is_equal_and_carries_no_output(page):
    paired = jupytext.read(page.with_suffix(".ipynb"))
    assert cells(jupytext.read(page)) == cells(paired), (
        f"run `make notebooks`: {page.stem}.ipynb differs from its .py"
    )
    code = [cell for cell in paired.cells if cell.cell_type == "code"]
    assert not any(cell.outputs or cell.execution_count for cell in code)
    assert paired.metadata.kernelspec.name == "python3"


def test_every_page_is_there_and_sets_up_alike():
    assert [page.stem for page in PAGES] == sorted(NAMES)
    first_code = {
        next(source for kind, source, _ in cells(jupytext.read(page)) if kind == "code") for page in PAGES
    }
    assert len(first_code) == 1


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_parameters_are_flat_literals_with_the_promised_names(page):
    body = ast.parse(parameters_cell(page)).body
    assert all(
        isinstance(node, ast.Assign) and isinstance(ast.literal_eval(node.value), (str, int, float, bool))
        for node in body
    )
    assert [node.targets[0].id for node in body] == NAMES[page.stem].split()


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_a_notebook_is_thin(page):
    tree = ast.parse(page.read_text())
    assert all(
        node.end_lineno - node.lineno < 8 for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)
    )
    assert all(node.end_lineno - node.lineno < 4 for node in ast.walk(tree) if isinstance(node, ast.For))
    assert not any(isinstance(node, (ast.While, ast.ClassDef)) for node in ast.walk(tree))


STUB = {
    "__init__": "",
    "pages": "def setup():\n    print(__file__)\n",
    "runtime": "def install_missing():\n    print('installed')\ndef machine():\n    return 'a machine'\n",
}


def first_cell(tmp_path, here):
    """Run the first cell in the folder `here` of a machine whose /content and /kaggle lie in tmp_path."""
    (tmp_path / here).mkdir(parents=True, exist_ok=True)
    cell = next(source for kind, source, _ in cells(jupytext.read(PAGES[0])) if kind == "code")
    for place in ("/content", "/kaggle/input"):
        assert f'Path("{place}")' in cell
        cell = cell.replace(f'Path("{place}")', f'Path("{tmp_path}{place}")')
    command = [sys.executable, "-I", "-S", "-c", cell]  # neither this folder nor what is installed
    return subprocess.run(command, cwd=tmp_path / here, capture_output=True, text=True)


@pytest.mark.parametrize(
    ("here", "clone"),
    [
        ("work/mtld/notebooks", "work/mtld"),  # above
        ("work", "work/mtld"),  # beside
        ("elsewhere", "content/mtld"),
        ("kaggle/working", "kaggle/input/mtld"),
        ("kaggle/working", "kaggle/input/mtld/mtld-main"),
        ("kaggle/working", "kaggle/input/datasets/me/mtld/mtld-main"),
    ],
)
def test_the_first_cell_finds_the_package(tmp_path, here, clone):
    (tmp_path / clone / "mtld_core").mkdir(parents=True)
    for name, text in STUB.items():
        (tmp_path / clone / "mtld_core" / f"{name}.py").write_text(text)
    done = first_cell(tmp_path, here)
    said = [f"{tmp_path}/{clone}/mtld_core/pages.py", "installed", "a machine"]
    assert done.stdout.splitlines() == said, done.stderr


def test_the_first_cell_says_what_brings_the_package(tmp_path):
    done = first_cell(tmp_path, "work")
    assert done.returncode
    assert re.search(r"this cell again: !git clone (<its address>|https://\S+) mtld$", done.stderr.strip())


def papermill(page, folder, **parameters):
    """Run a notebook in `folder`, as a person's batch script would; returns (exit code, output, executed notebook)."""
    out = folder / f"{page}.out.ipynb"
    command = [
        sys.executable,
        "-m",
        "papermill",
        str(ROOT / "notebooks" / f"{page}.ipynb"),
        str(out),
        "--no-progress-bar",
    ]
    for name, value in parameters.items():
        command += ["-p", name, str(value)]
    result = subprocess.run(
        command, cwd=folder, capture_output=True, text=True, env=os.environ | {"PYTHONPATH": str(ROOT)}
    )
    return result.returncode, result.stdout + result.stderr, json.loads(out.read_text())


def outputs(page):
    return json.dumps([cell["outputs"] for cell in page["cells"] if cell["cell_type"] == "code"])


def test_from_a_video_to_a_generated_sequence_and_its_figures_through_papermill(tmp_path):
    code, text, page = papermill(
        "01_extract_frames", tmp_path, dataset_root="data", height=16, width=16, duration=2
    )
    assert code == 0, text
    assert len(list(tmp_path.glob("data/*/frame_*.png"))) == 50 and "image/png" in outputs(page)

    code, text, page = papermill("02_train", tmp_path, preset="tiny", dataset_root="data", run_dir="run", steps=4,
                                 overrides='{"restitution": true}')  # fmt: skip
    assert code == 0, text
    report = json.loads((tmp_path / "run" / "report.json").read_text())
    assert (report["status"], report["step"]) == ("finished", 4)
    shown = outputs(page)
    assert shown.count("image/png") >= 4  # the data, losses, truth and rollout, judgement
    for words in (
        f"torch {report['versions']['torch']}",
        report["date"],
        report["machine"],
        "50 frames of 16x16",
    ):
        assert words in shown

    share_weights(tmp_path / "run", tmp_path / "run/weights.pth")
    given = {"run_dir": "run", "checkpoint": "weights.pth", "num_frames": 6, "out_dir": "out"}
    code, text, page = papermill("03_generate", tmp_path, **given)
    assert code == 0, text
    assert len(list((tmp_path / "out" / "frames").glob("frame_*.png"))) == 6
    assert (tmp_path / "out" / "video.mp4").exists() and (tmp_path / "out" / "video.gif").exists()
    made = json.loads((tmp_path / "out" / "generation.json").read_text())
    assert (made["num_frames"], made["checkpoint"]) == (6, "weights.pth")
    assert "<video" in outputs(page)
    assert "widget-view" not in outputs(page)  # nobody watches: no form

    code, text, page = papermill("04_compare", tmp_path, run_dirs=" run,", horizon=1, out_dir="compared")
    assert code == 0, text
    table = (tmp_path / "compared/table.md").read_text()
    assert "| **run** | mtld |" in table and "| optical_flow |" in table
    shown = outputs(page)
    assert json.dumps(table.splitlines()[0])[1:-1] in shown and shown.count("image/png") == 2
    assert "widget-view" not in shown


@pytest.mark.parametrize(
    ("page", "wrong", "message"),
    [
        ("01_extract_frames", {"hight": 16}, "did you mean 'height'"),
        ("02_train", {"step": 4}, "did you mean 'steps'"),
        ("03_generate", {"frames": 4}, "no parameter 'frames'"),
        ("04_compare", {"run_dir": "a"}, "did you mean 'run_dirs'"),
    ],
)
@pytest.mark.versionless  # our own check of names
def test_an_unknown_parameter_is_an_error(page, wrong, message, tmp_path):
    code, text, _ = papermill(page, tmp_path, **wrong)
    assert code != 0 and message in text


@pytest.mark.versionless  # names of folders
def test_training_does_not_resume_by_chance_into_a_dated_folder(tmp_path):
    write_arcs(tmp_path / "arcs", [20] * 6)
    code, text, _ = papermill("02_train", tmp_path, preset="tiny", dataset_root="arcs", steps=2, run_dir="")
    assert code == 0, text
    [run] = (tmp_path / "runs").glob("mtld_*")
    assert json.loads((run / "report.json").read_text())["step"] == 2


# ---- parameters as papermill hands them over


TEXTS = {
    "01_extract_frames": "source dataset_root fit",
    "02_train": "system preset dataset_root run_dir resume",
    "03_generate": "run_dir checkpoint source direction out_dir",
    "04_compare": "run_dirs dataset_root out_dir",
}


def given(page, **values):
    """What a notebook makes of its parameters, with these in place of its own."""
    namespace = {}
    exec(parameters_cell(ROOT / "notebooks" / f"{page}.py"), namespace)
    namespace |= values
    found = pages.parameters(namespace, NAMES[page])
    assert all(namespace[name] == value for name, value in found.items())
    return found


@pytest.mark.parametrize("page", NAMES)
def test_the_notebooks_own_values_stay_as_they_are(page):
    namespace = {}
    exec(parameters_cell(ROOT / "notebooks" / f"{page}.py"), namespace)
    assert given(page) == {name: namespace[name] for name in NAMES[page].split()}


@pytest.mark.parametrize(
    ("page", "name"), [(page, name) for page, names in TEXTS.items() for name in names.split()]
)
def test_a_number_is_a_name_and_nothing_else_is_a_text(page, name, capsys):
    for value, text in ((2024, "2024"), (0, "0"), (-7, "-7"), (3.5, "3.5"), ("007", "007")):
        assert given(page, **{name: value})[name] == text
    assert f"{name} = 2024 is taken as the name '2024'" in capsys.readouterr().out
    for value in (True, False, None, [1], {"a": 1}):
        with pytest.raises(UserError, match=f"^{name} must be a text, not ") as error:
            given(page, **{name: value})
        assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("page", "name"),
    [
        (page, name)
        for page, names in NAMES.items()
        for name in names.split()
        if name in (*pages.WHOLE, *pages.NUMBERS)
    ],
)
def test_only_a_number_is_a_number(page, name):
    for value in ("12", "many", "", True, None, [3], float("nan"), float("inf")):
        with pytest.raises(UserError, match=f"^{name} must be a (whole )?number, not "):
            given(page, **{name: value})
    assert given(page, **{name: 4.0})[name] == 4
    assert given(page, **{name: 10**400})[name] == 10**400  # which the setting itself refuses
    if name in pages.WHOLE:
        with pytest.raises(UserError, match=f"^{name} must be a whole number, not 2.5"):
            given(page, **{name: 2.5})


def test_switches_times_and_json():
    for name in pages.SWITCHES:
        assert given("01_extract_frames", **{name: True})[name] is True
        for value in ("yes", 1, None):
            with pytest.raises(UserError, match=f"^{name} must be true or false, not "):
                given("01_extract_frames", **{name: value})
    for name in pages.TIMES:
        for value in (3, 2.5, "1:30"):
            assert given("01_extract_frames", **{name: value})[name] == value
        for value in ("soon", True, None, [1], float("nan"), -1):
            with pytest.raises(UserError, match=f"^{name}: .* is not a time"):
                given("01_extract_frames", **{name: value})
    for page in ("02_train", "03_generate", "04_compare"):
        for value in ("yes", 1, None):
            with pytest.raises(UserError, match=r"^interactive must be 'auto', true or false"):
                given(page, interactive=value)
        assert given(page, interactive=False)["interactive"] is False
    assert given("02_train", overrides={"lr_g": 0.1})["overrides"] == '{"lr_g": 0.1}'
    assert given("03_generate", actions=[1, 2])["actions"] == "[1, 2]"
    for name, page, values in (
        ("overrides", "02_train", (None, True, [1])),
        ("actions", "03_generate", (None, True, {"a": 1})),
    ):
        for value in values:
            with pytest.raises(UserError, match=f"^{name} must be a text, not "):
                given(page, **{name: value})


def test_the_defaults_lead_from_one_notebook_to_the_next(tmp_path, monkeypatch, capsys):
    first, second, third, _ = places = ({}, {}, {}, {})
    for page, values in zip(PAGES, places, strict=True):
        exec(parameters_cell(page), values)
    assert second["run_dir"] == third["run_dir"] and third["source"] == ""
    monkeypatch.chdir(tmp_path)
    size = types.SimpleNamespace(height=16, width=16)
    bundled = open_data(second["dataset_root"], size)  # notebook 01 was not run
    assert Path(bundled.path) == tmp_path / "dataset_sample/16x16"
    write_arcs(tmp_path / first["dataset_root"], [5])
    assert Path(open_data(second["dataset_root"], size).path) == tmp_path / "dataset"
    said = capsys.readouterr().out
    assert "dataset_root = 'sample'" in said and "dataset_root = 'dataset'" in said


def test_a_path_beside_the_notebook_is_found(tmp_path, monkeypatch, capsys):
    beside, root = tmp_path / "project" / "notebooks", tmp_path / "project"
    (root / "mtld_core").mkdir(parents=True)
    beside.mkdir()
    for name in ("film.mp4", "auto", "sample"):
        (beside / name).touch()
    monkeypatch.chdir(beside)
    pages.setup()
    assert Path.cwd() == root
    namespace = {"source": "film.mp4", "dataset_root": "film.mp4", "resume": "auto"}
    found = pages.parameters(namespace, "source dataset_root resume", inputs="source resume")
    assert found == {"source": str(beside / "film.mp4"), "dataset_root": "film.mp4", "resume": "auto"}
    assert namespace["source"] == found["source"] and str(beside / "film.mp4") in capsys.readouterr().out
    (root / "film.mp4").touch()  # where the notebook works comes first
    assert pages.parameters({"source": "film.mp4"}, "source", inputs="source") == {"source": "film.mp4"}
    assert pages.parameters({"source": "other.mp4"}, "source", inputs="source") == {"source": "other.mp4"}


def test_a_path_in_the_project_is_found_from_a_folder_beside_it(tmp_path, monkeypatch, capsys):
    """As on Colab: the page works in /content, the clone lies in /content/mtld."""
    (tmp_path / "mtld/examples/pong").mkdir(parents=True)
    pages.places.append(tmp_path / "mtld")
    monkeypatch.chdir(tmp_path)
    found = pages.parameters({"run_dir": "examples/pong"}, "run_dir", inputs="run_dir")
    assert found == {"run_dir": str(tmp_path / "mtld/examples/pong")}
    assert f"run_dir = '{tmp_path}/mtld/examples/pong'" in capsys.readouterr().out
    with pytest.raises(
        UserError, match=rf"no config.json \(looked in {tmp_path}, {tmp_path}/mtld\); train one"
    ):
        read_config("examples/ping", "run_dir")


def test_what_is_not_there_says_where_it_was_looked_for(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(
        UserError, match=rf"source='film.mp4': no such file or folder \(looked in {tmp_path}\)"
    ):
        extract("film.mp4", tmp_path / "out")


@pytest.mark.parametrize("name", ["~nobodyx/v.mp4", f"{'v' * 300}.mp4"])
def test_a_name_that_no_file_can_have_is_a_file_that_is_not_there(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    assert pages.parameters({"source": name}, "source", inputs="source") == {"source": name}
    with pytest.raises(UserError, match="no such file or folder"):
        extract(name, tmp_path / "out")
    with pytest.raises(UserError, match="does not exist"):
        open_dataset(name)
