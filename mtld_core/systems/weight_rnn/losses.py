"""The losses of the weight RNN: WGAN-GP, and the distance of a posterior from the prior."""

import torch

from mtld_core.nn.precision import in_fp32, without_autocast


def wasserstein_critic_loss(real_scores, fake_scores):
    """The critic's loss of the Wasserstein GAN (Arjovsky et al. 2017): fake scores down, real ones up."""
    return in_fp32(fake_scores).mean() - in_fp32(real_scores).mean()


def wasserstein_generator_loss(fake_scores):
    """The generator's loss of the Wasserstein GAN (Arjovsky et al. 2017): fake scores up."""
    return -in_fp32(fake_scores).mean()


class SlopeConv(torch.autograd.Function):
    """A convolution in a net whose slope is penalised: its weight learns from the gradient of `x` alone.

    That is exact where all between the convolutions is linear piece by piece (ReLU, pooling), for then no
    score bends the slope. torch's own convolution (2.14) also goes back through the scores, with zeros, and
    takes the weight's gradient from transposed maps, which is slower, on a CPU, too.
    """

    @staticmethod
    def forward(ctx, layer, x, change):
        ctx.layer = layer
        return layer(x)

    @staticmethod
    def backward(ctx, grad):
        layer = ctx.layer
        slope = torch.conv_transpose2d(grad, layer.weight, None, layer.stride, layer.padding)
        return None, slope, None


def gradient_penalty(critic, real, fake, alpha):
    """Mean of (|gradient| - 1)^2 of the critic's scores at points between fake and real images, in fp32.

    critic: images `[B, 3, H, W]` -> scores `[B]`, each of its own image alone (no batch norm), in which the
    function `convolve` stands for `changed_layer`. fake: without gradient. alpha: `[B]` in [0, 1], where the
    point lies on the way from fake to real (Gulrajani et al. 2017).
    """
    # in half precision the norm's square would overflow
    with without_autocast(real):
        points = torch.lerp(fake.to(real), real, alpha.to(real).view(-1, 1, 1, 1)).requires_grad_()
        scores = critic(points, convolve=SlopeConv.apply)
        (gradient,) = torch.autograd.grad(scores.sum(), points, create_graph=True)
        return (gradient.flatten(1).norm(dim=1) - 1).square().mean()


def gaussian_kl(mu, logvar):
    """Nats `[B]` from N(0, 1) to N(mu, exp(logvar)), both `[B, L]` (KL, Kingma and Welling 2014), in fp32."""
    mu = in_fp32(mu)
    logvar = in_fp32(logvar)
    return 0.5 * (mu.square() + logvar.exp() - 1 - logvar).sum(1)
