"""The loop: when it ends, what it writes, what stops it, and how it refuses to lose anything."""

import dataclasses
import json
import math
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time

import pytest
import torch
from conftest import drawn, write_arcs

from mtld_core.config import ConfigError, UserError
from mtld_core.data import open_dataset
from mtld_core.judge import judge
from mtld_core.judge.rollouts import Judge
from mtld_core.judge.windows import windows_of
from mtld_core.machine import threads
from mtld_core.runs import checkpoint as checkpoints
from mtld_core.runs.checkpoint import list_checkpoints, load_train_state
from mtld_core.runs.folder import read_pointer
from mtld_core.systems.base import Loss
from mtld_core.systems.mtld.system import MTLD
from mtld_core.systems.opening import open_run
from mtld_core.train import fit, train
from mtld_core.train import loop as train_module
from mtld_core.train.controls import Controls
from mtld_core.train.job import main, outlook
from mtld_core.train.loop import Training
from mtld_core.train.plots import draw
from mtld_core.train.settings import build, open_data, plan


def tiny(arcs, run_dir, overrides=None, **settings):
    overrides = {"save_every_minutes": 0} | (overrides or {})
    return train("mtld", "tiny", str(arcs), overrides, run_dir=str(run_dir), **settings)


def lines(run_dir):
    return [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]


def test_the_report_has_every_name_that_others_rely_on(arcs, tmp_path):
    report = tiny(arcs, tmp_path / "run", seed=7)
    wanted = (
        "schema system preset status reason step steps_per_second frames_per_second train_seconds "
        "paused_seconds wall_seconds "
        "peak_memory_mb peak_gpu_memory_mb device precision parameters seed restitution dataset versions "
        "judged_at_step alarms "
        "metrics"
    )
    assert set(wanted.split()) <= report.keys()
    assert (
        report["schema"] == 1
        and report["judged_at_step"] == report["step"]
        and report["seed"] == 7
        and report["preset"] == "tiny"
        and report["restitution"] is False
    )
    assert report["dataset"] == {"path": str(arcs.resolve()), "arcs": 6, "frames": 120, "size": [16, 16]}
    assert 0 < report["train_seconds"] < report["wall_seconds"]
    metrics = report["metrics"]
    assert {
        "psnr",
        "ssim",
        "lpips",
        "baseline_copy_psnr",
        "skill_db",
        "reconstruction_psnr",
    } <= metrics.keys()
    assert metrics["lpips"] is not None or metrics["lpips_reason"]
    assert len(metrics["psnr_by_horizon"]) == len(metrics["skill_db_by_horizon"]) == 3
    assert report == json.loads((tmp_path / "run" / "report.json").read_text())


def test_the_run_folder_is_laid_out_as_documented(arcs, tmp_path):
    run = tmp_path / "run"
    tiny(arcs, run, {"save_every_steps": 5, "eval_every_steps": 10, "preview_every_steps": 10})
    latest = json.loads((run / "latest.json").read_text())
    assert latest["step"] == 20 and (run / latest["checkpoint"] / "model.safetensors").exists()
    best = json.loads((run / "best.json").read_text())
    assert (run / best["checkpoint"]).exists() and best["metric"] == "skill_db"
    kept = {path.name for path in list_checkpoints(run)}
    assert {"step_00000020", "step_00000015"} <= kept <= {"step_00000020", "step_00000015", "step_00000010"}
    assert sorted(path.name for path in (run / "previews").iterdir()) == [
        "step_00000010.png",
        "step_00000020.png",
    ]
    assert [line["step"] for line in lines(run)] == [10, 20] and {"l1", "seconds"} <= lines(run)[0].keys()


def test_epochs_count_every_window_once(arcs, tmp_path):
    # 5 training arcs x 17 windows, 5 at a time
    assert tiny(arcs, tmp_path / "run", epochs=2, batch_size=5)["step"] == 34


@pytest.mark.versionless  # arithmetic of our own
def test_a_time_budget_alone_is_used_each_night_and_the_cosine_ends_with_it(arcs, tmp_path, capsys):
    settings = {"lr_schedule": "cosine", "log_every_steps": 1, "warmup_steps": 2}
    tiny(arcs, tmp_path / "warm", steps=1)  # imports what judging does, which takes as long as the budget
    first = tiny(arcs, tmp_path / "run", settings, time_budget_minutes=0.15)
    assert (first["status"], first["reason"]) == ("finished", "time budget spent")
    assert first["steps_total"] == first["step"] and first["wall_seconds"] > 0.5 * 9
    second = tiny(arcs, tmp_path / "run", settings, time_budget_minutes=0.15)
    assert second["step"] > first["step"] and second["wall_seconds"] - first["wall_seconds"] > 0.5 * 9
    rates = [line["lr_generator"] for line in lines(tmp_path / "run")]
    peak, end = max(rates), first["step"]
    assert rates[end - 1] < 0.1 * peak and rates[-1] < 0.1 * peak
    assert rates[0] == pytest.approx(peak / 2, rel=0.05)  # the warm-up
    # a new cycle with its warm-up, from where one over both nights would be by then
    spent = first["wall_seconds"]
    again = peak * (0.5 + 0.5 * math.cos(math.pi * spent / (spent + 9)))
    assert rates[end] == pytest.approx(again / 2, rel=0.1)
    assert max(rates[end:]) == pytest.approx(again, rel=0.1)
    [said] = re.findall(r"going on at step \d+ with (\d+)% of the learning rate", capsys.readouterr().out)
    assert float(said) == pytest.approx(100 * again / peak, abs=5)


def test_a_budget_shorter_than_the_steps_stops_and_the_next_session_finishes(arcs, tmp_path):
    report = tiny(arcs, tmp_path / "run", steps=10**6, time_budget_minutes=0.01)
    assert (report["status"], report["reason"]) == ("stopped", "time budget spent")
    more = tiny(arcs, tmp_path / "run", steps=report["step"] + 3)
    assert (more["status"], more["step"]) == ("finished", report["step"] + 3)
    assert more["train_seconds"] > report["train_seconds"]


def test_a_finished_run_is_left_as_it_is(arcs, tmp_path):
    tiny(arcs, tmp_path / "run")
    before = (tmp_path / "run" / "latest.json").read_text()
    report = tiny(arcs, tmp_path / "run")
    assert (report["status"], report["step"]) == ("finished", 20) and report["steps_per_second"] > 0
    assert (tmp_path / "run" / "latest.json").read_text() == before


@pytest.mark.parametrize("text", ["", "{}", "[]", "null", '{"step": 2}', '{"judged_at_step": "x"}'])
def test_a_run_goes_on_whatever_its_report_says(arcs, tmp_path, text):
    few = {"eval_windows": 1, "save_every_steps": 0}
    tiny(arcs, tmp_path / "run", few, steps=1)
    (tmp_path / "run/report.json").write_text(text)
    assert tiny(arcs, tmp_path / "run", few, steps=2)["step"] == 2


def test_never_resuming_refuses_to_write_over_a_run_and_another_run_can_be_the_start(arcs, tmp_path):
    tiny(arcs, tmp_path / "run")
    with pytest.raises(UserError, match="already holds a run"):
        tiny(arcs, tmp_path / "run", resume="never")
    report = tiny(arcs, tmp_path / "branch", resume=str(tmp_path / "run"), steps=25)
    assert report["step"] == 25 and report["status"] == "finished"
    picked = tiny(
        arcs, tmp_path / "picked", resume=str(tmp_path / "run" / "checkpoints" / "step_00000020"), steps=21
    )
    assert picked["step"] == 21


def test_resuming_with_another_model_names_what_differs(arcs, tmp_path):
    tiny(arcs, tmp_path / "run")
    with pytest.raises(UserError, match=r"trained with latent_dim=\d+ \(now 16\), so its weights do not fit"):
        tiny(arcs, tmp_path / "run", {"latent_dim": 16})


def test_going_back_forgets_pictures_and_figures_of_the_lost_future(arcs, tmp_path):
    run, every = tmp_path / "run", {"save_every_steps": 5, "preview_every_steps": 5, "keep_checkpoints": 9}
    tiny(arcs, run, every | {"eval_every_steps": 5})
    for name in ("step_00000015", "step_00000020"):
        shutil.rmtree(run / "checkpoints" / name)
    (run / "latest.json").unlink()
    seen = []
    cls, config, training = plan("mtld", "tiny", every | {"eval_every_steps": 0}, run_dir=str(run), steps=11)
    dataset = open_data(str(arcs), config)
    controls = Controls(
        lambda line: seen.append({path.name for path in run.glob("*/*.png")} | set(os.listdir(run)))
    )
    fit(build(cls, config, dataset), dataset, training, controls)
    kept = {"step_00000005.png", "step_00000010.png"}
    assert {name for name in seen[0] if name.startswith("step_")} == kept
    assert not seen[0] & {"report.json", "judgement.png"}


def test_a_budget_that_judging_overruns_is_said(arcs, tmp_path, monkeypatch, capsys):
    honest = Judge.__call__

    def slow(self, system, tick):
        for _ in range(len(self.starts)):
            time.sleep(0.2)
            tick()
        return honest(self, system, tick)

    monkeypatch.setattr(Judge, "__call__", slow)
    report = tiny(arcs, tmp_path / "run", {"eval_windows": 17}, time_budget_minutes=0.05)
    assert report["wall_seconds"] > 3
    out = capsys.readouterr().out
    assert "more than half of the time budget of 0:00:03, so it is overrun: give more" in out


def test_a_first_picture_and_a_first_line_come_soon_whatever_the_settings(arcs, tmp_path, monkeypatch):
    monkeypatch.setattr(train_module, "SOON", 0)
    seldom = {"log_every_steps": 10**6, "preview_every_steps": 10**6, "eval_every_steps": 0}
    with drawn():
        tiny(arcs, tmp_path / "run", seldom)
    first = lines(tmp_path / "run")[0]["step"]
    assert first < 5 and len(lines(tmp_path / "run")) == 1
    names = sorted(path.name for path in (tmp_path / "run/previews").iterdir())
    assert len(names) == 2 and names[0] < "step_00000006.png" and names[1] == "step_00000020.png"
    assert (tmp_path / "run/losses.png").read_bytes() == draw(lines(tmp_path / "run"))


def test_judging_says_how_far_it_is(arcs, tmp_path, monkeypatch):
    seen, honest, controls = [], Judge.__call__, Controls(lambda line: None)

    def watched(self, system, tick):
        def look():
            tick()
            time.sleep(0.01)
            seen.append(controls.doing)

        return honest(self, system, look)

    monkeypatch.setattr(Judge, "__call__", watched)
    cls, config, training = plan(
        "mtld", "tiny", {"eval_every_steps": 10}, run_dir=str(tmp_path / "run"), steps=20
    )
    dataset = open_data(str(arcs), config)
    fit(build(cls, config, dataset), dataset, training, controls)
    assert "judging for 0:00:00" in seen  # the first time
    shares = [int(words.split()[1]) for words in seen if words.endswith("%")]
    assert shares == sorted(shares) and 0 < shares[-1] <= 99


def test_outlook_says_what_a_run_will_take_and_leaves_nothing(arcs, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    cls, config, training = plan("mtld", "tiny", run_dir=str(tmp_path / "run"), steps=1000)
    dataset = open_data(str(arcs), config)
    system = build(cls, config, dataset)
    before = [parameter.clone() for parameter in system.parameters()]
    said, count = outlook(system, dataset, training), sum(map(torch.numel, before))
    assert said.startswith(f"{count:,} parameters, which take about ") and "\n" not in said
    for words in (
        "1,000 steps of",
        "judging included",
        "It saves every",
        "draws a preview every",
        "17 windows",
    ):
        assert words in said
    assert all(map(torch.equal, before, system.parameters())) and not (tmp_path / "run").exists()
    budget = dataclasses.replace(training, steps=0, time_budget_minutes=7.5)
    assert "take at most 7.5 minutes" in outlook(system, dataset, budget)


def test_a_damaged_newest_checkpoint_falls_back_to_the_one_before(arcs, tmp_path, capsys):
    tiny(arcs, tmp_path / "run", {"save_every_steps": 10})
    weights = tmp_path / "run" / "checkpoints" / "step_00000020" / "model.safetensors"
    data = bytearray(weights.read_bytes())
    data[-3] ^= 1
    weights.write_bytes(bytes(data))
    report = tiny(arcs, tmp_path / "run", {"save_every_steps": 10}, steps=22)
    assert report["step"] == 22
    out = capsys.readouterr().out
    assert out.count("step_00000020 is damaged") == 1 and "going on at step 10" in out


@pytest.mark.parametrize("resume", ["auto", "{run}"])
def test_a_start_hashes_the_files_that_it_goes_on_from_once(arcs, tmp_path, monkeypatch, resume):
    settings = {"resume": resume.format(run=tmp_path / "first")}
    tiny(arcs, tmp_path / "first")
    tiny(arcs, tmp_path / "run", **settings, steps=21)
    hashed, sha256 = [], checkpoints.sha256
    monkeypatch.setattr(checkpoints, "sha256", lambda path: [hashed.append(path.name), sha256(path)][1])
    tiny(arcs, tmp_path / "run", **settings, steps=21)
    assert sorted(hashed) == ["ema.safetensors", "model.safetensors", "train_state.pt"]


INTERRUPTED = """
import sys
from mtld_core.train.job import main
sys.exit(main(["--config", sys.argv[1]]))
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.versionless  # our own handlers
def test_a_signal_saves_and_ends_cleanly(arcs, tmp_path, number):
    job = tmp_path / "job.json"
    run = tmp_path / "run"
    settings = {
        "system": "mtld",
        "preset": "tiny",
        "dataset_root": str(arcs),
        "run_dir": str(run),
        "steps": 10**6,
    }
    job.write_text(json.dumps(settings | {"overrides": json.dumps({"log_every_steps": 1})}))
    process = subprocess.Popen(
        [sys.executable, "-m", "mtld_core.train", "--config", str(job)],
        stdout=subprocess.PIPE,
        text=True,
    )
    deadline = time.monotonic() + 60
    while not (run / "metrics.jsonl").exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    os.kill(process.pid, number)
    out, _ = process.communicate(timeout=60)
    assert process.returncode == 130, out
    report = json.loads((run / "report.json").read_text())
    assert (report["status"], report["reason"]) == ("stopped", "asked to stop")
    assert report["step"] == read_pointer(run / "latest.json")["step"] == lines(run)[-1]["step"] > 0


def test_the_second_ctrl_c_interrupts_at_once(arcs, tmp_path, monkeypatch):
    def twice(self):
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(Training, "_train_step", twice)
    handler = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        tiny(arcs, tmp_path / "run")
    assert signal.getsignal(signal.SIGINT) is handler
    assert json.loads((tmp_path / "run" / "report.json").read_text())["status"] == "failed"


def test_a_loss_that_is_never_finite_stops_with_the_way_out(arcs, tmp_path, monkeypatch):
    from mtld_core.systems.mtld.system import MTLD

    honest = MTLD.generator_loss

    def broken(self, batch):
        loss = honest(self, batch)
        return loss._replace(total=loss.total * float("nan"))

    monkeypatch.setattr(MTLD, "generator_loss", broken)
    with pytest.raises(UserError, match="none of the last 20 updates of phase 'generator' was finite"):
        tiny(arcs, tmp_path / "run", {"lambda_adv": 0, "lambda_fm": 0}, steps=100)
    assert json.loads((tmp_path / "run" / "report.json").read_text())["status"] == "failed"
    assert list_checkpoints(tmp_path / "run")  # the finite weights are kept


@pytest.mark.parametrize(("calls", "every", "ended"), [(5, 1, 10), (1, 1, 20), (1, 4, 80)])
def test_patience_counts_a_phases_updates_not_steps(arcs, tmp_path, monkeypatch, calls, every, ended):
    from mtld_core.systems.mtld.system import MTLD

    def lost(self, batch):
        return Loss(self.discriminator(batch["frames"][:, 0])[0].mean() * float("nan"))

    def training_step(self, batches, step):
        self.steps = getattr(self, "steps", 0) + 1
        for _ in range(calls if self.steps % every == 0 else 0):
            step("discriminator", self.discriminator_loss, batches[0])
        return step("generator", self.generator_loss, batches[0]).logs

    monkeypatch.setattr(MTLD, "discriminator_loss", lost)
    monkeypatch.setattr(MTLD, "training_step", training_step)
    with pytest.raises(UserError, match=rf"last \d+ updates of phase 'discriminator'.*step {ended}\)"):
        tiny(arcs, tmp_path / "run", steps=100)
    assert lines(tmp_path / "run")[-1]["step"] == ended


def test_one_run_folder_takes_one_process(arcs, tmp_path):
    from mtld_core.runs.lock import run_lock

    with run_lock(tmp_path / "run"), pytest.raises(UserError, match="in use by another"):
        tiny(arcs, tmp_path / "run")


def test_restitution_judges_all_windows_and_holdout_does_not(arcs, tmp_path):
    assert tiny(arcs, tmp_path / "a", {"restitution": True})["metrics"]["windows"] == 6 * 17
    assert tiny(arcs, tmp_path / "b")["metrics"]["windows"] == 17
    assert tiny(arcs, tmp_path / "c", {"eval_windows": 5})["metrics"]["windows"] == 5


def test_by_heart_the_ends_of_a_shot_are_drawn_more_often(arcs, tmp_path):
    longer, how = {"sequence_length": 8}, {"epochs": 1, "batch_size": 5}  # 13 windows an arc
    by_heart = tiny(arcs, tmp_path / "a", longer | {"restitution": True}, **how)
    assert by_heart["step"] == 6 * (13 + 2) / 5 and by_heart["metrics"]["windows"] == 6 * 13
    assert tiny(arcs, tmp_path / "b", longer, **how)["step"] == 5 * 13 / 5


def test_a_longer_eval_horizon_and_one_that_is_too_long(arcs, tmp_path):
    assert len(tiny(arcs, tmp_path / "a", {"eval_horizon": 9})["metrics"]["psnr_by_horizon"]) == 9
    with pytest.raises((UserError, ConfigError), match=r"nothing can be held out.*41 to judge.*eval_horizon"):
        tiny(arcs, tmp_path / "b", {"eval_horizon": 40})


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"system": "mtdl"}, "did you mean 'mtld'"),
        ({"system": "stylegan"}, "there is no system 'stylegan'; known: "),
        ({"preset": "smal"}, "did you mean 'small'"),
        ({"overrides": '{"latent_dims": 3}'}, "did you mean 'latent_dim'"),
        ({"overrides": "{latent_dim: 3}"}, "overrides is not valid JSON"),
        ({"overrides": '{"batch_size": "four"}'}, "batch_size must be of type int"),
        ({"devices": -1}, "devices must not be negative"),
        ({"dataset_root": "nowhere"}, "nowhere"),
        ({"stepps": 3}, "did you mean 'steps'"),
    ],
)
def test_bad_settings_are_named_with_a_way_out(settings, message, arcs, tmp_path, capsys):
    job = tmp_path / "job.json"
    job.write_text(
        json.dumps({"preset": "tiny", "dataset_root": str(arcs), "run_dir": str(tmp_path / "run")} | settings)
    )
    assert main(["--config", str(job)]) == 1
    last = capsys.readouterr().err.strip().splitlines()[-1]
    assert last.startswith("error: ") and message in last
    assert not (tmp_path / "run" / "checkpoints").exists()


def test_moving_average_off_saves_none_and_on_differs_from_the_weights(arcs, tmp_path):
    tiny(arcs, tmp_path / "off", {"ema_decay": 0})
    assert not (list_checkpoints(tmp_path / "off")[0] / "ema.safetensors").exists()
    tiny(arcs, tmp_path / "on")
    folder = list_checkpoints(tmp_path / "on")[0]
    assert (folder / "ema.safetensors").read_bytes() != (folder / "model.safetensors").read_bytes()


@pytest.fixture(scope="module")
def usual_weights(tmp_path_factory):
    """What two steps leave behind, and where their data lies."""
    folder = tmp_path_factory.mktemp("usual")
    data = write_arcs(folder / "arcs", [20] * 6)
    return data, weights_of(data, folder / "run"), weights_of(data, folder / "again")


def weights_of(data, run_dir, **settings):
    settings = {"steps": 2, "batch_size": 2, "eval_windows": 1, "warmup_steps": 1} | settings
    tiny(data, run_dir, settings)
    return (list_checkpoints(run_dir)[0] / "model.safetensors").read_bytes()


@pytest.mark.parametrize(
    "settings",
    [
        {"clip_norm": 0.001},
        {"warmup_steps": 9},
        {"lr_schedule": "cosine"},
        {"seed": 1},
        {"batch_size": 3},
        {"holdout": 0.5},
        {"restitution": True},
        {"precision": "bf16"},
    ],
    ids=str,
)
def test_each_setting_of_the_training_changes_what_is_learned(settings, usual_weights, tmp_path):
    data, usual, again = usual_weights
    assert usual == again != weights_of(data, tmp_path / "run", **settings)


def test_settings_that_change_the_way_but_not_what_is_learned(arcs, tmp_path, monkeypatch):
    """compile, channels_last and accumulate."""
    compiled, sizes, laid_out = [], [], []
    monkeypatch.setattr(torch.nn.Module, "compile", lambda self: compiled.append(self))
    for name, settings in {"off": {"channels_last": False}, "on": {"accumulate": 2, "compile": True}}.items():
        cls, config, training = plan(
            "mtld", "tiny", settings, run_dir=str(tmp_path / name), steps=1, batch_size=4
        )
        dataset = open_data(str(arcs), config)
        system = build(cls, config, dataset)
        run = Training(system, dataset, training, tmp_path / name, Controls(), threads.Threads(1), 0.0)
        assert len(compiled) == (len(list(system.to_compile())) if name == "on" else 0)
        weights = [p for p in system.parameters() if p.dim() == 4]
        laid_out.append(all(p.is_contiguous(memory_format=torch.channels_last) for p in weights))
        loss = system.generator_loss
        monkeypatch.setattr(
            system, "generator_loss", lambda batch, loss=loss: sizes.append(len(batch["key"])) or loss(batch)
        )
        run._train_step()
    # compiled: the first step is also computed without, and then with the compiler, to compare them
    assert sizes == [4, *(2, 2) * 3] and laid_out == [False, True]


@pytest.mark.parametrize("setting", [True, False])
def test_a_run_is_opened_in_the_layout_in_which_it_was_trained(arcs, tmp_path, setting):
    tiny(arcs, tmp_path / "run", {"channels_last": setting}, steps=1)
    weights = [p for p in open_run(tmp_path / "run").parameters() if p.dim() == 4]
    assert {p.is_contiguous(memory_format=torch.channels_last) for p in weights} == {setting}


def test_saving_by_the_clock(arcs, tmp_path, monkeypatch):
    saved = []
    monkeypatch.setattr(
        train_module.checkpoints,
        "save",
        lambda run_dir, step, *rest: saved.append(step) or f"checkpoints/step_{step:08d}",
    )
    monkeypatch.setattr(train_module.checkpoints, "prune", lambda *rest: None)
    monkeypatch.setattr(train_module.checkpoints, "mark_best", lambda *rest: None)
    tiny(arcs, tmp_path / "run", {"save_every_steps": 0, "save_every_minutes": 1e-9}, steps=4)
    assert saved == [1, 2, 3, 4]


def test_stop_ends_training_in_a_thread(arcs, tmp_path):
    cls, config, training = plan("mtld", "tiny", run_dir=str(tmp_path / "run"), steps=10**6)
    dataset = open_data(str(arcs), config)
    controls, reports = Controls(), []
    system = build(cls, config, dataset)
    thread = threading.Thread(target=lambda: reports.append(fit(system, dataset, training, controls)))
    thread.start()
    while not (tmp_path / "run" / "metrics.jsonl").exists():
        time.sleep(0.02)
    asked = time.monotonic()
    controls.stop.set()
    thread.join(30)
    assert reports and reports[0]["reason"] == "asked to stop" and time.monotonic() - asked < 20


def test_frame_size_of_model_and_data_must_agree(arcs, tmp_path):
    from mtld_core.train.settings import build, open_data, plan

    cls, config, training = plan("mtld", "tiny", run_dir=str(tmp_path / "run"))
    system = build(cls, config, open_data(str(arcs), config))
    other = open_data(str(write_arcs(tmp_path / "wide", [20] * 6, 16, 24)), config)
    with pytest.raises(ConfigError, match=r"\(16, 16\).*\(16, 24\)"):
        fit(system, other, training)


def test_overrides_of_the_frame_size_resize_the_data(arcs, tmp_path):
    report = tiny(arcs, tmp_path / "run", {"height": 8, "width": 24}, steps=2)
    assert report["dataset"]["size"] == [8, 24]


# ---- asked from another thread


@pytest.fixture
def in_thread(arcs, tmp_path):
    """Start a tiny run of `system` without an end in a thread: yields (its controls, its reports, its
    folder).
    """
    controls, reports, run = Controls(), [], tmp_path / "run"
    cls, config, training = plan(
        "mtld", "tiny", {"save_every_minutes": 0, "log_every_steps": 1}, run_dir=str(run), steps=10**6
    )
    dataset = open_data(str(arcs), config)
    job = threading.Thread(
        target=lambda: reports.append(fit(build(cls, config, dataset), dataset, training, controls))
    )
    job.start()
    wait_until(lambda: (run / "metrics.jsonl").exists())
    yield controls, reports, run
    controls.stop.set()
    job.join(30)


def wait_until(true, seconds=30):
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_pause_waits_within_a_second_and_is_counted_apart(in_thread):
    controls, reports, run = in_thread
    controls.pause.set()
    wait_until(lambda: controls.doing == "paused", seconds=1)
    before = lines(run)[-1]["step"]
    time.sleep(0.5)
    assert lines(run)[-1]["step"] == before
    controls.pause.clear()
    wait_until(lambda: lines(run)[-1]["step"] > before, seconds=1)
    controls.stop.set()
    wait_until(lambda: reports)
    assert 0.5 < reports[0]["paused_seconds"] < 5
    assert reports[0]["train_seconds"] + reports[0]["paused_seconds"] < reports[0]["wall_seconds"]


@pytest.mark.parametrize("paused", [False, True])
def test_save_now_saves_within_a_second(in_thread, paused):
    controls, _, run = in_thread
    if paused:
        controls.pause.set()
        wait_until(lambda: controls.doing == "paused")
    assert not list_checkpoints(run)
    controls.save.set()
    wait_until(lambda: not controls.save.is_set(), seconds=1)
    assert read_pointer(run / "latest.json")["step"] > 0


def test_stop_ends_a_pause(in_thread):
    controls, reports, run = in_thread
    controls.pause.set()
    wait_until(lambda: controls.doing == "paused")
    controls.stop.set()
    wait_until(lambda: read_pointer(run / "latest.json"), seconds=1)
    wait_until(lambda: reports)
    assert reports[0]["status"] == "stopped"


def test_judging_on_the_way_is_given_up_for_a_stop_and_waits_for_a_pause(arcs, tmp_path, monkeypatch):
    """Each piece of judging looks at the controls; the end judges once more, whole."""
    controls, seen, run = Controls(), [], tmp_path / "run"
    honest = Judge.__call__

    def slow(self, system, tick):
        def asked():
            seen.append(controls.doing)
            if len(seen) == 1:
                controls.save.set()
            if len(seen) == 2:
                assert read_pointer(run / "latest.json")["step"] == 2
                controls.stop.set()
            tick()

        return honest(self, system, asked)

    monkeypatch.setattr(Judge, "__call__", slow)
    cls, config, training = plan("mtld", "tiny", {"eval_every_steps": 2}, run_dir=str(run), steps=9)
    dataset = open_data(str(arcs), config)
    report = fit(build(cls, config, dataset), dataset, training, controls)
    assert (report["status"], report["step"]) == ("stopped", 2) and report["metrics"]["psnr"] > 0
    assert all(doing.startswith("judging") for doing in seen[:2]) and len(seen) > 4


def test_a_budget_that_is_over_before_the_first_step_ends_no_cycle(arcs, tmp_path):
    report = tiny(arcs, tmp_path / "run", time_budget_minutes=1e-6)
    assert (report["status"], report["step"]) == ("stopped", 0) and "give it more minutes" in report["reason"]
    state = load_train_state(list_checkpoints(tmp_path / "run")[0])
    assert state["schedule"]["progress"] == 0


@pytest.mark.parametrize(
    ("setting", "before", "during"), [(1, 2, 1), (2, 1, 2), ("auto", 2, 1), ("auto", 1, 1)]
)
def test_steps_use_the_threads_that_are_asked_for_and_others_use_theirs_again(
    arcs, tmp_path, monkeypatch, setting, before, during
):
    used = set()

    def read(self, took, waited, real=Training._read_time):
        used.add(torch.get_num_threads())
        real(self, took, waited)

    monkeypatch.setattr(Training, "_read_time", read)
    monkeypatch.setattr(threads, "_idle_cores", lambda look=None: 1)
    found = torch.get_num_threads()
    torch.set_num_threads(before)
    try:
        report = tiny(arcs, tmp_path / "run", {"threads": setting}, steps=3)
        assert used == {during} and torch.get_num_threads() == before
    finally:
        torch.set_num_threads(found)
    assert report["threads"] == {"setting": setting, "count": during, "changes": 0}


def test_a_change_of_the_threads_is_said_and_reported(arcs, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(threads, "_idle_cores", lambda look=None: 1)

    def see(self, seconds, real=threads.Threads.see):
        real(self, 0.07 if torch.get_num_threads() == 2 else 0.115)

    monkeypatch.setattr(threads.Threads, "see", see)
    found = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        report = tiny(arcs, tmp_path / "run", {"threads": "auto"}, steps=12)
    finally:
        torch.set_num_threads(found)
    assert report["threads"] == {"setting": "auto", "count": 2, "changes": 1}
    assert "a step is faster with 2 threads just now: 70 ms instead of 115" in capsys.readouterr().out


# ---- a run keeps its split


SPLIT = {  # setting: what a run begins with, and another value
    "holdout": (0.3, 0.1),
    "restitution": (True, False),
    "cross_cuts": (True, False),
    "eval_horizon": (5, 6),
    "sequence_length": (5, 4),
    "context_frames": (2, 1),
}


@pytest.mark.versionless  # a run's own settings
@pytest.mark.parametrize("name", SPLIT)
def test_a_run_keeps_what_decides_its_split_and_refuses_another_by_name(arcs, tmp_path, name):
    began, other = SPLIT[name]
    run = tmp_path / "run"
    tiny(arcs, run, {name: began}, steps=1)
    first = open_run(run, device="cpu")
    assert tiny(arcs, run, steps=2)["step"] == 2
    now = open_run(run, device="cpu")
    kept = vars(now.config) | now.run.training
    assert kept[name] == began
    assert [list(part) for part in windows_of(now, open_dataset(arcs))] == [
        list(part) for part in windows_of(first, open_dataset(arcs))
    ]
    with pytest.raises(UserError, match=rf"{name}={began}, now it is {other}; .*start in another run_dir$"):
        tiny(arcs, run, {name: other}, steps=3)
    with pytest.raises(
        UserError, match=rf"{name}={began}, now it is {other}; .*leave resume='{run}' out, and begin anew$"
    ):
        tiny(arcs, tmp_path / "branch", {name: other}, steps=3, resume=str(run))
    assert tiny(arcs, tmp_path / "branch", {name: began}, steps=3, resume=str(run))["step"] == 3


def test_a_run_keeps_which_older_frames_it_sees(arcs, tmp_path):
    """They make a dream's context longer, and weights fit any others of the same number."""
    plain = {"action_mode": "none", "eval_horizon": 2}

    def trained(steps, **more):
        run_dir = str(tmp_path / "run")
        return train("tinydreams", "tiny", str(arcs), plain | more, run_dir=run_dir, steps=steps)["step"]

    trained(1, older_frames=[4])
    assert trained(2) == 2 and open_run(tmp_path / "run").config.older_frames == (4,)
    with pytest.raises(UserError, match=r"config older_frames=\[4\], now it is \[5\]"):
        trained(3, older_frames=[5])


def test_another_preset_goes_on_with_the_split_and_the_seed_that_the_run_began_with(arcs, tmp_path):
    tiny(arcs, tmp_path / "run", {"restitution": True}, steps=1, seed=3)
    same = {
        name: value
        for name, value in MTLD.PRESETS["tiny"].items()
        if name not in ("sequence_length", "steps")
    }
    same |= {"latent": "vector", "gru_layers": MTLD.Config.gru_layers, "skip": MTLD.Config.skip}
    report = train("mtld", "small", str(arcs), same, run_dir=str(tmp_path / "run"), steps=2)
    assert open_run(tmp_path / "run", device="cpu").config.sequence_length == 4
    assert (report["step"], report["restitution"], report["seed"], report["preset"]) == (2, True, 3, "small")


def test_a_run_with_a_setting_that_is_gone_opens_is_judged_and_goes_on(arcs, tmp_path, monkeypatch):
    def older(*run, about=train_module.about):
        told = about(*run)
        return told | {"training": told["training"] | {"max_power_percent": 95.0}}

    run = tmp_path / "run"
    with monkeypatch.context() as patch:
        patch.setattr(train_module, "about", older)
        tiny(arcs, run, steps=1)
    assert open_run(run, device="cpu").run.training["max_power_percent"] == 95
    assert judge(run, device="cpu")["psnr"] > 0
    assert tiny(arcs, run, steps=2)["step"] == 2


def test_a_run_under_ones_home_is_there(tmp_path, monkeypatch):
    """As `open_run` reads such a path."""
    monkeypatch.setenv("HOME", str(tmp_path))
    _, _, training = plan("mtld", "tiny", run_dir="~/run", mirror_dir="~/drive")
    assert (training.run_dir, training.mirror_dir) == (f"{tmp_path}/run", f"{tmp_path}/drive")
