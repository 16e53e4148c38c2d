"""Losses between pictures `[N, 3, H, W]` in [-1, 1], in the pictures' own type; `PIXEL_LOSSES` names them."""

import torch
import torch.nn.functional as F

from mtld_core.metrics import up_to_window
from mtld_core.nn.precision import without_autocast


def sobel_loss(fake, real):
    """Mean absolute difference of what Sobel's filters find: of the edges across plus of those down."""
    change = fake - real
    x = change[..., 2:] - change[..., :-2]
    y = change[..., 2:, :] - change[..., :-2, :]
    across = x[..., :-2, :] + 2 * x[..., 1:-1, :] + x[..., 2:, :]
    down = y[..., :-2] + 2 * y[..., 1:-1] + y[..., 2:]
    return (across.abs().mean() + down.abs().mean()) / 16


def spectrum_loss(fake, real):
    """Mean absolute difference of the magnitudes of all frequencies, by an orthonormal Fourier transform."""
    fake_waves = torch.fft.rfft2(fake, norm="ortho")
    real_waves = torch.fft.rfft2(real, norm="ortho")
    return F.l1_loss(fake_waves.abs(), real_waves.abs())


def ssim_loss(fake, real):
    """1 - structural similarity (Wang et al. 2004), in [0, 2].

    Pictures are taken to [0, 1] first, for SSIM measures brightness from black. One that is smaller than
    SSIM's window is continued by its border pixels.
    """
    from torchmetrics.functional.image import structural_similarity_index_measure

    fake = up_to_window((fake + 1) / 2)
    real = up_to_window((real + 1) / 2)
    with without_autocast(fake):
        return 1 - structural_similarity_index_measure(fake, real, data_range=1.0)


PIXEL_LOSSES = {
    "l1": F.l1_loss,
    "mse": F.mse_loss,
    "sobel": sobel_loss,
    "fft": spectrum_loss,
    "ssim": ssim_loss,
}
