"""Weight on what moves: a ball is 4 of 4,096 pixels, and worth nothing to a mean over all of them.

Pictures `[..., 3, H, W]` are in [-1, 1].
"""

import torch
import torch.nn.functional as F

FAR = 0.1  # from the median frame: what differs by more is something that moves
# of the weight counts where something is drawn and nothing is: with all of it, a mean draws no ball
GHOSTS = 0.1
UNSEEN = 3 / 127.5  # three levels of 255: in a dream what is so near to the median frame is the median frame


def moving_weights(truth, drawn, median, weight):
    """How much the error of each pixel counts, `[..., 1, H, W]`: 1, and where something moves `weight` more.

    Of `weight` a tenth counts for ghosts, which move as drawn alone. A pixel moves where a colour is far from
    the median frame's.
    """
    there, ghosts = (_off(picture.detach(), median) > FAR for picture in (truth, drawn))
    return 1 + weight * torch.maximum(there, GHOSTS * ghosts)


def heal(frames, median):
    """Draw frames of a dream over the median frame: what differs by less than can be seen does not."""
    return median + F.hardshrink(frames - median, UNSEEN)


def _off(pictures, median):
    return (pictures - median).abs().amax(-3, keepdim=True)
