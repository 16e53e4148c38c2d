"""Hard cuts: the rows where a new shot begins, found by how much small pictures of the frames differ."""

import itertools

import cv2
import numpy as np

from mtld_core.runtime import for_each

LEAST_JUMP = 12.0  # a cut changes the small picture by this much on average (0..255) ...
RATIO = 2.0  # ... and by this many times the motion around it
AROUND = 8  # steps on each side that tell how much motion there is
SHIFT = 6  # the camera may move by one part in so many of the picture between two frames
FLASH = 3  # rows on each side that must all differ across a cut; a flash of fewer rows is no cut
PIECE = 128  # frames whose small pictures are in memory at once


def thumbnail(frame):
    """Shrink a picture, uint8 `[H, W, 3]` -> uint8 `[min(H, 32), min(W, 32), 3]`, by averaging areas."""
    height, width = frame.shape[:2]
    return cv2.resize(frame, (min(width, 32), min(height, 32)), interpolation=cv2.INTER_AREA)


def find_cuts(thumbs):
    """List the rows, as ints, that begin a new shot.

    thumbs: uint8 `[N, h, w, 3]`, or a list of N arrays, the small pictures of one arc in order.

    A row's jump is the least difference between any of the three rows before it and any of the three rows
    from it on; so a flash, before and after which all is alike, makes none. A cut is a jump that is large and
    stands out from the jumps around it. Pans, fast motion and fades have many jumps alike, so none stands
    out; animation "on twos" or "on threes" is measured by its largest jumps around, not by the repeats. The
    third largest jump counts as the motion around, so that a cut nearby hides nothing; near the ends of an
    arc, where there are few, it is the second largest or the largest.
    """
    jumps = [0.0]  # of row 0, and of each row from the one before
    jumps += [_jump(thumbs, row) for row in range(1, len(thumbs))]
    found = []
    for row, jump in enumerate(jumps):
        if jump >= LEAST_JUMP:
            around = jumps[max(1, row - AROUND) : row] + jumps[row + 1 : row + 1 + AROUND]
            around.sort(reverse=True)
            if around and jump >= RATIO * around[min(2, len(around) // 6)]:
                found.append(row)
    return found


def cuts_of_arcs(frames, borders, workers):
    """Find the rows of a store that begin a new shot inside an arc: int64, sorted.

    frames: uint8 `[N, H, W, 3]`, an array or `LazyFrames`. borders: (start, stop) of each arc. Arcs are read
    in pieces that overlap by as much as `find_cuts` looks around, so the small pictures never add up.
    """
    margin = AROUND + FLASH
    pieces = []  # (arc's first row, row behind its last, piece's first row)
    for first, last in borders:
        pieces += [(first, last, start) for start in range(first, last, PIECE)]
    found = [()] * len(pieces)

    def search(i):
        first, last, start = pieces[i]
        low = max(first, start - margin)
        thumbs = [thumbnail(frame) for frame in np.asarray(frames[low : min(last, start + PIECE + margin)])]
        rows = [low + row for row in find_cuts(thumbs)]
        found[i] = [row for row in rows if start <= row < start + PIECE]

    for_each(search, len(pieces), workers)
    return np.array(list(itertools.chain(*found)), np.int64)


def _jump(thumbs, row):
    """The least difference across the border before `row`; the search ends at one too small for a cut."""
    least = np.inf
    before = thumbs[max(0, row - FLASH) : row]
    for a, b in itertools.product(before[::-1], thumbs[row : row + FLASH]):
        least = min(least, _difference(a, b))
        if least < LEAST_JUMP:
            break
    return least


def _difference(a, b):
    """Root mean square difference (0..255) of the middle of `a` to where it fits best in `b`: 0 for a pan."""
    down, right = a.shape[0] // SHIFT, a.shape[1] // SHIFT
    inside = slice(down, a.shape[0] - down), slice(right, a.shape[1] - right)
    middle = a[inside]
    least = cv2.norm(middle, b[inside], cv2.NORM_L2SQR)
    if least >= LEAST_JUMP**2 * middle.size:  # only then is the slow search worth its time
        least = max(0.0, cv2.matchTemplate(b, middle, cv2.TM_SQDIFF).min())
    return float(np.sqrt(least / middle.size))
