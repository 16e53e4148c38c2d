"""The networks of the weight RNN beside its VAE (hyper.py)."""

import itertools

import torch
from torch import nn

from mtld_core.systems.weight_rnn.hyper import Trunk


class Critic(nn.Module):
    """Images `[N, 3, H, W]` -> scores `[N]`, unbounded: the encoder's layers, linear layers of `widths` and
    one number.
    """

    def __init__(self, height, width, channels, pool, activation, widths):
        super().__init__()
        self.trunk, down = Trunk(channels, pool, activation), len(channels)
        sizes = channels[-1] * (height >> down) * (width >> down), *widths
        self.dense = nn.ModuleList(nn.Linear(i, o) for i, o in itertools.pairwise(sizes))
        self.head = nn.Linear(sizes[-1], 1, bias=False)  # a bias would cancel out

    def forward(self, x):
        x = self.trunk(x)
        for layer in self.dense:
            x = self.trunk.activation(layer(x))
        return self.head(x)[:, 0]


class WeightPredictor(nn.Module):
    """Video `[B, V, 3, H, W]` -> update vectors `[B, U]`, at first `initial` `[U]` for every video.

    A small convolutional net reads each frame (without `channels` the GRU takes the bare pixels), a GRU the
    frames in order.
    """

    def __init__(self, height, width, channels, hidden, layers, initial):
        super().__init__()
        convs = [(nn.Conv2d(i, o, 4, 2, 1), nn.SiLU()) for i, o in itertools.pairwise((3, *channels))]
        self.frames, down = nn.Sequential(*itertools.chain(*convs)), len(channels)
        features = (3, *channels)[-1] * (height >> down) * (width >> down)
        self.gru = nn.GRU(features, hidden, layers, batch_first=True)
        self.head = nn.Linear(hidden, len(initial))
        nn.init.zeros_(self.head.weight)
        with torch.no_grad():
            self.head.bias.copy_(initial)

    def forward(self, video):
        read = self.frames(video.flatten(0, 1)).flatten(1).unflatten(0, video.shape[:2])
        return self.head(self.gru(read)[0][:, -1])
