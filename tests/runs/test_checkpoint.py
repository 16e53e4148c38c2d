"""Checkpoints are whole or not there, and whatever is damaged is noticed before it is believed."""

import errno
import json
import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import torch
from torch import nn

from mtld_core.config import UserError
from mtld_core.files import sha256
from mtld_core.runs import checkpoint as checkpoints
from mtld_core.runs.folder import read_pointer, samples_of
from mtld_core.runs.lock import run_lock

ROOT = Path(__file__).parents[2]
CONFIG = {"system": "toy", "widths": [1, 2]}


def weights(value):
    return {"a.weight": torch.full((2, 3), float(value)), "a.count": torch.tensor(value)}


def save(run_dir, step, ema=True):
    state = {"step": step, "rng": torch.get_rng_state(), "nested": {"list": [1, 2.5, "word", None]}}
    return checkpoints.save(run_dir, step, weights(step), state, CONFIG, weights(-step) if ema else None)


@pytest.fixture
def run(tmp_path):
    """A run folder with the checkpoints 1, 2 and 3."""
    for step in (1, 2, 3):
        save(tmp_path, step)
    return tmp_path


def folder(run, step):
    return run / "checkpoints" / f"step_{step:08d}"


def names(path):
    return sorted(file.name for file in path.iterdir())


def flip(path, place, bit=0):
    data = bytearray(path.read_bytes())
    data[place] ^= 1 << bit
    path.write_bytes(data)


def same(found, wanted):
    assert found.keys() == wanted.keys()
    assert all(
        torch.equal(found[name], wanted[name]) and found[name].dtype == wanted[name].dtype for name in wanted
    )


# ---- save and load


def test_save_and_load_round_trip(tmp_path):
    torch.manual_seed(7)
    rng = torch.get_rng_state()
    assert save(tmp_path, 1000) == "checkpoints/step_00001000"
    found = checkpoints.find(tmp_path)
    assert found == folder(tmp_path, 1000)
    assert names(found) == ["ema.safetensors", "manifest.json", "model.safetensors", "train_state.pt"]
    same(checkpoints.load_weights(found, ema=False), weights(1000))
    same(checkpoints.load_weights(found), weights(-1000))
    state = checkpoints.load_train_state(found)
    assert (
        state["step"] == 1000
        and state["nested"] == {"list": [1, 2.5, "word", None]}
        and torch.equal(state["rng"], rng)
    )
    manifest = json.loads((found / "manifest.json").read_text())
    assert (manifest["step"], manifest["config"], manifest["schema"]) == (1000, CONFIG, checkpoints.SCHEMA)
    assert manifest["sha256"] == {
        name: sha256(found / name) for name in names(found) if name != "manifest.json"
    }
    assert names(tmp_path / "checkpoints") == ["step_00001000"]


def test_without_a_moving_average_the_weights_themselves_are_given(tmp_path):
    save(tmp_path, 5, ema=False)
    assert "ema.safetensors" not in names(folder(tmp_path, 5))
    same(checkpoints.load_weights(checkpoints.find(tmp_path)), weights(5))


def test_tensors_that_share_memory_or_are_not_packed_can_be_saved(tmp_path):
    a = torch.arange(12.0).reshape(3, 4)
    image = torch.rand(2, 3, 4, 5).to(memory_format=torch.channels_last).requires_grad_()
    given = {"a": a, "same": a, "turned": a.T, "part": a[:, 1:], "image": image}
    checkpoints.save(tmp_path, 1, given, {}, {})
    same(
        checkpoints.load_weights(checkpoints.find(tmp_path)),
        {name: value.detach() for name, value in given.items()},
    )


def test_latest_holds_the_digest_of_the_manifest(run):
    latest = json.loads((run / "latest.json").read_text())
    assert latest == {
        "checkpoint": "checkpoints/step_00000003",
        "step": 3,
        "sha256": sha256(folder(run, 3) / "manifest.json"),
    }


def test_saving_the_same_step_again_replaces_it(run):
    checkpoints.save(run, 3, weights(33), {"step": 3}, CONFIG)
    same(checkpoints.load_weights(checkpoints.find(run)), weights(33))
    assert names(run / "checkpoints") == [f"step_0000000{i}" for i in (1, 2, 3)]
    assert read_pointer(run / "latest.json")["sha256"] == sha256(folder(run, 3) / "manifest.json")


# ---- damage


@pytest.mark.parametrize("name", ["model.safetensors", "ema.safetensors", "train_state.pt"])
@pytest.mark.parametrize("place", [0, -1, 0.5])
def test_a_flipped_bit_is_noticed_and_the_one_before_is_used(run, capsys, name, place):
    file = folder(run, 3) / name
    flip(file, int(place * file.stat().st_size) if place == 0.5 else place)
    assert checkpoints.find(run) == folder(run, 2)
    said = capsys.readouterr().out
    assert (
        str(folder(run, 3)) in said
        and f"{name} does not match its sha256" in said
        and "the one before" in said
    )


def test_two_damaged_ones_are_skipped_and_when_all_are_it_is_an_error(run, capsys):
    for step in (3, 2):
        flip(folder(run, step) / "model.safetensors", 100)
    assert checkpoints.find(run) == folder(run, 1)
    assert capsys.readouterr().out.count("is damaged") == 2
    flip(folder(run, 1) / "model.safetensors", 100)
    with pytest.raises(UserError, match=r"every checkpoint of .* is damaged"):
        checkpoints.find(run)


def test_no_flipped_bit_of_a_manifest_is_believed_or_crashes(tmp_path):
    """The manifest holds the step and the config, so that a wrong digit there is damage like any other."""
    save(tmp_path, 7, ema=False)
    path = folder(tmp_path, 7)
    good = (path / "manifest.json").read_bytes()
    believed, crashed = [], []
    for place, byte in enumerate(good):
        flip(
            path / "manifest.json", place, 0 if chr(byte).isdigit() else place % 8
        )  # a digit becomes another one
        around = (path / "manifest.json").read_bytes()[max(0, place - 12) : place + 12]
        try:
            if checkpoints.problem(path) is None:
                believed.append(around)
        except Exception as error:
            crashed.append((repr(error), around))
        (path / "manifest.json").write_bytes(good)
    assert checkpoints.problem(path) is None
    assert not crashed, f"{len(crashed)} flips raise, such as {crashed[0]}"
    assert not believed, f"{len(believed)} flips are believed, such as {believed[0]}"


@pytest.mark.parametrize(
    "text", ["", "[]", "{}", "3", '{"sha256": 1, "schema": 1}', '{"sha256": {}}', "\udcff"]
)
def test_a_manifest_of_another_kind_is_damage_and_no_crash(run, capsys, text):
    (folder(run, 3) / "manifest.json").write_bytes(text.encode(errors="surrogateescape"))
    assert checkpoints.find(run) == folder(run, 2)
    assert "damaged" in capsys.readouterr().out


@pytest.mark.parametrize("name", ["manifest.json", "model.safetensors", "ema.safetensors", "train_state.pt"])
@pytest.mark.parametrize("how", ["truncated", "empty", "missing"])
def test_a_truncated_or_missing_file_is_damage(run, capsys, name, how):
    file = folder(run, 3) / name
    if how == "missing":
        file.unlink()
    else:
        file.write_bytes(file.read_bytes()[: -10 if how == "truncated" else 0])
    assert checkpoints.find(run) == folder(run, 2)
    assert str(folder(run, 3)) in capsys.readouterr().out
    with pytest.raises(UserError, match="step_00000003 is damaged") as error:
        checkpoints.find(run, "step_00000003")
    assert "use another one" in str(error.value) and "step_00000002" in str(error.value)


def test_a_newer_schema_is_not_read(run, capsys, monkeypatch):
    monkeypatch.setattr(checkpoints, "SCHEMA", 2)
    save(run, 4)
    monkeypatch.setattr(checkpoints, "SCHEMA", 1)
    assert checkpoints.find(run) == folder(run, 3)
    assert "schema 2, newer than this program's 1" in capsys.readouterr().out


# ---- choosing


@pytest.mark.parametrize(
    "wanted", ["step_00000002", "checkpoints/step_00000002", "{run}/checkpoints/step_00000002"]
)
def test_any_checkpoint_can_be_chosen(run, wanted):
    assert checkpoints.find(run, wanted.format(run=run)) == folder(run, 2)


def test_an_unknown_name_lists_what_there_is(run):
    with pytest.raises(UserError, match="has no checkpoint 'step_00000009'") as error:
        checkpoints.find(run, "step_00000009")
    assert all(f"step_0000000{i}" in str(error.value) for i in (1, 2, 3))
    with pytest.raises(UserError, match="no such run folder"):
        checkpoints.find(run / "nowhere")


def test_a_run_without_checkpoints_says_so(tmp_path):
    with pytest.raises(UserError, match="holds no checkpoint yet: train it first"):
        checkpoints.find(tmp_path)
    with pytest.raises(UserError, match="there are: none"):
        checkpoints.find(tmp_path, "step_00000001")


def test_best_is_what_was_marked(run):
    with pytest.raises(UserError, match="no best checkpoint yet"):
        checkpoints.find(run, "best")
    checkpoints.mark_best(run, "checkpoints/step_00000002", "psnr", 31.5)
    assert checkpoints.find(run, "best") == folder(run, 2)
    wanted = {"checkpoint": "checkpoints/step_00000002", "step": 2, "metric": "psnr", "value": 31.5}
    assert read_pointer(run / "best.json") == wanted


def test_a_damaged_pointer_reads_as_none(tmp_path):
    path = tmp_path / "best.json"
    assert read_pointer(path) is None
    for data in (b"", b'{"checkpoint": ', b'{"checkpoint": "\xff"}', b"[]"):
        path.write_bytes(data)
        assert read_pointer(path) is None, data


# ---- pruning


def test_prune_keeps_the_newest_two_and_the_best(run):
    for step in (4, 5):
        save(run, step)
    checkpoints.mark_best(run, "checkpoints/step_00000002", "psnr", 1.0)
    checkpoints.prune(run)
    assert names(run / "checkpoints") == [f"step_0000000{i}" for i in (2, 4, 5)]
    checkpoints.prune(run, keep=1)
    assert names(run / "checkpoints") == [f"step_0000000{i}" for i in (2, 5)]
    assert checkpoints.find(run) == folder(run, 5) and checkpoints.find(run, "best") == folder(run, 2)


def test_prune_removes_what_a_killed_process_left(run):
    left = run / "checkpoints" / ".step_00000004.999999.tmp"
    left.mkdir()
    (left / "model.safetensors").write_bytes(b"half")
    assert checkpoints.find(run) == folder(run, 3)  # not taken for a checkpoint either
    checkpoints.prune(run)
    assert names(run / "checkpoints") == ["step_00000002", "step_00000003"]


@pytest.mark.parametrize("keep", [1, 2])
def test_prune_never_deletes_what_was_just_saved(run, capsys, keep):
    """The newest ones are damaged, training goes on from the one before and saves at a step below theirs."""
    save(run, 5)
    save(run, 6)
    for step in (5, 6):
        flip(folder(run, step) / "model.safetensors", 100)
    assert checkpoints.find(run) == folder(run, 3)
    save(run, 4)
    checkpoints.prune(run, keep)
    capsys.readouterr()
    assert read_pointer(run / "latest.json")["step"] == 4
    assert checkpoints.find(run) == folder(run, 4)


# ---- files beside the checkpoints


def save_with(run, step, **files):
    """A checkpoint that rests on such and such bytes of `logs/<name>.bin`."""
    named = {f"logs/{name}.bin": needed for name, needed in files.items()}
    return checkpoints.save(run, step, weights(step), {"step": step}, CONFIG, files=named)


@pytest.fixture
def beside(tmp_path):
    """Checkpoint 1 rests on a and b, 2 on b and c, 3 on c."""
    (tmp_path / "logs").mkdir()
    for name in "abc":
        (tmp_path / f"logs/{name}.bin").write_bytes(b"x" * 10)
    save_with(tmp_path, 1, a=10, b=4)
    save_with(tmp_path, 2, b=10, c=4)
    save_with(tmp_path, 3, c=10)
    return tmp_path


def test_a_manifest_names_the_files_that_a_checkpoint_rests_on(beside):
    assert json.loads((folder(beside, 2) / "manifest.json").read_text())["files"] == {
        "logs/b.bin": 10,
        "logs/c.bin": 4,
    }
    assert all(
        checkpoints.problem(path, resuming=True) is None for path in checkpoints.list_checkpoints(beside)
    )
    assert names(folder(beside, 1)) == ["manifest.json", "model.safetensors", "train_state.pt"]  # no copy


def test_a_file_beside_that_is_short_or_missing_is_damage_where_training_is_to_go_on(beside, capsys):
    (beside / "logs/c.bin").write_bytes(b"x" * 9)
    assert checkpoints.find(beside) == folder(beside, 3)  # to generate, say
    assert checkpoints.find(beside, resuming=True) == folder(beside, 2)
    assert "it rests on 10 bytes of logs/c.bin, of which 9 are there" in capsys.readouterr().out
    (beside / "logs/c.bin").unlink()
    assert checkpoints.find(beside, resuming=True) == folder(beside, 1)
    said = capsys.readouterr().out
    assert "of logs/c.bin, of which 0 are there" in said and said.count("c.bin") == 2
    (beside / "logs/b.bin").write_bytes(
        b"y" * 20
    )  # it only has to be long enough: it grows after the checkpoint
    assert checkpoints.problem(folder(beside, 1), resuming=True) is None


def test_prune_deletes_the_files_that_no_checkpoint_names_any_more(beside):
    for name in ("logs/old.bin", "logs/notes.txt", "other.bin", "previews/a.bin"):
        (beside / name).parent.mkdir(exist_ok=True)
        (beside / name).write_bytes(b"z")
    checkpoints.prune(beside, keep=2)
    assert names(beside / "logs") == [
        "b.bin",
        "c.bin",
        "notes.txt",
    ]  # and old.bin, which a killed process left
    checkpoints.mark_best(beside, "checkpoints/step_00000002", "psnr", 1.0)
    save(beside, 4)
    checkpoints.prune(beside, keep=1)
    assert names(beside / "logs") == ["b.bin", "c.bin", "notes.txt"]
    checkpoints.mark_best(beside, "checkpoints/step_00000004", "psnr", 2.0)
    checkpoints.prune(beside, keep=1)
    assert names(beside / "logs") == ["notes.txt"]
    assert names(beside / "previews") == ["a.bin"] and (beside / "other.bin").exists()


@pytest.mark.parametrize(
    "name", ["../{there}/a.bin", "a.bin", "logs/../../{there}/a.bin", "{path}/a.bin", "logs/deep/a.bin"]
)
def test_prune_deletes_nothing_outside_whatever_a_manifest_says(tmp_path, name):
    run, there = tmp_path / "run", tmp_path / "there"
    for folder in (there, run, run / "logs/deep"):
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "a.bin").write_bytes(b"x")
        (folder / "b.bin").write_bytes(b"x")
    for step in (1, 2):
        files = {name.format(there="there", path=there): 1} if step == 1 else {}
        checkpoints.save(run, step, weights(step), {}, CONFIG, files=files)
    checkpoints.prune(run, keep=1)
    assert len(checkpoints.list_checkpoints(run)) == 1
    assert all(
        (folder / "a.bin").exists() and (folder / "b.bin").exists()
        for folder in (there, run, run / "logs/deep")
    )


def test_manifests_from_before_files_were_named_still_open(run):
    for step in (1, 2, 3):
        path = folder(run, step) / "manifest.json"
        manifest = json.loads(path.read_text())
        del manifest["files"], manifest["self"]
        path.write_text(json.dumps(manifest | {"self": checkpoints._digest(manifest)}))
    assert checkpoints.find(run) == folder(run, 3)
    checkpoints.prune(run, keep=1)
    assert names(run / "checkpoints") == ["step_00000003"]


# ---- a full disk


@pytest.mark.parametrize(
    "problem", [OSError(errno.ENOSPC, "No space left on device"), RuntimeError("PytorchStreamWriter failed")]
)
def test_a_full_disk_leaves_the_earlier_ones_usable(run, monkeypatch, problem):
    def half(state, file):
        file.write(b"half of the file")
        raise problem

    monkeypatch.setattr(torch, "save", half)
    before = (run / "latest.json").read_bytes()
    with pytest.raises(type(problem), match=str(problem.args[-1])):
        save(run, 4)
    assert names(run / "checkpoints") == [f"step_0000000{i}" for i in (1, 2, 3)]
    assert (run / "latest.json").read_bytes() == before and names(run) == ["checkpoints", "latest.json"]
    assert checkpoints.find(run) == folder(run, 3)
    monkeypatch.undo()
    save(run, 4)
    assert checkpoints.find(run) == folder(run, 4)


@pytest.mark.skipif(os.name == "nt", reason="no such limits on Windows")
def test_torchs_own_words_for_a_full_disk_give_way_to_the_systems(run):
    import resource

    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (5000, before[1]))  # no file larger than that can be written
    try:
        with pytest.raises(OSError, match="File too large"):
            checkpoints.save(run, 4, {"a": torch.zeros(1)}, {"large": torch.zeros(10_000)}, {})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert checkpoints.find(run) == folder(run, 3)


def test_a_full_disk_leaves_no_half_an_export(run, tmp_path, monkeypatch):
    def half(state, file):
        file.write(b"half of the file")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(torch, "save", half)
    with pytest.raises(OSError, match="No space left"):
        checkpoints.export_pth(folder(run, 3), run / "model.pth")
    assert not (run / "model.pth").exists()


# ---- weights


def test_an_exported_pth_reads_back(run, tmp_path):
    path = tmp_path / "model.pth"
    checkpoints.export_pth(folder(run, 3), path)
    same(torch.load(path, weights_only=True), weights(-3))
    same(checkpoints.load_weights(path), weights(-3))


class Toy(nn.Module):
    name = "toy"

    def __init__(self, width):
        super().__init__()
        self.body = nn.Linear(width, 2)
        self.register_buffer("mean", torch.zeros(width))


def test_load_state_dict_gives_the_weights():
    a, b = Toy(3), Toy(3)
    checkpoints.load_state_dict(b, a.state_dict(), "here")
    same(b.state_dict(), a.state_dict())


def test_load_state_dict_names_the_tensors_that_do_not_fit():
    with pytest.raises(UserError, match=r"a\.pth does not fit this toy model \(2 tensors differ\)") as error:
        checkpoints.load_state_dict(Toy(3), Toy(4).state_dict(), "a.pth")
    assert "body.weight: (2, 3) here, (2, 4) there" in str(
        error.value
    ) and "mean: (3,) here, (4,) there" in str(error.value)
    given = Toy(3).state_dict()
    given["extra"] = given.pop("mean")
    with pytest.raises(UserError) as error:
        checkpoints.load_state_dict(Toy(3), given, "a.pth")
    assert "extra: not in this model here" in str(error.value) and "mean: (3,) here, missing there" in str(
        error.value
    )


# ---- the lock


HOLD = """
    import sys, time
    from mtld_core.runs.lock import run_lock
    with run_lock(sys.argv[1]):
        print("held", flush=True)
        time.sleep(60)
"""


def test_a_second_process_is_refused_until_the_first_is_gone(tmp_path):
    code = [sys.executable, "-c", textwrap.dedent(HOLD), str(tmp_path / "run")]
    with subprocess.Popen(code, stdout=subprocess.PIPE, text=True, cwd=ROOT) as child:
        try:
            assert child.stdout.readline() == "held\n"
            said = r"run is in use by another training process; wait .* or choose another run_dir"
            with pytest.raises(UserError, match=said), run_lock(tmp_path / "run"):
                pass
            with run_lock(tmp_path / "other"):  # another run is free
                pass
        finally:
            child.kill()  # SIGKILL: nothing was put away
        child.wait()
        lock = run_lock
        with (
            lock(tmp_path / "run"),
            pytest.raises(UserError, match="in use"),
            lock(tmp_path / "run"),
        ):  # nor twice in one process
            pass
    with pytest.raises(ZeroDivisionError), run_lock(tmp_path / "run"):
        raise ZeroDivisionError
    with run_lock(tmp_path / "run"):  # an error frees it, too
        assert (tmp_path / "run").is_dir()


def test_what_a_read_only_run_makes_is_kept_in_the_working_folder(tmp_path, monkeypatch):
    assert samples_of(tmp_path) == tmp_path / "samples"
    monkeypatch.setattr(
        os, "access", lambda path, mode: False
    )  # root may write anywhere but to a read-only mount
    (tmp_path / "pong").mkdir()
    assert samples_of(tmp_path / "pong") == Path("samples/pong")
    assert samples_of(tmp_path / "new") == tmp_path / "new/samples"
