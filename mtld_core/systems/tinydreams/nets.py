"""The networks of TinyDreams. Letters: N pictures, C channels, h w grid, P = h w, E width of a token."""

import itertools

import torch.nn.functional as F
from torch import nn

from mtld_core.nn.attention import Attention, Mlp, Norm
from mtld_core.nn.conv import Conv3x3, ResNetBlock
from mtld_core.nn.precision import without_autocast


class Block(nn.Module):
    """A Transformer block over `[N, P, E]`: attention over P and an MLP, each after a norm.

    condition_dim: of the condition `[N, 1, condition_dim]` that moves both norms; with 0 it is ignored.
    """

    def __init__(self, dim, heads, hidden, condition_dim=0):
        super().__init__()
        self.norm1 = Norm(dim, condition_dim)
        self.attention = Attention(dim, heads)
        self.norm2 = Norm(dim, condition_dim)
        self.mlp = Mlp(dim, hidden)

    def forward(self, x, condition=None):
        x = x + self.attention(self.norm1(x, condition))
        return x + self.mlp(self.norm2(x, condition))


class CrossBlock(Block):
    """A Transformer block over `[N, P, E]`, after which each place attends to one token `[N, 1, E]`."""

    def __init__(self, dim, heads, hidden):
        super().__init__(dim, heads, hidden)
        self.norm3 = Norm(dim)
        self.cross = CrossAttention(dim, heads)

    def forward(self, x, token):
        x = super().forward(x)
        return x + self.cross(self.norm3(x), token)


class CrossAttention(nn.Module):
    """Cross-attention of places `[N, P, E]` to one token `[N, 1, E]`, beside which lies an empty one.

    Over one token alone every weight would be 1 and no query would learn. With two, each place chooses how
    much it takes.
    """

    def __init__(self, dim, heads):
        super().__init__()
        self.heads = heads
        self.query = nn.Linear(dim, dim)
        self.key_value = nn.Linear(dim, 2 * dim)
        self.out = nn.Linear(dim, dim)

    def forward(self, x, token):
        q = self.query(x).unflatten(-1, (self.heads, -1)).transpose(1, 2)  # [N, H, P, D]
        tokens = F.pad(self.key_value(token), (0, 0, 0, 1))  # [N, 2, 2E]
        k, v = tokens.unflatten(-1, (2, self.heads, -1)).permute(2, 0, 3, 1, 4)  # [N, H, 2, D] each
        mixed = F.scaled_dot_product_attention(q, k, v)
        return self.out(mixed.transpose(1, 2).flatten(2))


class PatchTokenizer(nn.Conv2d):
    """Pictures `[N, C, H, W]` -> (tokens `[N, dim, H / patch, W / patch]`, no maps): a linear map a patch."""

    def __init__(self, channels, dim, patch):
        super().__init__(channels, dim, patch, patch)

    def forward(self, x):
        return super().forward(x), []


def channels_drawn(config):
    """Channels C that a decoder draws: colours, and where the output is anchored a mask."""
    return 4 if config.output == "anchored" else 3


class ConvDecoder(nn.Module):
    """Tokens `[N, E, h, w]` -> pictures `[N, C, h patch_size, w patch_size]`, by doublings of the grid.

    For each of decoder_filters nearest neighbours double it, and ResNet blocks follow. What is then missing
    up to patch_size one pixel shuffle makes (Shi et al. 2016). skips: channels of the maps that `forward` is
    given, coarsest first, and adds one a level; () for none.
    """

    def __init__(self, config, skips):
        super().__init__()
        filters = config.decoder_filters
        sizes = [config.embed_dim, *filters]
        fold = config.patch_size >> len(filters)
        activation = config.decoder_activation
        if activation == "same":
            activation = config.activation
        self.narrow = nn.ModuleList(nn.Conv2d(last, width, 1) for last, width in itertools.pairwise(sizes))
        pairs = zip(skips, filters, strict=False)
        self.skips = nn.ModuleList(nn.Conv2d(skip, width, 1) for skip, width in pairs)
        self.levels = nn.ModuleList()
        for width in filters:
            blocks = range(config.decoder_blocks)
            level = [ResNetBlock(width, width, 1, config.norm, activation) for _ in blocks]
            self.levels.append(nn.Sequential(*level))
        self.head = Conv3x3(sizes[-1], channels_drawn(config) * fold**2)
        self.unfold = nn.PixelShuffle(fold) if fold > 1 else nn.Identity()  # by 1 it copies

    def forward(self, x, maps=()):
        for i, level in enumerate(self.levels):
            x = self.narrow[i](x)
            with without_autocast(x):  # which would double it in fp32
                x = F.interpolate(x, scale_factor=2)
            if self.skips:
                x = x + self.skips[i](maps[i])
            x = level(x)
        return self.unfold(self.head(x))


class AttentionDecoder(nn.Module):
    """Tokens `[N, E, h, w]` -> pictures `[N, C, h patch_size, w patch_size]`, without convolutions.

    Transformer blocks, then each token's own pixels by a linear layer.
    """

    def __init__(self, config):
        super().__init__()
        dim = config.embed_dim
        self.blocks = nn.ModuleList(
            Block(dim, config.heads, config.ffn_hidden) for _ in range(config.decoder_layers)
        )
        self.norm = nn.LayerNorm(dim)
        self.head = nn.Linear(dim, channels_drawn(config) * config.patch_size**2)
        self.unfold = nn.PixelShuffle(config.patch_size)

    def forward(self, x, maps=()):
        grid = x.shape[-2:]
        x = x.flatten(2).transpose(1, 2)  # [N, P, E]
        for block in self.blocks:
            x = block(x)
        pixels = self.head(self.norm(x)).transpose(1, 2)  # [N, 3 patch_size^2, P]
        return self.unfold(pixels.unflatten(2, grid))
