"""The moving average of the weights, which is judged and generates."""

import copy

import torch
from torch import nn


def averaged_copy(system):
    """A copy of a system to hold its average: in eval mode, and without gradient."""
    average = copy.deepcopy(system).eval().requires_grad_(False)
    for module in average.modules():
        if isinstance(module, nn.RNNBase):
            module.flatten_parameters()  # a copy's weights are no longer one block, as cuDNN wants them
    return average


@torch.no_grad()
def move(average, system, share):
    """Let the average go the `share` of its way to the system's weights, and take over all buffers.

    Weights that do not learn, those of frozen stages, are left as they are.
    """
    pairs = list(zip(average.parameters(), system.parameters(), strict=True))
    here = [mine for mine, weight in pairs if weight.requires_grad]
    there = [weight for _, weight in pairs if weight.requires_grad]
    torch._foreach_lerp_(here, there, share)
    buffers = list(system.buffers())
    if buffers:
        torch._foreach_copy_(list(average.buffers()), buffers)
