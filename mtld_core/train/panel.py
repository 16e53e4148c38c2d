"""Training with buttons: a panel whose run trains in a thread of its own, so that the notebook stays usable.

The loop knows nothing of it: the panel reads the run's folder and asks through `Controls`. Core ipywidgets
only, in the forms that 7.7 (Colab) and 8.1 share. A painter thread keeps it fresh. Where a front end does not
follow a thread (Colab), each click does: it waits a moment for what it brought about and refreshes everything
in the kernel's main thread.
"""

import collections
import contextlib
import dataclasses
import html
import threading
import time
import traceback
from pathlib import Path

import ipywidgets as widgets
from IPython.display import HTML, display

from mtld_core.config import UserError
from mtld_core.judge.words import meaning
from mtld_core.pages import RED, error_line, in_colour, picture_tag, show, table_html
from mtld_core.runs.checkpoint import list_checkpoints
from mtld_core.runs.folder import JUDGEMENT, LATEST, LOG, PREVIEWS, folder_of, read_pointer, read_report
from mtld_core.runs.lock import InUse, ask_to_stop
from mtld_core.runtime import in_background
from mtld_core.train import fit
from mtld_core.train.controls import Controls
from mtld_core.train.plots import Log, draw
from mtld_core.train.report import facts

PATIENCE = 0.8  # seconds that a click waits for its effect
LOOK, DRAW = 0.2, 2.0  # seconds between two looks at the run, between two drawings of the curves
_panels = {}  # run folder -> its newest panel
PICTURES = {  # files in the run's folder, of which the newest is shown: what stands above it
    f"{PREVIEWS}/step_*.png": "preview",
    f"{PREVIEWS}/actions_*.png": "where held actions lead",
    f"{PREVIEWS}/life_*.png": "dreams, many steps later",
    JUDGEMENT: "how far ahead it sees",
}
# the picture of a run in a saved page gives way to a panel that lives, and takes the place of a dead one
KEPT_STYLE = """<style>
:is(.jp-OutputArea, .output, #output-area):has(.mtld-train) .mtld-kept { display: none }
.jp-OutputArea:has(.mtld-kept):not(:has(.mtld-train)) > .jp-OutputArea-child:not(:has(.mtld-kept)) {
  display: none
}
.mtld-kept { display: grid; gap: 8px 16px }
.mtld-kept { grid-template-columns: repeat(auto-fit, minmax(min(370px, 100%), 1fr)) }
.mtld-kept td { text-align: left !important }
.mtld-kept > * { min-width: 0; max-width: 640px }
</style>"""


def train_panel(system, dataset, config):
    """The panel of a run that begins now, or the one that trains this system or in this folder already."""
    folder = folder_of(config.run_dir, system.name)
    config = dataclasses.replace(config, run_dir=str(folder), interactive=False)  # lines for the log, no bar
    for panel in _panels.values():
        if panel.training and (panel.system is system or panel.run_dir == folder):
            panel.propose(system, dataset, config)
            return panel
    panel = _panels[folder] = TrainPanel(system, dataset, config)
    return panel


class TrainPanel(widgets.VBox):
    """A run that begins at once, with its buttons, curves, pictures and figures. It takes what `fit` does.

    Its parts are fields: `panel.stop.click()` is what a person does.
    """

    _kept = None  # the output of the page that stays when the kernel is gone

    def __init__(self, system, dataset, config):
        button = self._button
        self.pause = button("Pause", "pause", "wait after this step, or go on", self._pause_or_go_on)
        self.stop = button("Stop", "stop", "save, judge and end; then: judge no more", self._stop)
        self.save = button("Save now", "save", "write a checkpoint after this step", self._save)
        self.look = button("Refresh", "refresh", "show how things are (Colab)", lambda: None)
        self.bar = widgets.IntProgress(layout={"width": "100%", "height": "10px", "margin": "8px 0 0 0"})
        self.status, self.figures, self.said = widgets.HTML(), widgets.HTML(), widgets.HTML()
        self.verdict, self.changes, self.other = widgets.HTML(), widgets.HTML(), widgets.HTML()
        self.switch = button(
            "Train so", "exchange", "end this run, save it, and train as now asked for", self._switch
        )
        self.halt = button("Stop it", "stop", "ask that one to save, judge and end", self._stop_others)
        self.more = widgets.BoundedIntText(min=1, max=10**9, layout={"width": "100px"})
        self.train_on = button("Train on", "plus", "from the newest checkpoint", self._train_on)
        self.curves = widgets.Image(value=draw([]), layout={"width": "100%"})
        self.pictures = widgets.HTML()
        self.details = widgets.Accordion([self.said], selected_index=None)
        self.details.set_title(0, "what it said")
        self.proposal = _row(self.changes, self.switch)
        self.background = _row(self.other, self.halt)
        self.after = _row(widgets.HTML("+"), self.more, widgets.HTML("steps"), self.train_on)
        above = [_row(self.pause, self.stop, self.save, self.look), self.bar, self.status]
        above += [self.proposal, self.background, self.verdict, self.after]
        left = _column(widgets.HTML(_caption("losses")), self.curves, self.figures)
        super().__init__([*above, _row(left, _column(self.pictures)), self.details])
        self.add_class("mtld-train")  # by which a page's other scripts find it
        self._lock = threading.Lock()
        self._take(system, dataset, config)
        self._begin()

    def _take(self, system, dataset, config):
        """Turn to a run, which `_begin` begins."""
        self.system, self.dataset = system, dataset
        self.config, self.run_dir = config, Path(config.run_dir)
        self.more.value = config.steps or 1000
        self._wanted = None  # what another run of the cells asked for meanwhile
        self._switching = False  # to that, as soon as this run has ended
        self._lines = collections.deque(maxlen=100)
        self._log = Log(self.run_dir / LOG)
        self._undrawn, self._drawn_at = False, 0.0
        self._shown = {}  # picture -> when it was written, and the words above it

    def _ipython_display_(self, **options):
        """Show the panel, and below it a place for what stays in a saved page."""
        view = {"model_id": self.model_id, "version_major": 2, "version_minor": 0}
        display(
            {"application/vnd.jupyter.widget-view+json": view, "text/plain": "", "text/html": ""}, raw=True
        )
        self._kept = display(HTML(""), display_id=True)
        self._keep()

    def _button(self, text, icon, hint, action):
        button = widgets.Button(description=text, icon=icon, tooltip=hint, layout={"width": "112px"})
        button.on_click(lambda _: (action(), self.refresh()))
        return button

    @property
    def training(self):
        return self.thread.is_alive()

    # ---- the run

    def _begin(self):
        with self._lock:  # nobody paints a run that has neither begun nor ended
            self.controls = Controls(self._hear)
            self.report, self.error, self._in_use = None, "", False
            self.thread = in_background(self._train)
        in_background(self._paint)

    def _train(self):
        try:
            self.report = fit(self.system, self.dataset, self.config, self.controls)
        except BaseException as error:  # a thread's traceback would reach nobody
            self.error, self._in_use = error_line(error), isinstance(error, InUse)
            self._hear(traceback.format_exc())

    def _hear(self, text):
        self._lines.extend(text.splitlines())

    def propose(self, system, dataset, config):
        """Show what another run of the page's cells asked for, where that is not how this run began."""
        self._wanted = system, dataset, config
        self.refresh()

    def _changes(self):
        """What was asked for meanwhile, beside how it is: "steps 500 instead of 1000", ..."""
        before = _settings(self.system, self.dataset, self.config)
        return [
            f"{name} {value!r} instead of {before.get(name)!r}"
            for name, value in _settings(*self._wanted).items()
            if value != before.get(name)
        ]

    # ---- clicks

    def _switch(self):
        self._switching = True
        self._stop()

    def _train_on(self):
        steps = read_pointer(self.run_dir / LATEST)["step"] + self.more.value
        self._go_on(steps=steps, epochs=0, time_budget_minutes=0.0)

    def _go_on(self, **length):
        self.config = dataclasses.replace(self.config, resume="auto", **length)
        self._begin()

    def _pause_or_go_on(self):
        controls = self.controls
        if not self.training:
            self._go_on()
        elif controls.pause.is_set():
            controls.pause.clear()
            self._wait(lambda: controls.doing != "paused")
        else:
            controls.pause.set()
            self._wait(lambda: controls.doing == "paused")

    def _stop(self):
        self.controls.stop.set()
        self._wait(lambda: self.controls.doing not in ("training", "paused"))

    def _others(self):
        return [panel for panel in _panels.values() if panel is not self and panel.training]

    def _stop_others(self):
        for panel in self._others():
            panel.controls.stop.set()
        if self._in_use:
            ask_to_stop(self.run_dir)

    def _save(self):
        self.controls.save.set()
        self._wait(lambda: not self.controls.save.is_set())

    def _wait(self, done):
        deadline = time.monotonic() + PATIENCE
        while self.training and not done() and time.monotonic() < deadline:
            time.sleep(0.02)

    # ---- what is seen

    def _paint(self):
        thread = self.thread
        while thread.is_alive():
            began = time.monotonic()
            self.refresh()
            took = time.monotonic() - began
            thread.join(max(LOOK, 5 * took))  # however slow the machine, most of it is for the training
        if self._switching:
            self._take(*self._wanted)
            _panels[self.run_dir] = self
            self._begin()
            return
        self.refresh()
        self._keep()

    def refresh(self):
        """Show how things are now. What has not changed is not sent again."""
        with self._lock:
            training = self.training
            self._undrawn |= self._log.read()
            if self._undrawn and (not training or time.monotonic() - self._drawn_at > DRAW):
                self.curves.value = draw(self._log.lines)
                self._undrawn, self._drawn_at = False, time.monotonic()
            with contextlib.suppress(OSError, UserError):  # the folder may be gone
                self._show_pictures()
                self._show_figures()
            said = html.escape("\n".join(self._lines))
            self.said.value = f'<pre style="white-space: pre-wrap; line-height: 1.4; margin: 0">{said}</pre>'
            self.status.value = self._status(training)
            self._show_buttons(training)
            self._show_bar(training)
            self._show_notes(training)

    def _show_pictures(self):
        found = {}
        for place, words in PICTURES.items():
            for newest in sorted(self.run_dir.glob(place))[-1:]:
                found[newest] = newest.stat().st_mtime_ns, words
        if found != self._shown:
            parts = []
            for path, (_, words) in found.items():
                number = path.stem.rpartition("_")[2]
                step = f", step {int(number):,}" if number.isdecimal() else ""
                parts += [_caption(words + step), picture_tag(path.read_bytes(), words)]
            self.pictures.value = "".join(parts)
            self._shown = found

    def _show_figures(self):
        report = read_report(self.run_dir)
        figures = {name: value for name, value in report["metrics"].items() if isinstance(value, float)}
        if figures:
            table = table_html({"judged at step": report["judged_at_step"]} | figures, meaning)
            self.figures.value = f'<div style="line-height: 1.5">{_caption("figures")}{table}</div>'
            self.verdict.value = f"<b>{html.escape(report.get('verdict', ''))}</b>"

    def _show_notes(self, training):
        changes = self._changes() if training and self._wanted else []
        self.changes.value = html.escape(
            f"This run goes on as it began; now you ask for {', '.join(changes)}."
        )
        self.switch.disabled = self._switching
        show(self.proposal, changes)
        lines = []
        for panel in self._others():
            stopping = ", stopping" * panel.controls.stop.is_set()
            lines.append(f"In the background trains {panel.run_dir}, {_steps(panel.controls)}{stopping}")
        if self._in_use:
            lines.append("Another process trains in this folder: stop it, Refresh, and Go on")
        self.other.value = html.escape("; ".join(lines))
        show(self.background, lines)
        show(self.after, not training and list_checkpoints(self.run_dir))

    def _keep(self):
        """Put what the run has come to into the page, to stay there when the kernel is gone."""
        if self._kept is None or self.training:
            return
        about = ""
        with contextlib.suppress(OSError, UserError):
            about = table_html(facts(read_report(self.run_dir)))
        losses = _caption("losses") + picture_tag(self.curves.value, "losses")
        left = f"<div>{self.verdict.value}{about}{losses}{self.figures.value}</div>"
        right = f"<div>{self.pictures.value}</div>"
        self._kept.update(HTML(f'{KEPT_STYLE}<div class="mtld-kept">{left}{right}</div>'))

    def _show_buttons(self, training):
        controls = self.controls
        pausable = training and not controls.pause.is_set()
        self.pause.description = "Pause" if pausable else "Go on"
        self.pause.icon = "pause" if pausable else "play"
        over = controls.stop.is_set() or controls.ending
        self.pause.disabled = over if training else not self._can_go_on()
        self.save.disabled = not training or over
        self.stop.disabled = not training or controls.stop.is_set()  # of judging the end, it gives that up

    def _show_bar(self, training):
        controls = self.controls
        self.bar.max = max(1, controls.total, controls.step)
        self.bar.value = controls.step
        style = ""
        if self.error:
            style = "danger"
        elif self._finished():
            style = "success"
        elif training and controls.pause.is_set():
            style = "warning"
        self.bar.bar_style = style

    def _finished(self):
        return self.report is not None and self.report["status"] == "finished"

    def _can_go_on(self):
        """Whether there is a checkpoint to go on from, and something that the run would still do."""
        config = self.config
        new_budget = config.time_budget_minutes and not (config.steps or config.epochs)
        return (new_budget or not self._finished()) and list_checkpoints(self.run_dir)

    def _status(self, training):
        controls = self.controls
        if self.error:
            return in_colour(self.error, RED)
        step = _steps(controls)
        saved = read_pointer(self.run_dir / LATEST)
        kept = f"saved at step {saved['step']}" if saved else "nothing saved yet"
        if not training:
            ended = f"{self.report['status']}: {self.report['reason']}"
            on = "to train on, press Go on" if self._can_go_on() else "to train on, say for how many steps"
            return _line(
                ended, step, kept, on, f"to see more, notebook 03 with run_dir = {str(self.run_dir)!r}"
            )
        doing = controls.doing
        if controls.stop.is_set():
            doing = "stopping" if doing == "training" else f"stopping: {doing}"
        elif controls.pause.is_set() and doing != "paused":
            doing = f"pausing: {doing}"
        return _line(doing, step, *controls.pace, kept)


def _settings(system, dataset, config):
    """All that a run is given, as a dict."""
    return {"system": system.name, "dataset_root": dataset.path} | vars(system.config) | vars(config)


def _steps(controls):
    return f"step {controls.step}" + (f" of {controls.total}" if controls.total else "")


def _caption(words):
    return f'<div style="font-weight: 600; margin: 8px 0 0 0">{html.escape(words)}</div>'


def _row(*parts):
    return widgets.HBox(parts, layout={"flex_flow": "row wrap", "align_items": "flex-start"})


def _column(*parts):
    """One of two columns where there is room for both, else as wide as there is."""
    layout = {"flex": "1 1 370px", "min_width": "0", "max_width": "640px", "margin": "0 16px 8px 0"}
    return widgets.VBox(parts, layout=layout)


def _line(first, *rest):
    return " · ".join([f"<b>{html.escape(first)}</b>", *map(html.escape, rest)])
