"""Whether a dream of a game still is that game: its ball turns, and what the player moves obeys.

    python bench/dreams.py RUN dream.mp4     a film of four dreams of 1,000 steps under sticky random actions,
                                             a contact sheet beside it, and what stands still and what moves

What is common to bench/pong.py and bench/breakout.py, which find ball and paddles in the pictures.
"""

import argparse
import collections
import sys
import typing
from pathlib import Path

import torch
from torch.utils._pytree import tree_map_only

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from mtld_core.frames import differs, evenly, to_float, to_uint8
from mtld_core.judge.life import sticky_actions
from mtld_core.media import save_picture, strip, video_writer
from mtld_core.runtime import command
from mtld_core.systems.opening import open_run, own_dataset

SOON = 7  # frames within which a ball that turned is seen to leave
DREAMS, FILMED = 8, 4  # at once, and how many of them are filmed side by side
LATE = 100  # steps at the end of a dream that are judged
SHEET = (1, 64, 256, 1000, 10_000)  # steps that the contact sheet shows
SOME = 1024  # frames that tell what stands still
CHANGED = 0.01  # share of frames in which a static pixel may differ from the median frame
LARGER = 4  # pixels of the film for one of a frame


class Court(typing.NamedTuple):
    """Where a ball turns. Places are (row, column), axis 0 or 1 of them."""

    turns: dict  # name: (axis, place on it from where on, side: -1 where places below it are beyond, else 1)
    reach: float  # of a paddle, from its middle to where it certainly hits the ball
    whole: tuple  # first and last place of a paddle's middle at which no part of it is out of sight
    seen: tuple  # (first, last) row and column where a ball is seen


def middle(mass, first, least=0):
    """Where the centre of `mass` `[..., n]` is, whose places count from `first`; nan below `least` of it."""
    places = torch.arange(first, first + mass.shape[-1], dtype=torch.float32)
    total = mass.sum(-1)
    return torch.where(total > least, (mass * places).sum(-1) / total, torch.nan)


def approaches(ball, court, paddles):
    """Where a ball is about to meet walls and paddles: [(frame, name of `court.turns`)].

    ball: its place in each frame `[T, 2]`, nan where none is seen. paddles: name -> place of its middle
    along the other axis, `[T]`. Expected by the ball's last step; a paddle counts where it certainly stands
    in the ball's way.
    """
    found = []
    t = 1
    while t < len(ball) - SOON:
        name = _ahead(ball, court, paddles, t)
        if name:
            found.append((t, name))
        t += SOON if name else 1
    return found


def turned(ball, court, name):
    """Whether the next places `[n, 2]` of a ball that met `name` lead away from there."""
    axis, _, side = court.turns[name]
    seen = ball.isfinite().all(-1).nonzero().flatten()
    steps = ball[seen[1:]] - ball[seen[:-1]]
    near = steps.abs().amax(-1) < 8 * seen.diff()
    return bool((near & (steps[:, axis] * side < -0.3)).any())


def rebounds(system, dataset, game):
    """Whether the ball turns at walls and paddles in dreams from just before: [(name, really, in the dream)].

    game: the module that finds ball and paddles. Recorded actions, latents drawn from a seed.
    """
    k = system.needs().context
    met = []
    for arc in dataset.arcs:
        clip = dataset.frames[arc.start : arc.stop]
        ball = game.ball_place(clip)
        for t, name in approaches(ball, game.COURT, game.paddles(clip)):
            if t >= k - 1:
                met.append((arc.start + t, name, turned(ball[t + 1 : t + 1 + SOON], game.COURT, name)))
    rows = torch.tensor([row for row, *_ in met])[:, None]
    context = to_float(dataset.frames[rows + torch.arange(1 - k, 1)])
    actions = dataset.actions[rows + torch.arange(SOON)].unbind(1)
    with torch.inference_mode():
        dreamt = torch.cat(list(system.rollout(context, SOON, actions, torch.Generator().manual_seed(0))), 1)
    balls = game.ball_place(to_uint8(dreamt))
    return [
        (name, really, turned(ball, game.COURT, name))
        for (_, name, really), ball in zip(met, balls, strict=True)
    ]


def _ahead(ball, court, paddles, t):
    """The name of what the ball meets after frame t, or None."""
    speed = ball[t] - ball[t - 1]
    if not speed.isfinite().all() or speed.abs().max() > 6:
        return None
    for name, (axis, border, side) in court.turns.items():
        if speed[axis] * side < 0.4 or (ball[t] + speed)[axis] * side <= border * side:
            continue
        other = 1 - axis
        if name in paddles:
            wait = (border - ball[t, axis]) / speed[axis]
            there = ball[t, other] + wait * speed[other]
            return name if _in_the_way(paddles[name][t:], wait, there, court) else None
        first, last = court.seen[other]
        leaves = (ball[t] + 3 * speed)[other]  # sideways, before it is seen to turn
        return name if first < leaves < last else None
    return None


def _in_the_way(paddle, wait, there, court):
    """Whether a paddle, whose middle is at `paddle` from now on, is certainly `there` after `wait` frames."""
    if wait < 0:
        return False  # the ball is past it
    near = paddle[int(wait) : int(wait) + 2]
    whole = (near >= court.whole[0]) & (near < court.whole[1])
    return bool((whole & ((near - there).abs() < court.reach)).all())


def dream(system, dataset, steps, count=DREAMS):
    """Dreams under sticky random actions: yields (state, uint8 frames `[count, 64, 64, 3]`) of each step."""
    k = system.needs().context
    starts = evenly(torch.cat([dataset.arc_windows(arc, k) for arc in dataset.arcs]), count)
    context = to_float(dataset.frames[starts[:, None] + torch.arange(k)])
    with torch.inference_mode():
        state = system.start(context, torch.Generator().manual_seed(0))
        for actions in sticky_actions(system.action_space, steps, count):
            state, frame = system.step(state, actions)
            yield state, to_uint8(frame)


def lasting(frames, clips):
    """What stands still and what moves in dreamt frames uint8 `[B, T, H, W, 3]`: a dict of two figures.

    clips: of the recording, uint8 `[T, H, W, 3]` each. "static": PSNR in dB of the pixels that hardly ever
    change in it, against its median frame, averaged over the frames. "motion": change from frame to frame
    over the recording's.
    """
    some = evenly(torch.cat(clips), SOME)
    median = some.median(0).values
    static = differs(some, median).float().mean(0) <= CHANGED  # [H, W]
    error = ((frames[..., static, :].float() - median[static]) / 255).square().mean((-2, -1))
    real = torch.cat([moved(clip) for clip in clips]).mean()
    return {
        "static": (-10 * error.clamp(min=1e-10).log10()).mean().item(),
        "motion": (moved(frames).mean() / real).item(),
    }


def moved(clip):
    """Mean change from each frame to the next, in levels of 255: `[..., T, H, W, 3]` -> `[..., T - 1]`."""
    return clip.int().diff(dim=-4).abs().float().mean((-3, -2, -1))


def told(system, dreamt, ways, place, mid, held, tries):
    """How often what the player moves goes where it is told, from where dreams stand: (share, tries).

    dreamt: (state, frames) of `dream`. ways: action -> -1 or 1, which way it moves. place: frames `[B, H, W,
    3]` -> where it is, `[B]`. It counts from places in `mid`. held: frames for which an action is held.
    """
    right = []
    with torch.inference_mode():
        for state, frame in dreamt:
            before = place(frame)
            rows = torch.tensor([i for i, where in enumerate(before) if where.round().item() in mid])
            if not len(rows):
                continue
            for action, way in ways.items():
                now = tree_map_only(torch.Tensor, lambda kept: kept[rows], state)  # noqa: B023
                last = before[rows]  # where it was last seen: it may leave the field on the way
                for _ in range(held):
                    now, frame = system.step(now, torch.full((len(rows),), action))
                    there = place(to_uint8(frame))
                    last = torch.where(there.isfinite(), there, last)
                right.append(torch.sign(last - before[rows]) == way)
    right = evenly(torch.cat(right), tries)
    return right.float().mean().item(), len(right)


def film(system, dataset, steps, path):
    """Write an mp4 of dreams side by side, enlarged, at the speed of the recording, and a sheet beside it.

    The sheet (.png) shows the dreams at some steps, and below them the recording at some moments. Returns the
    last hundred frames of each dream, also of those that are not filmed, `[8, 100, H, W, 3]`.
    """
    fps = dataset.about.get("fps", 15)
    c = system.config
    shown, late = {}, collections.deque(maxlen=LATE)
    with video_writer(path, fps, LARGER * c.height, LARGER * FILMED * c.width) as write:
        for step, (_, frames) in enumerate(dream(system, dataset, steps, DREAMS), 1):
            row = torch.cat(list(frames[:FILMED]), 1)  # [H, 4 W, 3]
            write(row.repeat_interleave(LARGER, 0).repeat_interleave(LARGER, 1))
            late.append(frames)
            if step in (*SHEET, steps):
                shown[step] = frames[:FILMED]
    rows = [list(dreamt) for dreamt in zip(*shown.values(), strict=True)]
    rows.append(list(evenly(dataset.frames, len(shown) + 2)[1:-1]))
    names = [*(f"dream {i + 1}" for i in range(FILMED)), "recorded"]
    save_picture(Path(path).with_suffix(".png"), strip(rows, names, [f"+{step}" for step in shown]))
    return torch.stack(list(late), 1)


@command
def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run")
    parser.add_argument("out", help="the .mp4 to write")
    parser.add_argument("--steps", type=int, default=1000)
    given = parser.parse_args()
    system = open_run(given.run, device="cpu")
    dataset = own_dataset(system)
    late = film(system, dataset, given.steps, given.out)
    figures = lasting(late, [dataset.frames[arc.start : arc.stop] for arc in dataset.arcs])
    words = "static {static:.1f} dB, motion {motion:.2f} of the recording's"
    print(f"the last {late.shape[1]} of {given.steps} steps: {words.format(**figures)}")


if __name__ == "__main__":
    sys.exit(main())
