"""Actions: what a config keeps of a dataset's, and the token that networks see of each."""

import itertools

import torch
import torch.nn.functional as F
from torch import nn

from mtld_core.config import check


def action_fields(dataset, otherwise):
    """What a config keeps of a dataset's actions: {"action_count": int}, or {"control_low", "control_high"}.

    These are tuples of floats, the least and the largest value of each control. Raises ConfigError where the
    dataset has no actions. otherwise: the setting that does without them, such as "actions='latent'".
    """
    actions = dataset.actions
    check(
        actions is not None,
        f"{dataset.path} has no actions: use a recording that has (data_prep/record_game.py makes one), or "
        f"{otherwise}",
    )
    if actions.dtype == torch.int64:
        taken = int(actions.max()) + 1
        named = len(dataset.about.get("action_names", []))
        return {"action_count": max(taken, named)}
    low, high = actions.amin(0), actions.amax(0)
    return {"control_low": tuple(low.tolist()), "control_high": tuple(high.tolist())}


def action_space(config):
    """The action space that a config with the fields of `action_fields` describes, see `System`."""
    return config.action_count or (list(config.control_low), list(config.control_high))


class ActionEncoder(nn.Module):
    """Actions int64 `[...]` or float `[..., A]` -> tokens `[..., dim]`, by an MLP with GELU.

    space: the number of discrete actions, or (low, high) lists of floats. widths: of the hidden layers. Whole
    numbers enter as one-hot vectors, floats scaled from their range to [-1, 1].
    """

    def __init__(self, space, widths, dim):
        super().__init__()
        self.count = space if isinstance(space, int) else 0
        self.values = self.count or len(space[0])
        if not self.count:
            low, high = torch.tensor(space, dtype=torch.float32)
            self.register_buffer("middle", (low + high) / 2)
            self.register_buffer("span", ((high - low) / 2).clamp(min=1e-6))
        layers = []
        for size, next_size in itertools.pairwise([self.values, *widths, dim]):
            layers += [nn.Linear(size, next_size), nn.GELU()]
        self.body = nn.Sequential(*layers[:-1])

    def to_values(self, actions):
        """Prepare actions for the MLP: one-hot int64 `[..., count]`, or floats `[..., A]` in [-1, 1]."""
        if self.count:
            return F.one_hot(actions.long(), self.count)
        return (actions - self.middle) / self.span

    def idle(self, size):
        """Tokens `[size, dim]` of no action at all: no button, or floats of 0, which are sticks at rest."""
        nothing = self.body[0].weight.new_zeros(size, self.values)
        return self.body(nothing if self.count else self.to_values(nothing))

    def forward(self, actions):
        values = self.to_values(actions)
        return self.body(values.to(self.body[0].weight.dtype))
