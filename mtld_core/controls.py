"""What a person may ask of a run in progress, from any thread."""

import threading


class Controls:
    """Three events that the loop looks at between two steps and while it judges, and its answer in words.

    stop: save, judge and end. pause: wait until it is cleared. save: write a checkpoint; the loop clears it when that is done.
    doing: "starting", "training", "paused", "judging", ... or why it waits.
    """

    def __init__(self):
        self.stop, self.pause, self.save = (threading.Event() for _ in range(3))
        self.doing = "starting"
