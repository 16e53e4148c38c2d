"""Layers that see time: a convolutional LSTM and a residual block of 3-d convolutions."""

import torch
import torch.nn.functional as F
from torch import nn


class ConvLSTMCell(nn.Module):
    """`nn.LSTMCell` on maps (Shi et al. 2015): (input `[N, C, h, w]`, (hidden, cell) or None) -> (new hidden, new cell).

    hidden, cell: `[N, hidden, h, w]`; None stands for zeros. The gates lie in the order input, forget, new, output.
    """

    def __init__(self, channels, hidden):
        super().__init__()
        self.hidden = hidden
        self.gates = nn.Conv2d(channels + hidden, 4 * hidden, 3, 1, 1)
        with torch.no_grad():
            self.gates.bias[hidden : 2 * hidden] = 1  # remember at first (Jozefowicz et al. 2015)

    def forward(self, x, state=None):
        hidden, cell = state or [x.new_zeros(len(x), self.hidden, *x.shape[-2:])] * 2
        enter, keep, new, show = self.gates(torch.cat([x, hidden], 1)).chunk(4, 1)
        cell = keep.sigmoid() * cell + enter.sigmoid() * new.tanh()
        return show.sigmoid() * cell.tanh(), cell


class ResBlock3d(nn.Module):
    """Clips of maps `[N, C, T, h, w]` -> the same: two 3x3x3 convolutions and a shortcut."""

    def __init__(self, channels):
        super().__init__()
        self.conv1 = nn.Conv3d(channels, channels, 3, 1, 1)
        self.conv2 = nn.Conv3d(channels, channels, 3, 1, 1)

    def forward(self, x):
        return x + self.conv2(F.leaky_relu(self.conv1(F.leaky_relu(x, 0.2)), 0.2))
