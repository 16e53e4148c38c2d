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

import ipywidgets as widgets

from mtld_core.config import UserError
from mtld_core.pages import error_line, in_colour, show, table_html
from mtld_core.runs.checkpoint import list_checkpoints
from mtld_core.runs.folder import JUDGEMENT, LATEST, LOG, PREVIEWS, folder_of, read_pointer, read_report
from mtld_core.train import fit
from mtld_core.train.controls import Controls
from mtld_core.train.plots import Log, draw

PATIENCE = 0.8  # seconds that a click waits for its effect
LOOK, DRAW = 0.2, 2.0  # seconds between two looks at the run, between two drawings of the curves
_panels = {}  # run folder -> its newest panel


def train_panel(system, dataset, config):
    """The panel of a run that begins now, or the one that trains this system or in this folder already."""
    folder = folder_of(config.run_dir, system.name)
    for panel in _panels.values():
        if panel.training and (panel.system is system or panel.run_dir == folder):
            return panel
    config = dataclasses.replace(config, run_dir=str(folder))
    panel = _panels[folder] = TrainPanel(system, dataset, config)
    return panel


class TrainPanel(widgets.VBox):
    """A run that begins at once, with its buttons, curves, pictures and figures. It takes what `fit` does.

    Its parts are fields: `panel.stop.click()` is what a person does.
    """

    def __init__(self, system, dataset, config):
        self.system, self.dataset = system, dataset
        self.config = dataclasses.replace(config, interactive=False)  # no second bar: lines for the log
        self.run_dir = folder_of(config.run_dir, system.name)
        self.pause = self._button("Pause", "pause", self._pause_or_go_on)
        self.stop = self._button("Stop", "stop", self._stop)
        self.save = self._button("Save now", "save", self._save)
        self.look = self._button("Refresh", "refresh", lambda: None)
        self.bar = widgets.IntProgress(layout={"width": "100%", "height": "10px", "margin": "8px 0 0 0"})
        self.status, self.figures, self.said = widgets.HTML(), widgets.HTML(), widgets.HTML()
        self.curves = widgets.Image(value=draw([]), layout={"width": "450px", "height": "263px"})
        layout = {"max_width": "500px", "display": "none", "align_self": "flex-start"}
        self.preview, self.steered, self.judgement = (widgets.Image(layout=layout) for _ in range(3))
        self.details = widgets.Accordion([self.said], selected_index=None)
        self.details.set_title(0, "what it said")
        buttons = widgets.HBox([self.pause, self.stop, self.save, self.look])
        left = widgets.VBox([self.curves, self.figures])
        right = widgets.VBox([self.preview, self.steered, self.judgement])
        pictures = widgets.HBox([left, right], layout={"flex_flow": "row wrap", "margin": "0 0 8px 0"})
        super().__init__([buttons, self.bar, self.status, pictures, self.details])
        self.add_class("mtld-train")  # by which a page's other scripts find it
        self._lock = threading.Lock()
        self._lines = collections.deque(maxlen=100)
        self._log = Log(self.run_dir / LOG)
        self._undrawn, self._drawn_at = False, 0.0
        self._shown = {}  # pattern of a picture's file -> which one is shown
        self._begin()

    def _button(self, text, icon, action):
        button = widgets.Button(description=text, icon=icon, layout={"width": "112px"})
        button.on_click(lambda _: (action(), self.refresh()))
        return button

    @property
    def training(self):
        return self.thread.is_alive()

    # ---- the run

    def _begin(self):
        with self._lock:  # nobody paints a run that has neither begun nor ended
            self.controls = Controls(self._hear)
            self.report, self.error = None, ""
            self.thread = threading.Thread(target=self._train, daemon=True)
            self.thread.start()
        threading.Thread(target=self._paint, daemon=True).start()

    def _train(self):
        try:
            self.report = fit(self.system, self.dataset, self.config, self.controls)
        except BaseException as error:  # a thread's traceback would reach nobody
            self.error = error_line(error)
            self._hear(traceback.format_exc())

    def _hear(self, text):
        self._lines.extend(text.splitlines())

    # ---- clicks

    def _pause_or_go_on(self):
        controls = self.controls
        if not self.training:
            self.config = dataclasses.replace(self.config, resume="auto")
            self._begin()
        elif controls.pause.is_set():
            controls.pause.clear()
            self._wait(lambda: controls.doing != "paused")
        else:
            controls.pause.set()
            self._wait(lambda: controls.doing == "paused")

    def _stop(self):
        self.controls.stop.set()
        self._wait(lambda: self.controls.doing not in ("training", "paused"))

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
        self.refresh()

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
            said = html.escape("\n".join(list(self._lines)))
            self.said.value = f'<pre style="white-space: pre-wrap; line-height: 1.4; margin: 0">{said}</pre>'
            self.status.value = self._status(training)
            self._show_buttons(training)
            self._show_bar(training)

    def _show_pictures(self):
        places = {
            f"{PREVIEWS}/step_*.png": self.preview,
            f"{PREVIEWS}/actions_*.png": self.steered,
            JUDGEMENT: self.judgement,
        }
        for place, picture in places.items():
            newest = max(self.run_dir.glob(place), default=None)
            found = newest and (newest, newest.stat().st_mtime_ns)
            if found and found != self._shown.get(place):
                picture.value = newest.read_bytes()
                show(picture, True)
                self._shown[place] = found

    def _show_figures(self):
        report = read_report(self.run_dir)
        figures = {name: value for name, value in report["metrics"].items() if isinstance(value, float)}
        if figures:
            table = table_html({"judged at step": report["judged_at_step"]} | figures)
            self.figures.value = f'<div style="line-height: 1.5; margin: 4px 0 0 24px">{table}</div>'

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
        return bool(new_budget or not self._finished()) and bool(list_checkpoints(self.run_dir))

    def _status(self, training):
        controls = self.controls
        if self.error:
            return in_colour(self.error, "#c00")
        step = f"step {controls.step}" + (f" of {controls.total}" if controls.total else "")
        saved = read_pointer(self.run_dir / LATEST)
        kept = f"saved at step {saved['step']}" if saved else "nothing saved yet"
        if not training:
            ended = f"{self.report['status']}: {self.report['reason']}"
            way = "press Go on" if self._can_go_on() else "give it more steps above and run the cells again"
            return _line(ended, step, kept, f"to train on, {way}")
        doing = controls.doing
        if controls.stop.is_set():
            doing = "stopping" if doing == "training" else f"stopping: {doing}"
        elif controls.pause.is_set() and doing != "paused":
            doing = f"pausing: {doing}"
        return _line(doing, step, *controls.pace, kept)


def _line(first, *rest):
    return " · ".join([f"<b>{html.escape(first)}</b>", *map(html.escape, rest)])
