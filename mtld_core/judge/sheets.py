"""A comparison as tables and curves: what `compare` measured, for people to read."""

import csv
import io
import threading

import numpy as np

# columns of table.csv that table.md leaves out
QUIET = ("run", "kind", "psnr_low", "psnr_high", "mse", "ms_ssim", "warping_error")
MUTED = ("#7f7f7f", "#b09060", "#7fa060", "#a07aa0", "#5a90a8")  # of the baselines
# matplotlib's caches of fonts are shared, and panels draw from several threads
_one_at_a_time = threading.Lock()


def as_csv(result):
    """table.csv as text: a line for each run and baseline, figures in full."""
    rows = [row for section in result["sections"] for row in section["rows"]]
    file = io.StringIO()
    writer = csv.DictWriter(file, _columns(rows), extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return file.getvalue()


def as_markdown(result):
    """table.md as text: of each kind of runs a table, a sentence a run, and what else is to be known."""
    lines = [f"## Runs on {result['dataset']['path']}"]
    for section in result["sections"]:
        rows = section["rows"]
        lengths = " or ".join(sorted({str(len(row["psnr_by_horizon"])) for row in rows}))
        facts = f"{section['windows']} windows of {lengths} frames; in brackets what their choice leaves open"
        lines += ["", f"### {section['kind'].title()}", "", f"{facts} (95 %)."]
        lines += [f"What really came has flicker {section['flicker']:.3g}.", "", *_table(rows), ""]
        lines += [f"- **{run}**: {words}" for run, words in section["says"].items()]
        lines += [f"- {note}" for note in section["notes"]]
    return "\n".join(lines) + "\n"


def _table(rows):
    told = [name for name in _columns(rows) if any(row[name] is not None for row in rows)]
    names = [name for name in told if name not in QUIET]
    yield f"| run | {' | '.join(names)} |".replace("_", " ")  # so that a page may break them
    yield f"|---|---|{'---:|' * (len(names) - 1)}"
    for row in rows:
        cells = {name: _text(name, row[name]) for name in names}
        cells["psnr"] = f"{row['psnr']:.2f}"
        if row["psnr_low"] is not None:
            cells["psnr"] += f" [{row['psnr_low']:.2f},&nbsp;{row['psnr_high']:.2f}]"
        name = row["run"] if row["kind"] == "baseline" else f"**{row['run']}**"
        yield f"| {name} | {' | '.join(cells.values())} |"


def _columns(rows):
    """Names of the figures that are single values, in order."""
    return [name for name in rows[-1] if not isinstance(rows[-1][name], (list, dict))]


def _text(name, value):
    if value is None or isinstance(value, str):
        return value or ""
    return format(value, "+.2f" if name.endswith("_db") else ",.0f" if value >= 100 else ".3g")


def draw_horizons(section):
    """PNG bytes: PSNR of each row of a section by horizon, and what the choice of windows leaves open."""
    from matplotlib.figure import Figure

    figure = Figure((7, 4.4), dpi=130, layout="constrained")
    axes, muted = figure.subplots(), iter(MUTED)
    for number, row in enumerate(section["rows"]):
        free = row["kind"] == "baseline"
        look = {"color": next(muted) if free else f"C{number}"}
        horizons = range(1, len(row["psnr_by_horizon"]) + 1)
        axes.plot(horizons, row["psnr_by_horizon"], "--" if free else "-", label=row["run"], **look)
        band = np.array(row["psnr_interval_by_horizon"], float).T
        axes.fill_between(horizons, *band, alpha=0.06 if free else 0.2, linewidth=0, **look)
    tidy(axes, "frames ahead (shaded: what the choice of windows leaves open, 95 %)")
    axes.set_ylabel("PSNR, dB")
    axes.locator_params("x", integer=True)
    figure.legend(loc="outside upper left", ncols=4, frameon=False)
    return png_of(figure)


def tidy(axes, label, title=""):
    """Give the axes of a plot what all plots have. label: of the horizontal one."""
    axes.set_xlabel(label)
    axes.set_title(title, fontsize="medium")
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)


def png_of(figure):
    """Draw a figure of matplotlib's -> PNG bytes."""
    file = io.BytesIO()
    with _one_at_a_time:
        figure.savefig(file, format="png")
    return file.getvalue()
