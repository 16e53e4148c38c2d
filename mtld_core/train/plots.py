"""A run's log as a picture of its losses, and its figures as one of how it is judged.

Drawn without pyplot, whose global state belongs to the person's own cells.
"""

import contextlib
import json
import os

import numpy as np

from mtld_core.judge.sheets import png_of, tidy

# what a line of the log holds beside losses, or such a name begins with
OTHERS = ("step", "seconds", "frames_per_second", "temperature", "lr_", "skipped_")
FEW_POINTS = 20  # of a curve: these are marked, so that already the first one is seen
MOST_POINTS = 500  # of a curve: more would not be seen, and drawing takes time from the training
PSNRS = {  # curve of judgement.png: (figure, style)
    "model": ("psnr_by_horizon", "C0-o"),
    "last frame repeated": ("baseline_copy_psnr_by_horizon", "C1--o"),
    "median frame": ("baseline_median_psnr_by_horizon", "C2:o"),
}
LIFE = {  # curve of judgement.png over the steps of a dream: (figure, style)
    "motion, of the recording's": ("motion", "C1-o"),
    "precision of what moves": ("precision", "C2-o"),
    "coverage of what moves": ("coverage", "C3-o"),
    "coverage by real frames": ("real_coverage", "C3:"),
}
NOTED = {  # figure that judgement.png says in words: (those words, unit)
    "codebook_use": ("codebook use", ""),
    "latent_variance": ("latent variance", ""),
    "action_shuffle_gap_db": ("worse under shuffled actions by", " dB"),
    "controllability_db": ("controllability", " dB"),
}


class Log:
    """The lines of a metrics.jsonl that another thread writes, as dicts in `lines`."""

    _file, _read = None, 0

    def __init__(self, path):
        self.path, self.lines = path, []

    def read(self):
        """Take in what is new; returns whether there was any."""
        try:
            with open(self.path, "rb") as file:
                about = os.fstat(file.fileno())
                opened = about.st_dev, about.st_ino
                if opened != self._file:  # a session that goes on writes the file anew
                    self.lines, self._file, self._read = [], opened, 0
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


def draw(lines):
    """PNG bytes: every loss over the steps, on a logarithmic axis. lines: dicts, as in metrics.jsonl."""
    from matplotlib.figure import Figure

    figure = Figure((4.8, 2.8), dpi=150)
    axes = figure.add_axes((0.17, 0.17, 0.8, 0.66))  # fixed: constrained layout would draw twice
    tidy(axes, "step")
    names = [name for name in (lines[-1] if lines else ()) if not name.startswith(OTHERS)]
    if not names:
        words = "the curves begin with the first lines of the log"
        axes.text(0.5, 0.5, words, ha="center", transform=axes.transAxes)
        axes.set(xticks=[], yticks=[])
        return png_of(figure)
    # a power of two: the points stay the same for long
    every = 2 ** (len(lines) // MOST_POINTS).bit_length()
    shown = lines[::every]
    steps = [line["step"] for line in shown]
    scale = {"value": "log"}
    for name in names:
        values = np.array([line.get(name) for line in shown], float)  # null is nan, a gap
        if (values <= 0).any():
            scale = {"value": "symlog", "linthresh": 0.01}
        marked = "." if len(shown) <= FEW_POINTS else ""
        axes.plot(steps, values, marker=marked, label=name.replace("_", " "), linewidth=1.2)
    axes.set_yscale(**scale)
    axes.set_xlim(left=0)
    axes.locator_params("x", integer=True, nbins=8)
    axes.legend(loc="lower right", bbox_to_anchor=(1.03, 1), ncols=3, frameon=False, fontsize="small")
    return png_of(figure)


def draw_judgement(metrics):
    """PNG bytes: PSNR beside the baselines' and skill, over the horizon, and below them the `NOTED` figures.

    metrics: as report.json has them. Where nothing is predicted (a reconstruction), PSNR over the frames of a
    window alone. Where dreams were played for long, two more show how they last.
    """
    from matplotlib.figure import Figure

    skill = metrics.get("skill_db_by_horizon")
    life = metrics.get("life")
    rows = 1 + bool(skill) + 2 * bool(life)
    # one below the other: side by side the words would be too small on a laptop
    figure = Figure((4.8, 0.3 + 2.5 * rows), dpi=150, layout="constrained")
    first, *others = figure.subplots(rows, 1, squeeze=False)[:, 0]
    tidy(first, "horizon, frames" if skill else "frame of the window", "PSNR, dB")
    for label, (name, style) in PSNRS.items():
        if values := metrics.get(name):
            _plot_over_horizons(first, values, style, label)
    if skill:
        first.legend(frameon=False, fontsize="small")
        second = others[0]
        tidy(second, "horizon, frames", "skill over the best baseline, dB")
        second.axhline(0, color="0.4", linewidth=0.8)
        _plot_over_horizons(second, skill, "C0-o", "all pixels")
        if moving := metrics.get("moving_skill_db_by_horizon"):
            _plot_over_horizons(second, moving, "C4-o", "those that move")
            second.legend(frameon=False, fontsize="small")
    if life:
        _draw_life(*others[-2:], life)
    noted = [
        f"{words}: {metrics[name]:.3g}{unit}"
        for name, (words, unit) in NOTED.items()
        if metrics.get(name) is not None
    ]
    figure.supxlabel("\n".join(noted), fontsize="small")
    return png_of(figure)


def _draw_life(static, others, life):
    tidy(static, "steps of a dream", "PSNR of what is static, dB")
    ends = life["until"]
    _plot(static, ends, life["static_psnr"], "C0-o", None, ends)
    tidy(others, "steps of a dream", "what moves")
    others.axhline(1, color="0.4", linewidth=0.8)
    for label, (name, style) in LIFE.items():
        _plot(others, ends, life[name], style, label, ends)
    others.set_ylim(0, 3)
    others.legend(frameon=False, fontsize="small")


def _plot_over_horizons(axes, values, style, label):
    """values: of horizons 1, 2, 3, ..., of which the powers of two are marked."""
    horizons = range(1, len(values) + 1)
    _plot(axes, horizons, values, style, label, [2**i for i in range(len(values).bit_length())])


def _plot(axes, steps, values, style, label, marked):
    """marked: those of the steps at which the curve has a mark and the axis a number."""
    axes.set_xscale("log", base=2)
    axes.set_xticks(marked, marked)
    places = [steps.index(step) for step in marked]
    values = np.array(values, float)  # None is nan, a gap
    axes.plot(steps, values, style, label=label, markevery=places, markersize=3, linewidth=1.2)
