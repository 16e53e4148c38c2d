"""The presets `gpu`: each is built and takes a step on fake CUDA tensors, and costs what the pages say."""

import json

import fakes
import measure
import pytest
import tables
import torch

from mtld_core.systems import SYSTEMS, system_class


@pytest.mark.parametrize("name", SYSTEMS)
def test_a_step_is_taken_on_a_fake_card(name):
    with fakes.on_a_card():
        step = fakes.FakeStep(name, "gpu", device="cuda:0")
        logs = step()
    assert {str(value.device) for value in logs.values()} == {"cuda:0"}
    for phase, optimizer in step.stepper.optimizers.items():
        assert len(optimizer.state) == len(step.stepper.parameters[phase])  # each was updated
    assert step.stepper.kept > 1e8


@pytest.mark.parametrize("name", SYSTEMS)
def test_it_is_the_widest_preset_and_its_row_is_true(name):
    [kept] = [
        row
        for row in json.loads(tables.RESULTS.read_text())["tables"]["presets"]
        if row["preset"] == f"{name} `gpu`"
    ]
    step = fakes.FakeStep(name, "gpu")
    assert step.parameters / 1e6 == pytest.approx(kept["parameters, M"])
    assert step.training.batch_size == kept["batch"]
    small = fakes.FakeStep(name, "small")
    assert step.parameters > 8 * small.parameters
    assert system_class(name).PRESETS["gpu"].keys() >= {"batch_size", "steps"}


def test_fake_tensors_cost_what_real_ones_do():
    """Products and convolutions of a step of `tiny` by fake tensors, and of the same step by real ones."""
    fake = fakes.FakeStep("tokenizer", "tiny", size=16)
    with measure.Work() as counted:
        fake()
    system = type(fake.system)(fake.system.config).train()
    stepper = fakes.Kept(system.optimizers(), torch.device("cpu"), torch.bfloat16)
    batch = {
        "frames": torch.zeros(fake.batch["frames"].shape),
        "key": torch.zeros(len(fake.batch["key"]), dtype=torch.int64),
    }
    with measure.Work() as real:
        system.training_step([batch], stepper)
    assert counted.flop == real.flop > 0
    assert stepper.kept == fake.stepper.kept > 0


def test_a_tensor_left_on_the_cpu_is_noticed(monkeypatch):
    with fakes.on_a_card():
        step = fakes.FakeStep("tokenizer", "tiny", size=16, device="cuda:0")
        step()
        with step.mode:
            step.batch["key"] = torch.empty(len(step.batch["key"]), dtype=torch.int64)
        with pytest.raises(RuntimeError, match="device"):
            step()
