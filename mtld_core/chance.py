"""Chance that depends on names, not on history.

torch is imported only where it is needed, so that `import mtld_core` stays instant.
"""

import hashlib


def seed_of(*parts):
    """A 63-bit seed from any printable parts: the same parts give the same seed in every process."""
    text = "/".join(map(str, parts)).encode()
    return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "little") >> 1


def keyed_uniform(keys, purpose, size):
    """Uniform floats in [0, 1): `[B]` int64 keys (one a sample) -> float32 `[B, size]`, on the keys' device.

    A value depends on (key, purpose, position) alone. So a batch gives the same numbers whole, split for
    accumulation or spread over processes, and a resumed run needs no generator's state. The hash is
    splitmix64 (Steele et al. 2014).
    """
    import torch

    def signed(value):
        return value - (1 << 64) if value >= 1 << 63 else value

    def shift_right(x, bits):  # int64's own >> copies the sign bit
        return (x >> bits) & ((1 << (64 - bits)) - 1)

    counter = torch.arange(1, size + 1, device=keys.device) * signed(0x9E3779B97F4A7C15)
    x = (keys ^ seed_of(purpose))[:, None] + counter
    x = (x ^ shift_right(x, 30)) * signed(0xBF58476D1CE4E5B9)
    x = (x ^ shift_right(x, 27)) * signed(0x94D049BB133111EB)
    return shift_right(x, 40).to(torch.float32) * 2.0**-24


def keyed_normal(keys, purpose, size):
    """Standard normal floats `[B, size]`, keyed like `keyed_uniform` (Box-Muller)."""
    import torch

    u = keyed_uniform(keys, purpose, 2 * size)
    radius = torch.sqrt(-2 * torch.log1p(-u[:, :size]))
    return radius * torch.cos(2 * torch.pi * u[:, size:])
