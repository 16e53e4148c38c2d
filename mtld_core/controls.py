"""What a person may ask of a run in progress, from any thread, and what it answers."""

import threading


class Controls:
    """Three events that the loop looks at between two steps and while it judges, and its answer in words.

    stop: save, judge and end. pause: wait until it is cleared. save: write a checkpoint; the loop clears it
    when that is done. doing: "starting", "training", "paused", "judging", ... or why it waits. step, total:
    how far it is; total 0: not known yet. ending: all is saved and only judging is left, which a stop gives
    up. say: a function that takes the loop's lines of text.
    """

    def __init__(self, say=lambda text: print(text, flush=True)):
        self.stop, self.pause, self.save = (threading.Event() for _ in range(3))
        self.doing, self.step, self.total, self.ending = "starting", 0, 0, False
        self.say = say
