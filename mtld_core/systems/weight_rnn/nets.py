"""The networks of the weight RNN beside its VAE (hyper.py)."""

import itertools

import torch
from torch import nn

from mtld_core.nn.conv import laid_out
from mtld_core.nn.precision import FullWeights
from mtld_core.systems.weight_rnn.hyper import Trunk


class Critic(FullWeights, nn.Module):
    """Images `[N, 3, H, W]` -> scores `[N]`, unbounded.

    The encoder's layers, linear layers of `critic_widths` and one number.
    """

    def __init__(self, config):
        super().__init__()
        self.trunk = Trunk(config, config.height, config.width)
        widths = (self.trunk.features, *config.critic_widths)
        self.dense = nn.ModuleList(nn.Linear(a, b) for a, b in itertools.pairwise(widths))
        self.head = nn.Linear(widths[-1], 1, bias=False)  # a bias would cancel out

    def forward(self, images, **how):
        """how: of the trunk."""
        x = self.trunk(images, **how)
        for layer in self.dense:
            x = self.trunk.activation(layer(x))
        return self.head(x).squeeze(1)


class WeightPredictor(nn.Module):
    """Video `[B, V, C, h, w]` -> update vectors `[B, U]`, at first `initial` `[U]` for every video.

    A small convolutional net reads each frame (without `frame_channels` the GRU takes the bare pixels), a GRU
    the frames in order.
    """

    def __init__(self, config, initial):
        super().__init__()
        watched = 3 if config.watched == "image" else config.decoder_channels[0]
        channels = (watched, *config.frame_channels)
        layers = []
        for a, b in itertools.pairwise(channels):
            layers += [nn.Conv2d(a, b, 4, 2, 1), nn.SiLU()]
        self.frames = nn.Sequential(*layers)
        factor = config.frame_factor
        features = channels[-1] * (config.height // factor) * (config.width // factor)
        self.gru = nn.GRU(features, config.gru_hidden, config.gru_layers, batch_first=True)
        self.head = nn.Linear(config.gru_hidden, len(initial))
        nn.init.zeros_(self.head.weight)
        with torch.no_grad():
            self.head.bias.copy_(initial)

    def forward(self, video):
        read = self.frames(laid_out(video.flatten(0, 1))).flatten(1)  # [B * V, features]
        seen, _ = self.gru(read.unflatten(0, video.shape[:2]))  # [B, V, hidden]
        return self.head(seen[:, -1])
