"""The picture losses against plain references, and what each is blind to."""

import numpy as np
import pytest
import torch

from mtld_core import metrics
from mtld_core.frames import to_uint8
from mtld_core.nn.gan import lsgan_discriminator_loss
from mtld_core.nn.losses import sobel_loss, spectrum_loss, ssim_loss


def pictures(seed=0, size=24):
    return torch.rand(2, 3, size, size + 8, generator=torch.Generator().manual_seed(seed)).double() * 2 - 1


def test_sobel_is_the_difference_of_opencvs_edges():
    import cv2

    fake, real = pictures(0), pictures(1)
    planes = (fake - real).flatten(0, 1).numpy()
    edges = [cv2.Sobel(plane, cv2.CV_64F, *axis)[1:-1, 1:-1] / 8 for plane in planes for axis in ((1, 0), (0, 1))]
    assert sobel_loss(fake, real).item() == pytest.approx(np.abs(edges).mean())
    assert sobel_loss(real + 0.3, real).item() == pytest.approx(0, abs=1e-12)  # brightness is no edge


def test_spectrum_sees_magnitudes_not_places():
    fake, real = pictures(0), pictures(1)
    expected = np.abs(np.abs(np.fft.rfft2(fake)) - np.abs(np.fft.rfft2(real))).mean() / np.sqrt(fake[0, 0].numel())
    assert spectrum_loss(fake, real).item() == pytest.approx(expected)
    assert spectrum_loss(real.roll((3, 5), (2, 3)), real).item() == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize("size", [8, 24])
def test_ssim_agrees_with_the_figure(size):
    fake, real = pictures(0, size), pictures(0, size) * 0.8 + 0.1
    figure = metrics.ssim(to_uint8(fake), to_uint8(real)).mean().item()
    assert ssim_loss(fake, real).item() == pytest.approx(1 - figure, abs=5e-3)
    assert ssim_loss(real, real).item() == pytest.approx(0, abs=1e-9)


@pytest.mark.parametrize("loss", [sobel_loss, spectrum_loss, ssim_loss])
def test_the_gradient_is_finite_everywhere_and_leads_to_the_truth(loss):
    fake, real = pictures(0).requires_grad_(), pictures(1)
    before = loss(fake, real)
    (gradient,) = torch.autograd.grad(before, fake)
    assert torch.isfinite(gradient).all() and loss(fake - 100 * gradient, real) < before
    flat = torch.zeros_like(real).requires_grad_()  # no edge, no frequency, no variance
    assert torch.isfinite(torch.autograd.grad(loss(flat, torch.zeros_like(real)), flat)[0]).all()


def test_the_discriminators_labels_may_be_its_own():
    real, fake = torch.randn(5, 1, 2, 2), torch.randn(5, 1, 2, 2)
    plain = lsgan_discriminator_loss(real, fake)
    assert lsgan_discriminator_loss(real, fake, 1.0, 0.0) == plain
    exchanged = lsgan_discriminator_loss(real, fake, torch.zeros(5, 1, 1, 1), torch.ones(5, 1, 1, 1))
    torch.testing.assert_close(exchanged, lsgan_discriminator_loss(fake, real))
