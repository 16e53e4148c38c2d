"""That a run computes with the backends that it asks for, says so, and leaves none behind."""

import json

import pytest
import torch

from mtld_core.generate.jobs import generate
from mtld_core.judge.checkpoint import judge
from mtld_core.systems.mtld.system import MTLD
from mtld_core.systems.opening import open_run
from mtld_core.train import train


@pytest.mark.parametrize("deterministic", [False, True])
def test_a_run_computes_with_them_and_says_so(deterministic, arcs, tmp_path, monkeypatch):
    seen, honest = [], MTLD.training_step

    def watched(self, batches, step):
        seen.append(torch.are_deterministic_algorithms_enabled())
        return honest(self, batches, step)

    monkeypatch.setattr(MTLD, "training_step", watched)
    run = str(tmp_path / "run")
    report = train("mtld", "tiny", str(arcs), steps=1, run_dir=run, deterministic=deterministic)
    assert seen and set(seen) == {deterministic} and not torch.are_deterministic_algorithms_enabled()
    assert report["backends"] == {"tf32": False, "cudnn_benchmark": False, "deterministic": deterministic}
    assert report["precision_judged"] == "float32"


def test_a_run_in_half_precision_is_judged_and_generates_in_fp32_on_a_cpu(arcs, tmp_path):
    run = str(tmp_path / "run")
    report = train("mtld", "tiny", str(arcs), steps=1, run_dir=run, precision="bf16")
    assert (report["precision"], report["precision_judged"]) == ("bfloat16", "float32")
    assert open_run(run).precision == torch.float32
    assert judge(run)["precision"] == "float32"
    made = generate(run, num_frames=2, out_dir=str(tmp_path / "made"))
    assert json.loads((tmp_path / "made" / "generation.json").read_text())["precision"] == "float32"
    assert made["precision"] == "float32"
