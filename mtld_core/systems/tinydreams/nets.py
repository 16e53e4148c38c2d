"""The networks of TinyDreams. Letters: N pictures, C channels, h w grid, P = h w, E width of a token."""

import itertools

import torch.nn.functional as F
from torch import nn

from mtld_core.nn.attention import Attention, Mlp, Norm
from mtld_core.nn.conv import ResNetBlock


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


class AttentionDecoder(nn.Module):
    """Tokens' map `[B, E, h, w]` -> `[B, 3, H, W]`: Transformer blocks, then each token's own pixels by a
    linear layer.
    """

    def __init__(self, dim, heads, hidden, layers, patch):
        super().__init__()
        self.blocks = nn.ModuleList([Block(dim, heads, hidden) for _ in range(layers)])
        self.norm, self.head = nn.LayerNorm(dim), nn.Linear(dim, 3 * patch**2)
        self.patch = patch

    def forward(self, x, levels=()):
        grid = x.shape[-2:]
        x = x.flatten(2).transpose(1, 2)  # [B, P, E]
        for block in self.blocks:
            x = block(x)
        return F.pixel_shuffle(self.head(self.norm(x)).transpose(1, 2).unflatten(2, grid), self.patch)


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
