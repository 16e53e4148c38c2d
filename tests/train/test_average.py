"""The moving average: which weights move, which buffers follow."""

import pytest
import torch
from torch import nn

from mtld_core.nn.average import averaged_copy, move


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.learns, self.frozen = nn.Linear(2, 2), nn.Linear(2, 2).requires_grad_(False)
        self.register_buffer("mean", torch.zeros(2))
        self.register_buffer("count", torch.zeros((), dtype=torch.int64))
        self.register_buffer("nothing", None)


def test_it_goes_its_share_of_the_way_and_buffers_follow():
    net = Net()
    average = averaged_copy(net)
    assert not average.training and not any(p.requires_grad for p in average.parameters())
    wanted = net.learns.weight.detach().clone() + 0.25
    with torch.no_grad():
        net.learns.weight.add_(1)
        net.frozen.weight.add_(1)  # nothing does that: so it shows that frozen weights are left out
        net.mean.fill_(3)
        net.count.fill_(7)
    before = average.frozen.weight.clone()
    move(average, net, 0.25)
    torch.testing.assert_close(average.learns.weight, wanted)
    assert torch.equal(average.frozen.weight, before)
    assert average.mean.tolist() == [3, 3] and average.count.item() == 7


def test_the_weights_of_a_copied_gru_are_one_block_again(monkeypatch):
    flattened = []
    monkeypatch.setattr(nn.GRU, "flatten_parameters", lambda self: flattened.append(self))
    net = nn.Sequential(nn.GRU(2, 3))
    flattened.clear()
    average = averaged_copy(net)
    assert flattened == [average[0]]


@pytest.mark.parametrize("layout", [torch.channels_last, torch.contiguous_format])
def test_a_copy_keeps_the_layout_so_that_one_kernel_does(layout):
    net = nn.Conv2d(3, 4, 3)
    net.weight.data = net.weight.data.contiguous(memory_format=layout)
    assert averaged_copy(net).weight.stride() == net.weight.stride()
