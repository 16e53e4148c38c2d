"""Parts of a Transformer over the patches of a picture.

Letters: N pictures, P patches, E width, H heads, D = E / H.
"""

import torch
import torch.nn.functional as F
from torch import nn
from torch.autograd.function import once_differentiable

from mtld_core.nn.conv import zeroed


class Norm(nn.Module):
    """LayerNorm over the last axis, whose scale and shift may come from a condition (Peebles & Xie 2023).

    condition_dim: 0 for a scale and a shift of its own. Those from a condition start at 1 and 0: learning
    begins as if there were no condition.
    """

    def __init__(self, dim, condition_dim=0):
        super().__init__()
        self.norm = nn.LayerNorm(dim, elementwise_affine=not condition_dim)
        self.modulation = None
        if condition_dim:
            self.modulation = zeroed(nn.Linear(condition_dim, 2 * dim))

    def forward(self, x, condition=None):
        """condition: `[..., condition_dim]`, broadcast against x."""
        x = self.norm(x)
        if self.modulation is None:
            return x
        modulation = self.modulation(condition)
        if x.dtype != modulation.dtype and not torch.compiler.is_compiling():
            return Modulated.apply(x, modulation)
        scale, shift = modulation.chunk(2, -1)
        return torch.addcmul(shift, x, 1 + scale)


class Modulated(torch.autograd.Function):
    """x `[..., E]` in fp32, (scale, shift) `[..., 2E]` in half precision -> x * (1 + scale) + shift in that.

    Computed in fp32 and stored in half precision by one kernel, where autocast would convert each by its own.
    """

    @staticmethod
    def forward(ctx, x, modulation):
        scale, shift = modulation.chunk(2, -1)
        larger = 1 + scale
        ctx.save_for_backward(x, larger)
        return torch.addcmul(shift, x, larger, out=torch.empty_like(x, dtype=modulation.dtype))

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        x, larger = ctx.saved_tensors
        to_x = torch.mul(grad, larger, out=torch.empty_like(x))
        shared = [i for i, (a, b) in enumerate(zip(x.shape, larger.shape, strict=True)) if a != b]
        both = grad * x, grad  # [..., E] of scale and shift
        if shared:
            both = [each.sum(shared, keepdim=True, dtype=x.dtype) for each in both]
        return to_x, torch.cat(both, -1).to(larger.dtype)


class Attention(nn.Module):
    """Self-attention of `[N, P, E]` over P (Vaswani et al. 2017), in torch's fused kernel."""

    def __init__(self, dim, heads):
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(dim, 3 * dim)
        self.out = nn.Linear(dim, dim)

    def forward(self, x):
        parts = self.qkv(x).unflatten(-1, (3, self.heads, -1))  # [N, P, 3, H, D]
        q, k, v = (part.transpose(1, 2) for part in parts.unbind(2))  # [N, H, P, D] each
        mixed = F.scaled_dot_product_attention(q, k, v)
        return self.out(mixed.transpose(1, 2).flatten(2))


class Mlp(nn.Sequential):
    """`[..., dim]` -> the same shape: two linear layers, and SiLU over the `hidden` numbers between them."""

    def __init__(self, dim, hidden):
        super().__init__(nn.Linear(dim, hidden), nn.SiLU(), nn.Linear(hidden, dim))
