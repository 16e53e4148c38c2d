"""Muon: hidden matrices learn in all of their directions alike.

Adam moves a matrix mostly along the few directions in which its gradient is large. Muon (Jordan et al. 2024)
takes the momentum of the whole matrix and makes it orthogonal before it is added, so that the small ones
count as much.
"""

import itertools

import torch
from torch import nn

MOMENTUM = 0.95
STEPS = 5
# a x + b x^3 + c x^5 of each singular value, five times: from anywhere in (0.01, 1] to between 0.7 and 1.2
A, B, C = 3.4445, -4.7750, 2.0315


class Muon(torch.optim.AdamW):
    """Muon for `hidden`, and fused AdamW for all other `parameters`.

    hidden: weights `[out, ...]` of linear maps and convolutions, which count as matrices `[out, all else]`;
    all of them are among `parameters`. lr_hidden: how far a step moves their singular values, about; lr,
    betas: AdamW's. weight_decay: of both. Like the fused AdamW it skips a step whose `found_inf` is 1, and
    divides gradients by `grad_scale`.
    """

    def __init__(self, parameters, hidden, lr, lr_hidden, betas, weight_decay):
        hidden = list(hidden)
        ours = {id(weight) for weight in hidden}
        others = [parameter for parameter in parameters if id(parameter) not in ours]
        groups = [{"params": others}, {"params": hidden, "lr": lr_hidden}]
        super().__init__(groups, lr=lr, betas=betas, weight_decay=weight_decay, fused=True)

    def step(self):
        hidden = self.param_groups.pop()  # AdamW is to see its own alone
        try:
            super().step()
        finally:
            self.param_groups.append(hidden)
        self._step_hidden(hidden)

    @torch.no_grad()
    def _step_hidden(self, group):
        learning = [weight for weight in group["params"] if weight.grad is not None]
        if self.grad_scale is not None:
            torch._foreach_div_([weight.grad for weight in learning], self.grad_scale)
        bad = self.found_inf > 0
        rate = group["lr"] * ~bad
        for _, same in itertools.groupby(sorted(learning, key=_shape), _shape):
            same = list(same)
            turned = orthogonal(torch.stack([self._direction(weight, bad) for weight in same]))
            for weight, step in zip(same, turned.unbind(), strict=True):
                weight.mul_(1 - rate * group["weight_decay"])
                weight.sub_(step.view_as(weight) * rate)

    def _direction(self, weight, bad):
        """Nesterov's momentum of its gradient, `[out, all else]`; a `bad` step leaves it as it is."""
        state = self.state[weight]
        if not state:
            state["step"] = torch.zeros(())  # AdamW looks for it when a checkpoint is loaded
            state["momentum"] = torch.zeros_like(weight)
        momentum = state["momentum"]
        gradient = torch.where(bad, momentum, weight.grad)
        momentum.lerp_(gradient, 1 - MOMENTUM)
        return gradient.lerp(momentum, MOMENTUM).flatten(1)


def orthogonal(matrices):
    """The nearest orthogonal matrices, roughly: float `[N, rows, columns]` -> the same shape.

    Singular values end between 0.7 and 1.2, times sqrt(rows / columns) where there are more rows, so that
    what a layer gives out moves alike whatever its shape (Newton-Schulz, with Jordan's coefficients).
    """
    rows, columns = matrices.shape[1:]
    x = matrices.mT if rows > columns else matrices
    x = x / (x.norm(dim=(1, 2), keepdim=True) + 1e-7)
    for _ in range(STEPS):
        square = x @ x.mT
        square = torch.baddbmm(square, square, square, beta=B, alpha=C)
        x = torch.baddbmm(x, square, x, beta=A)
    return x.mT * (rows / columns) ** 0.5 if rows > columns else x


def weights_of(*modules):
    """The weights of all linear maps and convolutions inside, a list: what Muon is for."""
    inside = itertools.chain(*(module.modules() for module in modules))
    return [layer.weight for layer in inside if isinstance(layer, (nn.Linear, nn.Conv2d))]


def _shape(weight):
    return tuple(weight.shape)
