"""Transformer blocks over the patches of a picture, and over time with a cache.

Letters: B batch, T frames, P patches a frame, E width, H heads, D = E / H, S frames that can be seen.
Everything is pre-norm: a sum of the input and of what attention and the MLP make of its normalised values.
"""

import torch
import torch.nn.functional as F
from torch import nn


class Norm(nn.Module):
    """LayerNorm over the last axis; with a `condition_dim` its scale and shift come from a condition (Peebles
    & Xie 2023).

    The modulation starts at zero: learning begins as if there were no condition.
    """

    def __init__(self, dim, condition_dim=0):
        super().__init__()
        self.norm = nn.LayerNorm(dim, elementwise_affine=not condition_dim)
        self.modulation = nn.Linear(condition_dim, 2 * dim) if condition_dim else None
        if condition_dim:
            nn.init.zeros_(self.modulation.weight)
            nn.init.zeros_(self.modulation.bias)

    def forward(self, x, condition=None):
        """condition: `[..., condition_dim]`, broadcast over the axes of x that it lacks right before the
        last.
        """
        x = self.norm(x)
        if self.modulation is None:
            return x
        scale, shift = self.modulation(condition).chunk(2, -1)
        return torch.addcmul(shift, x, 1 + scale)


class Attention(nn.Module):
    """Self-attention of `[N, P, E]` over P (Vaswani et al. 2017), in torch's fused kernel."""

    def __init__(self, dim, heads):
        super().__init__()
        self.heads, self.head_dim = heads, dim // heads
        self.qkv, self.out = nn.Linear(dim, 3 * dim), nn.Linear(dim, dim)

    def forward(self, x):
        q, k, v = (
            self.qkv(x).unflatten(-1, (3, self.heads, self.head_dim)).permute(2, 0, 3, 1, 4)
        )  # [N, H, P, D]
        return self.out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


class Mlp(nn.Sequential):
    def __init__(self, dim, hidden):
        super().__init__(nn.Linear(dim, hidden), nn.SiLU(), nn.Linear(hidden, dim))
