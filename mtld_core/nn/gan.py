"""Discriminators and adversarial losses.

A discriminator's loss takes logits of real and of fake, a generator's those of fake alone; `GAN_LOSSES` has
both by name. Verdicts may come in half precision, losses are in fp32.
"""

import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils.parametrize import register_parametrization

from mtld_core.nn.conv import norm2d
from mtld_core.nn.precision import in_fp32

STARTING_ITERATIONS = 15  # torch's own number


class SpectralNorm(nn.Module):
    """A weight `[out, ...]` divided by its largest singular value (Miyato et al. 2018), as a parametrisation,
    in fp32.

    `iterate` moves the singular vectors a step on; unlike in torch's own, using the weight does not. So the
    weight stays the same in all parts and passes of a training step. Buffers are named as torch's are, for
    runs that were trained with those.
    """

    def __init__(self, weight):
        super().__init__()
        matrix = weight.detach().flatten(1)
        for name, size in zip(("_u", "_v"), matrix.shape, strict=True):
            self.register_buffer(name, F.normalize(matrix.new_empty(size).normal_(), dim=0))
        for _ in range(STARTING_ITERATIONS):
            self.iterate(weight)

    @torch.no_grad()
    def iterate(self, weight):
        """One step of the power method."""
        matrix = weight.flatten(1)
        self._u.copy_(F.normalize(torch.mv(matrix, self._v), dim=0))
        self._v.copy_(F.normalize(torch.mv(matrix.T, self._u), dim=0))

    def forward(self, weight):
        rows = (weight.flatten(1) * self._v).sum(
            1
        )  # not as a matrix product, which autocast would run in half precision
        return weight / (rows * self._u).sum()


def spectral_norm(layer):
    register_parametrization(layer, "weight", SpectralNorm(layer.weight))
    return layer


class PatchDiscriminator(nn.Module):
    """Pictures `[N, C, H, W]` -> (logits `[N, 1, h, w]`, list of feature maps): one verdict a patch, not a
    picture.

    PatchGAN (Isola et al. 2017) with spectral norm. Each of `channels` but the last halves the grid; logits
    and features come from the same pass. `iterate` belongs to the beginning of each training step, before any
    phase.
    """

    def __init__(self, channels, norm="instance", in_channels=3):
        super().__init__()
        self.blocks, last = nn.ModuleList(), in_channels
        for i, c in enumerate(channels):
            conv = spectral_norm(nn.Conv2d(last, c, 4, 2 if i + 1 < len(channels) else 1, 1))
            self.blocks.append(nn.Sequential(conv, norm2d(norm if i else "none", c), nn.LeakyReLU(0.2)))
            last = c
        self.head = spectral_norm(nn.Conv2d(last, 1, 4, 1, 1))

    def forward(self, x):
        features = []
        for block in self.blocks:
            x = block(x)
            features.append(x)
        return self.head(x), features

    def iterate(self):
        """Let spectral norm follow the weights by one step of its power method."""
        for module in self.modules():
            if parametrized := getattr(module, "parametrizations", None):
                parametrized.weight[0].iterate(parametrized.weight.original)


def lsgan_discriminator_loss(real_logits, fake_logits, real=1.0, fake=0.0):
    """Least-squares GAN (Mao et al. 2017): real towards 1, fake towards 0, or each towards labels of its
    own.
    """
    return 0.5 * (
        (in_fp32(real_logits) - real).square().mean() + (in_fp32(fake_logits) - fake).square().mean()
    )


def lsgan_generator_loss(fake_logits):
    """The generator's side of the least-squares GAN: fake towards 1."""
    return (in_fp32(fake_logits) - 1).square().mean()
