"""A run's log as a picture of its losses, and its figures as one of how it is judged.

Drawn without pyplot, whose global state belongs to the person's own cells.
"""

import contextlib
import io
import json
import os
import threading

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
NOTED = {  # figures that judgement.png says in words
    "codebook_use": ("codebook use", ""),
    "latent_variance": ("latent variance", ""),
    "action_shuffle_gap_db": ("worse under shuffled actions by", " dB"),
    "controllability_db": ("controllability", " dB"),
}
_one_at_a_time = (
    threading.Lock()
)  # matplotlib's caches of fonts are shared, and a panel draws from several threads


class Log:
    """The lines of a metrics.jsonl that another thread writes; `read()` takes in what is new and says if
    there was any.
    """

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
    """PNG bytes: every loss over the steps, on a logarithmic axis. lines: dicts, as metrics.jsonl has them.
    In inches.
    """
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    figure = Figure((width, height), dpi=150)
    axes = figure.add_axes((0.17, 0.17, 0.8, 0.66))  # fixed: constrained layout would draw twice
    axes.set_xlabel("step")
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=8))
    every = 1 << max(
        0, (len(lines) // MOST_POINTS).bit_length()
    )  # a power of two: the points stay the same for long
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
        axes.text(
            0.5,
            0.5,
            "the curves begin with the first lines of the log",
            ha="center",
            transform=axes.transAxes,
        )
        axes.set(xticks=[], yticks=[])
    return _png(figure)


def draw_judgement(metrics):
    """PNG bytes: PSNR beside the baselines' and skill, over the horizon, and below them the figures in
    `NOTED`.

    metrics: as report.json has them. Where nothing is predicted (a reconstruction), PSNR over the frames of a
    window alone.
    """
    from matplotlib.figure import Figure

    skill = metrics.get("skill_db_by_horizon")
    figure = Figure((9.6 if skill else 4.8, 3.2), dpi=150, layout="constrained")
    panels = figure.subplots(1, 2 if skill else 1, squeeze=False)[0]
    marked = [2**i for i in range(len(metrics["psnr_by_horizon"]).bit_length())]
    for axes, words in zip(panels, ("PSNR, dB", "skill over the best baseline, dB"), strict=False):
        axes.set_title(words, fontsize="medium")
        axes.set_xlabel("horizon, frames" if skill else "frame of the window")
        axes.set_xscale("log", base=2)
        axes.set_xticks(marked, marked)
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)

    def plot(axes, values, style, **label):
        horizons = range(1, len(values) + 1)
        axes.plot(
            horizons, values, style, markevery=[h - 1 for h in marked], markersize=3, linewidth=1.2, **label
        )

    curves = {
        "model": "psnr",
        "last frame repeated": "baseline_copy_psnr",
        "median frame": "baseline_median_psnr",
    }
    for (label, name), style in zip(curves.items(), ("C0-o", "C1--o", "C2:o"), strict=True):
        if values := metrics.get(f"{name}_by_horizon"):
            plot(panels[0], values, style, label=label)
    if skill:
        panels[0].legend(frameon=False, fontsize="small")
        panels[1].axhline(0, color="0.4", linewidth=0.8)
        plot(panels[1], skill, "C0-o")
    noted = [
        f"{words}: {metrics[name]:.3g}{unit}"
        for name, (words, unit) in NOTED.items()
        if metrics.get(name) is not None
    ]
    figure.supxlabel("     ".join(noted), fontsize="small")
    return _png(figure)


def _png(figure):
    file = io.BytesIO()
    with _one_at_a_time:
        figure.savefig(file, format="png")
    return file.getvalue()
