"""Transformer blocks over the patches of a frame and, with a cache, over time.

Letters: B batch, T frames, P patches a frame, E width, H heads, D = E / H, S frames that can be seen.
"""

import torch
import torch.nn.functional as F
from torch import nn

from mtld_core.nn.attention import Attention, Mlp, Norm


class CausalTimeAttention(Attention):
    """Attention of `[B, T, P, E]` over time, each patch by itself, to the last `span` frames with its own.

    Time is coded by a learned bias for each head and distance (Shaw et al. 2018). So what a frame sees does
    not depend on how many frames came before those, keys and values can be kept, and each further frame costs
    the same.
    """

    def __init__(self, dim, heads, span):
        super().__init__(dim, heads)
        self.head_dim = dim // heads
        self.span = span
        self.distance = nn.Parameter(torch.zeros(heads, span))

    def forward(self, x, past=None, keep=True):
        """Frames `[B, T, P, E]` and the past of those before -> (`[B, T, P, E]`, the new past).

        past: (keys, values), each `[B, P, H, S, D]`, of at most span - 1 frames. keep: False where no frame
        follows these: then the new past is None, which spares most of a frame's copying.
        """
        qkv = self.qkv(x).unflatten(-1, (3, self.heads, self.head_dim))
        q, k, v = qkv.permute(3, 0, 2, 4, 1, 5)  # [B, P, H, T, D]
        seen = [(k, v)] if past is None else [past, (k, v)]
        mixed = self.fused(q, k, v) if x.is_cuda and past is None else self.mixed(q, seen)
        out = self.out(mixed.permute(0, 3, 1, 2, 4).flatten(-2))  # [B, T, P, E]
        if not keep:
            return out, None
        joined = (k, v) if past is None else [torch.cat(pair, 3) for pair in zip(*seen, strict=True)]
        first = max(0, joined[0].shape[3] - self.span + 1)
        return out, tuple(one[..., first:, :] for one in joined)

    def mixed(self, q, seen):
        """Attention of q `[B, P, H, T, D]` to parts, (keys, values) `[B, P, H, S, D]` each: shaped as q."""
        scores = [q @ keys.transpose(-1, -2) for keys, _ in seen]
        scores = torch.cat(scores, -1) if len(seen) > 1 else scores[0]  # [B, P, H, T, S]
        weights = torch.softmax(scores * self.head_dim**-0.5 + self.bias(*scores.shape[-2:]), -1)
        parts = weights.split([keys.shape[3] for keys, _ in seen], -1)
        return sum(part @ values for part, (_, values) in zip(parts, seen, strict=True))

    def fused(self, q, k, v):
        """Attention of a whole clip in torch's fused kernel: `[B, P, H, T, D]` each, and what comes out."""
        size, frames = q.shape[:2], q.shape[3]
        bias = self.bias(frames, frames).to(q.dtype)
        q, k, v = (each.flatten(0, 1) for each in (q, k, v))
        return F.scaled_dot_product_attention(q, k, v, attn_mask=bias[None]).unflatten(0, size)

    def bias(self, frames, seen):
        """What is added to the scores, `[H, T, S]`: minus infinity for what lies ahead or too far back.

        frames: T. seen: S, of which the last T are the frames themselves.
        """
        if frames == 1:  # frame after frame, which is where every operation counts
            return self.distance[:, None, :seen].flip(-1)
        # the last frame's row, the farthest first, and then what lies ahead of the frames before it, whose
        # rows begin further on
        far = max(0, seen - self.span)
        row = F.pad(self.distance[:, :seen].flip(-1), (far, frames - 1), value=float("-inf"))
        return row.unfold(-1, seen, 1).flip(1)


class SpaceTimeBlock(nn.Module):
    """Attention of `[B, T, P, E]` over the patches of a frame, causal attention over time, and an MLP.

    condition: `[B, T, 1, condition_dim]`, which moves the norms. past, keep: see `CausalTimeAttention`.
    """

    def __init__(self, dim, heads, hidden, span, condition_dim):
        super().__init__()
        self.norm1 = Norm(dim, condition_dim)
        self.space = Attention(dim, heads)
        self.norm2 = Norm(dim, condition_dim)
        self.time = CausalTimeAttention(dim, heads, span)
        self.norm3 = Norm(dim, condition_dim)
        self.mlp = Mlp(dim, hidden)

    def forward(self, x, condition, past, keep):
        x = x + self.space(self.norm1(x, condition).flatten(0, 1)).view_as(x)
        mixed, past = self.time(self.norm2(x, condition), past, keep)
        x = x + mixed
        return x + self.mlp(self.norm3(x, condition)), past


class SpaceTimeTransformer(nn.Module):
    """Space-time blocks over `[B, T, P, E]`: `forward` gives their output and what the next frames need.

    condition: `[B, T, condition_dim]`. past: a list, one entry a block; None at the start of a clip. keep:
    False where no frame follows these. One pass over a whole clip gives what frame after frame gives.

    Biases start at zero: torch's are random and the same for all tokens, so that what differs between these,
    which is little where most patches show what they always do, would drown.
    """

    def __init__(self, dim, heads, hidden, blocks, span, condition_dim=0):
        super().__init__()
        layers = [SpaceTimeBlock(dim, heads, hidden, span, condition_dim) for _ in range(blocks)]
        self.blocks = nn.ModuleList(layers)
        self.norm = nn.LayerNorm(dim)
        for layer in self.modules():
            if isinstance(layer, nn.Linear):
                nn.init.zeros_(layer.bias)

    def forward(self, x, condition=None, past=None, keep=True):
        if condition is not None:
            condition = condition[:, :, None]
        past = past or [None] * len(self.blocks)
        present = []
        for block, kept in zip(self.blocks, past, strict=True):
            x, kept = block(x, condition, kept, keep)
            present.append(kept)
        return self.norm(x), present
