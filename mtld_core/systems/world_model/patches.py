"""Pictures as sequences of square patches, and back.

p: pixels along a patch's side; h w: the grid of patches; P = h w.
"""

import torch
from torch import nn


def to_patches(frames, p):
    """Cut pictures `[..., 3, H, W]` into patches `[..., P, 3pp]`; no value is changed."""
    x = frames.movedim(-3, -1)
    x = x.unflatten(-2, (-1, p)).unflatten(-4, (-1, p))  # [..., h, p, w, p, 3]
    x = x.transpose(-4, -3)  # [..., h, w, p, p, 3]
    return x.flatten(-3).flatten(-3, -2)


def to_frames(patches, p, height, width):
    """Join patches `[..., P, 3pp]` to pictures `[..., 3, H, W]`, in the memory order of channels_last."""
    grid = height // p, width // p
    x = patches.unflatten(-1, (p, p, 3)).unflatten(-4, grid)  # [..., h, w, p, p, 3]
    x = x.transpose(-4, -3)  # [..., h, p, w, p, 3]
    return x.flatten(-3, -2).flatten(-4, -3).movedim(-1, -3)


class PatchEmbedding(nn.Module):
    """Patches `[..., P, n]` -> tokens `[..., P, dim]`: a linear map, plus a learned vector for each place.

    Its bias starts at zero, as those of `SpaceTimeTransformer`.
    """

    def __init__(self, count, values, dim):
        super().__init__()
        self.project = nn.Linear(values, dim)
        nn.init.zeros_(self.project.bias)
        self.place = nn.Parameter(torch.randn(count, dim) * 0.02)

    def forward(self, patches):
        return self.project(patches) + self.place
