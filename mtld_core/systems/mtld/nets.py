"""The networks of MTLD. Letters: N pictures, C channels, h w grid, L latent size, Z for `L` or `L, h, w`."""

import math

import torch
import torch.nn.functional as F
from torch import nn

from mtld_core.nn.conv import ResBlock, norm2d
from mtld_core.nn.precision import in_fp32


class Trajectory(nn.Module):
    """z_k `[B, Z]` -> z_k+1, ... by a GRU that reads its own output. The state is a list of `[B, hidden,
    ...]`, one a layer.
    """

    def __init__(self, latent_dim, hidden, layers, context=1, as_map=False):
        super().__init__()
        dense, cell = (Conv3x3, ConvGRUCell) if as_map else (nn.Linear, nn.GRUCell)
        self.init = nn.Sequential(dense(context * latent_dim, hidden), nn.ReLU(), dense(hidden, hidden))
        self.cells = nn.ModuleList([cell(hidden if i else latent_dim, hidden) for i in range(layers)])
        self.head = dense(hidden, latent_dim)

    def start(self, z):
        """Latents of the priming frames `[B, k, Z]` -> the initial state."""
        return [self.init(z.flatten(1, 2))] * len(self.cells)

    def step(self, z, hidden):
        new, x = [], z
        for cell, h in zip(self.cells, hidden, strict=True):
            x = cell(x, h)
            new.append(x)
        return self.head(x), new

    def forward(self, z, length):
        """`[B, k, Z]` -> `[B, length, Z]`."""
        hidden, z, out = self.start(z), z[:, -1], []
        for _ in range(length):
            z, hidden = self.step(z, hidden)
            out.append(z)
        return torch.stack(out, 1)


class Conv3x3(nn.Conv2d):
    def __init__(self, channels, out):
        super().__init__(channels, out, 3, 1, 1)


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


def feature_matching_loss(fake_features, real_features):
    """Sum over layers of the mean absolute difference (Wang et al. 2018); the real side carries no
    gradient.
    """
    pairs = zip(fake_features, real_features, strict=True)
    return sum(F.l1_loss(in_fp32(fake), in_fp32(real.detach())) for fake, real in pairs)
