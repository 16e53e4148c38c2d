"""Weights that differ from sample to sample: vectors become changes of layers, which a VAE works under but
never keeps.

A change of one layer is a dict: "weight" `[B, ...]` and "bias" `[B, out]`, to be added to the layer's own; or
"scale" and "shift" `[B, out]` of its output channels. B samples, out a layer's output channels.
"""

import functools
import itertools
import math
from types import MappingProxyType

import torch
import torch.nn.functional as F
from torch import nn
from torch.func import functional_call, vmap


class LayerUpdate(nn.Module):
    """What vectors `[B, size]` change in one layer (linear, convolution or transposed convolution, with a
    bias).

    kind "full": a number for each weight and bias. "low_rank": the weights' change, as a matrix of `out`
    rows, is a product with `rank` in between (Hu et al. 2022); a number for each bias. "per_channel": a
    factor for all parameters of an output channel and a number for its bias. Numbers of about 1 ask for a
    change as large as the layer; what they ask for is squeezed smoothly, so that the norm of the change stays
    below `bound` times the norm of the layer's own parameters.
    """

    def __init__(self, layer, kind, rank, bound):
        super().__init__()
        self.axis = (
            1 if isinstance(layer, nn.ConvTranspose2d) else 0
        )  # of the weight, that of the output channels
        self.shape = layer.weight.movedim(self.axis, 0).shape
        self.out, self.rest = self.shape[0], self.shape[1:].numel()
        self.rank, self.bound = rank, bound
        self.parts = {
            "full": (self.out * self.rest, self.out),
            "per_channel": (self.out, self.out),
            "low_rank": (self.out * rank, rank * self.rest, self.out),
        }[kind]
        self.kind, self.size = kind, sum(self.parts)

    def initial(self):
        """A vector `[size]` that changes nothing and that can be learned from: of a product's two factors one
        is random.
        """
        parts = [torch.zeros(part) for part in self.parts]
        if self.kind == "low_rank":
            parts[1].normal_()
        return torch.cat(parts)

    def forward(self, layer, vectors):
        """The change of `layer`, as above. The layer's size counts as a constant: no gradient makes it larger
        or smaller.
        """
        weight, bias = (
            layer.weight.detach().movedim(self.axis, 0).flatten(1),
            layer.bias.detach(),
        )  # [out, rest], [out]
        own = (weight.square().sum() + bias.square().sum()).sqrt()
        first, *second, last = vectors.to(own.dtype).split(self.parts, 1)
        shift = last * own / self.out**0.5
        if self.kind == "per_channel":
            change, moved = {"scale": first, "shift": shift}, first * bias + shift
            squares = (first.square() * weight.square().sum(1)).sum(1)
        else:
            for rows in second:
                columns = first.unflatten(1, (self.out, self.rank)) / self.rank**0.5
                first = (columns @ rows.unflatten(1, (self.rank, self.rest))).flatten(1)
            first = first * own / (self.out * self.rest) ** 0.5
            change = {"weight": first.unflatten(1, self.shape).movedim(1, 1 + self.axis), "bias": shift}
            moved, squares = shift, first.square().sum(1)
        limit = self.bound * own
        squeeze = limit / (limit.square() + squares + moved.square().sum(1)).sqrt()  # [B]
        return {name: part * squeeze.view(-1, *[1] * (part.dim() - 1)) for name, part in change.items()}


def changed_layer(layer, x, change=None):
    """`layer(x)` where each sample of `[B, ...]` has parameters of its own: the layer's and its row of
    `change`.
    """
    if change is None:
        return layer(x)
    if (
        "scale" in change
    ):  # of outputs instead of weights: one ordinary convolution for all samples, several times as fast
        room = [1] * (x.dim() - 2)
        scale, shift = (change[name].unflatten(1, (-1, *room)) for name in ("scale", "shift"))
        return layer(x) * (1 + scale) + shift
    own = {
        name: (getattr(layer, name) + part).to(x.dtype) for name, part in change.items()
    }  # [B, ...]; vmap knows no autocast
    return vmap(lambda parameters, sample: functional_call(layer, parameters, (sample[None],))[0])(own, x)


ACTIVATIONS = {"leaky_relu": functools.partial(F.leaky_relu, negative_slope=0.2), "relu": F.relu}


class Trunk(nn.ModuleList):
    """Images `[N, 3, H, W]` -> `[N, C h w]`: convolutions, each of which halves the grid; of the encoder and
    of the critic.
    """

    def __init__(self, channels, pool, activation):
        shape = (3, 1, 1) if pool else (4, 2, 1)
        super().__init__(nn.Conv2d(i, o, *shape) for i, o in itertools.pairwise((3, *channels)))
        self.pool, self.activation = pool, ACTIVATIONS[activation]

    def forward(self, x, changes=MappingProxyType({})):
        """changes: of the layers, named as in a `VAE`."""
        for i, layer in enumerate(self):
            x = self.activation(changed_layer(layer, x, changes.get(f"encoder.{i}")))
            x = F.max_pool2d(x, 2) if self.pool else x
        return x.flatten(1)


class VAE(nn.Module):
    """Images `[N, 3, H, W]` <-> latents `[N, L]`. changes: dict layer name -> its change, as `changed_layer`
    takes it.
    """

    def __init__(self, height, width, latent_dim, encoder_channels, decoder_channels, pool, activation):
        super().__init__()
        down, up = len(encoder_channels), len(decoder_channels)
        self.encoder = Trunk(encoder_channels, pool, activation)
        features = encoder_channels[-1] * (height >> down) * (width >> down)
        self.mu, self.logvar = nn.Linear(features, latent_dim), nn.Linear(features, latent_dim)
        self.grid = (decoder_channels[0], height >> up, width >> up)
        self.stem = nn.Linear(latent_dim, math.prod(self.grid))
        widths = itertools.pairwise((*decoder_channels, 3))
        self.decoder = nn.ModuleList(nn.ConvTranspose2d(i, o, 4, 2, 1) for i, o in widths)

    def encode(self, images, changes=MappingProxyType({})):
        """(mu, logvar), each `[N, L]` and unbounded."""
        x = self.encoder(images, changes)
        return tuple(changed_layer(getattr(self, name), x, changes.get(name)) for name in ("mu", "logvar"))

    def decode(self, z, changes=MappingProxyType({})):
        """Images in (-1, 1)."""
        x = changed_layer(self.stem, z, changes.get("stem")).unflatten(1, self.grid)
        for i, layer in enumerate(self.decoder):
            x = changed_layer(layer, F.relu(x), changes.get(f"decoder.{i}"))
        return torch.tanh(x)
