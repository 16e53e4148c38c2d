"""compile=true: checked against eager once, and given up with one line."""

import pytest
import torch
from torch import nn

from mtld_core.config import field_names, from_dict, to_dict
from mtld_core.machine import compiling
from mtld_core.machine.compiling import Compiling
from mtld_core.systems import system_class
from mtld_core.systems.base import Loss, System
from mtld_core.train.stepper import Stepper


def compiled_to(monkeypatch, make):
    """Let torch compile a module to what `make` gives for its forward."""

    def compile_(self):
        self._compiled_call_impl = make(self._call_impl)

    monkeypatch.setattr(nn.Module, "compile", compile_)


def wrong(call):
    return lambda x: call(x) * 1.1


def broken(call):
    def fail(x):
        raise RuntimeError("no compiler here\nand a long story")

    return fail


def watched(calls):
    def make(call):
        def run(x):
            calls.append("compiled")
            return call(x)

        return run

    return make


def steps(monkeypatch, make, count=3):
    """(weights, lines said) after some steps with a module that is compiled to what `make` gives."""
    compiled_to(monkeypatch, make)
    torch.manual_seed(0)
    net = nn.Linear(4, 4)
    said = []
    optimizers = {"model": torch.optim.AdamW(net.parameters(), lr=0.1, fused=True)}
    stepper = Stepper(optimizers, torch.device("cpu"), say=said.append)
    stepper.compiling = Compiling([net], torch.float32, said.append)
    for _ in range(count):
        stepper("model", lambda batch: Loss(net(batch["x"]).square().mean()), {"x": torch.ones(2, 4)})
    return net.weight.detach(), said


def test_a_good_compiler_is_checked_once_and_used(monkeypatch):
    calls = []
    _, said = steps(monkeypatch, watched(calls))
    assert len(calls) == 1 + 3 and not said  # the check and each step


@pytest.mark.parametrize(("make", "why"), [(wrong, "21.0% off"), (broken, "it fails with RuntimeError")])
def test_else_all_goes_on_in_eager_and_one_line_says_why(make, why, monkeypatch):
    weight, said = steps(monkeypatch, make)
    eager, _ = steps(monkeypatch, watched([]))
    torch.testing.assert_close(weight, eager, rtol=0, atol=0)
    assert len(said) == 1 and "\n" not in said[0] and why in said[0], said


@pytest.mark.parametrize(("there", "off"), [("2.10.0+cu128", True), ("2.14.1", True), ("2.15.0", False)])
def test_the_switch_of_versions_that_compile_wrong_gradients(there, off, monkeypatch):
    import torch._inductor.config as inductor

    monkeypatch.setattr(torch, "__version__", torch.torch_version.TorchVersion(there))
    with inductor.patch({"triton.mix_order_reduction": True}):
        Compiling([], torch.float32, print)
        assert inductor.triton.mix_order_reduction == (not off)


def test_half_precision_may_be_further_apart():
    assert (
        Compiling([], torch.float16, print).limit
        == compiling.HALF
        > Compiling([], torch.float32, print).limit
    )


def make(name, **more):
    cls = system_class(name)
    own = field_names(cls.Config)
    values = cls.PRESETS["tiny"] | {"height": 16, "width": 16} | more
    return cls(from_dict(cls.Config, {field: value for field, value in values.items() if field in own}))


def test_lists_and_stages_are_compiled_by_their_parts():
    dreams = make("tinydreams", action_count=2)
    assert set(dreams.encoder) < set(dreams.to_compile())
    tokenizer = make("tokenizer")
    dynamics = make("dynamics", action_count=2, tokenizer=to_dict(tokenizer.config))
    found = set(dynamics.to_compile())
    assert {dynamics.transformer, dynamics.tokenizer.encoder, dynamics.tokenizer.decoder} < found
    for module in [*found, *dreams.to_compile()]:
        assert not isinstance(module, (nn.ModuleList, System))
