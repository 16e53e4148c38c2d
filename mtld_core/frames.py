"""The one border between stored frames (uint8) and what networks see (float), and fitting a picture to a
frame size.

Axis letters: B batch, T frames, C channels (3, RGB), H W pixels. Stored: uint8 `[..., H, W, 3]`. In networks:
float `[..., 3, H, W]` in [-1, 1], with the stored order kept in memory, which is torch's channels_last: no
byte is moved for it.
"""

import typing

import numpy as np

Fit = typing.Literal["crop", "pad", "stretch"]


def to_float(frames, out=None):
    """uint8 tensor `[..., H, W, 3]` -> float32 `[..., 3, H, W]` in [-1, 1].

    `out`: a float32 tensor of the input's shape to write into (a warm buffer spares the page faults that make
    a fresh one slow). The result is a view of it with the channel axis moved.
    """
    import torch

    if out is None:
        out = torch.empty(frames.shape, dtype=torch.float32, device=frames.device)
    out.copy_(
        frames
    )  # convert first, scale in place: torch vectorises each, but not one operation on mixed types
    return scale_in_place(out)


def scale_in_place(pixels):
    """float32 tensor `[..., H, W, 3]` of 0..255 -> the same memory as `[..., 3, H, W]` in [-1, 1]."""
    import torch

    return torch.add(torch.full((), -1.0, device=pixels.device), pixels, alpha=2 / 255, out=pixels).movedim(
        -1, -3
    )


def to_uint8(frames):
    """Float tensor `[..., 3, H, W]` in [-1, 1] -> uint8 `[..., H, W, 3]`; values outside are clipped."""
    import torch

    return (
        ((frames.detach().float() + 1) * 127.5)
        .round_()
        .clamp_(0, 255)
        .to(torch.uint8)
        .movedim(-3, -1)
        .contiguous()
    )


def fit_frame(frame, height, width, fit="crop"):
    """uint8 `[h, w, 3]` array -> uint8 `[height, width, 3]`; 0 for a side keeps it (both 0: the frame as it
    is).

    fit: "crop" cuts the centre to the new aspect, "pad" adds black borders, "stretch" squashes. With one side
    0 that side follows the aspect (rounded to even). Shrinking averages areas, enlarging interpolates
    cubically.
    """
    import cv2

    if fit not in typing.get_args(Fit):
        raise ValueError(f"fit={fit!r} is not one of {', '.join(typing.get_args(Fit))}")
    h, w = frame.shape[:2]
    if not height and not width:
        return frame
    height = height or max(2, 2 * round(width * h / w / 2))
    width = width or max(2, 2 * round(height * w / h / 2))
    if (h, w) == (height, width):
        return frame
    if fit == "crop":
        scale = min(h / height, w / width)
        ch, cw = min(h, max(1, round(height * scale))), min(w, max(1, round(width * scale)))
        top, left = (h - ch) // 2, (w - cw) // 2
        frame, inner = frame[top : top + ch, left : left + cw], (height, width)
    elif fit == "pad":
        scale = min(height / h, width / w)
        inner = max(1, round(h * scale)), max(1, round(w * scale))
    else:
        inner = height, width
    shrinks = inner[0] <= frame.shape[0] and inner[1] <= frame.shape[1]
    small = cv2.resize(frame, inner[::-1], interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_CUBIC)
    if inner == (height, width):
        return small
    canvas = np.zeros((height, width, 3), np.uint8)
    top, left = (height - inner[0]) // 2, (width - inner[1]) // 2
    canvas[top : top + inner[0], left : left + inner[1]] = small
    return canvas


def evenly(rows, most):
    """At most `most` elements of a tensor, evenly spaced from the first to the last."""
    import torch

    if len(rows) <= most:
        return rows
    return rows[torch.linspace(0, len(rows) - 1, most).round().long()]
