"""A gallery of runs to compare: tick some, press Compare, and the table and its pictures appear below.

Comparing can be cancelled, and the notebook stays usable.
"""

import base64
import contextlib
from pathlib import Path

import ipywidgets as widgets

from mtld_core.config import UserError, check, find
from mtld_core.judge.compare import compare
from mtld_core.judge.task import summary
from mtld_core.pages import Cancellable, Panel, data_url, displayed, small
from mtld_core.runs.folder import EXAMPLES, age_of_run, newest_preview, read_config, read_report, runs_in

THUMBNAIL = "width:200px; height:112px; object-fit:cover; object-position:top left; display:block"
HINT = "Tick the runs to compare."


class ComparePanel(Cancellable, Panel):
    """All runs beside those that are `chosen`, which are ticked at first, and in examples/.

    how: further arguments of `compare`. `panel.button.click()` compares the runs whose box in `panel.ticks`,
    {path: box}, is ticked, `panel.worker.join()` waits for it, `panel.cancel.click()` ends it.
    `panel.message` is a line, `panel.shown` the table and the pictures.
    """

    def __init__(self, chosen, **how):
        super().__init__()
        self.how, chosen = how, [Path(find(path)).resolve() for path in chosen]
        found = runs_in("runs", *(path.parent for path in chosen), EXAMPLES)
        self.ticks = {run: widgets.Checkbox(Path(run).resolve() in chosen, indent=False) for run in found}
        self.add_buttons("Compare")
        self.message.value, self.shown = small(HINT), widgets.Output()
        cards = [_card(run, tick) for run, tick in self.ticks.items()]
        gallery = widgets.HBox(cards, layout={"flex_flow": "row wrap", "grid_gap": "16px"})
        self.children = [gallery, widgets.HBox([self.button, self.cancel]), self.message, self.shown]
        self.add_class("mtld-compare")  # by which tests find it

    def _make(self):
        self.shown.outputs, self._done = (), 0
        runs = [run for run, tick in self.ticks.items() if tick.value]
        folder = Path(compare(runs, **self.how, tick=self._count)["out_dir"])
        shown = [("text/markdown", (folder / "table.md").read_text())]
        for path in sorted(folder.glob("*.png")):
            shown.append(("image/png", base64.b64encode(path.read_bytes()).decode()))
        self.shown.outputs = displayed(*shown)
        return f"table, pictures and all figures are in {folder}"

    def _count(self):
        check(not self._cancelled.is_set(), f"cancelled after {self._done} pieces of work")
        self._done += 1
        self.say(f"comparing: {self._done} pieces of work are done")


def _card(run, tick):
    """A run of the gallery: its newest preview, what it is, how good and how old."""
    about, words = read_config(run), "not judged here"
    with contextlib.suppress(UserError):
        words = summary(read_report(run)["metrics"])
    tick.description, tick.layout.width = Path(run).name, "200px"
    lines = [about["system"], words, f"on {Path(about['dataset']['path']).name}", age_of_run(run)]
    preview = newest_preview(run)
    shown = f'src="{data_url(preview)}"' if preview.is_file() else ""
    picture = f'<img style="{THUMBNAIL}" {shown}>'
    return widgets.VBox([widgets.HTML(picture), tick, widgets.HTML(small(*lines), layout={"width": "200px"})])
