"""What a training asks of torch's GPU libraries, and that all is as before afterwards."""

import os
from types import SimpleNamespace

import pytest
import torch

from mtld_core.machine import backends

CPU, GPU = torch.device("cpu"), torch.device("cuda:0")


def state():
    cudnn = torch.backends.cudnn
    return {
        "benchmark": cudnn.benchmark,
        "cudnn_deterministic": cudnn.deterministic,
        "cudnn_tf32": cudnn.allow_tf32,
        "matmul": torch.get_float32_matmul_precision(),
        "algorithms": torch.are_deterministic_algorithms_enabled(),
        "warn_only": torch.is_deterministic_algorithms_warn_only_enabled(),
        "workspace": os.environ.get(backends.WORKSPACE),
    }


def chosen(device, precision, deterministic, alike):
    config = SimpleNamespace(precision=precision, deterministic=deterministic)
    return backends.chosen(device, config, SimpleNamespace(steps_are_alike=alike))


@pytest.mark.parametrize(
    ("asked", "tf32", "benchmark"),
    [
        ((GPU, "auto", False, True), True, True),
        ((GPU, "fp32", False, True), False, True),
        ((GPU, "fp16", False, False), True, False),  # shapes differ from step to step
        ((GPU, "bf16", True, True), True, False),
        ((CPU, "auto", False, True), False, False),
    ],
)
def test_what_is_chosen(asked, tf32, benchmark):
    found = chosen(*asked)
    assert found == {"tf32": tf32, "cudnn_benchmark": benchmark, "deterministic": asked[2]}


def test_they_are_set_and_put_back_even_after_an_error(monkeypatch):
    monkeypatch.delenv(backends.WORKSPACE, raising=False)
    before, inside = state(), []
    for asked in ((GPU, "auto", False, True), (GPU, "fp32", True, True), (CPU, "auto", True, True)):
        with pytest.raises(ZeroDivisionError), backends.set_to(asked[0], **chosen(*asked)):
            inside.append(state())
            raise ZeroDivisionError
        assert state() == before
    fast, exact, cpu = inside
    assert fast == before | {"benchmark": True, "cudnn_tf32": True, "matmul": "high"}
    same = {"algorithms": True, "warn_only": True, "workspace": backends.SAME_AGAIN}
    full = {"cudnn_deterministic": True, "cudnn_tf32": False, "matmul": "highest"}
    assert exact == before | same | full
    assert cpu == before | same


def test_a_workspace_that_somebody_chose_stays(monkeypatch):
    monkeypatch.setenv(backends.WORKSPACE, ":16:8")
    with backends.set_to(GPU, tf32=False, cudnn_benchmark=False, deterministic=True):
        assert os.environ[backends.WORKSPACE] == ":16:8"
    assert os.environ[backends.WORKSPACE] == ":16:8"
