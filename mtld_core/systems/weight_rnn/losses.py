"""The losses of the weight RNN: WGAN-GP, and the distance of a posterior from the prior."""

import torch

from mtld_core.nn.precision import in_fp32


def wasserstein_critic_loss(real_scores, fake_scores):
    """Fake down, real up (Arjovsky et al. 2017); `wasserstein_generator_loss` is the generator's side."""
    return in_fp32(fake_scores).mean() - in_fp32(real_scores).mean()


def wasserstein_generator_loss(fake_scores):
    return -in_fp32(fake_scores).mean()


def gradient_penalty(critic, real, fake, alpha):
    """Mean of (|gradient| - 1)^2 of the critic's scores at `fake + alpha (real - fake)` (Gulrajani et al.
    2017), in fp32.

    critic: `[B, ...]` -> scores `[B]` or `[B, 1]`, each of its own sample alone (no batch norm). alpha: `[B]`
    in [0, 1].
    """
    with torch.autocast(real.device.type, enabled=False):
        real, fake = (
            in_fp32(real.detach()),
            in_fp32(fake.detach()),
        )  # in half precision the norm's square would overflow
        between = torch.lerp(fake, real, alpha.to(real).view(-1, *[1] * (real.dim() - 1))).requires_grad_()
        (gradient,) = torch.autograd.grad(critic(between).sum(), between, create_graph=True)
        return (gradient.flatten(1).norm(dim=1) - 1).square().mean()


def gaussian_kl(mu, logvar):
    """KL of N(mu, exp(logvar)) from N(0, 1), both `[B, L]` -> nats `[B]` in fp32 (Kingma and Welling
    2014).
    """
    mu, logvar = in_fp32(mu), in_fp32(logvar)
    return 0.5 * (mu.square() + logvar.exp() - 1 - logvar).sum(1)
