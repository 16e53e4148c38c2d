"""What a person may ask of a run in progress, from any thread, and what it answers."""

import sys
import threading
import time

from mtld_core.runtime import is_interactive

SECONDS_BETWEEN_LINES = 30
NEW_TOTAL = 0.02  # by which a total has to differ for the bar to begin anew: a budget's moves all the time


class Controls:
    """Three events that the loop looks at between two steps and while it judges, and its answer in words.

    stop: save, judge and end. pause: wait until it is cleared. save: write a checkpoint; the loop clears it
    when that is done. doing: "starting", "training", "paused", "judging", ... or why it waits. step, total:
    how far it is; total 0: not known yet. pace: words for how fast it goes. ending: all is saved and only
    judging is left, which a stop gives up. hurry: whoever wanted to know is gone, so the end judges nothing.
    say: a function that takes the loop's lines of text.
    """

    doing = "starting"
    step, total = 0, 0
    ending = hurry = False

    def __init__(self, say=lambda text: print(text, flush=True)):
        self.stop = threading.Event()
        self.pause = threading.Event()
        self.save = threading.Event()
        self.pace = []
        self.say = say


class Progress:
    """A bar where somebody watches, else a line every half minute. start: the step that a session begins at.

    say: takes the lines.
    """

    def __init__(self, start, interactive="auto", say=print):
        self.say = say
        self.last_line = time.monotonic()
        self.bar = None
        if is_interactive(interactive) or sys.stderr.isatty():
            from tqdm.auto import tqdm

            self.bar = tqdm(initial=start, unit="step", dynamic_ncols=True)

    def update(self, step, total, left, text):
        """Show how far the run is, as often as you like.

        total: steps; 0: not known yet. left: words for the time until then; "": not known yet.
        """
        bar = self.bar
        if bar is not None:
            if total and abs(total - (bar.total or 0)) > NEW_TOTAL * total:
                bar.reset(total)  # a notebook's bar has a maximum of its own, which this sets, too
            bar.set_postfix_str(text, refresh=False)
            bar.update(step - bar.n)
        elif time.monotonic() - self.last_line >= SECONDS_BETWEEN_LINES:
            self.last_line = time.monotonic()
            share = f"/{total}  {100 * step // total} %  left {left}" if left else ""
            self.say(f"step {step}{share}  {text}")

    def close(self, step):
        """End at `step`. That may be before the last one, which is no failure: the bar must not turn red."""
        if self.bar is not None:
            self.bar.update(step - self.bar.n)
            self.bar.total = step
            self.bar.close()
