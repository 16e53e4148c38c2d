"""The picture losses against plain references, and what each is blind to."""

import numpy as np
import pytest
import torch

from mtld_core import metrics
from mtld_core.frames import to_uint8
from mtld_core.nn.gan import PatchDiscriminator, lsgan_discriminator_loss
from mtld_core.nn.precision import in_fp32
from mtld_core.systems.mtld.nets import feature_matching_loss
from mtld_core.systems.rl_v2v.losses import GAN_LOSSES
from mtld_core.systems.tinydreams.losses import sobel_loss, spectrum_loss, ssim_loss
from mtld_core.systems.weight_rnn.losses import wasserstein_critic_loss, wasserstein_generator_loss


def pictures(seed=0, size=24):
    return torch.rand(2, 3, size, size + 8, generator=torch.Generator().manual_seed(seed)).double() * 2 - 1


def test_sobel_is_the_difference_of_opencvs_edges():
    import cv2

    fake, real = pictures(0), pictures(1)
    planes = (fake - real).flatten(0, 1).numpy()
    edges = [
        cv2.Sobel(plane, cv2.CV_64F, *axis)[1:-1, 1:-1] / 8 for plane in planes for axis in ((1, 0), (0, 1))
    ]
    assert sobel_loss(fake, real).item() == pytest.approx(np.abs(edges).mean())
    assert sobel_loss(real + 0.3, real).item() == pytest.approx(0, abs=1e-12)  # brightness is no edge


def test_spectrum_sees_magnitudes_not_places():
    fake, real = pictures(0), pictures(1)
    expected = np.abs(np.abs(np.fft.rfft2(fake)) - np.abs(np.fft.rfft2(real))).mean() / np.sqrt(
        fake[0, 0].numel()
    )
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


@pytest.mark.parametrize("kind", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("name", [*GAN_LOSSES, "wasserstein"])
def test_adversarial_losses_are_means_in_fp32(name, kind):
    """The square of 300 is more than fp16 can hold."""
    judge, maker = GAN_LOSSES.get(name, (wasserstein_critic_loss, wasserstein_generator_loss))
    verdicts = torch.full((100,), 300.0)
    half = verdicts.to(kind)
    for found, wanted in ((judge(half, half), judge(verdicts, verdicts)), (maker(half), maker(verdicts))):
        assert found.dtype == torch.float32
        torch.testing.assert_close(found, wanted, rtol=0.01, atol=0.01)
    assert feature_matching_loss([half], [half / 2]).dtype == torch.float32


def test_fp64_stays_fp64():
    assert in_fp32(torch.ones(1, dtype=torch.float64)).dtype == torch.float64
    assert in_fp32(torch.ones(1, dtype=torch.float16)).dtype == torch.float32


# ---- spectral norm


def discriminator(seed=0):
    torch.manual_seed(seed)
    return PatchDiscriminator((8, 16))


def largest(network):
    """The largest singular values of the weights that its layers compute with."""
    convolutions = [module for module in network.modules() if isinstance(module, torch.nn.Conv2d)]
    return torch.stack([torch.linalg.matrix_norm(layer.weight.flatten(1), 2) for layer in convolutions])


def test_spectral_norm_bounds_every_layer_and_follows_the_weights():
    network = discriminator()
    assert len(largest(network)) == 3
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(torch.randn_like(parameter))
    assert not torch.allclose(largest(network), torch.ones(3), atol=0.05)
    for _ in range(100):
        network.iterate()
    torch.testing.assert_close(largest(network), torch.ones(3), rtol=1e-3, atol=1e-3)


def test_using_a_discriminator_leaves_its_weights_as_they_are():
    """However many parts and passes a step has, its power method moves once."""
    network = discriminator().train()
    pictures, before = torch.randn(2, 3, 16, 16), {k: v.clone() for k, v in network.state_dict().items()}
    first, again = network(pictures)[0], network(pictures)[0]
    assert first.equal(again) and all(v.equal(before[k]) for k, v in network.state_dict().items())
    network.iterate()
    moved = {k for k, v in network.state_dict().items() if not v.equal(before[k])}
    assert moved and all(k.endswith(("._u", "._v")) for k in moved) and not network(pictures)[0].equal(first)


def test_a_discriminator_of_torchs_own_spectral_norm_opens():
    """Runs from before have such: the same names, the same verdicts."""
    from torch.nn.utils.parametrizations import spectral_norm
    from torch.nn.utils.parametrize import remove_parametrizations

    old, new = discriminator(1), discriminator(2)
    for layer in [module for module in old.modules() if isinstance(module, torch.nn.Conv2d)]:
        remove_parametrizations(layer, "weight", leave_parametrized=False)
        spectral_norm(layer)
    new.load_state_dict(old.state_dict())
    pictures = torch.randn(2, 3, 16, 16)
    torch.testing.assert_close(new.eval()(pictures)[0], old.eval()(pictures)[0], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", [torch.float16, torch.bfloat16])
def test_spectral_norm_stays_in_fp32_under_autocast(kind):
    network = discriminator()
    weight = network.head.weight
    with torch.autocast("cpu", kind):
        assert network.head.weight.dtype == torch.float32 and network.head.weight.equal(weight)
