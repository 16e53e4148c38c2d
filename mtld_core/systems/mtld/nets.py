"""The networks of MTLD, each made from an `MTLDConfig`, and the losses that only it has.

Letters: N pictures, C channels, h w grid, L latent_dim, Z a latent: `L`, or with latent="map" `L, h, w`.
"""

import math

import torch
import torch.nn.functional as F
from torch import nn

from mtld_core.nn.conv import Conv3x3, ResBlock, laid_out, norm2d, zeroed
from mtld_core.nn.precision import in_fp32, without_autocast

FUSED_CELL = torch.ops.aten._thnn_fused_gru_cell  # of rows: (gates, gates, state) -> (new state, workspace)
ROLLS = 4  # that begin in a window while one of them runs its course, about


class ConvEncoder(nn.Module):
    """Pictures float `[N, 3, H, W]` -> latents `[N, Z]`: 4x4 convolutions of stride 2, then a linear layer.

    With latent="map" that layer is a 1x1 convolution. There is no norm after the first convolution (Radford
    et al. 2016) nor on a grid of one cell, which instance norm would erase.
    """

    def __init__(self, config):
        super().__init__()
        height, width = config.height, config.width
        layers = []
        last = 3
        for i, channels in enumerate(config.encoder_channels):
            height, width = height // 2, width // 2
            kind = config.encoder_norm if i and height * width > 1 else "none"
            layers += [nn.Conv2d(last, channels, 4, 2, 1), norm2d(kind, channels), nn.LeakyReLU(0.2)]
            last = channels
        self.body = nn.Sequential(*layers)
        self.as_map = config.latent == "map"
        if self.as_map:
            self.head = nn.Conv2d(last, config.latent_dim, 1)
        else:
            self.head = nn.Linear(last * height * width, config.latent_dim)

    def forward(self, x):
        x = self.body(laid_out(x))
        return self.head(x if self.as_map else x.flatten(1))


class Trajectory(nn.Module):
    """Latents of the priming frames -> those that follow, by a GRU that reads its own output.

    Its state is a list of one tensor a layer, `[B, hidden]`, or `[B, hidden, h, w]` with latent="map". With
    gru_gives="change" it gives the change from a latent to the next, 0 at first: learning begins at a still.
    """

    def __init__(self, config):
        super().__init__()
        latent, hidden = config.latent_dim, config.gru_hidden
        as_map = config.latent == "map"
        dense = Conv3x3 if as_map else nn.Linear
        cell = ConvGRUCell if as_map else nn.GRUCell
        self.init = nn.Sequential(
            dense(config.context_frames * latent, hidden), nn.ReLU(), dense(hidden, hidden)
        )
        self.cells = nn.ModuleList(cell(hidden if i else latent, hidden) for i in range(config.gru_layers))
        self.head = dense(hidden, latent)
        self.changes = config.gru_gives == "change"
        if self.changes:
            zeroed(self.head)

    def start(self, z):
        """Latents of the priming frames `[B, k, Z]` -> the initial state."""
        return [self.init(laid_out(z.flatten(1, 2)))] * len(self.cells)

    def step(self, z, hidden):
        """Go one frame on: (z_t `[B, Z]`, state) -> (z_t+1 `[B, Z]`, state)."""
        new = []
        x = laid_out(z)
        for cell, old in zip(self.cells, hidden, strict=True):
            x = cell(x, old)
            new.append(x)
        made = self.head(x)
        return (z + made if self.changes else made), new

    def go_on(self, z, hidden, length):
        """Go `length` frames on: (z_t `[B, Z]`, state) -> (z_t+1 ... z_t+length `[B, length, Z]`, state)."""
        path = []
        for _ in range(length):
            z, hidden = self.step(z, hidden)
            path.append(z)
        return torch.stack(path, 1), hidden

    def forward(self, z, length):
        """Latents of the priming frames `[B, k, Z]` -> those that follow `[B, length, Z]`."""
        path, _ = self.go_on(z[:, -1], self.start(z), length)
        return path

    def from_many(self, z, context, reach):
        """Roll from many frames of a window side by side, `reach` frames far or to its end.

        z: the latents of whole windows `[B, T, Z]`. A roll begins after the first `context` frames, and again
        every few frames: the shorter they are, the more. Returns (latents made `[m, B, Z]`, a list of the m
        frames of the window that they are meant for).
        """
        length = z.shape[1]
        lasts = range(context - 1, length - 1, max(1, reach // ROLLS))  # the priming frame of each roll
        given = torch.cat([z[:, last + 1 - context : last + 1] for last in lasts])
        x, hidden = given[:, -1], self.start(given)
        made, meant = [], []
        for far in range(1, reach + 1):
            targets = [last + far for last in lasts if last + far < length]
            alive = len(targets) * len(z)  # the rolls that begin last end first
            x, hidden = self.step(x[:alive], [layer[:alive] for layer in hidden])
            made.append(x)
            meant += targets
        return torch.cat(made).unflatten(0, (-1, len(z))), meant


class ConvGRUCell(nn.Module):
    """`nn.GRUCell` on maps (Ballas et al. 2016): 3x3 convolutions in place of its linear layers.

    (input `[N, C, h, w]`, state `[N, hidden, h, w]`) -> the new state.
    """

    def __init__(self, channels, hidden):
        super().__init__()
        self.from_input = Conv3x3(channels, 3 * hidden)
        self.from_hidden = Conv3x3(hidden, 3 * hidden)

    def forward(self, x, hidden):
        if x.is_cuda and not torch.compiler.is_compiling():
            return fused_gru(self.from_input(x), self.from_hidden(hidden), hidden)
        reset_x, update_x, new_x = self.from_input(x).chunk(3, 1)
        reset_h, update_h, new_h = self.from_hidden(hidden).chunk(3, 1)
        reset = torch.sigmoid(reset_x + reset_h)
        update = torch.sigmoid(update_x + update_h)
        return torch.lerp(torch.tanh(new_x + reset * new_h), hidden, update)


def fused_gru(from_input, from_hidden, hidden):
    """What `ConvGRUCell` makes of its convolutions' maps, in the one kernel that `nn.GRUCell` has on a GPU.

    from_input, from_hidden: `[N, 3 hidden, h, w]`. hidden: `[N, hidden, h, w]`; all best in channels_last.
    """
    rows = [maps.movedim(1, -1).flatten(0, 2) for maps in (from_input, from_hidden, hidden)]
    new, _ = FUSED_CELL(*rows)
    size, _, height, width = hidden.shape
    return new.view(size, height, width, -1).movedim(-1, 1)


def stem(config, grid):
    """Make the layer from a latent to the numbers of a decoder's first map. grid: its shape, (C, h, w)."""
    if config.latent == "map":
        return Conv3x3(config.latent_dim, grid[0])
    return nn.Linear(config.latent_dim, math.prod(grid))


class UpDecoder(nn.Module):
    """Latents `[N, Z]` -> pictures `[N, 3, H, W]` in (-1, 1): a coarse map, doubled again and again.

    decoder="transposed" doubles it by 4x4 transposed convolutions, decoder="resize" by nearest neighbours and
    a 3x3 convolution, which leaves no checkerboard (Odena et al. 2016).
    """

    def __init__(self, config):
        super().__init__()
        widths = config.decoder_channels
        self.grid = (widths[0], config.height >> len(widths), config.width >> len(widths))
        self.stem = stem(config, self.grid)
        layers = []
        for channels, out in zip(widths, [*widths[1:], 3], strict=True):
            if config.decoder == "transposed":
                layers.append(nn.ConvTranspose2d(channels, out, 4, 2, 1))
            else:
                layers += [nn.Upsample(scale_factor=2), Conv3x3(channels, out)]
            layers += [norm2d(config.decoder_norm, out), nn.ReLU()]
        self.body = nn.Sequential(*layers[:-2], nn.Tanh())  # in place of the last norm and ReLU

    def forward(self, z, given=None):
        """given: the priming frames, which this decoder does not use."""
        return self.body(self.stem(laid_out(z)).reshape(-1, *self.grid))


class ShuffleDecoder(nn.Module):
    """Latents `[N, Z]` -> pictures `[N, 3, H, W]`: a change, drawn on a coarse grid, to a picture.

    The last convolution gives 3 r^2 channels a cell (r: shuffle_factor), which a shuffle lays out as r x r
    pixels (Shi et al. 2016). They change `mean`, a buffer that the data sets, or, with a `skip`, the priming
    frame, whose pixels then also enter the coarse grid. skip="warp" first moves that frame's pixels by a flow
    that comes out of the same convolution. So learning starts at the average frame, or at the copied one.
    Values may leave [-1, 1]; `to_uint8` clips them.
    """

    def __init__(self, config):
        super().__init__()
        (channels,) = config.decoder_channels
        factor = config.shuffle_factor
        self.skip = config.skip
        self.grid = (channels, config.height // factor, config.width // factor)
        self.stem = stem(config, self.grid)
        blocks = [ResBlock(channels, config.decoder_norm) for _ in range(config.decoder_blocks)]
        self.body = nn.Sequential(*blocks)
        drawn = 5 if self.skip == "warp" else 3  # colours, and a flow
        self.head = Conv3x3(channels, drawn * factor**2)
        self.shuffle = nn.PixelShuffle(factor)
        if self.skip == "none":
            self.register_buffer("mean", torch.zeros(3, config.height, config.width))
        else:
            self.embed = nn.Sequential(nn.PixelUnshuffle(factor), nn.Conv2d(3 * factor**2, channels, 1))
            zeroed(self.head)

    def forward(self, z, given=None):
        """given: priming frames `[M, 3, H, W]`, each for the next N / M latents; unused without a skip."""
        x = self.stem(laid_out(z)).reshape(-1, *self.grid)
        if self.skip == "none":
            return self.mean + self._draw(x)
        repeats = len(z) // len(given)
        change = self._draw(x + self.embed(given).repeat_interleave(repeats, 0))
        given = given.repeat_interleave(repeats, 0)
        if self.skip == "warp":
            return warp(given, change[:, 3:]) + change[:, :3]
        return given + change

    def _draw(self, x):
        return self.shuffle(self.head(self.body(x)))


def warp(pictures, flow):
    """Take each pixel of pictures `[N, C, H, W]` from where `flow` `[N, 2, H, W]` points to.

    The flow is x and y, in half sides of the picture; beyond the border its pixels go on. It runs in fp32,
    for places in bf16 would be off by half a pixel.
    """
    flow = flow.to(pictures.dtype).movedim(1, -1)  # [N, H, W, 2]
    with without_autocast(flow):
        identity = torch.eye(2, 3, device=flow.device, dtype=flow.dtype).expand(len(flow), -1, -1)
        places = F.affine_grid(identity, list(pictures.shape), align_corners=False)
        return F.grid_sample(pictures, places + flow, padding_mode="border", align_corners=False)


def feature_matching_loss(fake_features, real_features):
    """Sum over layers of the mean absolute difference of two lists of feature maps (Wang et al. 2018).

    Only the maps of the fake pictures get a gradient.
    """
    pairs = zip(fake_features, real_features, strict=True)
    return sum(F.l1_loss(in_fp32(fake), in_fp32(real.detach())) for fake, real in pairs)
