"""Losses between pictures `[N, 3, H, W]` in [-1, 1], beside L1, MSE and LPIPS. All run in the pictures' own
type.

And `in_fp32`, for whatever is averaged: a loss and its mean are never in half precision.
"""

import torch


def in_fp32(x):
    """`x` in fp32 where it is in half precision, else as it is."""
    return x.to(torch.promote_types(x.dtype, torch.float32))
