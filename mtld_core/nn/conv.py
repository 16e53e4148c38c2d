"""Convolutional parts: norms, residual blocks, an encoder of pictures into maps of tokens."""

import functools
import typing

import torch
import torch.nn.functional as F
from torch import nn
from torch.autograd.function import once_differentiable

NormKind = typing.Literal["instance", "group", "none"]
leaky_relu = functools.partial(F.leaky_relu, negative_slope=0.2)
ACTIVATIONS = {"gelu": nn.GELU, "relu": nn.ReLU, "silu": nn.SiLU}


class Conv3x3(nn.Conv2d):
    """A 3x3 convolution that keeps the grid, or divides it by a stride."""

    def __init__(self, channels, out, stride=1):
        super().__init__(channels, out, 3, stride, 1)


def laid_out(maps):
    """Maps `[N, C, h, w]` as the convolutions of a GPU take them; all else as it is.

    That is in channels_last, and in the type of autocast, by one kernel.
    """
    if maps.is_cuda and maps.dim() == 4:
        if maps.dtype == torch.float32 and torch.is_autocast_enabled("cuda"):
            maps = maps.to(torch.get_autocast_dtype("cuda"), memory_format=torch.channels_last)
        return maps.contiguous(memory_format=torch.channels_last)
    return maps


def to_channels_last(module):
    """Lay out the weights of all 2-d convolutions as the fast kernels like them, in place."""
    for parameter in module.parameters():
        if parameter.dim() == 4:
            parameter.data = parameter.data.contiguous(memory_format=torch.channels_last)


def zeroed(layer):
    """Let a layer give 0 at first, whatever it is given. Returns the layer."""
    nn.init.zeros_(layer.weight)
    nn.init.zeros_(layer.bias)
    return layer


def norm2d(kind, channels):
    """Make the normalisation layer that a `NormKind` names. A group has 8 channels, or a few more."""
    if kind == "instance":
        return InstanceNorm(channels)
    if kind == "group":
        return GroupNorm(_groups(channels), channels)
    return nn.Identity()


class OnCards:
    """A mixin for torch's norms: on a GPU they give out channels_last, in the type of the input."""

    def forward(self, x):
        if _in_torchs_way(x):
            return super().forward(x)
        return ChannelsLastNorm.apply(x, self.num_groups, self.eps, self.weight, self.bias)


class GroupNorm(OnCards, nn.GroupNorm):
    """Norm over groups of channels, with a scale and a shift for each channel."""


class InstanceNorm(OnCards, nn.InstanceNorm2d):
    """Norm of each channel by itself."""

    @property
    def num_groups(self):
        return self.num_features


def _in_torchs_way(x):
    """Whether torch's own norm does as well: a CPU's keeps channels_last, and a compiler makes its own."""
    return not x.is_cuda or torch.compiler.is_compiling()


class ChannelsLastNorm(torch.autograd.Function):
    """Norm of maps `[N, C, h, w]` over groups of channels, in the type of x and in channels_last.

    Statistics are in fp32, as batch norm has them, which is what computes them here: torch's group norm takes
    half precision to fp32 first, and neither that nor its instance norm gives back channels_last (2.14).
    scale, shift: `[C]` in fp32, or None.
    """

    @staticmethod
    def forward(ctx, x, groups, eps, scale=None, shift=None):
        rows = x.contiguous().view(1, len(x) * groups, -1, x.shape[-1])
        normed, mean, inverse = torch.native_batch_norm(rows, None, None, None, None, True, 0.0, eps)
        normed = normed.view(x.shape)
        ctx.save_for_backward(rows, mean, inverse, scale, None if scale is None else normed)
        ctx.eps = eps
        result = torch.empty_like(x, memory_format=torch.channels_last)
        if scale is None:
            return result.copy_(normed)
        # one kernel computes it in fp32, and stores it in the type and the order of the result
        return torch.addcmul(shift[:, None, None], normed, scale[:, None, None], out=result)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        rows, mean, inverse, scale, normed = ctx.saved_tensors
        to_normed = rows.new_empty(grad.shape)
        to_scale = to_shift = None
        if scale is None:
            to_normed.copy_(grad)
        else:
            torch.mul(grad, scale[:, None, None], out=to_normed)
            to_scale = (grad * normed).sum((0, 2, 3), dtype=scale.dtype)
            to_shift = grad.sum((0, 2, 3), dtype=scale.dtype)
        given = to_normed.view_as(rows), rows, None, None, None, mean, inverse, True, ctx.eps
        to_x, _, _ = torch.ops.aten.native_batch_norm_backward(*given, [True, False, False])
        to_x = to_x.view(grad.shape).contiguous(memory_format=torch.channels_last)
        return to_x, None, None, to_scale, to_shift


def erases(kind, channels, height, width):
    """Whether `norm2d` of this kind would leave nothing of maps `[N, C, height, width]`.

    It subtracts a mean, and where that is the mean of one value nothing is left.
    """
    if kind == "none":
        return False
    together = height * width
    if kind == "group":
        together *= channels // _groups(channels)
    return together == 1


def _groups(channels):
    """The largest number of groups that divides `channels` and leaves at least 8 of them, or all, in each."""
    most = max(1, channels // 8)
    return next(groups for groups in range(most, 0, -1) if channels % groups == 0)


class ResBlock(nn.Module):
    """`[N, C, h, w]` -> the same shape: the input plus two 3x3 convolutions, whose sum starts at 0."""

    def __init__(self, channels, norm):
        super().__init__()
        self.conv1 = Conv3x3(channels, channels)
        self.norm = norm2d(norm, channels)
        self.conv2 = zeroed(Conv3x3(channels, channels))

    def forward(self, x):
        change = self.conv1(F.silu(x))
        change = self.conv2(F.silu(self.norm(change)))
        return x + change


class ResNetBlock(nn.Module):
    """`[N, C, h, w]` -> `[N, out, h / stride, w / stride]`: two normed convolutions and a shortcut.

    He et al. 2016. activation: a key of `ACTIVATIONS`.
    """

    def __init__(self, channels, out, stride, norm, activation):
        super().__init__()
        self.conv1 = Conv3x3(channels, out, stride)
        self.norm1 = norm2d(norm, out)
        self.conv2 = Conv3x3(out, out)
        self.norm2 = norm2d(norm, out)
        same_shape = channels == out and stride == 1
        self.shortcut = nn.Identity() if same_shape else nn.Conv2d(channels, out, 1, stride)
        self.activation = ACTIVATIONS[activation]()

    def forward(self, x):
        y = self.activation(self.norm1(self.conv1(x)))
        y = self.norm2(self.conv2(y))
        return self.activation(self.shortcut(x) + y)


class ConvTokenizer(nn.Module):
    """Pictures `[N, C, H, W]` -> (tokens `[N, dim, H / patch, W / patch]`, maps on the way, coarsest first).

    Each of `filters` halves the grid. What `patch` asks for beyond that, folding does before the first
    convolution: squares of pixels become channels. blocks: ResNet blocks a level. The attribute `widths` has
    the channels of those maps.
    """

    def __init__(self, channels, filters, blocks, dim, patch, norm, activation):
        super().__init__()
        fold = patch >> len(filters)
        self.fold = nn.PixelUnshuffle(fold) if fold > 1 else nn.Identity()  # by 1 it copies
        self.stem = Conv3x3(channels * fold**2, filters[0])
        self.levels = nn.ModuleList()
        self.widths = []
        last = filters[0]
        for width in filters:
            self.widths.insert(0, last)
            more = [ResNetBlock(width, width, 1, norm, activation) for _ in range(blocks - 1)]
            self.levels.append(nn.Sequential(ResNetBlock(last, width, 2, norm, activation), *more))
            last = width
        self.head = nn.Conv2d(last, dim, 1)

    def forward(self, x):
        x = self.stem(self.fold(x))
        maps = []
        for level in self.levels:
            maps.insert(0, x)
            x = level(x)
        return self.head(x), maps
