"""Losses between pictures `[N, 3, H, W]` in [-1, 1], beside L1, MSE and LPIPS, in the pictures' own type."""

import torch
import torch.nn.functional as F

from mtld_core.metrics import SSIM_WINDOW


def sobel_loss(fake, real):
    """Mean absolute difference of the edges: the Sobel filters' answers, across and down."""
    change = fake - real
    x, y = change[..., 2:] - change[..., :-2], change[..., 2:, :] - change[..., :-2, :]
    across = x[..., :-2, :] + 2 * x[..., 1:-1, :] + x[..., 2:, :]
    down = y[..., :-2] + 2 * y[..., 1:-1] + y[..., 2:]
    return (across.abs().mean() + down.abs().mean()) / 16


def spectrum_loss(fake, real):
    """Mean absolute difference of the magnitudes of all frequencies."""
    return F.l1_loss(*(torch.fft.rfft2(x, norm="ortho").abs() for x in (fake, real)))


def ssim_loss(fake, real):
    """1 - structural similarity (Wang et al. 2004), in [0, 2]; a picture smaller than the window is continued
    up to it.
    """
    from torchmetrics.functional.image import structural_similarity_index_measure

    height, width = fake.shape[-2:]
    pad = (0, max(0, SSIM_WINDOW - width), 0, max(0, SSIM_WINDOW - height))
    fake, real = (
        F.pad((x + 1) / 2, pad, mode="replicate") for x in (fake, real)
    )  # it measures brightness from black
    with torch.autocast(fake.device.type, enabled=False):
        return 1 - structural_similarity_index_measure(fake, real, data_range=1.0)
