"""The one border between stored frames (uint8) and what networks see (float); fitting pictures to a size.

Axis letters: B batch, T frames, C channels (3, RGB), H W pixels. Stored: uint8 `[..., H, W, 3]`. In networks:
float `[..., 3, H, W]` in [-1, 1], with the stored order kept in memory, which is torch's channels_last: no
byte is moved for it. torch and OpenCV are imported where they are needed, for they take seconds.
"""

import typing

import numpy as np

Fit = typing.Literal["crop", "pad", "stretch"]
MOVED = 13  # levels of 255, a twentieth: a pixel that is so far from the median frame shows something


def to_float(frames):
    """uint8 tensor `[..., H, W, 3]` -> float32 `[..., 3, H, W]` in [-1, 1]."""
    import torch

    # convert first, scale in place: torch vectorises each, but not one operation on mixed types
    pixels = torch.empty(frames.shape, dtype=torch.float32, device=frames.device)
    return scale_in_place(pixels.copy_(frames))


def scale_in_place(pixels):
    """float32 tensor `[..., H, W, 3]` of 0..255 -> the same memory as `[..., 3, H, W]` in [-1, 1]."""
    import torch

    lowest = torch.full((), -1.0, device=pixels.device)
    return torch.add(lowest, pixels, alpha=2 / 255, out=pixels).movedim(-1, -3)


def to_uint8(frames):
    """Float tensor `[..., 3, H, W]` in [-1, 1] -> uint8 `[..., H, W, 3]`; values outside are clipped."""
    import torch

    pixels = ((frames.detach().float() + 1) * 127.5).round_().clamp_(0, 255)
    return pixels.to(torch.uint8).movedim(-3, -1).contiguous()


def fit_frame(frame, height, width, fit="crop"):
    """Bring a picture, a uint8 array `[h, w, 3]`, to the size `[height, width, 3]`.

    fit: "crop" cuts the centre to the new aspect, "pad" adds black borders, "stretch" squashes. A side of 0
    follows the aspect (rounded to even); with both 0 the frame stays as it is. Shrinking averages areas,
    enlarging interpolates cubically. Raises ValueError for any other `fit`.
    """
    known = typing.get_args(Fit)
    if fit not in known:
        raise ValueError(f"fit={fit!r} is not one of {', '.join(known)}")
    h, w = frame.shape[:2]
    height, width = fitted_size(h, w, height, width)
    if (h, w) == (height, width):
        return frame
    if fit == "pad":
        scale = min(height / h, width / w)
        canvas = np.zeros((height, width, 3), np.uint8)
        inner = _centre(canvas, round(h * scale), round(w * scale))
        inner[:] = _resized(frame, *inner.shape[:2])
        return canvas
    if fit == "crop":
        scale = min(h / height, w / width)
        frame = _centre(frame, round(height * scale), round(width * scale))
    return _resized(frame, height, width)


def fitted_size(h, w, height, width):
    """(height, width) of what `fit_frame` makes of a picture of h x w pixels."""
    if not height and not width:
        return h, w
    height = height or max(2, 2 * round(width * h / w / 2))
    return height, width or max(2, 2 * round(height * w / h / 2))


def cut_away(h, w, height, width):
    """The share of a picture, 0 to 1, that "crop" cuts away on its way to another shape."""
    scale = min(h / height, w / width)
    return 1 - scale * height * scale * width / (h * w)


def _centre(frame, height, width):
    """A view of the middle of a picture: of this size, as far as there is room, and at least one pixel."""
    h, w = frame.shape[:2]
    height, width = min(h, max(1, height)), min(w, max(1, width))
    top, left = (h - height) // 2, (w - width) // 2
    return frame[top : top + height, left : left + width]


def _resized(frame, height, width):
    import cv2

    shrinks = height <= frame.shape[0] and width <= frame.shape[1]
    interpolation = cv2.INTER_AREA if shrinks else cv2.INTER_CUBIC
    return cv2.resize(frame, (width, height), interpolation=interpolation)


def rows_of(starts, length, first=0):
    """The rows of windows, from their frame `first` on: their first rows int64 `[n]` -> `[n, length]`."""
    import torch

    return starts[:, None] + torch.arange(first, first + length)


def evenly(rows, most):
    """At most `most` elements of a tensor, evenly spaced from the first to the last.

    rows: a whole number n stands for the numbers 0 to n - 1.
    """
    import torch

    if isinstance(rows, int):
        rows = torch.arange(rows)
    if len(rows) <= most:
        return rows
    return rows[torch.linspace(0, len(rows) - 1, most).round().long()]


def differs(frames, still, levels=MOVED):
    """Where any colour of a pixel is at least `levels` of 255 away from that of the frame `still`.

    uint8 tensors `[..., H, W, 3]` and `[H, W, 3]` -> bool `[..., H, W]`.
    """
    return ((frames.int() - still.int()).abs() >= levels).any(-1)
