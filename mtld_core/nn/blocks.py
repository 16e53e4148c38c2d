"""Convolutional encoders and decoders between pictures and latents (vectors or maps), and a convolutional
GRU.
"""

import itertools
import math

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


class ConvEncoder(nn.Module):
    """Picture float `[N, 3, H, W]` -> latent `[N, latent_dim]`, or with `as_map` `[N, latent_dim, h, w]`.

    4x4 convolutions of stride 2, then one linear layer (a 1x1 convolution for a map).

    H and W must be divisible by 2 ** len(channels). No norm after the first convolution (Radford et al. 2016)
    nor on a 1x1 map, which instance norm would erase.
    """

    def __init__(self, height, width, channels, latent_dim, norm="instance", as_map=False, in_channels=3):
        super().__init__()
        layers, last = [], in_channels
        for i, c in enumerate(channels):
            height, width = height // 2, width // 2
            kind = norm if i > 0 and height * width > 1 else "none"
            layers += [nn.Conv2d(last, c, 4, 2, 1), norm2d(kind, c), nn.LeakyReLU(0.2)]
            last = c
        self.body = nn.Sequential(*layers)
        self.head = nn.Conv2d(last, latent_dim, 1) if as_map else nn.Linear(last * height * width, latent_dim)
        self.as_map = as_map

    def forward(self, x):
        x = self.body(x)
        return self.head(x if self.as_map else x.flatten(1))


class ConvGRUCell(nn.Module):
    """`nn.GRUCell` on maps: (input `[N, C, h, w]`, hidden `[N, hidden, h, w]`) -> new hidden (Ballas et al.
    2016).
    """

    def __init__(self, channels, hidden):
        super().__init__()
        self.from_input = nn.Conv2d(channels, 3 * hidden, 3, 1, 1)
        self.from_hidden = nn.Conv2d(hidden, 3 * hidden, 3, 1, 1)

    def forward(self, x, hidden):
        reset_x, update_x, new_x = self.from_input(x).chunk(3, 1)
        reset_h, update_h, new_h = self.from_hidden(hidden).chunk(3, 1)
        new = torch.tanh(new_x + torch.sigmoid(reset_x + reset_h) * new_h)
        return torch.lerp(new, hidden, torch.sigmoid(update_x + update_h))


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


def stem(latent_dim, grid, as_map):
    """Latent -> the numbers of a decoder's first map, `grid`: a 3x3 convolution of a map, a linear layer of a
    vector.
    """
    return nn.Conv2d(latent_dim, grid[0], 3, 1, 1) if as_map else nn.Linear(latent_dim, math.prod(grid))


class UpDecoder(nn.Module):
    """Latent -> picture `[N, 3, H, W]` in (-1, 1): len(channels) doublings of a linear map's grid.

    kind "transposed": 4x4 transposed convolutions; "resize": nearest-neighbour doubling and a 3x3
    convolution, which leaves no checkerboard (Odena et al. 2016).
    """

    def __init__(self, height, width, channels, latent_dim, norm="instance", kind="transposed", as_map=False):
        super().__init__()
        self.grid = (channels[0], height >> len(channels), width >> len(channels))
        self.stem = stem(latent_dim, self.grid, as_map)
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

    def forward(self, z, given=None):
        return self.body(self.stem(z).reshape(-1, *self.grid))


class ShuffleDecoder(nn.Module):
    """Latent -> picture `[N, 3, H, W]`: all work on the coarse grid, a pixel shuffle, plus a picture to start
    from.

    The last convolution gives 3 r^2 channels a cell, which the shuffle lays out as r x r pixels (Shi et al.
    2016). Its output is a change: to `mean` (a buffer that the data sets), or, with a `skip`, to the priming
    frame, whose pixels then also enter the coarse grid. skip "warp" first moves that frame's pixels by a flow
    that comes out of the same convolution. So learning starts at the average frame, or at the copied one.
    Values are not squashed; the border to uint8 clips them.
    """

    def __init__(
        self, height, width, channels, latent_dim, factor, blocks, norm="none", as_map=False, skip="none"
    ):
        super().__init__()
        self.skip = skip
        self.grid = (channels, height // factor, width // factor)
        self.stem = stem(latent_dim, self.grid, as_map)
        self.body = nn.Sequential(*[ResBlock(channels, norm) for _ in range(blocks)])
        self.head = nn.Conv2d(channels, (5 if skip == "warp" else 3) * factor**2, 3, 1, 1)
        self.shuffle = nn.PixelShuffle(factor)
        if skip == "none":
            self.register_buffer("mean", torch.zeros(3, height, width))
        else:
            self.embed = nn.Sequential(nn.PixelUnshuffle(factor), nn.Conv2d(3 * factor**2, channels, 1))
            nn.init.zeros_(self.head.weight)
            nn.init.zeros_(self.head.bias)

    def forward(self, z, given=None):
        """given: priming frames `[M, 3, H, W]`, each for the next N / M latents; unused without a skip."""
        x = self.stem(z).reshape(-1, *self.grid)
        if self.skip == "none":
            return self.mean + self.shuffle(self.head(self.body(x)))
        repeats = len(z) // len(given)
        x = self.shuffle(self.head(self.body(x + self.embed(given).repeat_interleave(repeats, 0))))
        given = given.repeat_interleave(repeats, 0)
        return given + x if self.skip == "features" else warp(given, x[:, 3:]) + x[:, :3]


def warp(pictures, flow):
    """Each pixel of `[N, C, H, W]` taken from where `flow` `[N, 2, H, W]` (x and y, in half sides of the
    picture) points to.

    In fp32: places in bf16 would be off by half a pixel.
    """
    with torch.autocast(flow.device.type, enabled=False):
        identity = torch.eye(2, 3, device=flow.device, dtype=pictures.dtype).expand(len(flow), -1, -1)
        grid = F.affine_grid(identity, list(pictures.shape), align_corners=False) + flow.to(
            pictures.dtype
        ).movedim(1, -1)
        return F.grid_sample(pictures, grid, padding_mode="border", align_corners=False)


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


class PatchTokenizer(nn.Conv2d):
    """Pictures `[N, C, H, W]` -> (map of tokens `[N, dim, H / patch, W / patch]`, no maps): each patch by one
    linear map.
    """

    def __init__(self, channels, dim, patch):
        super().__init__(channels, dim, patch, patch)

    def forward(self, x):
        return super().forward(x), []


class ConvDecoder(nn.Module):
    """Map of tokens `[N, dim, h, w]` -> `[N, 3, h patch, w patch]`: nearest-neighbour doublings, ResNet
    blocks after each.

    The doublings that `filters` lack up to `patch` are made by one pixel shuffle (Shi et al. 2016) at the
    end. skips: widths of the maps that `forward` is given for each level, coarsest first, and adds.
    """

    def __init__(self, dim, filters, blocks, patch, norm="instance", activation="gelu", skips=()):
        super().__init__()
        sizes, fold = [dim, *filters], patch >> len(filters)
        self.narrow = nn.ModuleList([nn.Conv2d(last, c, 1) for last, c in itertools.pairwise(sizes)])
        self.skips = nn.ModuleList([nn.Conv2d(skip, c, 1) for skip, c in zip(skips, filters, strict=False)])
        self.levels = nn.ModuleList(
            [nn.Sequential(*[ResNetBlock(c, c, 1, norm, activation) for _ in range(blocks)]) for c in filters]
        )
        self.head, self.unfold = nn.Conv2d(sizes[-1], 3 * fold**2, 3, 1, 1), nn.PixelShuffle(fold)

    def forward(self, x, maps=()):
        for i, (narrow, level) in enumerate(zip(self.narrow, self.levels, strict=True)):
            x = F.interpolate(narrow(x), scale_factor=2)
            x = level(x + self.skips[i](maps[i]) if self.skips else x)
        return self.unfold(self.head(x))
