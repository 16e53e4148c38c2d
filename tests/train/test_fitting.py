"""A batch that fits the card, by faked speeds and memory; and what a run does where memory is full."""

import dataclasses
import math
import types
import weakref

import pytest
import torch

from mtld_core.config import ConfigError, UserError
from mtld_core.data import Dataset
from mtld_core.judge.task import Task
from mtld_core.machine import graphs, memory
from mtld_core.runs.folder import read_config
from mtld_core.systems.base import Loss, adam
from mtld_core.train import fit, fitting
from mtld_core.train.controls import Controls
from mtld_core.train.job import outlook
from mtld_core.train.loop import Training
from mtld_core.train.settings import build, open_data, plan
from mtld_core.train.stepper import Stepper

CPU = torch.device("cpu")


@pytest.fixture
def planned(arcs, tmp_path):
    """`planned(**settings)` -> (system, dataset, config) of a tiny run."""

    def planned(**settings):
        settings = {"steps": 4, "threads": 1, "interactive": False} | settings
        cls, config, training = plan("tokenizer", "tiny", run_dir=str(tmp_path / "run"), **settings)
        dataset = open_data(str(arcs), config)
        return build(cls, config, dataset), dataset, training

    return planned


@pytest.fixture
def card(monkeypatch):
    """`card(speeds)`: a GPU that trains so many windows a second by batch size; 0: such a batch does not fit."""

    def card(speeds):
        tried = []
        monkeypatch.setattr(fitting, "pick_device", lambda wanted, say: torch.device("cuda"))

        def speed(system, dataset, config):
            tried.append(config.batch_size)
            return speeds[config.batch_size]

        monkeypatch.setattr(fitting, "speed", speed)
        return tried

    return card


# ---- the largest batch that gains


@pytest.mark.parametrize(
    ("speeds", "best", "why"),
    [
        ({4: 100.0, 8: 180.0, 16: 190.0}, 8, "16 gain +6%"),
        ({4: 100.0, 8: 110.0}, 4, "8 gain +10%"),
        ({4: 100.0, 8: 190.0, 16: 0.0}, 8, "16 do not fit"),
    ],
)
def test_the_batch_is_doubled_while_that_gains(speeds, best, why, planned, card):
    tried, said = card(speeds), []
    system, dataset, config = planned(fit_batch=True)
    assert config.batch_size == 4
    found = fitting.fitted(system, dataset, config, said.append)
    assert tried == list(speeds)
    assert (found.batch_size, found.fit_batch) == (best, False)
    assert found.lr_scale == pytest.approx(math.sqrt(best / 4))
    [line] = said
    assert line.startswith(f"batch_size={best}, by trying ({why}")
    assert f"learning rates are {math.sqrt(best / 4):.2f} times" in line


@pytest.mark.parametrize(("windows", "best"), [(10**6, 16), (17, 16), (15, 8)])
def test_four_times_is_the_most_or_all_windows(windows, best, planned, card, monkeypatch):
    tried = card({4 * 2**i: 2.0**i for i in range(10)})
    monkeypatch.setattr(fitting, "Task", lambda *given: types.SimpleNamespace(learned=[range(windows)]))
    assert fitting.fitted(*planned(fit_batch=True)).batch_size == best
    assert tried[-1] == best


def test_on_a_cpu_or_unasked_or_beside_a_run_nothing_is_tried(planned, card):
    system, dataset, config = planned(fit_batch=True)
    assert fitting.fitted(system, dataset, config).batch_size == 4  # the preset's
    tried = card({4: 100.0, 8: 0.0})
    for settings in ({"batch_size": 8}, {}, {"batch_size": 0}):
        given = planned(**settings)
        assert not given[2].fit_batch
        assert fitting.fitted(*given) is given[2]
    with fitting.training_here(), fitting.training_here():
        assert fitting.fitted(system, dataset, config) is config
    assert not tried
    assert fitting.fitted(system, dataset, config).batch_size == 4 and tried == [4, 8]


def test_a_batch_that_hardly_fits_is_not_enlarged(planned, card):
    tried, said = card({4: 0.0}), []
    assert fitting.fitted(*planned(fit_batch=True), said.append).batch_size == 4
    assert tried == [4]
    assert said == ["batch_size=4: no larger one is tried, for this one hardly fits"]


def test_what_goes_wrong_with_a_larger_batch_ends_the_search(planned, card, monkeypatch):
    card({})

    def speed(system, dataset, config):
        if config.batch_size > 4:
            raise RuntimeError("CUDA error: invalid configuration argument")
        return 100.0

    monkeypatch.setattr(fitting, "speed", speed)
    assert fitting.fitted(*planned(fit_batch=True)).batch_size == 4


def test_no_outlook_is_tried_beside_a_run(planned):
    given = planned(steps=12)
    with fitting.training_here():
        assert (
            outlook(*given) == "Another run trains here: what this one will take is not tried out beside it."
        )
    assert "parameters, which take about" in outlook(*given)


def test_while_a_run_trains_here_it_is_known(planned, monkeypatch):
    seen, honest = [], Training.run
    monkeypatch.setattr(Training, "run", lambda self: (seen.append(fitting.is_busy()), honest(self))[1])
    fit(*planned())
    assert seen == [True] and not fitting.is_busy()


def test_a_run_keeps_its_batch_and_its_rates(planned, card, tmp_path, monkeypatch):
    card({4: 100.0, 8: 180.0, 16: 181.0})
    monkeypatch.setattr("mtld_core.train.job.pick_device", lambda wanted, say: CPU)
    system, dataset, config = planned(fit_batch=True)
    rates = []
    monkeypatch.setattr(graphs, "set_rate", lambda group, rate: rates.append(rate))
    fit(system, dataset, dataclasses.replace(config, warmup_steps=0))
    training = read_config(tmp_path / "run")["training"]
    assert (training["batch_size"], training["fit_batch"]) == (8, False)
    assert rates[0] == pytest.approx(system.config.lr * math.sqrt(2))

    tried = card({})
    for said in ({"batch_size": 0}, {}):
        config = planned(steps=8, **said)[2]
        assert (config.batch_size, config.fit_batch) == (8, False)
        assert config.lr_scale == pytest.approx(math.sqrt(2))
    assert planned(steps=8, batch_size=4)[2].batch_size == 4
    assert not tried


def test_speed_is_measured_by_steps_of_a_copy(planned, tmp_path):
    system, dataset, config = planned()
    before = [parameter.clone() for parameter in system.parameters()]
    assert fitting.speed(system, dataset, config) > 0
    assert all(map(torch.equal, before, system.parameters()))
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("full", [torch.OutOfMemoryError("CUDA out of memory"), "parts", "memory"], ids=str)
def test_a_batch_that_is_split_or_fills_the_card_does_not_fit(full, planned, monkeypatch):
    system, dataset, config = planned()
    honest = type(system).loss

    def loss(self, batch):
        if len(batch["key"]) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return honest(self, batch)

    if full == "parts":
        monkeypatch.setattr(type(system), "loss", loss)
    elif full == "memory":
        monkeypatch.setattr(memory, "peak_share", lambda device: 0.95)
    else:
        monkeypatch.setattr(fitting, "tried", lambda *given: (_ for _ in ()).throw(full))
    assert fitting.speed(system, dataset, config) == 0.0


def test_what_is_wrong_otherwise_is_said(planned, monkeypatch):
    monkeypatch.setattr(fitting, "tried", lambda *given: [][1])
    with pytest.raises(IndexError):
        fitting.speed(*planned())


# ---- memory that is full


TEXTS = [
    "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`",
    "cuDNN error: CUDNN_STATUS_ALLOC_FAILED",
    "GET was unable to find an engine to execute this computation",
    "CUDA error: out of memory",
]


@pytest.mark.parametrize("error", [torch.OutOfMemoryError("no"), *map(RuntimeError, TEXTS)], ids=str)
def test_a_full_card_halves_the_batch_whoever_says_it(error):
    weight, said = torch.nn.Parameter(torch.ones(3)), []
    step = Stepper({"model": adam([weight], 0.1)}, CPU, say=said.append)

    def loss(batch):
        if len(batch["x"]) > 2:
            raise error
        return Loss((weight * batch["x"]).sum())

    step("model", loss, {"x": torch.ones(8, 3)})
    assert step.splits == {"model": 4}
    assert len(said) == 2


def test_other_errors_are_none_of_these():
    weight = torch.nn.Parameter(torch.ones(3))
    step = Stepper({"model": adam([weight], 0.1)}, CPU)

    def loss(batch):
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    with pytest.raises(RuntimeError, match="illegal"):
        step("model", loss, {"x": torch.ones(8, 3)})


def test_room_is_made_before_the_last_sample_is_given_up():
    weight, room = torch.nn.Parameter(torch.ones(3)), [True]
    step = Stepper({"model": adam([weight], 0.1)}, CPU, say=lambda line: None, make_room=room.pop)
    full = [True]

    def loss(batch):
        if room or full:
            raise torch.OutOfMemoryError("no")
        return Loss((weight * batch["x"]).sum())

    room.append(False)  # popped last to first: none was freed
    with pytest.raises(UserError, match="one sample at a time"):
        step("model", loss, {"x": torch.ones(2, 3)})
    full.clear()
    step("model", loss, {"x": torch.ones(2, 3)})
    assert not room
    assert not torch.equal(weight.detach(), torch.ones(3))


@pytest.mark.parametrize("fails", [1, 2])
def test_an_optimizer_whose_moments_do_not_fit_tries_once_more(fails, monkeypatch):
    weight = torch.nn.Parameter(torch.ones(3))
    optimizer, room = adam([weight], 0.1), []
    honest, left = optimizer.step, [True] * fails

    def step():
        if left:
            left.pop()
            raise torch.OutOfMemoryError("no")
        honest()

    monkeypatch.setattr(optimizer, "step", step)
    stepper = Stepper({"model": optimizer}, CPU, make_room=lambda: room.append(1))

    def loss(batch):
        return Loss((weight * batch["x"]).sum())

    if fails == 2:
        with pytest.raises(UserError, match="moments of phase 'model'"):
            stepper("model", loss, {"x": torch.ones(2, 3)})
        return
    stepper("model", loss, {"x": torch.ones(2, 3)})
    assert room == [1]
    assert not torch.equal(weight.detach(), torch.ones(3))


def test_frames_leave_the_card_before_a_run_is_given_up(planned, monkeypatch):
    """They lie on it, here: `to` gives a dataset of its own."""
    said = []
    system, dataset, config = planned()
    monkeypatch.setattr(Dataset, "to", lambda self, device: dataclasses.replace(self))
    honest, full = type(system).loss, [True] * 3

    def loss(self, batch):
        if full:
            full.pop()
            raise torch.OutOfMemoryError("no")
        return honest(self, batch)

    monkeypatch.setattr(type(system), "loss", loss)
    report = fit(system, dataset, config, Controls(said.append))
    assert "out of memory: the frames move from the GPU back to RAM" in said
    assert report["status"] == "finished"
    assert report["metrics"]


def test_judging_that_finds_the_card_full_tries_again_and_then_is_left_out(planned, monkeypatch):
    system, dataset, config = planned(eval_every_steps=2)
    honest, full, said = Task.figures, [True, True], []  # a graph goes first, then the frames

    def figures(self, *given):
        if full:
            full.pop()
            raise torch.OutOfMemoryError("no")
        return honest(self, *given)

    monkeypatch.setattr(Task, "figures", figures)
    report = fit(system, dataset, config, Controls(said.append))
    assert report["metrics"]
    assert not [line for line in said if "left out" in line]

    def never(self, *given):
        raise torch.OutOfMemoryError("no")

    monkeypatch.setattr(Task, "figures", never)
    system, dataset, config = planned(steps=8)
    said.clear()
    report = fit(system, dataset, config, Controls(said.append))
    assert report["status"] == "finished"
    assert [line for line in said if "out of memory while judging" in line]


def test_judging_tries_no_kernels_and_a_run_that_ended_holds_no_memory(planned, monkeypatch):
    monkeypatch.setattr(torch.backends.cudnn, "benchmark", True)
    honest, seen, runs = Task.figures, [], []

    def figures(self, *given):
        seen.append(torch.backends.cudnn.benchmark)
        return honest(self, *given)

    monkeypatch.setattr(Task, "figures", figures)
    run = Training.run
    monkeypatch.setattr(Training, "run", lambda self: (runs.append(weakref.ref(self)), run(self))[1])
    fit(*planned())
    assert not any(seen) and seen
    assert torch.backends.cudnn.benchmark
    assert runs[0]() is None


# ---- what is said, and refused


def test_after_some_steps_a_run_says_what_it_needs(planned):
    said = []
    fit(*planned(steps=12), Controls(said.append))
    [line] = [line for line in said if line.startswith("a step takes")]
    assert " s and " in line and " GB: until step 12 about 0:00:0" in line


def test_graphs_are_refused_where_there_are_none(planned):
    with pytest.raises(ConfigError, match="graphs='on': graphs need a CUDA device, and this is cpu"):
        fit(*planned(graphs="on"))


@pytest.mark.parametrize(
    ("setting", "why"), [("auto", "graphs need a CUDA device, and this is cpu"), ("off", "graphs='off'")]
)
def test_the_report_says_why_there_are_no_graphs(setting, why, planned):
    said = []
    report = fit(*planned(graphs=setting, steps=10), Controls(said.append))
    assert report["graphs"] == {"replayed_steps": 0, "why_not": why}
    assert not [line for line in said if "CUDA graph" in line]


def test_on_a_card_a_line_says_why_there_are_no_graphs(planned, monkeypatch):
    said = []
    monkeypatch.setattr(graphs, "can_record", lambda device: True)
    fit(*planned(accumulate=2), Controls(said.append))
    why = "a batch is computed in 2 parts (accumulate)"
    assert said.count(f"steps are not replayed as CUDA graphs: {why}") == 1


@pytest.mark.parametrize(
    ("setting", "device", "capturable", "accumulate", "processes", "why_not"),
    [
        ("auto", "cuda", True, 1, 1, ""),
        ("auto", "cuda", True, 2, 1, "a batch is computed in 2 parts (accumulate)"),
        ("auto", "cuda", True, 1, 2, "graphs are for one process, and these are 2"),
        ("auto", "cuda", False, 1, 1, "the steps of this system differ from each other"),
        ("auto", "cpu", True, 1, 1, "graphs need a CUDA device, and this is cpu"),
        ("on", "cuda", True, 2, 1, ""),
        ("off", "cuda", True, 1, 1, "graphs='off'"),
    ],
)
def test_when_graphs_are_wanted(setting, device, capturable, accumulate, processes, why_not):
    rule = setting, torch.device(device), capturable, accumulate, processes
    assert graphs.why_not(*rule) == why_not


@pytest.mark.parametrize(
    ("capturable", "processes", "why"),
    [(False, 1, "steps of this system differ"), (True, 2, "for one process, and these are 2")],
)
def test_graphs_are_refused_where_they_cannot_be(capturable, processes, why):
    with pytest.raises(ConfigError, match=why):
        graphs.why_not("on", torch.device("cuda"), capturable, 1, processes)
