"""What the past does not decide, as a few categorical numbers.

In training the true next frame tells them, in a dream they are drawn. After SVG-LP (Denton and Fergus 2018),
with the categorical latents of DreamerV2 (Hafner et al. 2021). Letters: N samples, G latents, K classes of
each, P places of the grid, E width of a token.
"""

import torch
import torch.nn.functional as F
from torch import nn

from mtld_core.nn.conv import ConvTokenizer
from mtld_core.nn.precision import in_fp32

FILTERS = (16, 32)  # of the tokenizer that the posterior sees two frames through
PER_PLACE = 8  # numbers that each place tells the posterior and the prior
EVEN = 0.01  # of all probability is spread evenly, so that no class dies (Hafner et al. 2023)


class StochasticLatent(nn.Module):
    """G latents of K classes each; log-probabilities are float32 `[N, G, K]`, a choice one-hot `[N, G, K]`.

    The posterior sees what really came, the prior the past alone. Training draws from the posterior, and
    teaches the prior to expect it; a dream draws from the prior.
    """

    def __init__(self, config):
        super().__init__()
        c = config
        self.groups, self.classes = c.latents, c.latent_classes
        outputs = self.groups * self.classes
        places = (c.height // c.patch_size) * (c.width // c.patch_size)
        self.tokenizer = ConvTokenizer(6, FILTERS, 1, PER_PLACE, c.patch_size, c.norm, c.activation)
        self.tell = nn.Linear(PER_PLACE * places, outputs)
        self.gather = nn.Linear(c.embed_dim, PER_PLACE)
        self.expect = nn.Sequential(
            nn.GELU(),
            nn.Linear(PER_PLACE * places, c.embed_dim),
            nn.GELU(),
            nn.Linear(c.embed_dim, outputs),
        )
        self.embed = nn.Linear(outputs, c.embed_dim)

    def posterior(self, before, after):
        """Log-probabilities by what really came. before, after: frames `[N, 3, H, W]` and the next ones."""
        tokens, _ = self.tokenizer(torch.cat([before, after], 1))
        return self._log_shares(self.tell(tokens.flatten(1)))

    def prior(self, tokens):
        """Log-probabilities by the past, of which the tokens `[N, P, E]` tell."""
        return self._log_shares(self.expect(self.gather(tokens).flatten(1)))

    def _log_shares(self, logits):
        shares = in_fp32(logits).unflatten(-1, (self.groups, self.classes)).softmax(-1)
        return torch.log((1 - EVEN) * shares + EVEN / self.classes)

    def forward(self, tokens, choice):
        """Tokens `[N, P, E]` that all know the choice."""
        return tokens + self.embed(choice.flatten(1).to(tokens.dtype))[:, None]


def choose(log_shares, uniform=None):
    """Draw a class of each latent, by numbers `[N, G]` uniform in [0, 1); without them, take the likeliest.

    The gradient goes straight through to the probabilities (Bengio et al. 2013).
    """
    shares = log_shares.exp()
    if uniform is None:
        chosen = shares.argmax(-1)
    else:
        passed = shares.cumsum(-1) <= uniform[..., None]
        chosen = passed[..., :-1].sum(-1)  # the last class takes what rounding leaves
    one_hot = F.one_hot(chosen, shares.shape[-1])
    return one_hot + shares - shares.detach()


def nats(posterior, prior):
    """Kullback-Leibler divergence, summed over the latents: `[N]`. Moves the prior more than the posterior.

    With a balance of 0.8, the prior learns to expect before the posterior learns to be silent (DreamerV2).
    """
    expected = _divergence(posterior.detach(), prior)
    told = _divergence(posterior, prior.detach())
    return 0.8 * expected + 0.2 * told


def _divergence(p, q):
    return (p.exp() * (p - q)).sum((-1, -2))
