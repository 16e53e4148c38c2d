"""What a kernel finds among its inputs: data, runs, and of several runs the one to go on with."""

import json
import shutil

import mtld_kaggle
import pytest
import torch

from mtld_core.config import UserError
from mtld_core.runs import checkpoint as checkpoints

pytestmark = pytest.mark.versionless  # names of folders


@pytest.fixture
def root(tmp_path, monkeypatch):
    monkeypatch.setattr(mtld_kaggle, "ROOT", tmp_path)
    (tmp_path / "input").mkdir()
    (tmp_path / "working").mkdir()
    monkeypatch.chdir(tmp_path / "working")
    return tmp_path


def write_run(folder, *steps):
    for step in steps:
        checkpoints.save(folder, step, {"w": torch.full((3,), float(step))}, {"step": step}, {})
    (folder / "config.json").write_text("{}")
    (folder / ".lock").touch()
    return folder


def damage(checkpoint):
    (checkpoint / "model.safetensors").write_bytes(b"damaged")


@pytest.mark.parametrize("mount", ["film", "datasets/me/film", "notebooks/me/film"])
def test_data_is_found_in_each_layout(root, mount):
    (root / "input" / mount / "frames").mkdir(parents=True)
    assert mtld_kaggle.find_input("me/film") == str(root / "input" / mount)
    assert mtld_kaggle.find_input("me/film/frames") == str(root / "input" / mount / "frames")
    assert mtld_kaggle.mounts() == [root / "input" / mount]
    with pytest.raises(UserError, match=rf"'me/flim' is in no input of this kernel; there are: .*{mount}"):
        mtld_kaggle.find_input("me/flim")


def test_what_names_no_input_stays_as_it_is(root):
    (root / "working" / "here" / "frames").mkdir(parents=True)
    for text in ("", "sample", "dataset:arc_1/120", "here/frames", "/somewhere/else"):
        assert mtld_kaggle.find_input(text) == text


@pytest.mark.parametrize(
    "place",
    [
        "one/runs/film",
        "notebooks/me/one/runs/film",
        "datasets/me/one/runs/film",
        "datasets/me/film",
        "datasets/me/one/fetched/film",
    ],
)
def test_a_run_is_found_by_its_name_and_brought(root, place):
    source = write_run(root / "input" / place, 10, 20)
    assert mtld_kaggle.find_run("runs/film") == str(source)
    assert mtld_kaggle.bring_run("runs/film") == "runs/film"
    brought = root / "working" / "runs" / "film"
    assert (
        checkpoints.find(brought).name == "step_00000020"
        and json.loads((brought / "config.json").read_text()) == {}
    )
    assert not (brought / ".lock").exists() and not list(brought.parent.glob(".*"))


def test_of_several_runs_the_newest_good_checkpoint_counts(root):
    write_run(root / "input" / "datasets" / "me" / "old" / "runs" / "film", 10)
    write_run(root / "input" / "other" / "runs" / "another", 99)
    good = write_run(root / "input" / "notebooks" / "me" / "train" / "runs" / "film", 20)
    bad = write_run(root / "input" / "notebooks" / "me" / "train2" / "runs" / "film", 15, 30)
    damage(bad / "checkpoints" / "step_00000030")
    mtld_kaggle.bring_run("runs/film")
    assert checkpoints.find("runs/film").name == "step_00000020"
    assert mtld_kaggle.find_run(str(root / "working" / "elsewhere" / "film")) == str(good)


def test_nothing_is_brought_where_it_is_not_wanted(root):
    write_run(root / "input" / "train" / "runs" / "film", 20)
    for run_dir, resume in (
        ("runs/other", "auto"),
        ("", "auto"),
        ("runs/film", "never"),
        ("runs/film", "runs/x"),
    ):
        assert mtld_kaggle.bring_run(run_dir, resume) == run_dir
    assert not (root / "working" / "runs").exists()
    write_run(root / "working" / "runs" / "film", 5)  # trained in this session
    mtld_kaggle.bring_run("runs/film")
    assert checkpoints.find("runs/film").name == "step_00000005"


def test_a_folder_in_the_way_and_one_that_is_not_kept_are_refused(root):
    write_run(root / "input" / "train" / "runs" / "film", 20)
    (root / "working" / "runs" / "film").mkdir(parents=True)
    (root / "working" / "runs" / "film" / "notes.txt").touch()
    with pytest.raises(UserError, match="is in the way"):
        mtld_kaggle.bring_run("runs/film")
    with pytest.raises(UserError, match="lies outside"):
        mtld_kaggle.bring_run("/tmp/film")
    assert (root / "working" / "runs" / "film" / "notes.txt").exists()


def test_a_run_damaged_throughout_is_said_and_not_begun_anew(root):
    run = write_run(root / "input" / "train" / "runs" / "film", 20)
    damage(run / "checkpoints" / "step_00000020")
    with pytest.raises(UserError, match="every checkpoint of film in the inputs is damaged"):
        mtld_kaggle.bring_run("runs/film")
    shutil.rmtree(run)
    with pytest.raises(UserError, match="is in no input of this kernel"):
        mtld_kaggle.find_run("runs/film")


# ---- the stages of a world model


def stages(**named):
    return json.dumps({"latent_dim": 4} | named)


@pytest.mark.parametrize(
    "place",
    [
        "one/runs/tokens",
        "notebooks/me/one/runs/tokens",
        "datasets/me/tokens",
        "datasets/me/one/fetched/tokens",
    ],
)
def test_the_runs_that_a_system_is_built_on_are_found_by_their_names_and_brought(root, place):
    write_run(root / "input" / place, 10, 20)
    write_run(root / "input" / "other" / "runs" / "moves", 30)
    given = stages(tokenizer_run="runs/tokens", latent_actions_run="runs/moves")
    assert mtld_kaggle.bring_stages("dynamics", given, "runs/dynamics") == given
    for name, step in (("tokens", 20), ("moves", 30)):
        assert checkpoints.find(root / "working" / "runs" / name).name == f"step_{step:08d}"


@pytest.mark.parametrize("mount", ["train", "datasets/me/train", "notebooks/me/train"])
def test_a_stage_is_read_in_the_input_that_its_name_says(root, mount):
    run = write_run(root / "input" / mount / "runs" / "tokens", 10)
    write_run(root / "input" / "newer" / "runs" / "tokens", 99)
    found = json.loads(
        mtld_kaggle.bring_stages("dynamics", stages(tokenizer_run="me/train/runs/tokens"), "runs/dynamics")
    )
    assert found == {"latent_dim": 4, "tokenizer_run": str(run)}
    assert not (root / "working" / "runs").exists()


def test_a_stage_that_is_nowhere_is_said_unless_the_run_goes_on(root):
    write_run(root / "input" / "train" / "runs" / "other", 10)
    given = stages(tokenizer_run="runs/tokens")
    with pytest.raises(
        UserError,
        match=r"tokenizer_run='runs/tokens' is in no input of this kernel: attach .*; there are: .*train",
    ):
        mtld_kaggle.bring_stages("dynamics", given, "runs/dynamics")
    write_run(root / "working" / "runs" / "dynamics", 5)
    assert mtld_kaggle.bring_stages("dynamics", given, "runs/dynamics") == given


def test_a_path_that_holds_no_stage_is_said_with_its_field_unless_the_run_goes_on(root, capsys):
    write_run(root / "input" / "tok" / "right", 10)
    given = stages(tokenizer_run=str(root / "input" / "tok" / "typo"))
    with pytest.raises(
        UserError, match=r"^tokenizer_run='.*/input/tok/typo' is in no input of this kernel: attach"
    ):
        mtld_kaggle.bring_stages("dynamics", given, "runs/dynamics")
    write_run(root / "working" / "runs" / "dynamics", 5)
    assert mtld_kaggle.bring_stages("dynamics", given, "runs/dynamics") == given
    assert "runs/dynamics goes on without it" in capsys.readouterr().out


def test_a_damaged_stage_does_not_stop_a_run_that_goes_on(root):
    damage(write_run(root / "input" / "train" / "runs" / "tokens", 10) / "checkpoints" / "step_00000010")
    given = stages(tokenizer_run="runs/tokens")
    with pytest.raises(UserError, match="every checkpoint of tokens in the inputs is damaged"):
        mtld_kaggle.bring_stages("dynamics", given, "runs/dynamics")
    write_run(root / "working" / "runs" / "dynamics", 5)
    assert mtld_kaggle.bring_stages("dynamics", given, "runs/dynamics") == given


def test_other_systems_and_overrides_stay_as_they_are(root):
    for system, overrides in (
        ("mtld", stages(tokenizer_run="runs/x")),
        ("dynamics", "{}"),
        ("dynamics", "not JSON"),
    ):
        assert mtld_kaggle.bring_stages(system, overrides, "runs/y") == overrides
    assert mtld_kaggle.bring_stages("dynamics", stages(tokenizer_run=5), "runs/y") == stages(tokenizer_run=5)
