"""One phase of a step: whose parameters move, in how many parts, and what happens without finite numbers or
memory.
"""

import copy
import math

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from mtld_core.config import UserError
from mtld_core.machine.group import Group
from mtld_core.nn.precision import in_fp32
from mtld_core.systems.base import Loss, Place, adam
from mtld_core.train import stepper as steppers
from mtld_core.train.stepper import GROWTH_STEPS, INITIAL_SCALE, Stepper, _parts

CPU = torch.device("cpu")


def network(seed=0, dtype=torch.float64):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 3)).to(dtype)


def batch(size, dtype=torch.float64, seed=1):
    generator = torch.Generator().manual_seed(seed)
    x, y = (torch.randn(size, n, generator=generator, dtype=torch.float64).to(dtype) for n in (4, 3))
    return {"x": x, "y": y}


def squares(net):
    def loss(batch):
        out = net(batch["x"])
        error = (out - batch["y"]).square().mean(1)
        return Loss(
            error.mean(),
            {"error": error.mean(), "first": in_fp32(out[:, 0]).mean()},
            {"out": out, "x": batch["x"]},
        )

    return loss


def stepper_of(net, **settings):
    return Stepper({"model": adam(net.parameters(), 0.01, weight_decay=0.1)}, CPU, **settings)


def snapshot(net, optimizer):
    return copy.deepcopy((net.state_dict(), optimizer.state_dict()))


def identical(a, b):
    """Nested dicts and lists of tensors and numbers, bit for bit."""
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(identical(a[name], b[name]) for name in a)
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(map(identical, a, b))
    return torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b


# ---- whose gradient


def test_a_phase_moves_its_own_parameters_only():
    makers, judge = network(0), nn.Linear(3, 1).double()
    optimizers = {
        "generator": adam(makers.parameters(), 0.01),
        "discriminator": adam(judge.parameters(), 0.01),
    }
    step = Stepper(optimizers, CPU)
    before = copy.deepcopy((makers.state_dict(), judge.state_dict()))

    result = step(
        "generator",
        lambda b: Loss(judge(makers(b["x"])).square().mean(), {}, {"fake": makers(b["x"])}),
        batch(6),
    )
    assert all(p.grad is None for p in judge.parameters()) and identical(judge.state_dict(), before[1])
    assert all(p.grad is not None for p in makers.parameters())
    assert not any(torch.equal(new, before[0][name]) for name, new in makers.state_dict().items())
    assert not optimizers["discriminator"].state and all(p.requires_grad for p in judge.parameters())

    makers_then = copy.deepcopy(makers.state_dict())
    step("discriminator", lambda b: Loss(judge(b["fake"]).square().mean()), result.carry)
    assert identical(makers.state_dict(), makers_then)
    assert not any(torch.equal(new, before[1][name]) for name, new in judge.state_dict().items())


def test_gradients_do_not_pile_up_over_steps():
    net = network()
    step = stepper_of(net, clip_norm=0.0)
    step("model", squares(net), batch(6))
    weights = copy.deepcopy(net.state_dict())
    step("model", squares(net), batch(6, seed=2))
    net.load_state_dict(weights)
    wanted = torch.autograd.grad(squares(net)(batch(6, seed=2)).total, list(net.parameters()))
    for p, gradient in zip(net.parameters(), wanted, strict=True):
        assert torch.allclose(p.grad, gradient, rtol=1e-12, atol=1e-14)


def test_an_unused_parameter_is_left_alone():
    net, spare = network(), nn.Parameter(torch.ones(2, dtype=torch.float64))
    step = Stepper({"model": adam([*net.parameters(), spare], 0.01)}, CPU, clip_norm=1.0)
    step("model", squares(net), batch(3))
    assert spare.grad is None and spare.tolist() == [1, 1] and step.skipped["model"].item() == 0


def test_logs_and_carry_are_detached():
    net = network()
    result = stepper_of(net, accumulate=2)("model", squares(net), batch(6))
    tensors = [result.total, *result.logs.values(), *result.carry.values()]
    assert len(tensors) == 5 and not any(value.requires_grad for value in tensors)
    assert all(value.dim() == 0 for value in result.logs.values())


# ---- in parts


def test_parts_cover_the_batch_nearly_evenly():
    for size in range(1, 20):
        for splits in range(1, 25):
            parts = _parts(size, splits)
            assert [i for first, last in parts for i in range(first, last)] == list(range(size))
            sizes = [last - first for first, last in parts]
            assert len(parts) == min(size, splits) and max(sizes) - min(sizes) <= 1


@pytest.mark.parametrize("accumulate", [2, 3, 7, 50])
@pytest.mark.parametrize("clip_norm", [0.0, 0.05])
def test_accumulating_equals_the_full_batch(accumulate, clip_norm):
    """Seven samples in two, three, seven parts: unequal ones, too. Adam divides by small numbers: fp64 is
    needed to see it.
    """
    whole, split = network(), network()
    one, many = (
        stepper_of(whole, clip_norm=clip_norm),
        stepper_of(split, clip_norm=clip_norm, accumulate=accumulate),
    )
    for i in range(5):
        a, b = one("model", squares(whole), batch(7, seed=i)), many("model", squares(split), batch(7, seed=i))
        assert a.logs.keys() == b.logs.keys() and a.carry.keys() == b.carry.keys()
        for name in a.logs:
            assert b.logs[name].item() == pytest.approx(a.logs[name].item(), abs=1e-12)
        for name in a.carry:
            assert a.carry[name].shape == b.carry[name].shape
            assert torch.allclose(a.carry[name], b.carry[name], rtol=0, atol=1e-12)
        for p, q in zip(whole.parameters(), split.parameters(), strict=True):
            assert torch.allclose(p, q, rtol=0, atol=1e-12)
    assert not torch.equal(next(whole.parameters()), next(network().parameters()))


def test_two_phases_in_parts_keep_their_order():
    """The generator's update is whole before the discriminator's begins, also when both run in parts."""
    seen = []

    def train(accumulate):
        torch.manual_seed(0)
        g, d = network(), nn.Linear(3, 1).double()
        step = Stepper(
            {"g": adam(g.parameters(), 0.01), "d": adam(d.parameters(), 0.01)}, CPU, accumulate=accumulate
        )

        def g_loss(b):
            seen.append("g")
            fake = g(b["x"])
            return Loss((d(fake) - 1).square().mean(), {}, {"fake": fake})

        def d_loss(b):
            seen.append("d")
            return Loss(d(b["fake"]).square().mean())

        for i in range(3):
            step("d", d_loss, step("g", g_loss, batch(5, seed=i)).carry)
        return torch.cat([p.detach().flatten() for net in (g, d) for p in net.parameters()])

    whole = train(1)
    seen.clear()
    assert torch.allclose(train(3), whole, rtol=0, atol=1e-12)
    assert "".join(seen) == 3 * "gggddd"


def test_a_loss_function_is_told_where_its_part_lies():
    seen, net = [], network()
    stepper_of(net, accumulate=3)(
        "model", lambda b: seen.append((b["place"], len(b["x"]))) or squares(net)(b), batch(7)
    )
    assert seen == [(Place(0, 7), 2), (Place(2, 7), 2), (Place(4, 7), 3)]


def chosen_squares(net):
    """A mean over those samples alone that are marked."""

    def loss(batch):
        error = (net(batch["x"]) - batch["y"]).square().mean(1)
        count = batch["marked"].sum()
        chosen = (error * batch["marked"]).sum() / count.clamp(min=1)
        return Loss(chosen, {"error": chosen}, weight=count / len(error))

    return loss


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("marked", [[1, 0, 0, 1, 1, 1, 0], [0, 0, 0, 0, 0, 1, 0], [0] * 7])
def test_a_mean_over_some_of_the_samples_is_that_of_the_whole_batch(marked, dtype, monkeypatch):
    whole, split = network(), network()
    data = batch(7) | {"marked": torch.tensor(marked, dtype=torch.float64)}
    one, many = stepper_of(whole, dtype=dtype), stepper_of(split, dtype=dtype, accumulate=3)
    if dtype == torch.float16:  # the scale alone: such networks lose digits that differ from part to part
        monkeypatch.setattr(steppers, "computing", lambda device, dtype: torch.autocast("cpu", enabled=False))
    for _ in range(3):
        a, b = one("model", chosen_squares(whole), data), many("model", chosen_squares(split), data)
        assert b.total.item() == pytest.approx(a.total.item(), abs=1e-12)
        assert b.logs["error"].item() == pytest.approx(a.logs["error"].item(), abs=1e-12)
    for p, q in zip(whole.parameters(), split.parameters(), strict=True):
        assert torch.allclose(p, q, rtol=0, atol=1e-9)
    assert many.skipped["model"].item() == 0


# ---- numbers that are not finite


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize(("accumulate", "clip_norm"), [(1, 0.0), (1, 1.0), (3, 1.0)])
def test_a_step_without_a_finite_gradient_changes_nothing(value, accumulate, clip_norm):
    net = network()
    step = stepper_of(net, accumulate=accumulate, clip_norm=clip_norm)
    step("model", squares(net), batch(6))
    before = snapshot(net, step.optimizers["model"])
    bad = batch(6)
    bad["y"][-1, 0] = value  # the last sample alone
    for count in (1, 2):
        step("model", squares(net), bad)
        assert step.skipped["model"].item() == count and step.skipped["model"].dim() == 0
        assert identical(snapshot(net, step.optimizers["model"]), before)
    step("model", squares(net), batch(6, seed=3))
    assert step.skipped["model"].item() == 2
    after = snapshot(net, step.optimizers["model"])
    assert not identical(after[0], before[0]) and all(torch.isfinite(p).all() for p in net.parameters())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_a_norm_that_overflows_is_one_verdict_for_weights_scale_and_count(dtype):
    """Each number of the gradient is finite in fp32, their squares are not."""
    net = nn.Linear(4, 3)
    step = stepper_of(net, dtype=dtype)
    for slope in (1.0, 1e25):
        before, scale = snapshot(net, step.optimizers["model"]), step.scalers["model"].get_scale()
        step(
            "model",
            lambda b, slope=slope: Loss(sum((p * slope).sum() for p in net.parameters())),
            batch(6, torch.float32),
        )
    assert all(p.grad.isfinite().all() for p in net.parameters())
    assert (step.skipped["model"].item(), step.calls["model"]) == (1, 2)
    assert identical(snapshot(net, step.optimizers["model"]), before)
    assert step.scalers["model"].get_scale() == (scale / 2 if dtype == torch.float16 else 1)


def test_after_a_skipped_step_training_goes_on_as_if_it_had_not_been():
    kept, hit = network(), network()
    a, b = stepper_of(kept, clip_norm=1.0), stepper_of(hit, clip_norm=1.0)
    bad = batch(6)
    bad["x"][0] = math.nan
    for i in range(4):
        a("model", squares(kept), batch(6, seed=i))
        b("model", squares(hit), batch(6, seed=i))
        b("model", squares(hit), bad)
    assert identical(snapshot(kept, a.optimizers["model"]), snapshot(hit, b.optimizers["model"]))


# ---- clipping


@pytest.mark.parametrize("clip_norm", [0.5, 1e-3])
def test_the_norm_of_the_whole_phase_is_bounded(clip_norm):
    net = network()
    stepper_of(net, clip_norm=clip_norm)("model", squares(net), batch(6))
    assert torch.cat([p.grad.flatten() for p in net.parameters()]).norm().item() == pytest.approx(
        clip_norm, rel=1e-3
    )


@pytest.mark.parametrize("clip_norm", [0.0, 1e6])
def test_a_gradient_within_the_bound_is_left_as_it_is(clip_norm):
    net = network()
    wanted = torch.autograd.grad(squares(net)(batch(6)).total, list(net.parameters()))
    stepper_of(net, clip_norm=clip_norm)("model", squares(net), batch(6))
    assert all(torch.equal(p.grad, gradient) for p, gradient in zip(net.parameters(), wanted, strict=True))


# ---- the optimizer


def test_an_unfused_optimizer_is_refused_by_name():
    net = network()
    good, bad = adam(net[0].parameters(), 0.1), torch.optim.Adam(net[2].parameters(), 0.1)
    with pytest.raises(TypeError, match=r"optimizers \['critic'\] must be fused"):
        Stepper({"generator": good, "critic": bad}, CPU)


def test_the_scale_of_fp16_losses_grows_soon():
    net = network(dtype=torch.float32)
    step = stepper_of(net, dtype=torch.float16)
    for _ in range(GROWTH_STEPS):
        step("model", squares(net), batch(2, torch.float32))
    assert step.scalers["model"].get_scale() == 2 * INITIAL_SCALE


# ---- memory


def test_running_out_of_memory_halves_the_parts_and_ends_the_same(capsys):
    free, tight = network(), network()
    calls = []

    def needy(batch):
        calls.append(len(batch["x"]))
        if len(batch["x"]) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return squares(tight)(batch)

    a, b = stepper_of(free, accumulate=4), stepper_of(tight)
    for i in range(2):
        first, second = a("model", squares(free), batch(7, seed=i)), b("model", needy, batch(7, seed=i))
        assert identical(first.logs, second.logs) and identical(first.carry, second.carry)
    assert identical(snapshot(free, a.optimizers["model"]), snapshot(tight, b.optimizers["model"]))
    assert calls == [7, 3, 1, 2, 2, 2, 1, 2, 2, 2]  # the second step already knows
    said = capsys.readouterr().out.splitlines()
    assert [line.split()[-2:] for line in said] == [["2", "parts"], ["4", "parts"]] and all(
        "'model'" in line for line in said
    )


def test_out_of_memory_half_way_through_leaves_no_gradient_behind(capsys):
    free, tight = network(), network()
    failed = []

    def once(batch):
        if len(batch["x"]) == 2 and not failed and not torch.equal(batch["x"][0], whole["x"][0]):
            failed.append(True)
            raise torch.OutOfMemoryError("the second part of two")
        return squares(tight)(batch)

    whole = batch(4)
    stepper_of(free, accumulate=4)("model", squares(free), whole)
    stepper_of(tight, accumulate=2)("model", once, whole)
    assert failed and identical(free.state_dict(), tight.state_dict())
    assert "4 parts" in capsys.readouterr().out


def test_out_of_memory_with_one_sample_is_an_error(capsys):
    def never(batch):
        raise torch.OutOfMemoryError("CUDA out of memory")

    net = network()
    before = copy.deepcopy(net.state_dict())
    with pytest.raises(UserError, match="out of memory in phase 'model' even with one sample at a time"):
        stepper_of(net)("model", never, batch(6))
    assert identical(net.state_dict(), before) and "8 parts" in capsys.readouterr().out


def test_beside_other_processes_running_out_of_memory_ends_the_run():
    """They may be ahead, in an exchange that this one has not come to."""

    def never(batch):
        raise torch.OutOfMemoryError("CUDA out of memory")

    net = network()
    step = Stepper({"model": adam(net.parameters(), 0.01)}, CPU, accumulate=2, group=Group(size=2))
    with pytest.raises(UserError, match="start the same again with accumulate=4 to go on"):
        step("model", never, batch(6))


def test_phases_are_split_on_their_own(capsys):
    g, d = network(0), network(1)
    step = Stepper({"g": adam(g.parameters(), 0.01), "d": adam(d.parameters(), 0.01)}, CPU)
    sizes = []

    def needy(batch):
        if len(batch["x"]) > 3:
            raise torch.OutOfMemoryError
        return squares(g)(batch)

    def easy(batch):
        sizes.append(len(batch["x"]))
        return squares(d)(batch)

    step("g", needy, batch(6))
    step("d", easy, batch(6))
    assert step.splits == {"g": 2, "d": 1} and sizes == [6] and "'g'" in capsys.readouterr().out


# ---- precision


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_the_autocast_type_and_loss_scaling_only_for_fp16(dtype):
    net, seen = network(dtype=torch.float32), []

    def loss(b):
        out = net(b["x"])
        seen.append(out.dtype)
        return Loss((out.float() - b["y"]).square().mean())

    step = stepper_of(net, dtype=dtype)
    assert [scaler.is_enabled() for scaler in step.scalers.values()] == [dtype is torch.float16]
    step("model", loss, batch(6, torch.float32))
    assert seen == [dtype] and not torch.is_autocast_enabled("cpu")
    assert all(p.dtype == torch.float32 and p.grad.dtype == torch.float32 for p in net.parameters())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_weight_that_was_used_without_gradient_still_gets_one(dtype):
    """Up to torch 2.10 autocast's cache of half-precision weights keeps the copy that no_grad made."""
    net = network(dtype=torch.float32)

    def loss(b):
        with torch.no_grad():
            first = net(b["x"])
        return Loss((net(b["x"]) - first - b["y"]).float().square().mean())

    stepper_of(net, dtype=dtype)("model", loss, batch(6, torch.float32))
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in net.parameters())


@pytest.mark.parametrize("kind", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("entry", ["total", "error"])
def test_a_loss_in_half_precision_is_refused_by_phase_and_name(kind, entry):
    net = network(dtype=torch.float32)

    def loss(b):
        good = squares(net)(b)
        bad = (net(b["x"]) ** 2).to(kind).mean()
        return good._replace(total=bad) if entry == "total" else good._replace(logs={"error": bad})

    with pytest.raises(
        TypeError, match=rf"phase 'model': '{entry}' of its Loss is {kind}, wanted is float32"
    ):
        stepper_of(net)("model", loss, batch(6, torch.float32))


def test_scaled_gradients_are_unscaled_before_clipping():
    plain, scaled = network(dtype=torch.float32), network(dtype=torch.float32)
    stepper_of(plain, clip_norm=0.3)("model", squares(plain), batch(6, torch.float32))
    step = stepper_of(scaled, dtype=torch.float16, clip_norm=0.3)
    step("model", squares(scaled), batch(6, torch.float32))
    norm = torch.cat([p.grad.flatten() for p in scaled.parameters()]).norm().item()
    assert step.skipped["model"].item() == 0 and norm == pytest.approx(0.3, rel=1e-3)
    for p, q in zip(plain.parameters(), scaled.parameters(), strict=True):
        assert torch.allclose(p.grad, q.grad, atol=2e-3)


def test_an_overflow_under_fp16_skips_the_step_and_halves_the_scale():
    net = network(dtype=torch.float32)
    step = stepper_of(net, dtype=torch.float16, clip_norm=1.0)
    step("model", squares(net), batch(6, torch.float32))
    before, scale = snapshot(net, step.optimizers["model"]), step.scalers["model"].get_scale()
    bad = batch(6, torch.float32)
    bad["y"][0] = math.inf
    step("model", squares(net), bad)
    assert step.skipped["model"].item() == 1 and step.scalers["model"].get_scale() == scale / 2
    assert identical(snapshot(net, step.optimizers["model"]), before)


# ---- state


def test_the_scale_survives_a_resume():
    net = network(dtype=torch.float32)
    step, again = stepper_of(net, dtype=torch.float16), stepper_of(net, dtype=torch.float16)
    bad = batch(6, torch.float32)
    bad["y"][0] = math.nan
    step("model", squares(net), bad)
    again.load_state(step.state())
    assert again.scalers["model"].get_scale() == step.scalers["model"].get_scale() == INITIAL_SCALE / 2


@pytest.mark.parametrize(
    ("then", "now"),
    [(torch.float32, torch.float16), (torch.bfloat16, torch.float16), (torch.float16, torch.float32)],
)
def test_a_run_may_go_on_in_another_precision(then, now):
    """Begun on a CPU or an A100, resumed on a T4, and back: "auto" decides anew on each machine."""
    net = network(dtype=torch.float32)
    old, new = stepper_of(net, dtype=then), stepper_of(net, dtype=now)
    old("model", squares(net), batch(6, torch.float32))
    new.load_state(old.state())
    new("model", squares(net), batch(6, torch.float32))
    assert new.skipped["model"].item() == 0


def test_the_parts_that_fit_into_memory_survive_a_resume():
    """Else the first step after a resume is computed in other parts than it was before, and not to the same
    bits.
    """
    net = network()
    step, again = stepper_of(net), stepper_of(net)
    step.splits["model"] = 4
    again.load_state(step.state())
    assert again.splits == {"model": 4}


# ---- no waiting for the device


class NoWait(TorchDispatchMode):
    """Fails where a value, or a shape that depends on values, is fetched: on a GPU each waits for all work
    queued so far.
    """

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.overloadpacket.__name__
        assert name not in (
            "_local_scalar_dense",
            "nonzero",
            "is_nonzero",
            "equal",
            "masked_select",
            "unique2",
        ), name
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_no_value_is_fetched_in_a_step(dtype):
    net = network(dtype=torch.float32)
    step = stepper_of(net, dtype=dtype, clip_norm=1.0, accumulate=2)
    data = batch(6, torch.float32)
    with NoWait():
        for _ in range(3):
            step("model", squares(net), data)
        with pytest.raises(AssertionError, match="_local_scalar_dense"):
            step.skipped["model"].item()
