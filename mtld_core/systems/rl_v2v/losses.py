"""The adversarial losses that RL-V2V-GAN can choose from, by name, and what its translations keep."""

import itertools

import torch
import torch.nn.functional as F

from mtld_core.nn.gan import lsgan_discriminator_loss, lsgan_generator_loss
from mtld_core.nn.precision import in_fp32


def bce_discriminator_loss(real_logits, fake_logits):
    """The first GAN (Goodfellow et al. 2014), on logits: the sigmoid is inside the loss, not before it."""
    real_loss = F.softplus(-in_fp32(real_logits)).mean()
    fake_loss = F.softplus(in_fp32(fake_logits)).mean()
    return 0.5 * (real_loss + fake_loss)


def bce_generator_loss(fake_logits):
    """The generator's loss of the first GAN, in the form that does not saturate: -log P(real)."""
    return F.softplus(-in_fp32(fake_logits)).mean()


# name -> (the discriminator's, the generator's)
GAN_LOSSES = {
    "lsgan": (lsgan_discriminator_loss, lsgan_generator_loss),
    "bce": (bce_discriminator_loss, bce_generator_loss),
}


CELL = 4  # pixels from one place to the next
WAYS = [way for way in itertools.product((-1, 0, 1), repeat=2) if way != (0, 0)]
RING = [(far * y, far * x) for far in (1, 2) for y, x in WAYS]  # in places
FAINT = 0.1  # a difference of colours, in [-1, 1], that hardly counts


def structure(frames):
    """Tell where things are, whatever their colours: `[n, 3, H, W]` -> `[n, 16, h, w]` in 0..1.

    Each place is compared with 16 around it: how unlike they are, over the most unlike of them. So in shapes
    of other colours the same is found (Zheng et al. 2021 do so with features). Colours are means of 8x8
    pixels, for a fine pattern is not to count.
    """
    colours = F.avg_pool2d(in_fp32(frames), 2 * CELL, CELL)
    around = F.pad(colours, (2, 2, 2, 2), mode="replicate")
    h, w = colours.shape[-2:]
    shifted = [around[..., 2 + y : 2 + y + h, 2 + x : 2 + x + w] for y, x in RING]
    apart = torch.stack([(each - colours).square().sum(1) for each in shifted], 1)
    apart = (apart + 1e-6).sqrt()  # a root of 0 has no gradient
    return apart / (apart.amax(1, keepdim=True) + FAINT)
