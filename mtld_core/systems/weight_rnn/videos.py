"""Synthetic videos of single images, which the GRU of the weight RNN watches."""

import torch
import torch.nn.functional as F

from mtld_core.chance import keyed_normal
from mtld_core.nn.precision import without_autocast


def still(images):
    """Keys `[B]` for synthetic videos outside of training: the same changes for all images, always."""
    return torch.zeros(len(images), dtype=torch.int64, device=images.device)


def synthetic_video(images, keys, length, strength):
    """Let images `[B, C, H, W]` drift: `[B, length, C, H, W]` in [-1, 1], from the image on.

    The change is an affine map of the places and a colour that is added, drawn for each key and the same for
    all frames of a video, where it grows. strength: standard deviation of its numbers in the last frame (half
    sides of the picture, half the range of colours).
    """
    growth = torch.linspace(0, strength, length, device=images.device)[:, None]
    channels = images.shape[1]
    drift = keyed_normal(keys, "video", 6 + channels)[:, None] * growth  # [B, length, 6 + C]
    place, colour = drift.to(images).flatten(0, 1).split([6, channels], 1)
    with without_autocast(images):  # places in bf16 would be off by half a pixel
        still_place = torch.eye(2, 3, dtype=place.dtype, device=place.device)
        place = still_place + place.view(-1, 2, 3)
        frames = images.repeat_interleave(length, 0)  # [B * length, C, H, W]
        grid = F.affine_grid(place, list(frames.shape), align_corners=False)
        moved = F.grid_sample(frames, grid, padding_mode="border", align_corners=False)
        video = (moved + colour[..., None, None]).clamp(-1, 1)
    return video.unflatten(0, (-1, length))


def noisy_video(images, keys, length, strength):
    """Put more and more noise on images `[B, C, H, W]`: `[B, length, C, H, W]` in [-1, 1], from the image on.

    strength: standard deviation of the last frame's noise, where pixels are in [-1, 1]; frame t has t /
    (length - 1) of it.
    """
    frames = [images]
    for t in range(1, length):
        noise = keyed_normal(keys, f"video_{t}", images[0].numel()).view_as(images)
        frames.append(images + strength * t / (length - 1) * noise.to(images))
    return torch.stack(frames, 1).clamp(-1, 1)
