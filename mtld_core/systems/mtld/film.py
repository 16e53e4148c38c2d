"""A film as a few hundred pictures that are added up: what latent="components" is made of.

Letters: N pictures, H W pixels, L components, P = 3 H W numbers of a picture.
"""

import torch
import torch.nn.functional as F
from torch import nn

from mtld_core.frames import to_float
from mtld_core.nn.precision import in_fp32, without_autocast

LEAST_SPREAD = 1e-3  # of the first component's: below that a component is fp32's rounding
FRAMES_EACH, MOST = 3, 512  # components: one for so many frames of the film, and how many at most
SAMPLE = 4096  # frames that they are taken of, evenly spaced
FLOOR = 1e-5  # of what a frame loses: half a level of 255
MOVES = 0.08, 0.04, 0.02  # zooms, and ways in half sides, that are tried one after the other
SAME = 0.9999  # likeness from which on nothing else is tried


def components_for(frames):
    """How many components a film of so many frames gets."""
    return min(MOST, max(1, frames // FRAMES_EACH))


class Components(nn.Module):
    """Pictures float `[N, 3, H, W]` -> latents `[N, L]`, and back by `draw`: the film's principal components.

    A latent says how much of each component a picture has beyond the film's mean, in units of that
    component's standard deviation. What the components cannot draw of a picture is `lost`: the squared
    distance of a drawn picture to it is that of their latents, weighed by `weights`, and what was lost.
    `learn` sets all of it, once; no gradient reaches it. It runs in fp32.
    """

    def __init__(self, config):
        super().__init__()
        size, count = (3, config.height, config.width), config.latent_dim
        self.register_buffer("mean", torch.zeros(size))
        self.register_buffer("pictures", torch.zeros(count, *size))  # orthonormal rows, or zeros
        self.register_buffer("spread", torch.ones(count))
        # latents of the film's frames; runs without them have no such tensor
        self.register_buffer("known", torch.zeros(config.places, count), persistent=config.places > 0)

    @torch.no_grad()
    def learn(self, frames):
        """Take mean, components and their spread from frames uint8 `[n, H, W, 3]`, and know these.

        Components beyond what n frames hold stay 0, and so do known frames beyond n.
        """
        x = to_float(frames).flatten(1)
        self.mean.copy_(x.mean(0).view_as(self.mean))
        x = x - x.mean(0)
        # the same components as of the P x P covariance, at the price of n x n
        squares, sides = torch.linalg.eigh((x @ x.T).double())
        lengths = squares.flip(0).clamp(min=0).sqrt()[: len(self.spread)]
        lengths = lengths[lengths > LEAST_SPREAD * lengths[0]]
        sides = sides.flip(1)[:, : len(lengths)]
        rows = (sides / lengths).T.to(x.dtype) @ x
        self.pictures.zero_()[: len(rows)] = rows.view(-1, *self.mean.shape)
        self.spread.fill_(1)[: len(rows)] = (lengths / len(x) ** 0.5).to(x.dtype)
        self.known[: len(frames)] = self(to_float(frames))[: len(self.known)]

    @property
    def weights(self):
        """What a squared difference of a latent is in squared differences of pixels, their mean, `[L]`."""
        return self.spread.square() / self.mean.numel()

    def forward(self, x):
        with without_autocast(x):
            return (in_fp32(x) - self.mean).flatten(1) @ self.pictures.flatten(1).T / self.spread

    def lost(self, x, z):
        """The mean squared difference of pictures `[N, 3, H, W]` to what latents `[N, L]` draw, `[N]`."""
        with without_autocast(x):
            kept = z.square() @ self.weights
            return ((in_fp32(x) - self.mean).square().flatten(1).mean(1) - kept).clamp(min=FLOOR)

    def draw(self, z):
        """Latents `[N, L]` -> pictures `[N, 3, H, W]`, which may leave [-1, 1]; `to_uint8` clips them."""
        with without_autocast(z):
            change = (in_fp32(z) * self.spread) @ self.pictures.flatten(1)
            return self.mean + change.unflatten(1, self.mean.shape)

    def find(self, picture):
        """The latent `[1, L]` of the known frame that a picture `[1, 3, H, W]` is most like.

        The picture is zoomed and moved along x and y, by `MOVES`, to where it is most like a frame: likeness
        is the cosine of latents, whose components count by the root of their spread. So contrast does not
        count, nor brightness much, which the first components hold.
        """
        with without_autocast(picture):
            weights = self.spread.sqrt()
            known = F.normalize(self.known * weights).T
            ways = picture.new_tensor([0, -1, 1])
            ways = torch.cartesian_prod(ways, ways[:1], ways, ways[:1], ways, ways).view(-1, 2, 3)
            pictures = picture.expand(len(ways), -1, -1, -1)
            way = torch.eye(2, 3).to(picture)  # at first it stays where it is
            for size in MOVES:
                tried = way + size * ways
                grid = F.affine_grid(tried, pictures.shape, align_corners=False)
                moved = F.grid_sample(pictures, grid, padding_mode="border", align_corners=False)
                likeness, places = (F.normalize(self(moved) * weights) @ known).max(1)
                best = likeness.argmax()
                if likeness[best] > SAME:
                    break
                way = tried[best]
            return self.known[places[best], None]
