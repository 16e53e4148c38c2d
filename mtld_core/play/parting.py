"""When a dream and the real game beside it have parted."""

import torch
import torch.nn.functional as F

from mtld_core.frames import differs

SHOWS = 26  # levels of 255, a tenth: a pixel that is this far from the median frame shows something
REACH = 1 / 32  # of the longer side: what is this near in the other picture counts as there
LEAST = 3  # pixels that the other picture knows nothing of
IN_A_ROW = 3  # steps


class Parting:
    """Tells when two series of frames parted. `step`: the first step of the parting, or None.

    A pixel shows something where a channel differs by more than 0.1 of the range from the recording's median
    frame. A step is apart where at least 3 pixels show something in one frame, and in the other nothing does
    within 1/32 of the longer side (2 pixels of 64). Three such steps in a row are a parting: a dream's usual
    errors are weaker, smaller or shorter. A ball of 4 pixels that only one of them has is enough, which a
    figure over all pixels would not notice.
    """

    step = None
    _apart = 0  # steps in a row that were

    def __init__(self, median):
        self._median = median

    def compare(self, step, dream, real):
        """Look at the frames of a step, uint8 `[H, W, 3]` each; steps come in order."""
        if self.step:
            return
        shown = differs(torch.stack([dream, real]), self._median, SHOWS)
        alone = shown & ~near(shown).flip(0)
        self._apart = self._apart + 1 if alone.sum().item() >= LEAST else 0
        if self._apart == IN_A_ROW:
            self.step = step - IN_A_ROW + 1


def near(pixels):
    """Where any of the bool pixels `[n, H, W]` is within 1/32 of the longer side, diagonals included."""
    reach = max(1, round(REACH * max(pixels.shape[1:])))
    return F.max_pool2d(pixels.float(), 2 * reach + 1, 1, reach).bool()
