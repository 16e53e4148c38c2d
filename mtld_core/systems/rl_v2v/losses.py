"""The adversarial losses that RL-V2V-GAN can choose from, by name."""

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
