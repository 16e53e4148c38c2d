"""bench/gpu_check.py on a CPU: the sections that need no card as they are, the others with stand-ins for what
a card would answer, and that whatever fails is kept and told.
"""

import json
import subprocess
import time
import warnings

import gpu_cases
import gpu_check
import gpu_fast
import gpu_page
import gpu_right
import pytest
import torch
from gpu_cases import EVERY, Bench, NotHere

from mtld_core.train.stepper import Stepper

CPU = torch.device("cpu")
WITHOUT_A_CARD = ("environment", "precisions", "against_cpu", "again", "data_path")
STEP = ("tokenizer", "tiny")


@pytest.fixture(scope="module")
def checked(tmp_path_factory):
    """The file that a check on a CPU wrote."""
    out = tmp_path_factory.mktemp("checked") / "gpu_check.json"
    gpu_check.run((*WITHOUT_A_CARD, "waits"), CPU, time.monotonic() + 1e6, out, say=lambda line: None)
    return json.loads(out.read_text())


@pytest.fixture(scope="module")
def bench(tmp_path_factory):
    return Bench(CPU, tmp_path_factory.mktemp("bench"), lambda line: None)


def rows(checked, section):
    return checked["sections"][section]["rows"]


def test_what_needs_no_card_runs_and_is_right(checked):
    assert list(gpu_check.troubles(checked)) == []
    assert [row["system"] for row in rows(checked, "against_cpu")] == list(EVERY)
    tried = [row["system"] for row in rows(checked, "precisions")]
    assert tried == [f"{name} `{kind}`" for name in EVERY for kind in ("fp32", "bf16", "fp16")]
    assert {row["system"].split()[1] for row in rows(checked, "again")} == {"`usual`", "`deterministic`"}
    assert all(row["ms"] > 0 for row in rows(checked, "data_path"))
    assert rows(checked, "environment")[0]["TFLOP/s, fp32 product"] > 0
    assert checked["sections"]["waits"]["left out"] == "it needs a CUDA device"


# ---- what fails


@pytest.fixture
def section(monkeypatch):
    """section(name, rows_of): replaces a section of the check."""

    def replace(name, rows_of, seconds=0):
        monkeypatch.setitem(gpu_check.SECTIONS, name, gpu_check.Section(rows_of, seconds))

    return replace


def failing(bench):
    raise RuntimeError("an illegal memory access")


def command(tmp_path, monkeypatch, *arguments):
    """(exit code, the file) of the command."""
    out = tmp_path / "out.json"
    line = ["gpu_check.py", "--device", "cpu", "--out", str(out), *arguments]
    monkeypatch.setattr("sys.argv", line)
    code = gpu_check.main()
    return code, json.loads(out.read_text()) if out.exists() else None


def test_a_section_that_fails_is_kept_and_the_rest_goes_on(section, tmp_path, monkeypatch, capsys):
    section("precisions", failing)
    section("again", lambda bench: [{"system": "it", "right": True}])
    code, found = command(tmp_path, monkeypatch, "--only", "precisions,again")
    assert code == 1
    assert found["sections"]["precisions"]["error"] == "RuntimeError: an illegal memory access"
    assert "in failing" in found["sections"]["precisions"]["trace"]
    assert found["sections"]["again"]["rows"] == [{"system": "it", "right": True}]
    said = capsys.readouterr()
    assert "precisions failed: RuntimeError: an illegal memory access" in said.out
    assert said.err == "error: not as it must be, in places: 1\n"


def test_what_is_not_right_is_told(section, tmp_path, monkeypatch, capsys):
    section("again", lambda bench: [{"system": "it", "apart": 0.5, "right": False}])
    code, _ = command(tmp_path, monkeypatch, "--only", "again")
    assert code == 1 and "again: {'system': 'it', 'apart': 0.5" in capsys.readouterr().out


def test_what_there_is_no_time_for_is_left_out(section, tmp_path, monkeypatch):
    section("again", lambda bench: [{"system": "it"}], seconds=30)
    code, found = command(tmp_path, monkeypatch, "--only", "again", "--seconds", "20")
    assert code == 0 and found["sections"]["again"]["left out"].startswith("no time: ")
    code, found = command(tmp_path, monkeypatch, "--only", "again", "--seconds", "40")
    assert code == 0 and found["sections"]["again"]["rows"]


def test_a_section_that_does_not_exist_is_refused(tmp_path, monkeypatch, capsys):
    assert command(tmp_path, monkeypatch, "--only", "agian") == (1, None)
    assert "there is no section 'agian'; did you mean 'again'" in capsys.readouterr().err


@pytest.mark.versionless  # our own processes
def test_the_rest_goes_on_in_another_process_where_the_card_answers_no_more(section, tmp_path, monkeypatch):
    section("precisions", failing)
    monkeypatch.setattr(gpu_check, "answers", lambda device: False)
    here = []
    section("again", lambda bench: here.append(1))
    out, said = tmp_path / "out.json", []
    until = time.monotonic() + 1000
    found = gpu_check.run(("precisions", "environment", "waits"), CPU, until, out, said.append)
    assert "error" in found["sections"]["precisions"] and not here
    assert found["sections"]["environment"]["rows"][0]["device"] == "cpu"
    assert "left out" in found["sections"]["waits"]
    assert "the card answers no more: going on in another process with environment, waits" in said


def test_a_card_answers_or_does_not():
    assert gpu_check.answers(CPU)
    assert not gpu_check.answers(torch.device("cuda")) or torch.cuda.is_available()


def test_a_case_that_fails_leaves_the_others_alone(tmp_path):
    said = []
    bench = Bench(CPU, tmp_path, said.append)
    found = bench.rows(
        "half of", [("one", "a"), ("none", "b")], lambda case: {"half": len(case[0]) / (case[0] == "one")}
    )
    assert found[0] == {"half of": "one `a`", "half": 3.0}
    assert found[1] == {"half of": "none `b`", "error": "ZeroDivisionError: division by zero", "right": False}
    assert gpu_check.failed({"rows": found}) and not gpu_check.failed({"rows": found[:1]})
    gpu_check.show({"rows": found}, said.append)
    assert said[-1].splitlines()[-1] == "| none `b` |  | ZeroDivisionError: division by zero | no |"
    late = Bench(CPU, tmp_path, said.append, until=time.monotonic() - 1)
    assert late.rows("half of", ["one"], lambda case: {}) == [{"half of": "one", "left out": "no time"}]


# ---- sections, with what they must notice


def test_a_gradient_that_half_precision_loses_is_noticed(bench, monkeypatch):
    monkeypatch.setattr(gpu_right, "EVERY", ["tokenizer"])
    assert [row["right"] for row in gpu_right.precisions(bench)] == [True] * 3
    honest = gpu_cases.Graded._update

    def losing(self, phase):
        if self.dtype == torch.bfloat16:
            self.parameters[phase][0].grad = None
        honest(self, phase)

    monkeypatch.setattr(gpu_cases.Graded, "_update", losing)
    assert [row["right"] for row in gpu_right.precisions(bench)] == [True, False, True]


def test_gradients_that_differ_are_noticed():
    one = {"a": torch.tensor([3.0, 4.0]), "b": torch.ones(2)}
    assert gpu_cases.differ(one, one) == 0
    assert gpu_cases.differ(one, one | {"a": torch.tensor([3.0, 4.5])}) == pytest.approx(0.1)
    assert gpu_cases.furthest(one, one | {"b": torch.tensor([1.0, 1.25])}) == 0.25


def test_a_run_that_chance_decides_is_noticed(bench, monkeypatch):
    monkeypatch.setattr(gpu_right, "REPEATED", ["tokenizer"])
    assert all(row["right"] for row in gpu_right.again(bench))
    monkeypatch.setattr(gpu_cases.Steps, "update", drifting(gpu_cases.Steps.update))
    usual, deterministic = gpu_right.again(bench)
    assert usual["apart"] > 0 and usual["right"] and not deterministic["right"]


def drifting(update):
    def drift(self, seed=1):
        logs = update(self, seed)
        with torch.no_grad():
            next(self.system.parameters()).add_(time.perf_counter_ns() % 1000 / 1e6)
        return logs

    return drift


def test_a_wait_is_noticed_and_named(bench, monkeypatch):
    monkeypatch.setattr(gpu_right, "EVERY", ["tokenizer"])
    modes = []
    monkeypatch.setattr(torch.cuda, "set_sync_debug_mode", modes.append)
    assert gpu_right.waits(bench) == [{"system": "tokenizer", "waits": 0, "at": "", "right": True}]
    assert modes == ["warn", "default"]
    honest = Stepper._update

    def waiting(self, phase):
        if modes[-1] == "warn":
            warnings.warn("called a synchronizing CUDA operation", stacklevel=1)
        honest(self, phase)

    monkeypatch.setattr(Stepper, "_update", waiting)
    [row] = gpu_right.waits(bench)
    assert row["waits"] == 1 and row["at"].startswith("test_gpu_check.py:") and not row["right"]


@pytest.fixture
def little_room(monkeypatch):
    """A card whose room ends where more than two samples are computed at once, once it is limited."""
    shares = [1.0]
    card = type("Card", (), {"total_memory": 10e9})
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: card)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda device: 1e9)
    monkeypatch.setattr(
        torch.cuda, "set_per_process_memory_fraction", lambda share, device: shares.append(share)
    )
    monkeypatch.setattr(gpu_right, "TOO_LARGE", (*STEP, {}))
    honest = Stepper._backward

    def limited(self, phase, loss_fn, batch, size):
        if shares[-1] < 1 and size / self.splits[phase] > 2:
            raise torch.OutOfMemoryError
        return honest(self, phase, loss_fn, batch, size)

    monkeypatch.setattr(Stepper, "_backward", limited)
    return shares


def test_a_batch_in_parts_has_the_loss_of_the_whole(bench, little_room):
    [row] = gpu_right.memory(bench)
    assert row["parts"] == 2 and row["right"]
    assert little_room == [1.0, 1.0, pytest.approx(0.19), 1.0]


def test_whole_runs_go_on_and_end(bench, monkeypatch):
    monkeypatch.setattr(gpu_right, "EVERY", ["tokenizer"])
    [row] = gpu_right.whole_runs(bench)
    assert (row["status"], row["step"], row["right"]) == ("finished", 20, True)


def test_compiled_gradients_that_differ_are_noticed(bench, monkeypatch):
    compiled = []
    monkeypatch.setattr(torch.nn.Module, "compile", lambda part: compiled.append(part))
    honest = gpu_right.differ
    monkeypatch.setattr(Bench, "steps", small_as_tiny(Bench.steps))
    found = gpu_right.compiled(bench)
    assert compiled and all(row["right"] and row["apart"] == 0 for row in found)
    monkeypatch.setattr(gpu_right, "differ", lambda one, other: honest(one, other) + 0.05)
    assert not any(row["right"] for row in gpu_right.compiled(bench))


def small_as_tiny(steps):
    return lambda self, name, preset, *more, **named: steps(self, name, "tiny", *more, **named)


@pytest.mark.versionless  # our own log
def test_a_run_is_timed_by_its_log_and_two_of_them_are_the_same(bench):
    one, weights, said = bench.timed_run(*STEP, bench.folder / "timed_1", {"threads": 1}, steps=8)
    two, others, _ = bench.timed_run(*STEP, bench.folder / "timed_2", {"threads": 1}, steps=8)
    assert any(line.startswith("finished at step 8") for line in said)
    assert one > 0 and two > 0 and gpu_cases.furthest(weights, others) == 0
    started, same = bench.launched_run(*STEP, bench.folder / "launched", 1, steps=8)
    assert started > 0 and same.keys() == weights.keys()


def test_a_command_that_fails_is_told(bench, monkeypatch):
    failed = subprocess.CompletedProcess([], 1, "", "no such card")
    monkeypatch.setattr(gpu_cases.subprocess, "run", lambda command, **how: failed)
    with pytest.raises(RuntimeError, match="2 processes ended with 1: no such card"):
        bench.launched_run(*STEP, bench.folder / "failed", 2)


def test_graphs_are_switched_by_their_setting(bench, monkeypatch):
    asked = []

    def timed(self, name, preset, run_dir, overrides):
        asked.append((name, preset, overrides["graphs"]))
        slow = overrides["graphs"] == "off"
        weight = torch.zeros(2) if slow else torch.full([2], 0.125)
        said = ["it cannot be recorded as a CUDA graph"] if (name, slow) == ("weight_rnn", False) else ["bye"]
        return (20.0 if slow else 5.0), {"weight": weight}, said

    monkeypatch.setattr(Bench, "timed_run", timed)
    found = gpu_fast.graphs(bench)
    assert asked == [(name, "small", how) for name in EVERY for how in ("off", "auto")]
    assert {(row["times"], row["weights apart"]) for row in found} == {(4.0, 0.125)}
    assert [row["step of"] for row in found if not row["right"]] == ["weight_rnn `small`"]


def test_processes_want_two_cards(bench, monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(NotHere, match="one card"):
        gpu_fast.processes(bench)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    asked = []

    def launched(self, name, preset, run_dir, processes):
        asked.append((name, processes))
        return 30.0 / processes, {"weight": torch.ones(2)}

    monkeypatch.setattr(Bench, "launched_run", launched)
    assert [row["times"] for row in gpu_fast.processes(bench)] == [2.0, 2.0]
    assert asked == [("mtld", 1), ("mtld", 2), ("dynamics", 1), ("dynamics", 2)]


def test_speed_is_told_beside_the_card_s_peak(bench, monkeypatch):
    monkeypatch.setattr(gpu_fast, "STEPPED", [STEP])
    monkeypatch.setattr(Bench, "peak", 2e9)
    monkeypatch.setattr(Bench, "rate", lambda self, dtype: 1e9)
    monkeypatch.setattr(Bench, "median_ms", lambda self, call, **how: call() and 50.0)
    [row] = gpu_fast.speed(bench)
    assert row["step of"] == "tokenizer `tiny`" and row["samples/s"] == row["batch"] / 0.05
    assert row["share of a product's rate"] == pytest.approx(row["GFLOP"] / 0.05)
    assert row["share of the data sheet"] == pytest.approx(row["GFLOP"] / 0.1)


def test_a_card_s_peak_is_that_of_its_own_name(monkeypatch):
    cards = {"NVIDIA H100 PCIe": 756, "NVIDIA H100 80GB HBM3": 989, "NVIDIA L40S": 362, "NVIDIA L4": 121}
    for card, peak in (cards | {"Tesla T4": 65, "GeForce GTX 1080": None}).items():
        monkeypatch.setattr(torch.cuda, "get_device_name", lambda device, card=card: card)
        found = Bench(torch.device("cuda"), None).peak
        assert found == (peak and 1e12 * peak)


def test_kernels_are_profiled(bench, monkeypatch):
    monkeypatch.setattr(gpu_fast, "EVERY", ["tokenizer"])
    monkeypatch.setattr(Bench, "steps", small_as_tiny(Bench.steps))
    activities = torch.profiler.ProfilerActivity
    monkeypatch.setattr(activities, "CUDA", activities.CPU)
    [row] = gpu_fast.profile(bench)
    assert row["ms"] > 0 and row["kernels"] == 0 and row["busy"] == 0  # none is a card's


def test_frames_are_drawn(bench, monkeypatch):
    monkeypatch.setattr(gpu_fast, "DRAWN", [("mtld", "tiny"), ("rl_v2v", "tiny"), ("dynamics", "tiny")])
    found = gpu_fast.rollouts(bench)
    assert [row["frames of"] for row in found] == ["mtld `tiny`", "rl_v2v `tiny`", "dynamics `tiny`"]
    assert all(row["frames/s"] == pytest.approx(1000 / row["ms"]) for row in found)
    assert [row.get("generated, frames/s", 0) > 0 for row in found] == [True, False, True]


# ---- the page


def test_the_page_shows_what_was_measured_on_a_card_and_what_was_not(tmp_path, monkeypatch):
    monkeypatch.setattr(gpu_page, "KEPT", tmp_path)
    empty = gpu_page.lines()
    assert sum("not measured" in line for line in empty) == 1 + len(gpu_fast.STEPPED) + len(gpu_fast.DRAWN)
    speed = {"step of": "mtld `gpu`", "batch": 32, "precision": "float16", "ms": 405.0, "GB": 5.0}
    sections = {
        "speed": {"rows": [speed]},
        "graphs": {"error": "RuntimeError: no"},
        "rollouts": {
            "rows": [
                {"frames of": "mtld `small`", "ms": 0.5, "frames/s": 2000.0, "generated, frames/s": 4000.0}
            ]
        },
    }
    about = {"card": "Tesla T4", "torch": "2.10.0", "date": "2026-12-01", "sections": sections}
    (tmp_path / "t4.json").write_text(json.dumps(about))
    shown = gpu_page.lines()
    assert shown[0] == "Tesla T4, 2.10.0, 2026-12-01:"
    assert "| mtld `gpu` | 128 | 32 | float16 | 405 | not measured |  | 5 |" in shown
    assert "| mtld `small` | 2,000 | 4,000 |" in shown and "| dynamics `codes` | not measured |  |" in shown
