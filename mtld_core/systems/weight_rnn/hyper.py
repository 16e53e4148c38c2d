"""Weights that differ from sample to sample: vectors become changes of layers.

A VAE works under such changes but never keeps them. The change of one layer is a dict: "weight" `[B, ...]`
and "bias" `[B, out]`, to be added to the layer's own; or "scale" and "shift" `[B, out]` of its output
channels. B samples, out a layer's output channels.
"""

import itertools
import math
import types

import torch
import torch.nn.functional as F
from torch import nn
from torch.func import functional_call, vmap

from mtld_core.nn.conv import laid_out, leaky_relu
from mtld_core.nn.precision import FullWeights

ACTIVATIONS = {"leaky_relu": leaky_relu, "relu": F.relu}
UNCHANGED = types.MappingProxyType({})  # changes of no layer


class LayerUpdate(nn.Module):
    """What vectors `[B, size]` change in one layer: linear, convolution or transposed one, with a bias.

    kind "full": a number for each weight and bias. "low_rank": the weights' change, as a matrix of `out`
    rows, is a product with `rank` in between (Hu et al. 2022); a number for each bias. "per_channel": a
    factor for all parameters of an output channel and a number for its bias. Numbers of about 1 ask for a
    change as large as the layer; what they ask for is squeezed smoothly, so that the norm of the change stays
    below `bound` times the norm of the layer's own parameters.
    """

    def __init__(self, layer, kind, rank, bound):
        super().__init__()
        self.axis = 1 if isinstance(layer, nn.ConvTranspose2d) else 0  # the weight's, of output channels
        self.others = [axis for axis in range(layer.weight.dim()) if axis != self.axis]
        self.shape = layer.weight.movedim(self.axis, 0).shape
        self.out = self.shape[0]
        self.rest = self.shape[1:].numel()
        self.kind = kind
        self.rank = rank
        self.bound = bound
        self.parts = {
            "full": (self.out * self.rest, self.out),
            "per_channel": (self.out, self.out),
            "low_rank": (self.out * rank, rank * self.rest, self.out),
        }[kind]
        self.size = sum(self.parts)

    def initial(self):
        """A vector `[size]` that changes nothing and that can be learned from.

        Of a product's two factors one is random.
        """
        parts = [torch.zeros(part) for part in self.parts]
        if self.kind == "low_rank":
            parts[1].normal_()
        return torch.cat(parts)

    def forward(self, layer, vectors):
        """The change of `layer`, a dict as the head of hyper.py describes it.

        The layer's size counts as a constant: no gradient makes it larger or smaller.
        """
        bias = layer.bias.detach()  # [out]
        norms = torch.linalg.vector_norm(layer.weight.detach(), dim=self.others)  # [out]
        own = torch.linalg.vector_norm(torch.cat([norms, bias]))
        first, *second, last = vectors.to(own.dtype).split(self.parts, 1)
        shift = last * own / self.out**0.5
        if self.kind == "per_channel":
            moved = torch.addcmul(shift, first, bias)
            squares = (first.square() * norms.square()).sum(1)
        else:
            for rows in second:  # low_rank
                columns = first.unflatten(1, (self.out, self.rank)) / self.rank**0.5
                first = (columns @ rows.unflatten(1, (self.rank, self.rest))).flatten(1)
            first = first * own / (self.out * self.rest) ** 0.5  # [B, out * rest]
            moved = shift
            squares = first.square().sum(1)
        limit = self.bound * own
        squeeze = limit / (limit.square() + squares + moved.square().sum(1)).sqrt()[:, None]  # [B, 1]
        first = first * squeeze
        shift = shift * squeeze
        if self.kind == "per_channel":
            return {"scale": first, "shift": shift}
        return {"weight": first.unflatten(1, self.shape).movedim(1, 1 + self.axis), "bias": shift}


def changed_layer(layer, x, change=None):
    """`layer(x)` where each sample of `[B, ...]` has the layer's parameters and its own row of `change`."""
    if change is None:
        return layer(x)
    if "scale" in change:
        # of outputs instead of weights: one ordinary convolution for all samples, several times as fast
        room = [1] * (x.dim() - 2)
        scale = change["scale"].unflatten(1, (-1, *room))
        shift = change["shift"].unflatten(1, (-1, *room))
        return torch.addcmul(shift, layer(x), 1 + scale)
    # [B, ...], in the type of x, for vmap knows no autocast
    own = {name: (getattr(layer, name) + part).to(x.dtype) for name, part in change.items()}

    def alone(parameters, sample):
        return functional_call(layer, parameters, (sample[None],))[0]

    return vmap(alone)(own, x)


class Trunk(nn.ModuleList):
    """Images `[N, 3, H, W]` -> `[N, features]`: convolutions, each of which halves the grid.

    The encoder begins with one, and so does the critic. config: of the weight RNN.
    """

    def __init__(self, config, height, width):
        channels = config.encoder_channels
        pool = config.downsample == "pool"
        kernel, stride = (3, 1) if pool else (4, 2)
        pairs = itertools.pairwise((3, *channels))
        super().__init__(nn.Conv2d(a, b, kernel, stride, 1) for a, b in pairs)
        self.pool = pool
        self.activation = ACTIVATIONS[config.activation]
        self.features = channels[-1] * (height >> len(channels)) * (width >> len(channels))

    def forward(self, x, changes=UNCHANGED, convolve=changed_layer):
        """changes: of the layers, named as in a `VAE`."""
        for i, layer in enumerate(self):
            x = self.activation(convolve(layer, x, changes.get(f"encoder.{i}")))
            if self.pool:
                x = F.max_pool2d(x, 2)
        return x.flatten(1)


class VAE(FullWeights, nn.Module):
    """Images `[N, 3, H, W]` <-> latents `[N, L]`. changes: dict layer name -> its change, for this call."""

    def __init__(self, config, height, width):
        super().__init__()
        channels = config.decoder_channels
        self.grid = (channels[0], height >> len(channels), width >> len(channels))
        self.encoder = Trunk(config, height, width)
        self.mu = nn.Linear(self.encoder.features, config.latent_dim)
        self.logvar = nn.Linear(self.encoder.features, config.latent_dim)
        self.stem = nn.Linear(config.latent_dim, math.prod(self.grid))
        pairs = itertools.pairwise((*channels, 3))
        self.decoder = nn.ModuleList(nn.ConvTranspose2d(a, b, 4, 2, 1) for a, b in pairs)

    def encode(self, images, changes=UNCHANGED):
        """(mu, logvar), each `[N, L]` and unbounded."""
        x = self.encoder(images, changes)
        mu = changed_layer(self.mu, x, changes.get("mu"))
        logvar = changed_layer(self.logvar, x, changes.get("logvar"))
        return mu, logvar

    def features(self, z, changes=UNCHANGED):
        """What the first layer makes of latents, the coarsest grid of an image: `[N, C, h, w]`, unbounded."""
        return laid_out(changed_layer(self.stem, z, changes.get("stem")).unflatten(1, self.grid))

    def decode(self, z, changes=UNCHANGED):
        """Images in (-1, 1)."""
        x = self.features(z, changes)
        for i, layer in enumerate(self.decoder):
            x = changed_layer(layer, F.relu(x), changes.get(f"decoder.{i}"))
        return torch.tanh(x)
