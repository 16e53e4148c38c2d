"""What the past does not decide, as a few categorical numbers.

In training the true next frame tells them, and a prior learns to expect them; in a dream they are drawn from
the prior. After SVG-LP (Denton and Fergus 2018), with codes in place of Gaussians. Letters: N samples, G
latents, K classes of each, P places of the grid, E width of a token. A choice is one-hot, `[N, G, K]`.
"""

import math

import torch
import torch.nn.functional as F
from torch import nn

from mtld_core.machine.group import over_all
from mtld_core.nn.conv import ConvTokenizer
from mtld_core.nn.precision import in_fp32

FILTERS = (16, 32)  # of the tokenizer through which two frames are compared
PER_PLACE = 8  # numbers that each place tells, of those two frames and to the prior
EVEN = 0.01  # of the prior's probability is spread evenly, so that nothing is impossible


class StochasticLatent(nn.Module):
    """G latents of K classes each: `tell`, `expect`, and `forward`, which adds a choice to tokens."""

    def __init__(self, config):
        super().__init__()
        c = config
        self.groups, self.classes = c.latents, c.latent_classes
        outputs = self.groups * self.classes
        places = math.prod(c.grid)
        self.tokenizer = ConvTokenizer(6, FILTERS, 1, PER_PLACE, c.patch_size, c.norm, c.activation)
        self.compare = nn.Linear(PER_PLACE * places, outputs)
        self.gather = nn.Linear(c.embed_dim, PER_PLACE)
        self.prior = nn.Sequential(
            nn.GELU(),
            nn.Linear(PER_PLACE * places, c.embed_dim),
            nn.GELU(),
            nn.Linear(c.embed_dim, outputs),
        )
        self.embed = nn.Linear(outputs, c.embed_dim)

    def tell(self, before, after):
        """The choice that tells what really came. before, after: frames `[N, 3, H, W]` and the next ones.

        Without drawing, and without a price on what is told: with either, the latents were ignored before
        they meant anything. Over the samples of a call each class is as often high as low, or few would be
        in use.
        """
        tokens, _ = self.tokenizer(torch.cat([before, after], 1))
        logits = in_fp32(self.compare(tokens.flatten(1)))
        shares = self._by_latent(over_all(_standardised, logits)).softmax(-1)
        return F.one_hot(shares.argmax(-1), self.classes) + shares - shares.detach()  # straight through

    def expect(self, tokens):
        """Log-probabilities by the past, float32 `[N, G, K]`. tokens: those of the places, `[N, P, E]`."""
        logits = in_fp32(self.prior(self.gather(tokens).flatten(1)))
        shares = self._by_latent(logits).softmax(-1)
        return torch.log((1 - EVEN) * shares + EVEN / self.classes)

    def _by_latent(self, values):
        return values.unflatten(-1, (self.groups, self.classes))

    def forward(self, tokens, choice):
        """Tokens `[N, P, E]` that all know the choice."""
        return tokens + self.embed(choice.flatten(1).to(tokens.dtype))[:, None]


def _standardised(logits):
    # batch norm's own layer refuses a batch of one
    normed, _, _ = torch.native_batch_norm(logits, None, None, None, None, True, 0.0, 1e-5)
    return normed


def surprise(choice, expected):
    """How many nats of a choice were not expected: one-hot and log-probabilities `[N, G, K]` -> `[N]`."""
    return -(choice.detach() * expected).sum((-1, -2))
