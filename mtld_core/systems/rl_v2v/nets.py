"""The networks of RL-V2V-GAN.

B batch, T frames, C channels of a map, h w its grid, p frames of a state; other letters as in base.py.
"""

import itertools

import torch
import torch.nn.functional as F
from torch import nn

from mtld_core.nn.conv import Conv3x3, ResBlock, leaky_relu, norm2d, zeroed


class Translator(nn.Module):
    """Clips `[B, T, 3, H, W]` -> (clips of the same size, state): an encoder-decoder with memory and skips.

    As a translator G its frames are those of the other domain; as a predictor P its last one is the frame
    that comes next. Squares of `fold` x `fold` pixels are folded into channels; each of `channels` after the
    first halves the grid. residual: the output is a linear map of each pixel's colour plus a change, not
    squashed; otherwise a tanh. state: of the ConvLSTM, None at the start of a clip.
    """

    def __init__(self, channels, fold, blocks, memory, norm="group", residual=True):
        super().__init__()
        self.fold = fold
        self.residual = residual
        pixels = 3 * fold**2
        pairs = list(itertools.pairwise(channels))
        self.stem = Conv3x3(pixels, channels[0])
        self.downs = nn.ModuleList()
        for a, b in pairs:
            self.downs.append(nn.Sequential(nn.SiLU(), nn.Conv2d(a, b, 4, 2, 1)))
        coarsest = channels[-1]
        self.blocks = nn.Sequential(*[ResBlock(coarsest, norm) for _ in range(blocks)])
        self.memory = ConvLSTM(coarsest, memory)
        self.recall = nn.Conv2d(memory, coarsest, 1)
        self.ups = nn.ModuleList(Conv3x3(b, a) for a, b in reversed(pairs))
        last = Conv3x3(channels[0], pixels)
        self.head = nn.Sequential(norm2d(norm, channels[0]), nn.SiLU(), last)
        if residual:
            self.colour = nn.Conv2d(3, 3, 1)
            zeroed(last)
            self.set_colour(torch.eye(3), torch.zeros(3))

    def set_colour(self, matrix, shift):
        """Let the untrained network map colours (in [-1, 1]) linearly: `[3, 3]`, `[3]`."""
        with torch.no_grad():
            self.colour.weight.copy_(matrix[..., None, None])
            self.colour.bias.copy_(shift)

    def forward(self, frames, state=None):
        clips = frames.shape[:2]  # B, T
        pictures = frames.flatten(0, 1)  # [B * T, 3, H, W]
        x = self.stem(F.pixel_unshuffle(pictures, self.fold))
        skips = []
        for down in self.downs:
            skips.append(x)
            x = down(x)
        x = self.blocks(x)
        seen, state = self.memory(x.unflatten(0, clips), state)
        x = x + self.recall(seen.flatten(0, 1))
        for up in self.ups:
            x = up(F.interpolate(F.silu(x), scale_factor=2)) + skips.pop()
        x = F.pixel_shuffle(self.head(x), self.fold)  # [B * T, 3, H, W]
        x = self.colour(pictures) + x if self.residual else torch.tanh(x)
        return x.unflatten(0, clips), state


class DownBlock(nn.Module):
    """`[N, C, h, w]` -> `[N, out, h/2, w/2]`: two convolutions and a shortcut."""

    def __init__(self, channels, out):
        super().__init__()
        self.conv1 = nn.Conv2d(channels, out, 4, 2, 1)
        self.conv2 = Conv3x3(out, out)
        self.shortcut = nn.Conv2d(channels, out, 1)

    def forward(self, x):
        y = self.conv1(leaky_relu(x))
        y = self.conv2(leaky_relu(y))
        return self.shortcut(F.avg_pool2d(x, 2)) + y


class Trunk(nn.Module):
    """Clips `[B, T, 3, H, W]` -> maps `[B, T, C, h, w]`, a frame at a time, by residual blocks."""

    def __init__(self, channels, fold):
        super().__init__()
        self.fold = fold
        self.stem = Conv3x3(3 * fold**2, channels[0])
        self.blocks = nn.Sequential(*[DownBlock(a, b) for a, b in itertools.pairwise(channels)])

    def forward(self, clips):
        x = F.pixel_unshuffle(clips.flatten(0, 1), self.fold)
        return self.blocks(self.stem(x)).unflatten(0, clips.shape[:2])


class ClipHead(nn.Module):
    """Maps `[B, T, C, h, w]` -> `[B, n]`: a residual block in space and time, a linear layer.

    pooled: n = 1, else T h w.
    """

    def __init__(self, channels, pooled):
        super().__init__()
        self.pooled = pooled
        self.block = ResBlock3d(channels)
        self.out = nn.Conv3d(channels, 1, 1)

    def forward(self, maps):
        x = leaky_relu(self.block(maps.transpose(1, 2)))  # [B, C, T, h, w]
        if self.pooled:
            x = x.mean((2, 3, 4), keepdim=True)
        return self.out(x).flatten(1)


class Discriminator(nn.Module):
    """Clips `[B, T, 3, H, W]` -> (logits of the frames `[B, T, n]`, logits of the clip `[B, m]`).

    grid: (h, w) of the last maps for one verdict on each frame, by a fully connected layer, and one on the
    clip; None for a verdict on each place (Isola et al. 2017).
    """

    def __init__(self, channels, fold, grid=None):
        super().__init__()
        self.trunk = Trunk(channels, fold)
        self.clip = ClipHead(channels[-1], pooled=grid is not None)
        self.frame = nn.Conv2d(channels[-1], 1, grid or 1)

    def forward(self, clips):
        maps = self.trunk(clips)
        frames = self.frame(leaky_relu(maps.flatten(0, 1))).flatten(1)  # [B * T, n]
        return frames.unflatten(0, clips.shape[:2]), self.clip(maps)


class Value(nn.Module):
    """Q: (states `[B, p, 3, H, W]`, actions `[B, 3, H, W]`) -> `[B]`, of any sign: rewards are negative."""

    def __init__(self, channels, fold):
        super().__init__()
        self.trunk = Trunk(channels, fold)
        self.clip = ClipHead(channels[-1], pooled=True)

    def forward(self, states, actions):
        clips = torch.cat([states, actions[:, None]], 1)
        return self.clip(self.trunk(clips)).squeeze(1)


class ConvLSTM(nn.Module):
    """`nn.LSTM` on maps (Shi et al. 2015): clips `[B, T, C, h, w]` -> (hidden `[B, T, hidden, h, w]`, state).

    state: (hidden, cell), each `[B, hidden, h, w]`, to go on with; None stands for zeros. The gates lie in
    the order input, forget, new, output.
    """

    def __init__(self, channels, hidden):
        super().__init__()
        self.from_input = Conv3x3(channels, 4 * hidden)
        self.from_hidden = nn.Conv2d(hidden, 4 * hidden, 3, 1, 1, bias=False)
        with torch.no_grad():
            self.from_input.bias[hidden : 2 * hidden] = 1  # remember at first (Jozefowicz et al. 2015)

    def forward(self, x, state=None):
        gates = self.from_input(x.flatten(0, 1)).unflatten(0, x.shape[:2])  # those of all frames at once
        shown = []
        for gate in gates.unbind(1):
            if state is not None:
                gate = gate + self.from_hidden(state[0])
            enter, keep, new, show = gate.chunk(4, 1)
            cell = enter.sigmoid() * new.tanh()
            if state is not None:
                cell = cell + keep.sigmoid() * state[1]
            hidden = show.sigmoid() * cell.tanh()
            state = (hidden, cell)
            shown.append(hidden)
        return torch.stack(shown, 1), state


class ResBlock3d(nn.Module):
    """Clips of maps `[N, C, T, h, w]` -> the same shape: two 3x3x3 convolutions and a shortcut."""

    def __init__(self, channels):
        super().__init__()
        self.conv1 = nn.Conv3d(channels, channels, 3, 1, 1)
        self.conv2 = nn.Conv3d(channels, channels, 3, 1, 1)

    def forward(self, x):
        y = self.conv1(leaky_relu(x))
        return x + self.conv2(leaky_relu(y))
