"""Training steps that are recorded and replayed as CUDA graphs: a stand-in on the CPU records their tensor
operations (tests/replaying.py).
"""

import time

import pytest
import replaying
import torch
from test_contract import OTHER_WAYS, data_for, tiny, trunk

from mtld_core import systems
from mtld_core.machine import graphs
from mtld_core.machine.threads import Threads
from mtld_core.runs.checkpoint import list_checkpoints, load_train_state
from mtld_core.train.controls import Controls
from mtld_core.train.loop import Training
from mtld_core.train.report import report
from mtld_core.train.settings import build

pytestmark = pytest.mark.versionless  # whether steps are alike is the systems' own doing
CAPTURABLE = [name for name in systems.SYSTEMS if systems.system_class(name).steps_are_alike]
WAYS = [(name, way) for name in CAPTURABLE for way in ({}, *OTHER_WAYS[name]) if "grow_until" not in way]
FEW = [("mtld", {}), ("tinydreams", {"lr_muon": 0.02}), ("latent_actions", {}), ("weight_rnn", {})]


def no_graph(work, stream, generators):
    raise RuntimeError("no graph here")


@pytest.fixture(autouse=True)
def on_one_thread(monkeypatch):
    monkeypatch.setattr(graphs, "why_not", lambda *rule: "")
    monkeypatch.setattr(graphs, "record", replaying.record)
    for module in ("mtld", "tinydreams"):
        monkeypatch.setattr(f"mtld_core.systems.{module}.system.load_trunk", lambda given: trunk())
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def started(name, folder, way, said, **settings):
    """A `Training` in progress, whose learning rates change with each step."""
    settings = {"warmup_steps": 5, "lr_schedule": "cosine"} | settings
    cls, config, training = tiny(name, overrides=way, run_dir=str(folder), steps=20, **settings)
    dataset = data_for(name)
    system = build(cls, config, dataset, training.seed)
    threads = Threads(1, trials=False)
    folder.mkdir(exist_ok=True)
    return Training(system, dataset, training, folder, Controls(said.append), threads, time.monotonic())


def trained(run, until):
    """Train as far as step `until`; returns the logs of all steps."""
    logs = []
    while run.step < until:
        logs.append(run._fetch(run._train_step()))
        run.step += 1
    return logs


def tensors_of(run):
    """All that a run has learned: weights, their average, and the optimizers' moments."""
    found = dict(run.system.state_dict())
    if run.ema is not None:
        found |= {f"ema.{name}": value for name, value in run.ema.state_dict().items()}
    for phase, optimizer in run.optimizers.items():
        for i, moments in enumerate(optimizer.state.values()):
            found |= {f"{phase}.{i}.{name}": value for name, value in moments.items()}
    return found


def assert_same(a, b):
    """To the bit."""
    a, b = tensors_of(a), tensors_of(b)
    assert a.keys() == b.keys()
    different = [name for name, value in a.items() if not torch.equal(value, b[name])]
    assert not different


def test_all_systems_but_one_can_be_recorded():
    assert set(systems.SYSTEMS) - set(CAPTURABLE) == {"rl_v2v"}


def both(name, way, folder, monkeypatch, **settings):
    """(a `Training` of which all steps but three were replayed, one of which none were), which are alike."""
    said, steps = [], 5 if {"perceptual", "lambda_lpips"} & set(way) else 10  # VGG is slow
    with monkeypatch.context() as patch:
        patch.setattr(graphs, "record", no_graph)
        eager = started(name, folder / "eager", way, said, **settings)
        plain = trained(eager, steps)
    assert len([line for line in said if "a training step cannot be recorded as a CUDA graph" in line]) == 1
    assert reported(eager) == {"replayed_steps": 0, "why_not": "no graph here"}

    said.clear()
    run = started(name, folder / "replayed", way, said, **settings)
    assert trained(run, steps) == plain
    assert run.do_step.replay is not None
    assert not [line for line in said if "recorded" in line]
    assert reported(run) == {"replayed_steps": steps - graphs.WARM, "why_not": ""}
    assert_same(run, eager)
    return run, eager


def reported(run):
    return report(run, "finished", "of a test")["graphs"]


@pytest.mark.parametrize(("name", "way"), WAYS, ids=str)
def test_replayed_steps_are_the_steps(name, way, tmp_path, monkeypatch):
    run, _ = both(name, way, tmp_path, monkeypatch)
    assert run.ema is not None


@pytest.mark.parametrize("settings", [{"ema_decay": 0.0}, {"precision": "fp16"}, {"accumulate": 2}], ids=str)
@pytest.mark.parametrize(("name", "way"), FEW, ids=str)
def test_in_other_settings_too(name, way, settings, tmp_path, monkeypatch):
    both(name, way, tmp_path, monkeypatch, **settings)


@pytest.mark.parametrize(("name", "way"), FEW, ids=str)
def test_a_run_goes_on_in_the_middle(name, way, tmp_path):
    """It is saved amid replayed steps, and goes on with three that are done as they are."""
    whole = started(name, tmp_path / "whole", way, [])
    trained(whole, 14)
    first = started(name, tmp_path / "parts", way, [])
    trained(first, 7)
    first._save()
    second = started(name, tmp_path / "parts", way, [])
    assert second.step == 7
    trained(second, 14)
    assert second.do_step.replay is not None
    assert_same(second, whole)


def test_a_checkpoint_holds_plain_learning_rates(tmp_path, monkeypatch):
    """So a run with graphs goes on without them, and the other way round."""
    run = started("tokenizer", tmp_path, {}, [])
    trained(run, 5)
    run._save()
    [folder] = list_checkpoints(tmp_path)
    [group] = load_train_state(folder)["optimizers"]["model"]["param_groups"]
    assert type(group["lr"]) is float
    assert group["capturable"] is False
    with monkeypatch.context() as patch:
        patch.setattr(graphs, "why_not", lambda *rule: "not today")
        without = started("tokenizer", tmp_path, {}, [])
    trained(without, 6)
    assert not any(map(torch.is_tensor, _rates_of(without)))
    without._save()
    again = started("tokenizer", tmp_path, {}, [])
    trained(again, 12)
    assert again.do_step.replay is not None
    assert all(map(torch.is_tensor, _rates_of(again)))


def _rates_of(run):
    return [group["lr"] for optimizer in run.optimizers.values() for group in optimizer.param_groups]


def test_replayed_steps_are_said(tmp_path, monkeypatch):
    """In report.json, also those before a failure; and in the line after some steps."""
    said = []
    run = started("tokenizer", tmp_path, {}, said)
    trained(run, 8)
    run._tell_needs()
    assert said[-1].startswith("a step takes") and said[-1].endswith(" GB, as a CUDA graph")
    run.do_step.forget()
    monkeypatch.setattr(graphs, "record", no_graph)
    trained(run, 12)
    assert reported(run) == {"replayed_steps": 5, "why_not": "no graph here"}


def test_updates_are_counted_in_replayed_steps(tmp_path):
    run = started("weight_rnn", tmp_path, {}, [])
    for step in range(10):
        logs = run._train_step()
        run.step = step + 1
    run._fetch(logs)
    assert run.calls == {"critic": 20, "generator": 10}


def test_judging_takes_the_memory_of_the_graph_where_it_needs_some(tmp_path):
    run, full = started("tokenizer", tmp_path, {}, []), [True]
    trained(run, 6)
    assert run.do_step.replay is not None

    def judged():
        if full:
            full.pop()
            raise torch.OutOfMemoryError("CUDA out of memory")
        return run.do_step.replay

    assert run._guarded(judged) is None
    trained(run, 12)
    assert run.do_step.replay is not None


def test_a_full_gpu_gives_a_graph_in_parts(tmp_path, monkeypatch):
    """What is recorded is given up, and recorded anew with the batch in two parts."""
    said, fails = [], [1]

    def full(work, stream, generators):
        def and_full():
            work()
            raise AssertionError("it is to fail before")

        if fails and fails.pop():
            loss = run.system.loss
            monkeypatch.setattr(run.system, "loss", out_of_memory)
            try:
                return replaying.record(and_full, stream, generators)
            finally:
                monkeypatch.setattr(run.system, "loss", loss)
        return replaying.record(work, stream, generators)

    def out_of_memory(batch):
        raise RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling cublasCreate(handle)")

    monkeypatch.setattr(graphs, "record", full)
    run = started("tokenizer", tmp_path / "parts", {}, said)
    trained(run, 12)
    assert "out of memory in phase 'model': going on with the batch in 2 parts" in said
    assert run.stepper.splits == {"model": 2}
    assert run.do_step.replay is not None
    assert not run.do_step.why_not
