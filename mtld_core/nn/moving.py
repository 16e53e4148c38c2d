"""Weight on what moves: a ball is 4 of 4,096 pixels, and worth nothing to a mean over all of them."""

import torch

FAR = 0.1  # from the median frame, where pixels are in [-1, 1]: what differs by more is something that moves
# of the weight counts where something is drawn and nothing is: with all of it, a mean draws no ball
GHOSTS = 0.1


def moving_weights(truth, drawn, median, weight, dim):
    """How much the error of each pixel counts: 1 + weight where the truth moves, 1 + weight / 10 for ghosts.

    truth, drawn, median: pictures or patches in [-1, 1], with their colours along `dim`, where the result is
    1 long. A pixel moves where a colour is far from the median frame's; a ghost is one that moves only as
    drawn.
    """
    there, ghosts = [
        (picture.detach() - median).abs().amax(dim, keepdim=True) > FAR for picture in (truth, drawn)
    ]
    return 1 + weight * torch.where(there, 1, GHOSTS * ghosts)
