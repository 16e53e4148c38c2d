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


class CausalTimeAttention(nn.Module):
    """Attention of `[B, T, P, E]` over time, each patch for itself: a frame sees itself and the `span` - 1
    frames before it.

    Time is coded by a learned number for each head and distance (Shaw et al. 2018, as a bias), so what a
    frame sees does not depend on how many frames came before those, and keys and values can be kept: the next
    frame costs the same for ever.
    """

    def __init__(self, dim, heads, span):
        super().__init__()
        self.heads, self.head_dim, self.span = heads, dim // heads, span
        self.qkv, self.out = nn.Linear(dim, 3 * dim), nn.Linear(dim, dim)
        self.distance = nn.Parameter(torch.zeros(heads, span))

    def forward(self, x, past=None, keep=True):
        """past: keys and values `[B, P, H, S, D]` of at most span - 1 frames. Returns (`[B, T, P, E]`, the
        new past).

        keep: False where no frame follows these: then the new past, whose joining is most of a frame's
        copying, is None.
        """
        q, k, v = (
            self.qkv(x).unflatten(-1, (3, self.heads, self.head_dim)).permute(3, 0, 2, 4, 1, 5)
        )  # [B, P, H, T, D]
        seen = [(k, v)] if past is None else [past, (k, v)]
        scores = [q @ keys.transpose(-1, -2) for keys, _ in seen]  # [B, P, H, T, S]
        scores = scores[0] if past is None else torch.cat(scores, -1)
        weights = torch.softmax(scores * self.head_dim**-0.5 + self.bias(*scores.shape[-2:]), -1)
        parts = weights.split([keys.shape[3] for keys, _ in seen], -1)
        mixed = sum(w @ values for w, (_, values) in zip(parts, seen, strict=True)).permute(
            0, 3, 1, 2, 4
        )  # [B, T, P, H, D]
        first = max(0, scores.shape[-1] - self.span + 1)
        if keep:
            joined = (k, v) if past is None else [torch.cat(pair, 3) for pair in zip(*seen, strict=True)]
            past = tuple(one[..., first:, :] for one in joined)
        return self.out(mixed.flatten(-2)), past if keep else None

    def bias(self, frames, seen):
        """`[H, T, S]`: the number for each distance, minus infinity for what lies ahead or too far back."""
        if frames == 1:  # frame after frame, which is where every operation counts
            return self.distance[:, None, :seen].flip(-1)
        now = torch.arange(seen - frames, seen, device=self.distance.device)
        back = now[:, None] - torch.arange(seen, device=now.device)
        visible = (back >= 0) & (back < self.span)
        return torch.where(visible, self.distance[:, back.clamp(0, self.span - 1)], float("-inf"))


class Mlp(nn.Sequential):
    def __init__(self, dim, hidden):
        super().__init__(nn.Linear(dim, hidden), nn.SiLU(), nn.Linear(hidden, dim))


class Block(nn.Module):
    """`[N, P, E]` -> the same: attention over P and an MLP; both norms may take a condition `[N, 1,
    condition_dim]`.
    """

    def __init__(self, dim, heads, hidden, condition_dim=0):
        super().__init__()
        self.norm1, self.attention = Norm(dim, condition_dim), Attention(dim, heads)
        self.norm2, self.mlp = Norm(dim, condition_dim), Mlp(dim, hidden)

    def forward(self, x, condition=None):
        x = x + self.attention(self.norm1(x, condition))
        return x + self.mlp(self.norm2(x, condition))


class CrossAttention(nn.Module):
    """What `[N, P, E]` takes from one token `[N, 1, E]`, beside which lies an empty one.

    Over one token alone every weight would be 1 and no query would learn; so each place chooses how much it
    takes.
    """

    def __init__(self, dim, heads):
        super().__init__()
        self.heads = heads
        self.query, self.key_value, self.out = (
            nn.Linear(dim, dim),
            nn.Linear(dim, 2 * dim),
            nn.Linear(dim, dim),
        )

    def forward(self, x, token):
        q = self.query(x).unflatten(-1, (self.heads, -1)).transpose(1, 2)  # [N, H, P, D]
        k, v = (
            F.pad(self.key_value(token), (0, 0, 0, 1))
            .unflatten(-1, (2, self.heads, -1))
            .permute(2, 0, 3, 1, 4)
        )
        return self.out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


class CrossBlock(Block):
    """A `Block` whose places then take from a token `[N, 1, E]`."""

    def __init__(self, dim, heads, hidden):
        super().__init__(dim, heads, hidden)
        self.norm3, self.cross = Norm(dim), CrossAttention(dim, heads)

    def forward(self, x, token):
        x = super().forward(x)
        return x + self.cross(self.norm3(x), token)


class SpaceTimeBlock(nn.Module):
    """`[B, T, P, E]` -> the same: attention over the patches of a frame, causal attention over time, an
    MLP.
    """

    def __init__(self, dim, heads, hidden, span, condition_dim=0):
        super().__init__()
        self.norm1, self.space = Norm(dim, condition_dim), Attention(dim, heads)
        self.norm2, self.time = Norm(dim, condition_dim), CausalTimeAttention(dim, heads, span)
        self.norm3, self.mlp = Norm(dim, condition_dim), Mlp(dim, hidden)

    def forward(self, x, condition=None, past=None, keep=True):
        x = x + self.space(self.norm1(x, condition).flatten(0, 1)).view_as(x)
        mixed, past = self.time(self.norm2(x, condition), past, keep)
        x = x + mixed
        return x + self.mlp(self.norm3(x, condition)), past


class SpaceTimeTransformer(nn.Module):
    """Blocks over `[B, T, P, E]`. `forward(x, condition, past)` -> (out, past): past is what the next frames
    need of these.

    condition: `[B, T, condition_dim]`. past: a list, one entry a block; None at the start of a clip. keep:
    False where no frame follows these. One pass over a whole clip and frame after frame with the past are the
    same function.
    """

    def __init__(self, dim, heads, hidden, blocks, span, condition_dim=0):
        super().__init__()
        self.blocks = nn.ModuleList(
            [SpaceTimeBlock(dim, heads, hidden, span, condition_dim) for _ in range(blocks)]
        )
        self.norm = nn.LayerNorm(dim)

    def forward(self, x, condition=None, past=None, keep=True):
        condition = None if condition is None else condition[:, :, None]
        present = []
        for block, kept in zip(self.blocks, past or [None] * len(self.blocks), strict=True):
            x, kept = block(x, condition, kept, keep)
            present.append(kept)
        return self.norm(x), present
