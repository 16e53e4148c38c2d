"""Every command exits with a code of the one documented set, and ends each failure with one plain line."""

import importlib
import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import push as kaggle_push
import pytest
from conftest import write_arcs

from mtld_core.config import RunGivenUp, UserError
from mtld_core.machine.heat import Heat
from mtld_core.train.job import main as train_main
from mtld_core.train.loop import Training

pytestmark = pytest.mark.versionless  # exit codes and lines of our own wrapper
ROOT = Path(__file__).parents[1]
COMMANDS = {  # module: (what does its work, a command line that gets there)
    "mtld_core.train.job": ("train", ["--config", "{job}"]),
    "mtld_core.judge.checkpoint": ("judge", ["run"]),
    "mtld_core.share": ("share", ["run", "out"]),
    "data_prep.convert_lpips": ("convert", []),
    "data_prep.download_videos": ("read_list", ["list.txt", "videos"]),
    "data_prep.extract_frames": ("extract", ["sample", "out"]),
    "data_prep.make_domains": ("shapes", ["out"]),
    "data_prep.make_mnist": ("make", ["out"]),
    "data_prep.make_moving_mnist": ("make", ["out"]),
    "data_prep.record_game": ("record", ["--env", "a", "--steps", "1", "--out", "b"]),
    "address": ("tell", ["me/mtld"]),
    "batch": ("sweep", ["sweep.yaml"]),
    "push": ("make_kernel", ["02_train", "--check"]),
}


@pytest.fixture(params=COMMANDS)
def command(request, tmp_path, monkeypatch):
    """(module, the function that does its work, run(): its exit code)"""
    module, (worker, words) = importlib.import_module(request.param), COMMANDS[request.param]
    (tmp_path / "job.json").write_text("{}")

    def run(*others):
        line = others or [word.format(job=tmp_path / "job.json") for word in words]
        monkeypatch.setattr(sys, "argv", ["command", *line])
        return module.main()

    return module, worker, run


def does(act):
    return lambda *_, **__: act()


def fails(error):
    def act():
        raise error

    return does(act)


def last_line(capsys):
    text = capsys.readouterr().err
    return text.splitlines()[-1] if text else ""


def test_every_command_is_listed_here_and_on_the_page():
    files = {
        file: file.read_text()
        for folder in ("mtld_core", "data_prep", "kaggle", "bench", "notebooks")
        for file in (ROOT / folder).rglob("*.py")
        if file.name != "same.py"  # which runs two commits, and is of neither
    }
    mains = {file for file, text in files.items() if re.search(r"^def main\(", text, re.MULTILINE)}
    assert mains == {file for file, text in files.items() if "\n@command\ndef main(" in text}
    measures = {file for file in mains if file.parent.name == "bench"}
    assert {file.stem for file in mains - measures} == {name.rpartition(".")[2] for name in COMMANDS}
    programs = {file for file, text in files.items() if text.endswith("sys.exit(main())\n")}
    called = {file for file, text in files.items() if "__main__" in text or file.stem == "__main__"}
    assert programs == called and mains - programs == {
        ROOT / "mtld_core/train/job.py",
        ROOT / "mtld_core/judge/checkpoint.py",
    }
    assert not [file for file, text in files.items() if re.search(r"sys\.exit\((?!main\(\)\))", text)]
    page = (ROOT / "docs" / "commands.md").read_text()
    assert [int(code) for code in re.findall(r"^\| (\d+) \|", page, re.MULTILINE)] == [0, 1, 3, 130]


@pytest.mark.parametrize(
    ("error", "code", "line"),
    [
        (UserError("mend it"), 1, "error: mend it"),
        (RunGivenUp("it is too hot"), 3, "given up: it is too hot"),
        (KeyboardInterrupt(), 130, "stopped"),
        (PermissionError(13, "Permission denied", "there.png"), 1, "error: there.png: Permission denied"),
        (ZeroDivisionError("a fault\nof ours"), 1, "error: ZeroDivisionError: a fault of ours"),
    ],
)
def test_each_failure_has_its_code_and_its_line(command, monkeypatch, capsys, error, code, line):
    module, worker, run = command
    monkeypatch.setattr(module, worker, fails(error))
    assert run() == code
    assert last_line(capsys) == line


def test_sigterm_asks_to_stop(command, monkeypatch, capsys):
    module, worker, run = command
    before = signal.getsignal(signal.SIGTERM)
    monkeypatch.setattr(module, worker, does(lambda: os.kill(os.getpid(), signal.SIGTERM)))
    assert run() == 130 and last_line(capsys) == "stopped"
    assert signal.getsignal(signal.SIGTERM) is before


def test_a_wrong_command_line_can_be_mended_and_help_is_no_failure(command, capsys):
    _, _, run = command
    assert run("--no-such-option") == 1 and ": error: " in last_line(capsys)
    assert run("--help") == 0 and last_line(capsys) == ""


def test_in_a_process_of_its_own(tmp_path):
    for words, code in ((["data_prep/make_mnist.py"], 1), (["-m", "mtld_core.judge", "nowhere"], 1)):
        done = subprocess.run([sys.executable, *words], cwd=ROOT, capture_output=True, text=True)
        assert done.returncode == code and "error: " in done.stderr.splitlines()[-1], done.stderr


# ---- training


@pytest.fixture
def job(tmp_path):
    """run(settings): the exit code of a tiny training, and its report."""
    arcs = write_arcs(tmp_path / "arcs", [20] * 6)

    def run(overrides=None, **settings):
        settings = {
            "system": "mtld",
            "preset": "tiny",
            "dataset_root": str(arcs),
            "run_dir": str(tmp_path / "run"),
            **settings,
        }
        (tmp_path / "job.json").write_text(json.dumps(settings | {"overrides": json.dumps(overrides or {})}))
        code = train_main(["--config", str(tmp_path / "job.json")])
        return code, json.loads((tmp_path / "run" / "report.json").read_text())

    return run


def test_a_run_that_ends_by_its_plan_exits_with_0(job):
    code, report = job(steps=10**6, time_budget_minutes=0.002)
    assert (code, report["status"], report["reason"]) == (0, "stopped", "time budget spent") and not report[
        "given_up"
    ]
    code, report = job(steps=report["step"] + 1)
    assert (code, report["status"], report["given_up"]) == (0, "finished", False)


def test_heat_that_ends_a_run_exits_with_3(job, monkeypatch, capsys):
    def too_hot(self, now):
        self.emergency = "the GPU stays too hot: 99 °C"
        return self.emergency

    monkeypatch.setattr(Heat, "reason_to_end", too_hot)
    code, report = job(steps=2)
    assert code == 3 and last_line(capsys) == "given up: the GPU stays too hot: 99 °C"
    assert (report["status"], report["reason"], report["given_up"]) == (
        "stopped",
        "the GPU stays too hot: 99 °C",
        True,
    )


def test_a_run_without_finite_updates_exits_with_3(job, monkeypatch, capsys):
    from mtld_core.systems.mtld.system import MTLD

    honest = MTLD.generator_loss

    def broken(self, batch):
        loss = honest(self, batch)
        return loss._replace(total=loss.total * float("nan"))

    monkeypatch.setattr(MTLD, "generator_loss", broken)
    code, report = job({"lambda_adv": 0, "lambda_fm": 0}, steps=100)
    assert code == 3 and last_line(capsys).startswith(
        "given up: none of the last 20 updates of phase 'generator' was finite"
    )
    assert report["status"] == "failed" and "was finite" in report["reason"] and report["given_up"]


def test_a_run_that_is_asked_to_stop_exits_with_130(job, monkeypatch):
    honest = Training._train_step

    def stopped(self):
        self.controls.stop.set()
        return honest(self)

    monkeypatch.setattr(Training, "_train_step", stopped)
    code, report = job(steps=100)
    assert (code, report["reason"], report["step"], report["given_up"]) == (130, "asked to stop", 1, False)


# ---- a kernel on Kaggle


@pytest.mark.parametrize("run_dir", ["runs/film", ""])
@pytest.mark.parametrize(("given_up", "code"), [(True, 3), (False, 1)])
def test_a_push_whose_run_was_given_up_exits_with_3(tmp_path, monkeypatch, capsys, given_up, code, run_dir):
    report = {"status": "failed", "step": 40, "reason": "no finite update", "given_up": given_up}

    class Client:
        config_values = {"username": "me"}  # noqa: RUF012

        def kernels_push(self, folder):
            return type("Answer", (), {"version_number": 1, "url": "there"})

        def kernels_output(self, name, out, force):
            for name, about in (("film", report), ("left", report | {"given_up": True})):
                (Path(out) / "runs" / name).mkdir(parents=True)
                (Path(out) / "runs" / name / "report.json").write_text(json.dumps(about))
            return [str(Path(out) / "runs" / "film" / "report.json")], ""

    monkeypatch.setattr(kaggle_push, "_client", Client)
    monkeypatch.setattr(kaggle_push, "_check_answer", lambda answer, name: None)
    monkeypatch.setattr(kaggle_push, "_watch", lambda *_: ("ERROR", ""))
    monkeypatch.setattr(
        sys, "argv", ["push.py", "02_train", "-p", "run_dir", run_dir, "--out", str(tmp_path / "out")]
    )
    assert kaggle_push.main() == code
    folder = run_dir or tmp_path / "out/runs/film"
    assert last_line(capsys).startswith(f"given up: {folder}: no finite update" if given_up else "error: ")
