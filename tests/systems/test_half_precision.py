"""Judging, generating and playing in a run's precision: who sets it, where it ends, and what comes out."""

import numpy as np
import pytest
import torch
from conftest import moving_square

from mtld_core.data import Arc, Dataset
from mtld_core.generate import rollouts
from mtld_core.runtime import pick_judged_precision
from mtld_core.systems.base import computed
from mtld_core.train.settings import build, plan

GPU = torch.device("cuda:0")


def system_of(precision):
    cls, config, _ = plan("mtld", "tiny", {"height": 16, "width": 16})
    torch.manual_seed(0)
    system = cls(config).eval()
    system.precision = precision
    return system


@pytest.fixture
def convolved(monkeypatch):
    """The types in which convolutions are computed, as they come."""
    types, honest = [], torch.nn.functional.conv2d

    def watched(x, weight, *rest, **more):
        if not more:  # those of networks
            types.append(torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else x.dtype)
        return honest(x, weight, *rest, **more)

    monkeypatch.setattr(torch.nn.functional, "conv2d", watched)
    return types


@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16])
def test_a_stream_computes_in_it_and_its_taker_does_not(precision, convolved):
    system, context = system_of(precision), torch.zeros(16, 16, 3, dtype=torch.uint8)
    for frame in rollouts.stream(system, context, 40):
        assert frame.dtype == torch.uint8 and not torch.is_autocast_enabled("cpu")
        assert system.encoder.body[0].weight.dtype == torch.float32
    assert set(convolved) == {precision}


def test_a_judge_computes_in_it_and_measures_in_fp32(convolved, tmp_path, monkeypatch):
    from mtld_core import metrics
    from mtld_core.judge.task import JudgeConfig, Task

    measured, honest = [], metrics.ssim

    def watched(*pictures):
        measured.append(torch.is_autocast_enabled("cpu"))
        return honest(*pictures)

    monkeypatch.setattr(metrics, "ssim", watched)
    system = system_of(torch.bfloat16)
    task = Task(system, dataset_of(tmp_path), JudgeConfig(restitution=True, eval_windows=4))
    figures = task.figures(system)
    assert set(convolved) == {torch.bfloat16} and measured and not any(measured)
    exact = task.figures(system_of(torch.float32))
    assert figures["psnr"] == pytest.approx(exact["psnr"], abs=0.5) and figures["psnr"] != exact["psnr"]


def dataset_of(folder):
    frames = torch.from_numpy(moving_square(40))
    arcs = [Arc("arc", 0, 40, np.arange(40))]
    return Dataset(str(folder), "arcs", frames, arcs, np.zeros(0, np.int64), None)


def test_nobody_computes_in_it_after_an_error():
    system = system_of(torch.float16)

    def pieces():
        yield torch.is_autocast_enabled("cpu")
        raise ZeroDivisionError

    taken = computed(system, pieces())
    assert next(taken) and not torch.is_autocast_enabled("cpu")
    with pytest.raises(ZeroDivisionError):
        next(taken)
    assert not torch.is_autocast_enabled("cpu")


@pytest.mark.parametrize(
    ("device", "wanted", "capability", "found"),
    [
        (torch.device("cpu"), "bf16", None, torch.float32),
        (GPU, "auto", (7, 5), torch.float16),
        (GPU, "auto", (8, 0), torch.bfloat16),
        (GPU, "fp32", (8, 0), torch.float32),
        (GPU, "fp16", (8, 0), torch.float16),
    ],
)
def test_which_it_is(device, wanted, capability, found, monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    assert pick_judged_precision(device, wanted) == found


def test_a_new_system_is_in_fp32(tmp_path):
    cls, config, _ = plan("mtld", "tiny", {"height": 16, "width": 16})
    assert build(cls, config, dataset_of(tmp_path)).precision == torch.float32
