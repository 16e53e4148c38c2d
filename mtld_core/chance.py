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
    return keyed_uniforms(keys, {purpose: size})[0]


def keyed_uniforms(keys, sizes):
    """What `keyed_uniform` gives for each purpose of the dict purpose -> size: a list, in few kernels."""
    import torch

    parts = []
    for purpose, size in sizes.items():
        counter = torch.arange(1, size + 1, device=keys.device)
        parts.append(torch.add((keys ^ seed_of(purpose))[:, None], counter, alpha=STEP))
    x = torch.cat(parts, 1) if len(parts) > 1 else parts[0]
    x = (x ^ _shift_right(x, 30)) * MIX
    x = (x ^ _shift_right(x, 27)) * MIX_AGAIN
    x = torch.mul(_shift_right(x, 40), 2.0**-24)  # whole numbers below 2 ** 24, which float32 holds
    return x.split(list(sizes.values()), 1)


def _shift_right(x, bits):
    """`x >> bits` with zeros coming in from the left, where int64's own shift would copy the sign bit."""
    return (x >> bits) & ((1 << (64 - bits)) - 1)


def keyed_normal(keys, purpose, size):
    """Draw standard normal floats: int64 keys `[B]`, one a sample -> float32 `[B, size]` on their device.

    A value depends on (key, purpose, size, position) alone. They are made from `keyed_uniform` by Box-Muller.
    """
    return normal_of(keyed_uniform(keys, purpose, 2 * size))


def normal_of(uniform):
    """Turn uniform floats `[B, 2 * size]` into standard normal ones, `[B, size]`."""
    import torch

    for_radius, for_angle = uniform.chunk(2, dim=1)
    radius = torch.sqrt(-2 * torch.log1p(-for_radius))
    return radius * torch.cos(2 * torch.pi * for_angle)
