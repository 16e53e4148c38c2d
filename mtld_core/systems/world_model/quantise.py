"""Finite scalar quantisation: codes without a codebook that could stay unlearned."""

import torch
from torch import nn

from mtld_core.machine.group import averaged, processes
from mtld_core.nn.precision import without_autocast

MOMENTUM = 0.05  # of the moving average that whitens in eval mode: how much each batch counts


class FSQ(nn.Module):
    """Round each channel of `[..., L]` to one of `levels` values from -1 to 1 (Mentzer et al. 2024).

    The gradient passes straight through the rounding. A code is the number of such a point, below `size`,
    which is levels ** dims.
    """

    def __init__(self, dims, levels):
        super().__init__()
        self.levels = levels
        self.size = levels**dims
        self.register_buffer("place", levels ** torch.arange(dims), persistent=False)

    def forward(self, x, hold=0.0):
        """hold: of clips `[B, T, ..., L]`, see `_held`; 0 rounds each frame by itself."""
        # tanh spans (-1/2, levels - 1/2), so that each value has a bin of the same width
        spread = (torch.tanh(x) * self.levels + self.levels - 1) / 2
        near = spread.detach().round().clamp(0, self.levels - 1)
        if hold:
            near = _held(spread.detach(), near, 0.5 + hold)
        return self._to_latent(spread + (near - spread).detach())

    def codes(self, latents):
        """Latents on the grid `[..., L]` -> codes int64 `[...]`."""
        digits = ((latents + 1) * ((self.levels - 1) / 2)).round().long()
        return (digits * self.place).sum(-1)

    def latents(self, codes):
        """Codes int64 `[...]` -> latents on the grid `[..., L]`."""
        digits = codes[..., None] // self.place % self.levels
        return self._to_latent(digits.float())

    def _to_latent(self, digits):
        return digits * (2 / (self.levels - 1)) - 1


def _held(spread, near, reach):
    """Let a value of the last frame stay as long as it is within `reach`; else it is the nearest, `near`.

    What lies between two values would else go back and forth with every little change elsewhere.
    """
    kept = [near[:, 0]]
    for now, nearest in zip(spread.unbind(1), near.unbind(1), strict=True):
        stays = (now - kept[-1]).abs() <= reach
        kept.append(torch.where(stays, kept[-1], nearest))
    return torch.stack(kept[1:], 1)


class Whitening(nn.Module):
    """Batch norm that also removes correlation: `[..., L]` -> the same shape, each channel of variance one.

    Before a quantiser it keeps the codes in use: half of the values lie on each side of zero, in each channel
    by itself. In training the statistics are the batch's own, over all processes, and carry gradient; of a
    batch that is computed in parts they are each part's own. In eval mode they are a moving average, as they
    are for a single vector, which has no covariance.
    """

    def __init__(self, dims):
        super().__init__()
        self.register_buffer("mean", torch.zeros(dims))
        self.register_buffer("covariance", torch.eye(dims))

    def forward(self, x):
        with without_autocast(x):  # half precision loses what is left of a correlated channel
            return self._whiten(x.flatten(0, -2).to(self.mean.dtype)).view_as(x)

    def _whiten(self, flat):
        mean, covariance = self.mean, self.covariance
        if self.training and len(flat) * processes() > 1:
            mean = averaged(flat.mean(0))
            covariance = averaged((flat - mean).T @ (flat - mean) / len(flat))
            self.mean.lerp_(mean.detach(), MOMENTUM)
            self.covariance.lerp_(covariance.detach(), MOMENTUM)
        little = 1e-3 * covariance.diagonal().mean() + 1e-12
        identity = torch.eye(len(mean), device=flat.device, dtype=mean.dtype)
        return _decorrelated(flat - mean, covariance + little * identity)


def _decorrelated(x, covariance):
    """Solve root @ y = x for each row of x `[N, L]`, where root is the Cholesky factor of the covariance.

    It goes channel by channel, each taken out of all later ones. The factor itself, from torch.linalg, waits
    for the GPU, and no graph can record it.
    """
    channels = []
    while x.shape[1]:
        root = covariance[:, 0] / covariance[0, 0].sqrt()  # its next column
        below = root[1:]
        channels.append(x[:, 0] / root[0])
        x = x[:, 1:] - channels[-1][:, None] * below
        covariance = covariance[1:, 1:] - torch.outer(below, below)
    return torch.stack(channels, 1)
