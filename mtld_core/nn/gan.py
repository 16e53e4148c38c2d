"""A discriminator of patches, and the least-squares GAN.

Logits may come in half precision, losses are in fp32.
"""

import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils.parametrize import ParametrizationList, register_parametrization

from mtld_core.config import check
from mtld_core.nn.conv import laid_out, norm2d
from mtld_core.nn.precision import in_fp32, without_autocast

STARTING_ITERATIONS = 15  # torch's own number
SHORTEST = 1e-12  # that a vector is divided by


class SpectralNorm(nn.Module):
    """A weight `[out, ...]` divided by its largest singular value, in fp32 (Miyato et al. 2018).

    A parametrisation. `iterate` moves the singular vectors of many a step on. Using the weight does not move
    them, unlike in torch's own, so that it stays the same in all parts and passes of a training step. Buffers
    have the names of torch's, for runs that were trained with those.
    """

    def __init__(self, weight):
        super().__init__()
        rows, columns = weight.detach().flatten(1).shape
        self.register_buffer("_u", F.normalize(weight.new_empty(rows).normal_(), dim=0))
        self.register_buffer("_v", F.normalize(weight.new_empty(columns).normal_(), dim=0))
        for _ in range(STARTING_ITERATIONS):
            iterate([(self, weight)])

    def forward(self, weight):
        with without_autocast(weight):
            largest = torch.dot(self._u, torch.mv(weight.flatten(1), self._v))
        return weight / largest


@torch.no_grad()
def iterate(pairs):
    """One step of the power method for each pair (`SpectralNorm`, its weight), all in a few kernels."""
    norms = [norm for norm, _ in pairs]
    matrices = [weight.flatten(1) for _, weight in pairs]
    _set([norm._u for norm in norms], matrices, [norm._v for norm in norms])
    _set([norm._v for norm in norms], [matrix.T for matrix in matrices], [norm._u for norm in norms])


def _set(vectors, matrices, others):
    """Let each vector be the product of a matrix and the other vector, made as long as 1."""
    for vector, matrix, other in zip(vectors, matrices, others, strict=True):
        torch.mv(matrix, other, out=vector)
    lengths = torch._foreach_norm(vectors)
    torch._foreach_clamp_min_(lengths, SHORTEST)
    torch._foreach_div_(vectors, lengths)


def spectral_norm(layer):
    """Put a layer's weight under `SpectralNorm`. Returns the layer."""
    register_parametrization(layer, "weight", SpectralNorm(layer.weight))
    return layer


class PatchDiscriminator(nn.Module):
    """Pictures `[N, C, H, W]` -> (a logit a patch `[N, 1, h, w]`, list of feature maps), from one pass.

    PatchGAN (Isola et al. 2017) with spectral norm. Each of `channels` but the last halves the grid. Call
    `iterate` at the beginning of each training step, before any phase.
    """

    def __init__(self, channels, in_channels=3):
        super().__init__()
        self.blocks = nn.ModuleList()
        last = in_channels
        for i, width in enumerate(channels):
            stride = 2 if i + 1 < len(channels) else 1
            conv = spectral_norm(nn.Conv2d(last, width, 4, stride, 1))
            kind = "instance" if i else "none"
            self.blocks.append(nn.Sequential(conv, norm2d(kind, width), nn.LeakyReLU(0.2)))
            last = width
        self.head = spectral_norm(nn.Conv2d(last, 1, 4, 1, 1))

    def forward(self, x):
        features = []
        x = laid_out(x)
        for block in self.blocks:
            x = block(x)
            features.append(x)
        return self.head(x), features

    def iterate(self):
        """Let spectral norm follow the weights by one step of its power method."""
        lists = [module for module in self.modules() if isinstance(module, ParametrizationList)]
        iterate([(module[0], module.original) for module in lists])


def check_discriminator(config, way_out):
    """Raise ConfigError where frames are too small for a `PatchDiscriminator`.

    config: has discriminator_channels, height and width. way_out: the settings that leave the discriminator
    out.
    """
    least = 3 << (len(config.discriminator_channels) - 1)  # the last two convolutions take a pixel each
    for side in ("height", "width"):
        size = getattr(config, side)
        check(
            size == 0 or size >= least,
            f"{side}={size} is too small for so many discriminator_channels, which need {least} pixels; "
            f"use fewer, or {way_out}",
        )


def lsgan_discriminator_loss(real_logits, fake_logits, real=1.0, fake=0.0):
    """The discriminator's loss of the least-squares GAN (Mao et al. 2017): real towards 1, fake towards 0.

    real, fake: other labels than 1 and 0, numbers or tensors that broadcast against the logits.
    """
    real_error = (in_fp32(real_logits) - real).square().mean()
    fake_error = (in_fp32(fake_logits) - fake).square().mean()
    return 0.5 * (real_error + fake_error)


def lsgan_generator_loss(fake_logits):
    """The generator's loss of the least-squares GAN (Mao et al. 2017): fake towards 1."""
    return (in_fp32(fake_logits) - 1).square().mean()
