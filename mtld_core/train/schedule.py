"""How long a run goes on, and the learning rate on the way."""

import collections
import dataclasses
import datetime
import math
import statistics
import time
import typing

from mtld_core.config import NotNegative, Settings, check

RECENT = 9  # readings whose median is the time of a step: a few odd ones among them do not matter
# readings that say something; a session's first step is none of them (it compiles, searches, fills caches)
FEWEST = 2
# progress from which a run of the time when a budget fixed the steps had ended: judging took the rest
ENDED = 0.9
LAST_STEPS = 2  # at least so many count as left until the end is there
LEAST_SECONDS = 1e-9  # a clock may be too coarse for a step
MOST_RESERVED = 0.5  # of the budget: below that a run would be judged longer than it is trained


def clock(seconds):
    """Seconds in words, h:mm:ss."""
    return str(datetime.timedelta(seconds=int(seconds)))


@dataclasses.dataclass(frozen=True)
class ScheduleConfig(Settings):
    """How long to train, at which learning rate, and how often to do what else."""

    steps: NotNegative[int] = 0  # in total over all resumes; 0: epochs or the time budget decide
    epochs: NotNegative[int] = 0  # in total; 0: steps or the time budget decide
    steps_per_epoch: NotNegative[int] = 0  # 0: as many as show every window once
    time_budget_minutes: NotNegative[float] = 0.0  # of this session, wall clock; 0: none
    lr_schedule: typing.Literal["constant", "cosine"] = "constant"
    warmup_steps: NotNegative[int] = 50
    save_every_steps: NotNegative[int] = 1000  # 0: by the clock alone
    eval_every_steps: NotNegative[int] = 1000  # 0: at the end alone
    preview_every_steps: NotNegative[int] = 500  # 0: at the end alone


class Schedule:
    """Ends a run at its number of steps or epochs, at its time budget, or when asked to, whichever is first.

    With steps or epochs the learning rate follows the step: `total` is their number. With a budget alone
    `total` is 0, and it follows `progress`, which goes from 0 to 1 in a cycle: each step moves it by (1 -
    progress) / (steps that still fit), so that it is at its end when the time is, whatever becomes of the
    speed. A session that goes on with a run whose cycle had ended begins another one at the point that one
    cycle over all sessions would have reached: at the full rate, what was learned in minutes is gone. A run
    that was stopped or killed goes on in its own.

    The last save, preview and judging belong to the budget: training ends when what is left of it is the
    `reserve` for them.

    config: a ScheduleConfig. stop: event that asks for the end. began: `time.monotonic()` at which the
    session did. Raises ConfigError where nothing says how long to train.
    """

    progress, cycle_step = 0.0, 0  # cycle_step: the step that the cycle began at
    readings = 0  # how many there were
    step_seconds = 0.0  # median of the recent ones

    def __init__(self, config, steps_per_epoch, stop, began=None):
        self.config, self.stop = config, stop
        lengths = config.steps, config.epochs * (config.steps_per_epoch or steps_per_epoch)
        self.total = min(filter(None, lengths), default=0)
        check(
            self.total or config.time_budget_minutes,
            "nothing says how long to train: set steps, epochs or time_budget_minutes",
        )
        self.budget = 60 * config.time_budget_minutes
        self.started = time.monotonic() if began is None else began
        self.recent = collections.deque(maxlen=RECENT)  # readings
        self.expected = {}  # name of work beside the steps -> (seconds, in how many steps' time)
        self.slowest = {}  # name of such work -> its seconds, the most that this session has seen
        self.every = {
            "judging": config.eval_every_steps,
            "preview": config.preview_every_steps,
            "saving": config.save_every_steps,
        }

    # ---- what a checkpoint keeps

    def state(self, step):
        """How far the learning rate's cycle is at `step`, for `resume`."""
        return {"progress": self.done(step), "cycle_step": self.cycle_step}

    def resume(self, step, state, total=0, seconds=0.0):
        """Go on at `step` with what `state` gave there, after earlier sessions of so many seconds.

        In a run of before there was one, state is None, and total the number of its steps, or 0.
        """
        if state is None:
            done = step / total if total else 0.0
            state = {"progress": 1.0 if done >= ENDED else done, "cycle_step": 0}
        if state["progress"] < 1:
            self.progress, self.cycle_step = state["progress"], state["cycle_step"]
        else:
            self.progress, self.cycle_step = seconds / max(LEAST_SECONDS, seconds + self.budget), step

    # ---- the learning rate

    def learning_rate(self, step):
        """The factor on every learning rate, in [0, 1]: a linear warm-up, then constant or half a cosine."""
        begun = step + 1 - (0 if self.total else self.cycle_step)
        warmup = self.config.warmup_steps
        return self.curve(step) * (min(1.0, begun / warmup) if warmup else 1.0)

    def curve(self, step):
        """The factor on every learning rate without the warm-up, in [0, 1]: 1, or half a cosine."""
        if self.config.lr_schedule == "constant":
            return 1.0
        return 0.5 + 0.5 * math.cos(math.pi * self.done(step))

    def done(self, step):
        """The share of the training, or of the learning rate's cycle, that is done at `step`."""
        return min(1.0, step / self.total) if self.total else self.progress

    # ---- time

    def read(self, seconds):
        """Take a reading of how long a step takes, pauses and all work beside it taken off."""
        self.readings += 1
        if self.readings > 1:
            self.recent.append(seconds)
            self.step_seconds = statistics.median(self.recent)

    def advance(self):
        """Count a step that was done: with a budget alone, move `progress` by its share of what is left.

        It stays below 1, which means that the cycle has ended, and moves carefully while few steps have told
        their time.
        """
        left = self.steps_left()
        if not self.total and left is not None:
            least = LAST_STEPS if len(self.recent) == RECENT else RECENT
            self.progress += (1 - self.progress) / max(least, left)

    def finish(self):
        """End the cycle, for the budget is spent: a later session begins a new one."""
        self.progress = 1.0

    def expect(self, work, seconds):
        """Take an estimate of the seconds that "judging", "preview" or "saving" will take, before the first.

        Wanted where `lacks_expectations`. Should the machine have been slow just then, less is expected later
        on.
        """
        self.expected[work] = seconds, seconds / max(LEAST_SECONDS, self.step_seconds)

    def took(self, work, seconds):
        """Take a reading of how long "judging", "preview" or "saving" took."""
        self.slowest[work] = max(seconds, self.slowest.get(work, 0.0))

    @property
    def knows_the_speed(self):
        return len(self.recent) >= FEWEST

    @property
    def lacks_expectations(self):
        """Whether it could be said, and was not, how long the end will take."""
        return self.knows_the_speed and not self.expected

    @property
    def elapsed(self):
        return time.monotonic() - self.started

    def cost(self, work):
        """Seconds that "judging", "preview" or "saving" takes: the most in this session, else as expected."""
        if work in self.slowest:
            return self.slowest[work]
        seconds, steps = self.expected.get(work, (0.0, 0.0))
        return min(seconds, steps * self.step_seconds)

    @property
    def end_seconds(self):
        """Seconds that the end takes: to save, to draw a preview and to judge."""
        return sum(map(self.cost, self.every))

    @property
    def reserve(self):
        """Seconds of the budget that are kept for the end."""
        return min(self.end_seconds, MOST_RESERVED * self.budget)

    @property
    def overrun(self):
        """Why the budget will be overrun, in words; "" where the end fits into what is kept for it."""
        if not self.budget or self.end_seconds <= MOST_RESERVED * self.budget:
            return ""
        return (
            f"saving and judging take {clock(self.end_seconds)}, more than half of the time budget of "
            f"{clock(self.budget)}, so it is overrun: give more, or lower eval_windows or life_horizon"
        )

    def has_room_for(self, work):
        """Whether some training fits into the budget after this work, which the end does anyway."""
        return not self.budget or self.elapsed + self.cost(work) + self.reserve < self.budget

    def steps_left(self):
        """How many steps still fit into the budget, each with its share of the work beside; None: unknown."""
        if not self.budget or not self.knows_the_speed:
            return None
        left = self.budget - self.reserve - self.elapsed
        beside = sum(self.cost(work) / every for work, every in self.every.items() if every)
        return max(0.0, left) / max(LEAST_SECONDS, self.step_seconds + beside)

    def last_step(self, step):
        """The step that the run will end at, as far as is known at `step`; 0: not yet."""
        left = self.steps_left()
        if self.total or left is None:
            return self.total
        return step + int(left)

    def time_left(self, step):
        """Words for how long the steps to come, the work beside them and the end will take; "": not known."""
        total = self.last_step(step)
        if not total or not self.knows_the_speed:
            return ""
        seconds = (total - step) * self.step_seconds
        for work, every in self.every.items():
            on_the_way = (total - 1) // every - step // every if every else 0
            seconds += (1 + max(0, on_the_way)) * self.cost(work)
        if self.budget:
            seconds = min(seconds, max(self.budget - self.elapsed, self.end_seconds))
        return clock(seconds)

    def reason_to_end(self, step):
        """None while the run goes on, else (status, why in words)."""
        if self.stop.is_set():
            return "stopped", "asked to stop"
        if self.total and step >= self.total:
            return "finished", "all steps done"
        if self.budget and self.elapsed + self.reserve >= self.budget:
            return ("stopped" if self.total else "finished"), "time budget spent"
        return None
