"""How a dream of Atari Breakout lasts: its ball, its paddle and its bricks, found in frames of 64x64 pixels.

python bench/breakout.py RUN       a run on a recording of ALE/Breakout-v5: 8 dreams of 1,000 steps

Places are (row, column).
"""

import argparse
import collections
import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from dreams import Court, dream, middle, rebounds, told

from mtld_core.runtime import command
from mtld_core.systems.opening import open_run, own_dataset

RIGHT, LEFT = 2, 3
OPEN = slice(29, 57)  # rows between bricks and paddle
INSIDE = slice(3, 61)  # columns between the walls
PADDLE = slice(57, 59)  # rows
LIT = 30  # of red: the walls' edges have 28, the faintest ball 66
COURT = Court(
    turns={"bricks": (0, 29, -1), "paddle": (0, 56, 1), "left": (1, 3.6, -1), "right": (1, 60, 1)},
    reach=3,
    whole=(7, 57),
    seen=((OPEN.start, OPEN.stop), (INSIDE.start, INSIDE.stop)),
)
MIDDLE = range(24, 40)  # columns from which the paddle can move 4 frames either way without touching a wall
HELD = 4  # frames
BRICKS = (6, 18)  # rows and columns of the wall
SCREEN = (210, 160)
WALL = ((57, 93), (8, 152))  # of the screen's pixels
GONE = 0.4  # of a brick is left at most, for its neighbours are averaged in; of one that is there 1 less that
LAST = 4  # frames for which a brick must be gone to be called removed
NEAR = 6  # columns from a brick within which the ball was seen around the time when it removed it


def ball_place(frames):
    """Where the ball is below the bricks: uint8 `[..., 64, 64, 3]` -> float `[..., 2]`, nan where none is."""
    red = (frames[..., OPEN, INSIDE, 0].float() - LIT).clamp(min=0)
    return torch.stack([middle(red.sum(-1), OPEN.start), middle(red.sum(-2), INSIDE.start)], -1)


def paddle_column(frames):
    """Column of the paddle's middle: uint8 `[..., 64, 64, 3]` -> float `[...]`, nan where none is."""
    red = (frames[..., PADDLE, INSIDE, 0].float() - LIT).clamp(min=0)
    return middle(red.sum(-2), INSIDE.start, least=300)


def paddles(clip):
    """Where the paddle is in a clip `[T, 64, 64, 3]`, as `approaches` wants it."""
    return {"paddle": paddle_column(clip)}


def goes_where_told(system, dreamt, tries=200):
    """How often the paddle, held left or right for 4 frames, goes there: (share, tries). See `told`."""
    return told(system, dreamt, {RIGHT: 1, LEFT: -1}, paddle_column, MIDDLE, HELD, tries)


def bricks(frames, full):
    """How much is left of each brick: uint8 `[..., 64, 64, 3]` -> float `[..., 6, 18]`, 1 for one in `full`.

    full: a frame with all bricks.
    """
    down, across = shares()

    def light(picture):
        return torch.einsum("ry,...yxc,sx->...rs", down, picture.float(), across)

    return light(frames) / light(full)


def shares():
    """How much of each of 64 rows and columns lies in each of the wall's: `[6, 64]` and `[18, 64]`."""
    found = []
    for (first, last), count, size in zip(WALL, BRICKS, SCREEN, strict=True):
        edges = torch.linspace(first, last, count + 1) * 64 / size
        low, high = edges[:-1, None], edges[1:, None]
        pixel = torch.arange(64)
        found.append((torch.minimum(high, pixel + 1) - torch.maximum(low, pixel)).clamp(min=0))
    return found


def wrong_bricks(clip, full):
    """Share of bricks that are not as the ball left them at the end of a clip `[T, 64, 64, 3]`.

    Right is a brick that is there and was never removed, or one that is gone since the ball was beside it.
    Wrong is one that came back, one that went by itself, and one that is half there.
    """
    left = bricks(clip, full)  # [T, 6, 18]
    gone = left < GONE
    lasting = gone.unfold(0, LAST, 1).all(-1)  # from each frame on
    ball = ball_place(clip)
    hit = torch.zeros(BRICKS, dtype=torch.bool)
    for row, column in lasting[-1].nonzero().tolist():
        since = (~gone[:, row, column]).nonzero().flatten()
        when = since[-1].item() + 1 if len(since) else 0
        seen = ball[max(0, when - 8) : when + 8, 1]
        across = (WALL[1][0] + (column + 0.5) * 8) * 64 / SCREEN[1]
        hit[row, column] = when == 0 or bool(((seen - across).abs() < NEAR).any())
    removed = lasting.any(0)
    right = torch.where(removed, lasting[-1] & hit, left[-1] > 1 - GONE)
    return 1 - right.double().mean().item()


@command
def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run")
    system = open_run(parser.parse_args().run, device="cpu")
    dataset = own_dataset(system)
    full = dataset.frames[dataset.arcs[0].start]
    steps = list(dream(system, dataset, 1000))
    frames = torch.stack([frame for _, frame in steps], 1)
    for name, shown in (("recording", dataset.frames), ("dreams at 900 to 1,000", frames[:, 900:])):
        print(f"{name}: a ball in {ball_place(shown).isfinite().all(-1).float().mean():.0%} of the frames")
    print("the paddle obeys in {:.1%} of {} tries".format(*goes_where_told(system, steps[900:])))
    wrong = [wrong_bricks(clip, full) for clip in frames]
    print(f"wrong bricks after 1,000 steps: {sum(wrong) / len(wrong):.1%}")
    found = collections.Counter(dreamt for *_, dreamt in rebounds(system, dataset, sys.modules[__name__]))
    print(f"the ball turns in {found[True]} of {found.total()} places where the recorded one did")


if __name__ == "__main__":
    sys.exit(main())
