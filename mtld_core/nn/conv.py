"""Convolutional encoders and decoders between pictures and latents (vectors or maps), and a convolutional
GRU.
"""

import torch
import torch.nn.functional as F
from torch import nn


def norm2d(kind, channels):
    """The normalisation layer named `kind`: "instance", "group" (8 channels a group, or a few more) or
    "none".
    """
    if kind == "instance":
        return nn.InstanceNorm2d(channels)
    return nn.GroupNorm(_groups(channels), channels) if kind == "group" else nn.Identity()


def erases(kind, channels, height, width):
    """Whether `norm2d` of this kind would take each value by itself, and so leave nothing of maps `[N, C,
    height, width]`.
    """
    together = {
        "instance": height * width,
        "group": height * width * channels // _groups(channels),
        "none": 0,
    }
    return together[kind] == 1


def _groups(channels):
    """The largest number of groups that divides `channels` and leaves at least 8 of them, or all, in each."""
    return next(groups for groups in range(max(1, channels // 8), 0, -1) if channels % groups == 0)


class ResBlock(nn.Module):
    """`[N, C, h, w]` -> the same: two 3x3 convolutions whose sum with the input starts as the input
    (zero-initialised).
    """

    def __init__(self, channels, norm="none"):
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels, 3, 1, 1)
        self.norm = norm2d(norm, channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, 1, 1)
        nn.init.zeros_(self.conv2.weight)
        nn.init.zeros_(self.conv2.bias)

    def forward(self, x):
        return x + self.conv2(F.silu(self.norm(self.conv1(F.silu(x)))))


ACTIVATIONS = {"gelu": nn.GELU, "relu": nn.ReLU, "silu": nn.SiLU}


class ResNetBlock(nn.Module):
    """`[N, C, h, w]` -> `[N, out, h / stride, w / stride]`: two normed 3x3 convolutions and a shortcut (He et
    al. 2016).
    """

    def __init__(self, channels, out, stride=1, norm="instance", activation="gelu"):
        super().__init__()
        self.conv1, self.norm1 = nn.Conv2d(channels, out, 3, stride, 1), norm2d(norm, out)
        self.conv2, self.norm2 = nn.Conv2d(out, out, 3, 1, 1), norm2d(norm, out)
        self.shortcut = (
            nn.Identity() if (channels, stride) == (out, 1) else nn.Conv2d(channels, out, 1, stride)
        )
        self.activation = ACTIVATIONS[activation]()

    def forward(self, x):
        y = self.norm2(self.conv2(self.activation(self.norm1(self.conv1(x)))))
        return self.activation(self.shortcut(x) + y)


class ConvTokenizer(nn.Module):
    """Pictures `[N, C, H, W]` -> (map of tokens `[N, dim, H / patch, W / patch]`, the maps on the way,
    coarsest first).

    Squares of pixels are folded into channels as far as `filters`, each of which halves the grid, do not
    reach `patch`.
    """

    def __init__(self, channels, filters, blocks, dim, patch, norm="instance", activation="gelu"):
        super().__init__()
        fold = patch >> len(filters)
        self.fold, self.stem = nn.PixelUnshuffle(fold), nn.Conv2d(channels * fold**2, filters[0], 3, 1, 1)
        self.widths = [filters[0], *filters[:-1]][::-1]  # of the maps on the way
        self.levels, last = nn.ModuleList(), filters[0]
        for c in filters:
            more = [ResNetBlock(c, c, 1, norm, activation) for _ in range(blocks - 1)]
            self.levels.append(nn.Sequential(ResNetBlock(last, c, 2, norm, activation), *more))
            last = c
        self.head = nn.Conv2d(last, dim, 1)

    def forward(self, x):
        x, maps = self.stem(self.fold(x)), []
        for level in self.levels:
            maps.insert(0, x)
            x = level(x)
        return self.head(x), maps


def to_channels_last(system):
    """Lay out the weights of all 2-d convolutions as the fast kernels like them, in place."""
    for parameter in system.parameters():
        if parameter.dim() == 4:
            parameter.data = parameter.data.contiguous(memory_format=torch.channels_last)
