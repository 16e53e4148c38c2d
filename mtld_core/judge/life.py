"""Judging how long a dream lasts: rollouts far beyond the horizons that skill is measured at.

A ball is 4 pixels of 4,096: a dream without it has an excellent PSNR, and one that is noise at step 1,000 has
an excellent skill at 16. So dreams are played for long, and looked at in windows of time, in three ways that
know no game. Static: the pixels that hardly ever change in the training part, against its median frame.
Motion: how much changes from frame to frame. What moves: a frame is divided into 8x8 places, and what stands
in a place, beside the median frame, is looked for among what the recording shows in the same place. So a ball
counts as much as what is large; over whole frames the nearest neighbour of a ball is a frame without one.
"""

import collections
import copy
import itertools

import torch
import torch.nn.functional as F

from mtld_core import metrics
from mtld_core.frames import differs, evenly, rows_of, to_float, to_uint8
from mtld_core.judge.windows import reachable
from mtld_core.systems.base import computed

BOUNDS = (16, 64, 128, 256, 512, 1000, 10_000)  # steps at which windows of time end
SHEET = (64, 256, 1000, 10_000)  # steps that the contact sheet shows
DREAMS, PICTURED = 8, 4  # rollouts side by side, and rows of the sheet
STICKY = 0.75  # chance that a step repeats the action before it
SEEN = 256  # frames of a window of time that are looked at place by place
KNOWN = 512  # frames of the recording that they are compared with, at most
CHANGED = 0.01  # share of frames in which a static pixel may differ from the median frame
PLACES, POOLED = 8, 16  # places along a side, and pooled pixels
ALIKE = 0.7  # distance of two things in a place, over the size of the first, below which they are alike
# what alarms: dB, and dB below the recording; over its motion; over what it reaches itself
LEAST_STATIC, MOST_LOST = 30, 10
LEAST_MOTION, MOST_MOTION = 0.3, 3
LEAST_SHARE = 0.5


class Life:
    """Long rollouts from held-out windows; `life(system)` -> figures by windows of time.

    starts: rows where held-out windows begin. rows: those of the training part's frames, samples: uint8 `[n,
    H, W, 3]` of them. needs: the system's. horizon: steps of a rollout under random actions; under recorded
    ones it goes as far as the recording does, up to that. Where all windows train and judge, one half of the
    rows stands for the training part in comparisons of what moves, and the other for what is held out.
    """

    def __init__(self, dataset, starts, rows, samples, needs, horizon, cross_cuts=False):
        self.dataset, self.needs, self.horizon = dataset, needs, horizon
        self.starts = evenly(starts, DREAMS)
        far, self.reach = reachable(dataset, starts, needs.context, 1, horizon, cross_cuts)
        self.far = evenly(far, DREAMS)
        frames = dataset.frames
        self.sheet = None  # (rows, labels, columns) of the latest rollouts under random actions

        self.median = samples.median(0).values.to(frames.device)
        differ = torch.stack([differs(frame, self.median) for frame in samples])
        self.static = differ.double().mean(0)[..., None] <= CHANGED  # [H, W, 1]
        held = starts + needs.context
        pairs = evenly(held, KNOWN)
        real = frames[pairs]
        self.motion = _motion(real, frames[pairs - 1])
        self.rows = rows
        if torch.isin(held, rows).any():
            self.rows, held = rows.chunk(2)
        self.known = self._things(frames[evenly(self.rows, KNOWN)])
        self.held = self._things(frames[evenly(held, KNOWN)])
        self.real = {
            "real_static_psnr": _number(self._static_psnr(real).mean()),
            "real_precision": _precision(self.held, self.known),
        }

    def few(self, share):
        """A `Life` of about this share of the steps: to see how long all of them take."""
        some = copy.copy(self)
        some.horizon = max(1, round(share * self.horizon))
        some.reach = max(1, round(share * self.reach))
        return some

    @torch.inference_mode()
    def __call__(self, system, tick=lambda: None):
        """{"life": figures under random actions, "life_recorded": under recorded ones, where there are some}.

        Each is a dict of lists, a value for each window of time: "until" (the step that it ends with),
        "static_psnr" (dB a frame, averaged), "motion" (over the recording's), "precision" (share of what
        stands beside the median frame in the dreams that the recording shows in that place, too), "coverage"
        (share of what held-out frames show in a place that the dreams show there, averaged over the places)
        and "real_coverage" (the same of as many frames of the training part, from clips as long as the
        window). "real_static_psnr" and "real_precision" are numbers, of held-out frames: what moves passes
        over static pixels, too. None where there is nothing to measure.
        tick: called before each step; it may raise to give it up.
        """
        actions = None
        if system.action_space is not None:
            actions = sticky_actions(system.action_space, self.horizon, len(self.starts))
        found = {"life": self._figures(system, self.starts, self.horizon, actions, tick)}
        if self.needs.actions:
            first = self.far + self.needs.context - 1  # the action that leads to the first predicted frame
            actions = self.dataset.actions[torch.arange(self.reach)[:, None] + first]
            found["life_recorded"] = self._figures(system, self.far, self.reach, actions, tick)
        return found

    def _figures(self, system, starts, steps, actions, tick):
        before = self.dataset.frames[starts + self.needs.context - 1]
        dream = self._dream(system, starts, steps, actions, tick)
        pictures = {0: before}
        figures = collections.defaultdict(list)
        for begin, end in windows(steps):
            looked_at = set(evenly(torch.arange(begin, end), SEEN // len(starts)).tolist())
            static, motion, seen = [], [], []
            for t in range(begin, end):
                frames = next(dream)
                static.append(self._static_psnr(frames))
                motion.append(_motion(frames, before))
                if t in looked_at:
                    seen.append(frames)
                if t + 1 in (*SHEET, steps):
                    pictures[t + 1] = frames
                before = frames
            things = self._things(torch.cat(seen))
            figures["until"].append(end)
            figures["static_psnr"].append(_number(torch.cat(static).mean()))
            figures["motion"].append(_number(torch.stack(motion).mean() / self.motion))
            figures["precision"].append(_precision(things, self.known))
            figures["coverage"].append(_coverage(self.held, things))
            figures["real_coverage"].append(_coverage(self.held, self._real(end - begin, len(starts))))
        if starts is self.starts:
            rows = list(zip(*(frames[:PICTURED].cpu() for frames in pictures.values()), strict=True))
            self.sheet = rows, [f"dream {i + 1}" for i in range(len(rows))], [f"+{t}" for t in pictures]
        return {**figures, **self.real}

    def _dream(self, system, starts, steps, actions, tick):
        """Yield uint8 `[B, H, W, 3]`, step by step."""
        rows = rows_of(starts, self.needs.context)
        context = to_float(self.dataset.frames[rows].to(system.device))
        each = None if actions is None else actions.to(system.device).unbind(0)
        chance = torch.Generator(system.device).manual_seed(0)
        for piece in computed(system, system.rollout(context, steps, each, chance)):
            for frames in to_uint8(piece).to(self.median.device).unbind(1):
                tick()
                yield frames

    def _static_psnr(self, frames):
        """PSNR of the static pixels in dB: uint8 `[B, H, W, 3]` -> `[B]`; nan where no pixel is static."""
        mse = metrics.mse(frames * self.static, self.median * self.static)
        return metrics.psnr(mse / self.static.double().mean())

    def _real(self, length, clips):
        """`_things` of as many real frames as are looked at in a window of `length` steps."""
        length = min(length, len(self.rows))
        first = torch.linspace(0, len(self.rows) - length, clips).round().long()
        steps = evenly(length, SEEN // clips)
        return self._things(self.dataset.frames[self.rows[(first[:, None] + steps).flatten()]])

    def _things(self, frames):
        """What stands beside the median frame: (float `[64, n, 24]`, whether there is any, bool `[64, n]`).

        Frames uint8 `[n, H, W, 3]` are pooled to 16x16, in 8x8 places of 2x2. A place has the mean difference
        to the median frame, and the mean size of the difference: of noise the one is 0 and the other large.
        """
        differ = differs(frames, self.median)[:, None]
        change = (frames.float() - self.median).movedim(-1, 1) * differ
        change = torch.cat([change, change.abs()], 1) / 255
        size = POOLED // PLACES
        places = F.unfold(F.adaptive_avg_pool2d(change, POOLED), size, stride=size)
        there = F.adaptive_max_pool2d(differ.float(), PLACES).flatten(1)
        return places.permute(2, 0, 1), there.bool().T


def windows(horizon):
    """Windows of time up to `horizon` steps: [(steps before it, steps until its end), ...]."""
    return list(itertools.pairwise([0, *(end for end in BOUNDS if end < horizon), horizon]))


def sticky_actions(space, steps, count):
    """Random actions of which each repeats the one before with a chance of 0.75, the same in every call.

    space: as `System.action_space`. Returns int64 `[steps, count]`, or float32 `[steps, count, A]`, uniform.
    """
    chance = torch.Generator().manual_seed(0)
    fresh = torch.rand(steps, count, generator=chance) >= STICKY
    if isinstance(space, int):
        drawn = torch.randint(space, (steps, count), generator=chance)
    else:
        low, high = map(torch.tensor, space)
        drawn = low + (high - low) * torch.rand(steps, count, len(low), generator=chance)
    newest = (torch.arange(steps)[:, None] * fresh).cummax(0).values
    return drawn[newest, torch.arange(count)]


def falls_apart(figures):
    """Lines that warn where dreams have fallen apart by the last window of time: one or none.

    figures: a dict, as report.json has it under "metrics".
    """
    life = figures.get("life")
    if not life:
        return []
    faults = [_faults(life, i) for i in range(len(life["until"]))]
    sound = [i for i, found in enumerate(faults) if not found]
    first = sound[-1] + 1 if sound else 0
    if first == len(faults):
        return []
    since = [0, *life["until"]][first]
    return [f"the dream falls apart after about {since} steps: in the end {', '.join(faults[-1])}"]


def _faults(life, i):
    precision, coverage = life["real_precision"] or 0, life["real_coverage"][i] or 0
    static = LEAST_STATIC if life["real_static_psnr"] is None else life["real_static_psnr"] - MOST_LOST
    limits = (
        ("static_psnr", min(LEAST_STATIC, static), "what is static is at {:.0f} dB"),
        ("motion", LEAST_MOTION, "it moves {:.1f} times as much as the recording"),
        ("precision", LEAST_SHARE * precision, "{:.0%} of what moves looks like the recording's"),
        ("coverage", LEAST_SHARE * coverage, "it shows {:.0%} of what moves there"),
    )
    found = []
    for name, least, words in limits:
        value = life[name][i]
        most = MOST_MOTION if name == "motion" else float("inf")
        if value is not None and not least <= value <= most:
            found.append(words.format(value))
    return found


def _motion(frames, before):
    """Mean absolute change, in levels of 255, 0-dim."""
    return (frames.int() - before.int()).abs().double().mean()


def _alike(things, others):
    """Which of `things` `[64, n]` have one that is like them in the same place among `others`."""
    (places, there), (known, _) = things, others
    distance = torch.stack([torch.cdist(*pair).amin(1) for pair in zip(places, known, strict=True)])
    return there & (distance < ALIKE * places.norm(dim=-1))


def _precision(things, known):
    """Share of `things` that are like a known one, a float; None where there are no things."""
    return _number(_alike(things, known).sum() / things[1].sum())


def _coverage(held, things):
    """Share of what held-out frames show that is like one of `things`, averaged over the places.

    A float; None where held-out frames show nothing.
    """
    return _number((_alike(held, things).sum(1) / held[1].sum(1)).nanmean())


def _number(value):
    return value.item() if value.isfinite() else None
