"""Muon moves hidden matrices by orthogonal steps, and leaves all else to AdamW."""

import copy

import pytest
import torch
from torch import nn

from mtld_core.nn.muon import MOMENTUM, Muon, orthogonal, weights_of

LR, LR_HIDDEN, BETAS = 1e-3, 0.02, (0.9, 0.99)


def net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.GroupNorm(2, 8), nn.SiLU(), nn.Flatten(), nn.Linear(32, 4))


def muon(model, weight_decay=0.0, hidden=None):
    hidden = weights_of(model) if hidden is None else hidden
    return Muon(model.parameters(), hidden, LR, LR_HIDDEN, BETAS, weight_decay)


def learn(model, optimizer, steps=1, bad=0.0, scale=1.0):
    for i in range(steps):
        optimizer.zero_grad()
        x = torch.randn(5, 3, 4, 4, generator=torch.Generator().manual_seed(i))
        loss = model(x).square().mean() + model(x).mean() * (float("nan") if bad else 1)
        (loss * scale).backward()
        optimizer.grad_scale = None if scale == 1 else torch.tensor(scale)
        optimizer.found_inf = torch.tensor(bad)
        optimizer.step()


@pytest.mark.parametrize(("rows", "columns"), [(12, 40), (40, 12), (16, 16)])
def test_steps_are_nearly_orthogonal(rows, columns):
    """Every direction of a matrix is kept, and none is longer than another, whatever it was before."""
    torch.manual_seed(0)
    left, _, right = torch.linalg.svd(torch.randn(3, rows, columns), full_matrices=False)
    lengths = torch.logspace(-1.5, 0, min(rows, columns))
    turned = left.mT @ orthogonal(left * lengths @ right) @ right.mT / max(1, rows / columns) ** 0.5
    diagonal = turned.diagonal(dim1=1, dim2=2)
    assert diagonal.min() > 0.65 and diagonal.max() < 1.25
    torch.testing.assert_close(turned, torch.diag_embed(diagonal), rtol=0, atol=1e-3)


def test_the_first_step_goes_as_far_as_the_rate_says_along_every_direction():
    model = net()
    before = model[4].weight.detach().clone()
    learn(model, muon(model))
    moved = torch.linalg.svdvals(model[4].weight.detach() - before)
    assert (moved > 0.5 * LR_HIDDEN).all() and (moved < 1.3 * LR_HIDDEN).all()


def test_all_else_is_moved_as_by_adamw():
    model, other = net(), net()
    others = [model[0].bias, model[1].weight, model[1].bias, model[4].bias]
    learn(model, muon(model, weight_decay=0.1))
    assert len(others) + len(weights_of(model)) == len(list(model.parameters()))
    learn(other, torch.optim.AdamW(other.parameters(), LR, BETAS, weight_decay=0.1, fused=True))
    for name in ("0.bias", "1.weight", "1.bias", "4.bias"):
        assert torch.equal(model.get_parameter(name), other.get_parameter(name))
    assert not torch.allclose(model[4].weight, other[4].weight)


def test_a_scaled_gradient_is_divided_as_it_is_read():
    plain, scaled = net(), net()
    one, other = muon(plain), muon(scaled)
    for scale in (1.0, 8.0, 2.0):
        learn(plain, one)
        learn(scaled, other, scale=scale)
    for p, q in zip(plain.parameters(), scaled.parameters(), strict=True):
        assert torch.equal(p, q) and torch.equal(p.grad, q.grad)


def test_momentum_is_nesterovs():
    model = net()
    optimizer = muon(model)
    momentum = torch.zeros_like(model[4].weight)
    for _ in range(3):
        before = model[4].weight.detach().clone()
        learn(model, optimizer, 1)
        gradient = model[4].weight.grad
        momentum = MOMENTUM * momentum + (1 - MOMENTUM) * gradient
        step = orthogonal((MOMENTUM * momentum + (1 - MOMENTUM) * gradient)[None])[0]
        torch.testing.assert_close(model[4].weight.detach(), before - LR_HIDDEN * step)


def test_a_step_that_is_not_finite_changes_nothing():
    model = net()
    optimizer = muon(model, weight_decay=0.1)
    learn(model, optimizer, 2)
    before, kept = copy.deepcopy(model.state_dict()), copy.deepcopy(optimizer.state_dict()["state"])
    learn(model, optimizer, 1, bad=1.0)
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name]), name
    for i, moments in optimizer.state_dict()["state"].items():
        assert all(torch.equal(moments[name], kept[i][name]) for name in moments)


def test_weight_decay_shrinks_hidden_matrices_by_their_own_rate():
    model, decayed = net(), net()
    learn(model, muon(model))
    learn(decayed, muon(decayed, weight_decay=0.5))
    start = net()[4].weight
    torch.testing.assert_close(decayed[4].weight, model[4].weight - LR_HIDDEN * 0.5 * start)


def test_it_goes_on_from_its_state_to_the_bit():
    model, other = net(), net()
    whole, first = muon(model), muon(other)
    learn(model, whole, 2)
    learn(other, first, 2)
    second = muon(other)
    second.load_state_dict(copy.deepcopy(first.state_dict()))
    learn(model, whole, 2)
    learn(other, second, 2)
    for one, two in zip(model.parameters(), other.parameters(), strict=True):
        assert torch.equal(one, two)
