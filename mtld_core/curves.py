"""A run's log as a picture of its losses. Drawn without pyplot, whose global state belongs to the person's own cells."""

import contextlib
import io
import json
import os

import numpy as np

OTHERS = (
    "step",
    "seconds",
    "frames_per_second",
    "temperature",
    "lr_",
    "skipped_",
)  # what a line holds (or begins with) beside losses
MOST_POINTS = 500  # of a curve: more would not be seen, and drawing takes time from the training


class Log:
    """The lines of a metrics.jsonl that another thread writes; `read()` takes in what is new and says if there was any."""

    def __init__(self, path):
        self.path, self.lines, self._file, self._read = path, [], None, 0

    def read(self):
        try:
            with open(self.path, "rb") as file:
                about = os.fstat(file.fileno())
                if (about.st_dev, about.st_ino) != self._file:  # a session that goes on writes the file anew
                    self.lines, self._file, self._read = [], (about.st_dev, about.st_ino), 0
                file.seek(self._read)
                new = file.read()
        except OSError:  # not there yet
            return False
        whole = new[: new.rfind(b"\n") + 1]
        self._read += len(whole)
        for line in whole.splitlines():
            with contextlib.suppress(ValueError):  # damaged ones go when training goes on
                self.lines.append(json.loads(line))
        return bool(whole)


def draw(lines, width=4.8, height=2.8):
    """PNG bytes: every loss over the steps, on a logarithmic axis. lines: dicts, as metrics.jsonl has them. In inches."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    figure = Figure((width, height), dpi=150)
    axes = figure.add_axes((0.17, 0.17, 0.8, 0.66))  # fixed: constrained layout would draw twice
    axes.set_xlabel("step")
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=8))
    every = 1 << max(0, (len(lines) // MOST_POINTS).bit_length())  # a power of two: the points stay the same for long
    shown = lines[::every]
    names = [name for name in (lines[-1] if lines else ()) if not name.startswith(OTHERS)]
    positive = True
    for name in names:
        values = np.array([line.get(name) for line in shown], float)  # null is nan, a gap
        positive &= not (values <= 0).any()
        axes.plot([line["step"] for line in shown], values, label=name.replace("_", " "), linewidth=1.2)
    if names:
        axes.set_yscale(**({"value": "log"} if positive else {"value": "symlog", "linthresh": 0.01}))
        axes.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=3, frameon=False, fontsize="small")
        axes.set_xlim(left=0)
    else:
        axes.text(0.5, 0.5, "the curves begin with the first lines of the log", ha="center", transform=axes.transAxes)
        axes.set(xticks=[], yticks=[])
    file = io.BytesIO()
    figure.savefig(file, format="png")
    return file.getvalue()
