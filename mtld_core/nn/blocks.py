"""Convolutional encoders and decoders between pictures and latent vectors."""

import torch
import torch.nn.functional as F
from torch import nn


def norm2d(kind, channels):
    """The normalisation layer named `kind`: "instance", "group" (8 channels a group) or "none"."""
    if kind == "instance":
        return nn.InstanceNorm2d(channels)
    return nn.GroupNorm(max(1, channels // 8), channels) if kind == "group" else nn.Identity()


class ConvEncoder(nn.Module):
    """Picture float `[N, 3, H, W]` -> latent `[N, latent_dim]`: 4x4 convolutions of stride 2, then one linear layer.

    H and W must be divisible by 2 ** len(channels). No norm after the first convolution (Radford et al. 2016) nor on a 1x1 map,
    which instance norm would erase.
    """

    def __init__(self, height, width, channels, latent_dim, norm="instance", in_channels=3):
        super().__init__()
        layers, last = [], in_channels
        for i, c in enumerate(channels):
            height, width = height // 2, width // 2
            kind = norm if i > 0 and height * width > 1 else "none"
            layers += [nn.Conv2d(last, c, 4, 2, 1), norm2d(kind, c), nn.LeakyReLU(0.2)]
            last = c
        self.body = nn.Sequential(*layers)
        self.head = nn.Linear(last * height * width, latent_dim)

    def forward(self, x):
        return self.head(self.body(x).flatten(1))


class ResBlock(nn.Module):
    """`[N, C, h, w]` -> the same: two 3x3 convolutions whose sum with the input starts as the input (zero-initialised)."""

    def __init__(self, channels, norm="none"):
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels, 3, 1, 1)
        self.norm = norm2d(norm, channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, 1, 1)
        nn.init.zeros_(self.conv2.weight)
        nn.init.zeros_(self.conv2.bias)

    def forward(self, x):
        return x + self.conv2(F.silu(self.norm(self.conv1(F.silu(x)))))


class UpDecoder(nn.Module):
    """Latent `[N, latent_dim]` -> picture `[N, 3, H, W]` in (-1, 1): len(channels) doublings of a linear map's grid.

    kind "transposed": 4x4 transposed convolutions; "resize": nearest-neighbour doubling and a 3x3 convolution, which leaves no
    checkerboard (Odena et al. 2016).
    """

    def __init__(self, height, width, channels, latent_dim, norm="instance", kind="transposed"):
        super().__init__()
        self.grid = (channels[0], height >> len(channels), width >> len(channels))
        self.stem = nn.Linear(latent_dim, self.grid[0] * self.grid[1] * self.grid[2])
        layers = []
        for i, c in enumerate(channels):
            last = i + 1 == len(channels)
            out = 3 if last else channels[i + 1]
            if kind == "transposed":
                layers.append(nn.ConvTranspose2d(c, out, 4, 2, 1))
            else:
                layers += [nn.Upsample(scale_factor=2), nn.Conv2d(c, out, 3, 1, 1)]
            layers += [nn.Tanh()] if last else [norm2d(norm, out), nn.ReLU()]
        self.body = nn.Sequential(*layers)

    def forward(self, z):
        return self.body(self.stem(z).unflatten(1, self.grid))


class ShuffleDecoder(nn.Module):
    """Latent `[N, latent_dim]` -> picture `[N, 3, H, W]`: all work on the coarse grid, a pixel shuffle, plus the mean.

    The last convolution gives 3 r^2 channels a cell, which the shuffle lays out as r x r pixels (Shi et al. 2016). Its output
    is a change to `mean` (a buffer that the data sets), so learning starts where the average frame already is. Values are not
    squashed; the border to uint8 clips them.
    """

    def __init__(self, height, width, channels, latent_dim, factor, blocks, norm="none"):
        super().__init__()
        self.grid = (channels, height // factor, width // factor)
        self.stem = nn.Linear(latent_dim, channels * self.grid[1] * self.grid[2])
        self.body = nn.Sequential(*[ResBlock(channels, norm) for _ in range(blocks)])
        self.head = nn.Conv2d(channels, 3 * factor**2, 3, 1, 1)
        self.shuffle = nn.PixelShuffle(factor)
        self.register_buffer("mean", torch.zeros(3, height, width))

    def forward(self, z):
        return self.mean + self.shuffle(self.head(self.body(self.stem(z).unflatten(1, self.grid))))
