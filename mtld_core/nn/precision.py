"""Full precision for whatever is averaged: a loss and its mean are never in half precision."""

import torch


def in_fp32(x):
    """`x` in fp32 where it is in half precision, else as it is."""
    return x.to(torch.promote_types(x.dtype, torch.float32))
