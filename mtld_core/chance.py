"""Random numbers that depend on names, not on how many were drawn before.

torch, which takes seconds to import, is imported where it is needed: asking for a seed alone is fast.
"""

import hashlib

# splitmix64's constants, as int64 has them
STEP = 0x9E3779B97F4A7C15 - 2**64
MIX = 0xBF58476D1CE4E5B9 - 2**64
MIX_AGAIN = 0x94D049BB133111EB - 2**64


def seed_of(*parts):
    """A 63-bit seed from any printable parts: the same parts give the same seed in every process."""
    text = "/".join(map(str, parts)).encode()
    return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "little") >> 1


def keyed_uniform(keys, purpose, size):
    """Draw uniform floats in [0, 1): int64 keys `[B]`, one a sample -> float32 `[B, size]` on their device.

    A value depends on (key, purpose, position) alone. So a batch gives the same numbers whole, split for
    accumulation or spread over processes, and a resumed run needs no generator's state. The hash is
    splitmix64 (Steele et al. 2014).
    """
    import torch

    counter = torch.arange(1, size + 1, device=keys.device)
    x = (keys ^ seed_of(purpose))[:, None] + counter * STEP
    x = (x ^ _shift_right(x, 30)) * MIX
    x = (x ^ _shift_right(x, 27)) * MIX_AGAIN
    return _shift_right(x, 40).to(torch.float32) * 2.0**-24


def _shift_right(x, bits):
    """`x >> bits` with zeros coming in from the left, where int64's own shift would copy the sign bit."""
    return (x >> bits) & ((1 << (64 - bits)) - 1)


def keyed_normal(keys, purpose, size):
    """Draw standard normal floats: int64 keys `[B]`, one a sample -> float32 `[B, size]` on their device.

    A value depends on (key, purpose, size, position) alone. They are made from `keyed_uniform` by Box-Muller.
    """
    import torch

    for_radius, for_angle = keyed_uniform(keys, purpose, 2 * size).chunk(2, dim=1)
    radius = torch.sqrt(-2 * torch.log1p(-for_radius))
    return radius * torch.cos(2 * torch.pi * for_angle)
