"""How long a run goes on, and the learning rate on the way."""

import math
import time

from mtld_core.config import check

WARM_STEPS = 5  # steps that say nothing about the speed (compiling, filling caches), and how many do


class Schedule:
    """Ends a run at its number of steps or epochs, at its time budget, or when asked to, whichever comes first.

    Where only a time budget is given, the number of steps is fixed once, from the speed of the first steps, and kept with the
    run: the learning rate then knows its end, also after a resume. `total` is 0 until then.
    """

    def __init__(self, config, steps_per_epoch, stop):
        self.config, self.stop = config, stop
        self.total = min(filter(None, (config.steps, config.epochs * (config.steps_per_epoch or steps_per_epoch))), default=0)
        check(
            self.total or config.time_budget_minutes,
            "nothing says how long to train: set steps, epochs or time_budget_minutes",
        )
        self.budget = 60 * config.time_budget_minutes
        self.started, self.warm = time.monotonic(), None  # warm: steps, seconds and time when the first slow steps were over

    def resume(self, step, total):
        """Take over an earlier session's total, where this one's settings do not say and it is not reached yet."""
        self.total = self.total or (total if step < total else 0)

    def learning_rate(self, step):
        """The factor on every learning rate, in (0, 1]: a linear warm-up, then constant or half a cosine down to 0."""
        config = self.config
        warm = min(1.0, (step + 1) / config.warmup_steps) if config.warmup_steps else 1.0
        if config.lr_schedule == "constant" or not self.total:
            return warm
        return warm * (0.5 + 0.5 * math.cos(math.pi * min(1.0, step / self.total)))

    def reason_to_end(self, step, session_steps, session_seconds):
        """None while the run goes on, else (status, why in words). The last two: steps of this session and their seconds."""
        elapsed = time.monotonic() - self.started
        if self.stop.is_set():
            return "stopped", "asked to stop"
        if self.total and step >= self.total:
            return "finished", "all steps done"
        if self.budget and elapsed >= self.budget:
            whole = not (self.config.steps or self.config.epochs)
            return ("finished" if whole else "stopped"), "time budget spent"
        if not self.total and session_steps >= WARM_STEPS:
            self.warm = self.warm or (session_steps, session_seconds, elapsed)
            steps, seconds = session_steps - self.warm[0], session_seconds - self.warm[1]
            if steps >= WARM_STEPS and elapsed - self.warm[2] > 0.1 * self.budget:
                self.total = step + int(0.98 * (self.budget - elapsed) * steps / seconds)
        return None
