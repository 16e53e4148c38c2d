"""Kernels as built: what they carry, and that they run alone, end in time, and go on in the next version."""

import base64
import io
import json
import lzma
import os
import re
import zipfile

import kernel_build
import pytest
import torch
from conftest import write_arcs
from kaggle_run import ROOT, Kaggle, bare_python
from kernel_build import INPUTS, LIMIT, MARKER, PACKAGES, build_inputs, make_kernel
from torchvision.models.vgg import cfgs, make_layers

from mtld_core.config import UserError
from mtld_core.nn.perceptual import TRUNK_FILE
from mtld_core.runs import checkpoint as checkpoints
from mtld_core.train import train

TRAINING = [
    ("preset", "tiny"),
    ("dataset_root", "me/arcs"),
    ("run_dir", "runs/film"),
    ("overrides", '{"log_every_steps": 1}'),
]


@pytest.fixture(scope="module")
def python(tmp_path_factory):
    return bare_python(tmp_path_factory.mktemp("bare") / "venv")


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    """The dataset to attach, with an LPIPS trunk of random weights."""
    folder = tmp_path_factory.mktemp("built") / "inputs" / INPUTS
    folder.mkdir(parents=True)
    weights = make_layers(cfgs["D"]).state_dict()
    torch.save({f"features.{name}": value for name, value in weights.items()}, folder / MARKER)
    build_inputs(folder, "me")
    return folder


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_arcs(tmp_path_factory.mktemp("data") / "arcs", [20] * 6)


@pytest.fixture(scope="module")
def first_version(python, inputs, data, tmp_path_factory):
    """/kaggle/working after a first version that had more steps to do than time; and what it said."""
    kaggle = Kaggle(python, tmp_path_factory.mktemp("first"))
    kaggle.mount(inputs, f"datasets/me/{INPUTS}")
    kaggle.mount(data, "datasets/me/arcs")
    code, said, modules = kaggle.run(
        make_kernel("02_train", [*TRAINING, ("steps", "1000000"), ("time_budget_minutes", "0.1")])
    )
    assert code == 0, said
    return kaggle.root / "working", said, modules


def report(working):
    return json.loads((working / "runs" / "film" / "report.json").read_text())


# ---- what a kernel carries


def carried(kernel):
    """{name: bytes} of the files inside a kernel."""
    text = re.search(
        r'b64decode\("""\n(.*?)\n"""', "".join(json.loads(kernel.text)["cells"][0]["source"]), re.DOTALL
    )[1]
    with zipfile.ZipFile(io.BytesIO(lzma.decompress(base64.b64decode(text)))) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def cell_with(kernel, text):
    [cell] = [cell for cell in json.loads(kernel.text)["cells"] if text in "".join(cell["source"])]
    return "".join(cell["source"])


@pytest.mark.parametrize("name", ["01_extract_frames", "02_train", "03_generate", "04_compare"])
def test_a_kernel_carries_all_code_no_data_and_fits(name):
    kernel = make_kernel(name)
    files = carried(kernel)
    assert all(file.endswith(".py") for file in files) and "data_prep/video.py" in files
    assert files["mtld_core/train/loop.py"] == (ROOT / "mtld_core/train/loop.py").read_bytes()
    assert len(kernel.text) < LIMIT / 2
    assert kernel.text == make_kernel(f"notebooks/{name}.ipynb").text  # the same every time
    assert json.loads(kernel.text)["metadata"]["kernelspec"]["name"] == "python3"
    assert kernel.metadata["enable_internet"] is False and kernel.metadata["is_private"] is True


def test_the_check_of_a_gpu_carries_the_measurements_too():
    kernel = make_kernel("gpu_check", [("only", "speed"), ("time_budget_minutes", "5")], "me")
    files = carried(kernel)
    assert files["bench/gpu_check.py"] == (ROOT / "bench/gpu_check.py").read_bytes()
    assert len(kernel.text) < LIMIT / 2 and not any(file.endswith(".json") for file in files)
    assert kernel.metadata["machine_shape"] == "NvidiaTeslaT4"  # two of them
    assert kernel.metadata["dataset_sources"] == [f"me/{INPUTS}"]
    assert "only = 'speed'\n" in cell_with(kernel, "time_budget_minutes = 5\n")
    assert "bench/gpu_check.py" not in carried(make_kernel("02_train"))


def test_parameters_are_written_into_the_parameters_cell():
    given = [
        ("steps", "100"),
        ("dataset_root", "me/film/frames"),
        ("run_dir", "runs/7"),
        ("interactive", "false"),
        ("devices", "0"),
    ]
    kernel = make_kernel("02_train", given, "me")
    cell = cell_with(kernel, "preset = ")
    assert "steps = 100\n" in cell and "run_dir = 'runs/7'\n" in cell and "interactive = False\n" in cell
    assert "time_budget_minutes = 690\n" in cell  # less than Kaggle's 720
    assert "devices = 0\n" in cell and kernel.metadata["machine_shape"] == "NvidiaTeslaT4"  # both of two
    assert kernel.metadata["dataset_sources"] == [f"me/{INPUTS}", "me/film"]
    assert kernel.metadata["kernel_sources"] == ["me/mtld-2-train"]


def test_what_another_kernel_left_is_attached_as_a_kernel():
    kernel = make_kernel("02_train", [("dataset_root", "me/mtld-1-extract-frames/dataset")], "me")
    assert kernel.metadata["kernel_sources"] == ["me/mtld-2-train", "me/mtld-1-extract-frames"]
    assert kernel.metadata["dataset_sources"] == [f"me/{INPUTS}"]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (("step", "4"), "no parameter 'step'; did you mean 'steps'"),
        (("steps", "many"), "steps must be a number"),
        (("dataset_root", "data/arcs"), "lies on this machine"),
    ],
)
def test_a_wrong_parameter_is_refused(given, message, data, monkeypatch):
    monkeypatch.chdir(data.parent.parent)
    (data.parent.parent / "data").unlink(missing_ok=True)
    (data.parent.parent / "data").symlink_to(data.parent)
    with pytest.raises(UserError, match=message):
        make_kernel("02_train", [given])


def test_the_dataset_to_attach_has_wheels_weights_and_clip(inputs):
    names = {path.name for path in inputs.iterdir()}
    for package in PACKAGES:
        assert any(
            name.startswith(package.replace("-", "_") + "-") and name.endswith(".whl") for name in names
        ), names
    assert {MARKER, "bigbuckbunny.mp4", "LICENSE.md"} < names
    assert json.loads((inputs / "dataset-metadata.json").read_text())["id"] == f"me/{INPUTS}"
    assert not any("torch" in name for name in names)


def test_what_is_built_already_is_kept(inputs):
    before = {path.name: path.stat().st_mtime_ns for path in inputs.glob("*.[wp][ht][lh]")}
    build_inputs(inputs, "me")
    assert len(before) == len(PACKAGES) + 1
    assert before == {path.name: path.stat().st_mtime_ns for path in inputs.glob("*.[wp][ht][lh]")}


@pytest.fixture
def one_package(tmp_path, monkeypatch):
    """A folder to build into, where lpips alone is to be packed, and is not installed."""
    monkeypatch.setattr(kernel_build, "PACKAGES", {"lpips": "lpips"})
    monkeypatch.setattr(kernel_build, "_repack", lambda package, folder: False)
    (tmp_path / MARKER).touch()
    return tmp_path


def test_pip_brings_what_is_not_installed(one_package):
    try:
        build_inputs(one_package)
    except UserError as error:
        if os.environ.get("CI"):
            raise
        pytest.skip(f"no package registry here ({error})")
    assert any(one_package.glob("lpips-*.whl"))


def test_where_pip_reaches_nothing_the_way_out_is_said(one_package, monkeypatch):
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    with pytest.raises(
        UserError, match=r"pip could not download lpips \(.*\): build where it can, or put its wheel into"
    ):
        build_inputs(one_package)


def test_the_weights_come_from_torchs_cache_without_what_lpips_does_not_need(tmp_path, monkeypatch):
    monkeypatch.setattr(kernel_build, "PACKAGES", {})
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    (tmp_path / "checkpoints").mkdir()
    torch.save(
        {"features.0.weight": torch.ones(2), "classifier.0.weight": torch.ones(9)},
        tmp_path / "checkpoints" / TRUNK_FILE,
    )
    build_inputs(tmp_path / "built")
    assert list(torch.load(tmp_path / "built" / MARKER, weights_only=True)) == ["features.0.weight"]


# ---- a kernel alone, and the chain of versions


def test_a_kernel_runs_alone_and_its_time_limit_leaves_everything_written(first_version):
    working, said, modules = first_version
    assert all("mtld_code_" in file for file in modules[:2]) and all(
        "mtld_packages_" in file for file in modules[2:]
    ), modules
    ended = report(working)
    assert (ended["status"], ended["reason"]) == ("stopped", "time budget spent") and ended["step"] > 0, said
    assert ended["metrics"]["lpips"] is not None  # the trunk was found, offline
    run = working / "runs" / "film"
    assert checkpoints.find(run).name == f"step_{ended['step']:08d}"
    assert any((run / "previews").iterdir()) and ended["run_dir"] == str(run)


def test_the_next_version_goes_on_from_the_mount_that_holds_the_run(
    first_version, python, inputs, data, tmp_path
):
    """The other places where Kaggle mounts an input are in test_kaggle_inputs.py, without a kernel."""
    working, *_ = first_version
    done = report(working)["step"]
    kaggle = Kaggle(python, tmp_path)
    kaggle.mount(inputs, INPUTS)
    kaggle.mount(data, "arcs")
    kaggle.mount(working, "notebooks/me/mtld-2-train")
    code, said, _ = kaggle.run(make_kernel("02_train", [*TRAINING, ("steps", str(done + 6))]))
    assert code == 0 and f"going on at step {done}" in said, said
    ended = report(kaggle.root / "working")
    assert (ended["status"], ended["step"], ended["steps_total"]) == ("finished", done + 6, done + 6)
    log = (kaggle.root / "working" / "runs" / "film" / "metrics.jsonl").read_text().splitlines()
    steps = [json.loads(line)["step"] for line in log]
    assert steps == list(range(1, done + 7))  # one log over both versions
    assert report(working)["step"] == done  # the input stays as it was


def test_a_run_in_an_input_generates(first_version, python, inputs, data, tmp_path):
    kaggle = Kaggle(python, tmp_path)
    kaggle.mount(inputs, f"datasets/me/{INPUTS}")
    kaggle.mount(first_version[0], "notebooks/me/mtld-2-train")
    kaggle.mount(data, "datasets/me/arcs")
    source = ("source", "me/arcs/arc_0/frame_0003.png")
    code, said, _ = kaggle.run(
        make_kernel("03_generate", [("run_dir", "runs/film"), ("num_frames", "5"), source])
    )
    assert code == 0, said
    assert len(list((kaggle.root / "working" / "generated" / "frames").glob("*.png"))) == 5


def test_the_sample_clip_comes_from_the_attached_dataset(python, inputs, tmp_path):
    kaggle = Kaggle(python, tmp_path)
    kaggle.mount(inputs, INPUTS)
    code, said, _ = kaggle.run(
        make_kernel("01_extract_frames", [("duration", "1"), ("height", "16"), ("width", "16")])
    )
    assert code == 0, said
    assert list((kaggle.root / "working" / "dataset").glob("*/frame_0000.png"))


def test_the_check_of_a_gpu_runs_alone_and_leaves_its_file(python, inputs, tmp_path):
    kaggle = Kaggle(python, tmp_path)
    kaggle.mount(inputs, INPUTS)
    given = [("only", "environment,waits,data_path"), ("device", "cpu")]
    code, said, _ = kaggle.run(make_kernel("gpu_check", given))
    assert code == 0 and "the check ended with 0" in said, said
    found = json.loads((kaggle.root / "working" / "gpu_check.json").read_text())["sections"]
    assert set(found) == {"environment", "waits", "data_path"}
    assert found["environment"]["rows"][0]["LPIPS"] == "of true size"  # its heads came with the dataset
    assert found["waits"]["left out"] == "it needs a CUDA device"
    assert [row["ms"] > 0 for row in found["data_path"]["rows"]] == [True, True]


def test_without_the_dataset_the_kernel_says_what_to_attach(python, tmp_path):
    code, said, _ = Kaggle(python, tmp_path).run(make_kernel("02_train", TRAINING))
    assert (
        code != 0
        and "this image lacks lpips, nvidia-ml-py, av" in said
        and f"attach the dataset {INPUTS}" in said
    )


# ---- the stages of a world model


def test_stages_named_with_their_kernel_or_dataset_are_attached():
    overrides = {"tokenizer_run": "me/tokens/film", "latent_actions_run": "runs/moves", "actions": "latent"}
    kernel = make_kernel("02_train", [("system", "dynamics"), ("overrides", json.dumps(overrides))], "me")
    assert kernel.metadata["dataset_sources"] == [f"me/{INPUTS}", "me/tokens"]
    overrides["latent_actions_run"] = "me/mtld-2-train/runs/moves"
    kernel = make_kernel("02_train", [("system", "dynamics"), ("overrides", json.dumps(overrides))], "me")
    assert kernel.metadata["kernel_sources"] == ["me/mtld-2-train"]
    assert "mtld_kaggle.bring_stages(system, overrides, run_dir)" in cell_with(
        kernel, "mtld_kaggle.bring_run"
    )


def test_a_kernel_finds_the_runs_of_its_stages(python, inputs, data, tmp_path):
    for name in ("tokenizer", "latent_actions"):
        train(
            name,
            "tiny",
            str(data),
            {"steps": 1, "eval_windows": 2},
            run_dir=str(tmp_path / name / "runs" / name),
        )
    kaggle = Kaggle(python, tmp_path / "there")
    for source, place in ((inputs, INPUTS), (data, "arcs"), (tmp_path / "tokenizer", "notebooks/me/first"),
                          (tmp_path / "latent_actions", "datasets/me/second")):  # fmt: skip
        kaggle.mount(source, place)
    overrides = {"tokenizer_run": "runs/tokenizer", "latent_actions_run": "me/second/runs/latent_actions"}
    overrides |= {"actions": "latent", "eval_windows": 2}
    parameters = dict(TRAINING) | {"system": "dynamics", "steps": "1", "overrides": json.dumps(overrides)}
    code, said, _ = kaggle.run(make_kernel("02_train", parameters.items()))
    assert code == 0 and report(kaggle.root / "working")["status"] == "finished", said
    assert checkpoints.find(
        kaggle.root / "working" / "runs" / "tokenizer"
    )  # brought, so that the next version has it, too


@pytest.mark.parametrize(
    ("name", "given", "message"),
    [
        ("02_train", ("run_dir", ""), ""),
        ("02_train", ("steps", "1:30"), "steps must be a whole number, not '1:30'"),
        ("01_extract_frames", ("start", "soon"), "start must be a number"),
        ("01_extract_frames", ("drop_duplicates", "yes"), "drop_duplicates must be"),
        ("03_generate", ("source", "true"), ""),
        ("03_generate", ("checkpoint", "1000"), ""),
    ],
)
def test_parameters_are_of_their_kind(name, given, message):
    if message:
        with pytest.raises(UserError, match=message):
            make_kernel(name, [given])
    else:
        assert f"{given[0]} = {given[1]!r}" in json.dumps(
            json.loads(make_kernel(name, [given]).text)["cells"]
        )
