"""Layers that see time: a convolutional LSTM and a residual block of 3-d convolutions."""

import torch
import torch.nn.functional as F
from torch import nn


class ConvLSTM(nn.Module):
    """`nn.LSTM` on maps (Shi et al. 2015): clips `[B, T, C, h, w]` -> (hidden `[B, T, hidden, h, w]`, state).

    state: (hidden, cell), each `[B, hidden, h, w]`, to go on with; None stands for zeros. The gates lie in
    the order input, forget, new, output.
    """

    def __init__(self, channels, hidden):
        super().__init__()
        self.hidden = hidden
        self.from_input = nn.Conv2d(channels, 4 * hidden, 3, 1, 1)
        self.from_hidden = nn.Conv2d(hidden, 4 * hidden, 3, 1, 1, bias=False)
        with torch.no_grad():
            self.from_input.bias[hidden : 2 * hidden] = 1  # remember at first (Jozefowicz et al. 2015)

    def forward(self, x, state=None):
        out, gates = (
            [],
            self.from_input(x.flatten(0, 1)).unflatten(0, x.shape[:2]),
        )  # those of all frames at once
        for given in gates.unbind(1):
            enter, keep, new, show = (given if state is None else given + self.from_hidden(state[0])).chunk(
                4, 1
            )
            cell = enter.sigmoid() * new.tanh()
            if state is not None:
                cell = cell + keep.sigmoid() * state[1]
            state = show.sigmoid() * cell.tanh(), cell
            out.append(state[0])
        return torch.stack(out, 1), state


class ResBlock3d(nn.Module):
    """Clips of maps `[N, C, T, h, w]` -> the same: two 3x3x3 convolutions and a shortcut."""

    def __init__(self, channels):
        super().__init__()
        self.conv1 = nn.Conv3d(channels, channels, 3, 1, 1)
        self.conv2 = nn.Conv3d(channels, channels, 3, 1, 1)

    def forward(self, x):
        return x + self.conv2(F.leaky_relu(self.conv1(F.leaky_relu(x, 0.2)), 0.2))
