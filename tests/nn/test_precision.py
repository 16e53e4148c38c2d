"""Weights that are converted together, and norms and cells that a GPU computes in another way."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from mtld_core.nn import conv
from mtld_core.nn.attention import Norm
from mtld_core.nn.precision import FullWeights, HalfWeights, in_fp32
from mtld_core.systems.mtld import nets
from mtld_core.systems.world_model.space_time import CausalTimeAttention


class Full(FullWeights, nn.Sequential):
    pass


def make():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3, 1, 1), nn.SiLU(), nn.Flatten(), nn.Linear(64, 2))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_weights_are_what_autocast_makes_and_so_are_their_gradients(dtype):
    net, x = make(), torch.randn(5, 3, 4, 4)
    found = []
    for half_weights in (HalfWeights(net, dtype), HalfWeights(net, torch.float32)):
        net.zero_grad()
        with torch.autocast("cpu", dtype, cache_enabled=False), half_weights():
            inside = net[0].weight.dtype
            out = in_fp32(net(x))
        out.square().mean().backward()
        assert all(isinstance(p, nn.Parameter) and p.dtype == torch.float32 for p in net.parameters())
        assert inside == half_weights.dtype
        found.append([out.detach(), *(p.grad for p in net.parameters())])
    torch.testing.assert_close(*found, rtol=0, atol=0)


def test_half_weights_leave_out_full_ones_and_come_back_after_an_error():
    net = nn.Sequential(make(), Full(nn.Linear(2, 2)), nn.LayerNorm(2))
    before = list(net.parameters())
    with pytest.raises(ZeroDivisionError), HalfWeights(net, torch.float16)():
        types = {
            name: module.weight.dtype for name, module in net.named_modules() if hasattr(module, "weight")
        }
        assert {name for name, each in types.items() if each == torch.float16} == {"0.0", "0.3"}
        raise ZeroDivisionError
    assert all(a is b for a, b in zip(before, net.parameters(), strict=True))


def test_weights_that_were_not_used_get_no_gradient():
    net = make()
    with HalfWeights(net, torch.bfloat16)():
        out = net[3](torch.randn(2, 64, dtype=torch.bfloat16)).float()
    out.sum().backward()
    assert net[0].weight.grad is None and net[3].weight.grad is not None


# ---- what a GPU computes in another way, here on the CPU


@pytest.mark.parametrize("kind", ["instance", "group"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_norms_in_channels_last_are_torchs_own(kind, dtype, monkeypatch):
    torch.manual_seed(0)
    norm = conv.norm2d(kind, 16)
    for parameter in norm.parameters():
        nn.init.normal_(parameter)
    if dtype == torch.float64:
        norm.double()
    shape = 3, 16, 5, 4
    x = torch.randn(shape, dtype=dtype).contiguous(memory_format=torch.channels_last) + 3
    weight = torch.randn(shape, dtype=dtype)
    found = []
    for own in (False, True):
        if own:
            monkeypatch.setattr(conv, "_in_torchs_way", lambda x: False)
        norm.zero_grad()
        given = x.clone().requires_grad_()
        out = norm(given) if own else norm(given.to(torch.promote_types(dtype, torch.float32)))
        (out * weight).sum().backward()
        found.append([out.double(), given.grad.double(), *(p.grad.double() for p in norm.parameters())])
        if own:
            assert out.dtype == given.grad.dtype == dtype
            assert out.is_contiguous(memory_format=torch.channels_last)
            assert given.grad.is_contiguous(memory_format=torch.channels_last)
    near = {"rtol": 1e-9, "atol": 1e-9} if dtype == torch.float64 else {"rtol": 3e-2, "atol": 3e-2}
    torch.testing.assert_close(*found, **near)


def gru_cell(from_input, from_hidden, hidden):
    """torch's fused cell as its documentation has the formula of `nn.GRUCell`."""
    assert all(rows.dim() == 2 for rows in (from_input, from_hidden, hidden))
    r_x, z_x, n_x = from_input.chunk(3, 1)
    r_h, z_h, n_h = from_hidden.chunk(3, 1)
    z = torch.sigmoid(z_x + z_h)
    new = torch.tanh(n_x + torch.sigmoid(r_x + r_h) * n_h)
    return (1 - z) * new + z * hidden, None


def test_the_formula_of_the_fused_cell_is_torchs():
    cell, x, hidden = nn.GRUCell(3, 5), torch.randn(2, 3), torch.randn(2, 5)
    gates = F.linear(x, cell.weight_ih, cell.bias_ih), F.linear(hidden, cell.weight_hh, cell.bias_hh)
    torch.testing.assert_close(gru_cell(*gates, hidden)[0], cell(x, hidden))


@pytest.mark.parametrize("layout", [torch.channels_last, torch.contiguous_format])
def test_the_gru_of_maps_through_the_fused_cell(layout, monkeypatch):
    monkeypatch.setattr(nets, "FUSED_CELL", gru_cell)
    cell = nets.ConvGRUCell(3, 6)
    x = torch.randn(2, 3, 4, 5).contiguous(memory_format=layout)
    hidden = torch.randn(2, 6, 4, 5).contiguous(memory_format=layout)
    fused = nets.fused_gru(cell.from_input(x), cell.from_hidden(hidden), hidden)
    torch.testing.assert_close(fused, cell(x, hidden))
    assert fused.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("span", [3, 6, 9])
def test_time_attention_in_the_fused_kernel_is_the_same(span):
    layer, x = CausalTimeAttention(16, 2, span), torch.randn(2, 6, 5, 16)
    nn.init.normal_(layer.distance)
    wanted, _ = layer(x)
    qkv = layer.qkv(x).unflatten(-1, (3, 2, 8)).permute(3, 0, 2, 4, 1, 5)
    found = layer.out(layer.fused(*qkv).permute(0, 3, 1, 2, 4).flatten(-2))
    torch.testing.assert_close(found, wanted)
    slopes = [torch.autograd.grad(out.square().sum(), list(layer.parameters())) for out in (found, wanted)]
    torch.testing.assert_close(*slopes, rtol=1e-4, atol=1e-4)


def test_a_modulated_norm_in_half_precision_is_near_fp32():
    torch.manual_seed(0)
    norm = Norm(16, 8)
    nn.init.normal_(norm.modulation.weight)
    x, condition = torch.randn(2, 3, 4, 16), torch.randn(2, 3, 1, 8)
    found = []
    for half in (False, True):
        given = x.clone().requires_grad_()
        norm.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=half):
            out = norm(given, condition)
        assert out.dtype == (torch.bfloat16 if half else torch.float32)
        out.float().square().sum().backward()
        found.append([out.float(), given.grad, *(p.grad for p in norm.parameters())])
    for wanted, near in zip(*found, strict=True):
        assert (near - wanted).norm() < 1e-2 * wanted.norm()
