"""How many of the processor's threads a training step uses, found by trying.

The threads of a step wait for each other at each of its many small operations. On a core that another program
uses as well, one of them comes late to each, so that fewer threads can be several times faster; on a quiet
machine more are.
"""

import contextlib

import psutil
import torch

CPU = torch.device("cpu")
BLOCK = 4  # steps that are timed together; rl_v2v's differ from one to the next and repeat after four
GAIN = 0.95  # a count wins whose block takes at most this share of the present one's
CHANGED = 1.3  # times slower or faster than when it was tried last: the machine is another one now
COST = 0.02  # share of the time that trying may cost
SHORTEST_REST, LONGEST_REST = 5.0, 60.0  # seconds between two rounds of trials
LOOK = 0.1  # seconds for which a session first looks at what others use
IDLE = 0.5  # of a core that has to be idle for each thread more that is tried


@contextlib.contextmanager
def using(count):
    """While it lasts, torch's operations on this thread use `count` threads; then as many as before."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


class Threads:
    """While it is entered, torch's operations on this thread use `count` threads; then as many as before.

    setting: a number; or "auto", which begins with the cores that are free and then tries the next smaller
    and the next larger count now and then, the larger one where cores are idle: for their first seconds new
    threads are served before programs that have run for long, and look fast. Never more than torch had before
    (OMP_NUM_THREADS, or the cores). On a GPU "auto" leaves torch's own count. Under another count sums differ
    in their last bits. say: told when the count changes. trials: False where another count would cost much by
    itself (compiled code is compiled anew): "auto" stays as it begins.
    """

    changes = 0
    trial = None  # the count that is being tried
    first = True
    pace = None  # seconds that a block takes with `count`, when it was last measured
    rest = rested = 0.0  # seconds until the next round, and of them those that are over
    lost = 0.0  # seconds that this round's trials took longer than `count` would have

    def __init__(self, setting, device=CPU, say=print, trials=True):
        self.setting, self.say = setting, say
        self.before = torch.get_num_threads()
        self.auto = setting == "auto" and device.type == "cpu" and self.before > 1
        self.trials = self.auto and trials
        doubled = {2**i for i in range(self.before.bit_length())}
        self.counts = sorted(doubled | {self.before})  # that are tried: 1, 2, 4, ... and torch's own
        self.count = self.before if setting == "auto" else setting
        self.waiting = []  # counts to be tried after `trial` in this round
        self.block = []  # seconds of the newest steps, BLOCK at most

    def __enter__(self):
        if self.auto:
            free = max(1, round(_idle_cores(LOOK)))
            self.count = max(count for count in self.counts if count <= free)
        torch.set_num_threads(self.count)
        return self

    def __exit__(self, *error):
        torch.set_num_threads(self.before)

    def settled(self):
        """A context in which `count` is used, whatever is being tried: for work that is no step."""
        return using(self.count)

    def facts(self):
        """What report.json says of them, a dict."""
        return {"setting": self.setting, "count": self.count, "changes": self.changes}

    def see(self, seconds):
        """Take a reading of how long a step took; the next one may use another count."""
        if not self.trials:
            return
        if self.first:  # it fills caches
            self.first = False
            return
        self.block = [*self.block, seconds][-BLOCK:]
        if self.trial is not None:
            self._judge_trial()
            return
        self.rested += seconds
        if len(self.block) < BLOCK:
            return
        taken = sum(self.block)
        if self.pace is None or self.rested >= self.rest:
            self.pace = taken
            self._try([*self._smaller(), *self._larger()])
        elif self.rested > 1 and not self.pace / CHANGED < taken < self.pace * CHANGED:
            self.pace = None  # the block may be from before and after: another one, then a round
            self.block = []

    def _smaller(self):
        place = self.counts.index(self.count)
        return self.counts[max(0, place - 1) : place]

    def _larger(self):
        place, idle = self.counts.index(self.count), _idle_cores()
        return [count for count in self.counts[place + 1 : place + 2] if idle >= IDLE * (count - self.count)]

    def _try(self, counts):
        """Try the first of `counts`, and after it the others; where there is none, this round is over."""
        self.block = []
        self.trial, self.waiting = (counts[0], counts[1:]) if counts else (None, [])
        torch.set_num_threads(self.trial or self.count)
        if self.trial is None:
            self.rest = min(LONGEST_REST, max(SHORTEST_REST, self.lost / COST))
            self.rested = self.lost = 0.0

    def _judge_trial(self):
        taken = sum(self.block)
        if taken >= GAIN * self.pace:  # it cannot win any more
            self.lost += max(0.0, taken - self.pace * len(self.block) / BLOCK)
            self._try(self.waiting)
        elif len(self.block) == BLOCK:
            self._change(taken)

    def _change(self, taken):
        """Take the count on trial, whose block took so many seconds, and go on in its direction."""
        fewer = self.trial < self.count
        now, before = 1000 * taken / BLOCK, 1000 * self.pace / BLOCK
        self.count, self.pace = self.trial, taken
        self.changes += 1
        threads = "1 thread" if self.count == 1 else f"{self.count} threads"
        self.say(f"a step is faster with {threads} just now: {now:.0f} ms instead of {before:.0f}")
        self._try(self._smaller() if fewer else self._larger())


def _idle_cores(look=None):
    """How many cores nobody uses, or only programs that give way to others.

    look: for so many seconds from now; None: since this was asked last.
    """
    times = psutil.cpu_times_percent(look)
    return psutil.cpu_count() * (times.idle + getattr(times, "nice", 0.0)) / 100
