"""A panel to play with: choose a run and a recorded frame, then steer the dream, live or turn by turn.

Paused, a click does its one step in the kernel's main thread. "Play" takes step after step in a thread of its
own, so that the notebook stays usable. The page's script (keys.py) lets keys, the mouse and a gamepad hold
buttons down; a front end that runs none still has the buttons.
"""

import threading
import time
from pathlib import Path

import ipywidgets as widgets

from mtld_core.config import UserError, find, from_dict
from mtld_core.pages import RunPanel, displayed, download_links, error_line, png_bytes, show, video_tag
from mtld_core.play.dream import PARTED, Play, together
from mtld_core.play.keys import SCRIPT, SIGNS, keys_of
from mtld_core.play.policies import ways
from mtld_core.runs.folder import EXAMPLES, read_config, runs_in, samples_of
from mtld_core.systems import system_class
from mtld_core.systems.opening import open_run

SHOWN, BESIDE = 256, 544  # pixels: a picture's height at least, the room for two
MOST_STEPS = 10_000  # that it plays by itself: nobody may be watching
BREATH = 0.01  # seconds between two steps at least, for clicks
FEW = 3  # steps that the page may be behind, however slow it plays
ROW = {"flex_flow": "row wrap"}
NARROW = {"width": "auto"}
PLAYERS = {
    "you": "rest",
    "you; what was last is held": "hold",
    "sticky random": "sticky",
    "track what moves": "track",
}
SYNCS = {
    "by hand": 0,
    "every 12 steps": 12,
    "every 60 steps": 60,
    "when they part": PARTED,
}
STYLE = """<style>
.mtld-play img { image-rendering: pixelated; width: 100%; margin: 0 }
.mtld-play .mtld-pictures > * { flex: 1 1 0; min-width: 0 }
.mtld-play .mtld-actions button { touch-action: none }
.mtld-play .mtld-hears { border-top: 3px solid transparent }
body:not(:has(:is(input, textarea, select, [role=slider], [contenteditable=true]):focus))
  .mtld-play:is(:hover, :focus-within) .mtld-hears,
body:not(:has(:is(input, textarea, [contenteditable=true]):focus)) .mtld-hears:hover { border-color: #1976d2 }
</style>"""
HINT = "while the line above is blue, keys play; hold a key, a button or a gamepad to go on"


class PlayPanel(RunPanel):
    """Play with the runs beside `run_dir` that take actions. `panel.buttons[2].click()` is one step.

    `panel.live.value = True` plays at `panel.fps.value` steps a second at most, by what is held down, else as
    `panel.player` says, until it is False again, or a reset, an error, 10,000 steps or a new panel ends it.
    source: where the dream of `run_dir` begins, as `Play` takes it.
    """

    NO_RUN = "there is no run with actions yet: train one first"
    _newest, _presses = None, 0

    def __init__(self, run_dir="runs/demo", fps=12, source=""):
        self._lock, self._stopped = threading.RLock(), threading.Event()
        run_dir = find(run_dir)
        runs = steered_runs(Path(run_dir).parent, EXAMPLES)
        super().__init__([(Path(run).name, run) for run in runs], run_dir)
        if PlayPanel._newest is not None:  # a cell that runs again takes its panel off the page
            PlayPanel._newest.stop()
        PlayPanel._newest = self
        self.play, self._sources = None, {self.run.value: source}
        self.live = widgets.ToggleButton(disabled=True, layout=NARROW)
        self.step = self._control("Step [.]", "pause, and take one step", self._step_once)
        self.sync = self._control("Sync [y]", "dream on from the real game's last frames", self._sync)
        self.reset = self._control("Reset", "begin again at the chosen frame", self._reset)
        self.save = self._control("Save mp4", "what was played, as mp4 and GIF", self._save)
        self.sync_when = widgets.Dropdown(options=SYNCS, description="sync")
        self.player = widgets.Dropdown(options=PLAYERS, value="rest", description="who plays")
        self.fps = widgets.IntSlider(round(fps), 1, 60, description="steps/s")
        self.held = widgets.Text("0 0", layout={"display": "none"})  # what the page's script tells
        self.dream, self.real = widgets.Image(), widgets.Image()
        self.buttons, self._actions = [], widgets.HBox(layout=ROW)
        self._lay_out()
        self._label_live()
        self.live.observe(self._toggled, "value")
        self.attempt(self.fill)

    def _lay_out(self):
        self._beside = widgets.VBox([widgets.HTML("the real game"), self.real])
        dream = widgets.VBox([widgets.HTML(f"{STYLE}the dream"), self.dream])
        pictures = widgets.HBox([self._beside, dream], layout={"grid_gap": "8px"})
        controls = widgets.HBox([self.live, self.step, self.sync, self.reset, self.save], layout=ROW)
        script = widgets.Output(outputs=displayed(("text/html", SCRIPT)))
        hint = widgets.HTML(f"<small>{HINT}</small>")
        played = [pictures, self.message, self._actions, controls, hint, self.held, script]
        left = widgets.VBox(played, layout={"max_width": f"{BESIDE}px"})
        form = [self.run, self.arc, self.frame, self.player, self.fps, self.sync_when]
        beside = widgets.HBox([left, widgets.VBox(form)], layout=ROW | {"grid_gap": "8px"})
        self.children = [beside, self.links, self.video]
        # by which the script and the style find them
        for widget, name in (
            (self, "play"),
            (pictures, "pictures"),
            (self.dream, "dream"),
            (self.message, "step"),
            (self._actions, "actions"),
            (self.held, "held"),
            (self.live, "live"),
            (self.live, "key-KeyP"),
            (self.step, "key-Period"),
            (self.sync, "key-KeyY"),
            (left, "hears"),
        ):
            widget.add_class(f"mtld-{name}")

    def fill(self):
        """Offer the chosen run's actions and frames; it starts at `source`, or where most moves."""
        self.stop()
        self.play, self.buttons, self._actions.children = None, [], ()
        self.live.disabled = True
        run = self.chosen_run()
        self.play = play = Play(open_run(run), source=self._sources.get(run, ""))
        height, width = play.dataset.size
        for picture in (self.dream, self.real):
            picture.layout.max_width = f"{width * -(-SHOWN // height)}px"
        moved = ways(play)
        for i, keys in enumerate(keys_of(play.labels, moved)):
            self.buttons.append(self._button(i, keys, moved.get(i)))
        self._actions.children = self.buttons
        self.live.disabled = False
        if play.start is None:
            self.offer_frames({play.source.name: [0]} | play.starts)
        else:
            self.offer_frames(play.starts, *play.start)
        return self._shown()

    def _control(self, text, tooltip, action):
        button = widgets.Button(description=text, tooltip=tooltip, layout=NARROW)
        button.on_click(lambda _: self._press(action))
        return button

    def _button(self, number, keys, way):
        name, action = self.play.choices[number]
        text = name if way in (None, name) else f"{name} moves {way.lower()}"
        signs = [SIGNS.get(key, key[-1].lower()) for key in keys]
        button = widgets.Button(description=text, tooltip=text, layout=NARROW | {"min_width": "72px"})
        if keys:
            button.description = f"{text} [{signs[0]}]"
            button.tooltip = f"{text}: {' or '.join(signs)}"
        for key in keys:
            button.add_class(f"mtld-key-{key}")
        button.on_click(lambda _: self.attempt(lambda: self._act(lambda _: action)))
        return button

    def frame_chosen(self):
        self._press(self._reset)

    def attempt(self, action):
        with self._lock:  # a dream that goes on does nothing meanwhile
            super().attempt(action)

    def _press(self, action):
        """Do what needs something to play; where there is nothing, the line that says why stays."""
        if self.play:
            self.attempt(action)

    def _act(self, policy):
        self.play.sync_when = self.sync_when.value
        list(self.play.dream_on(1, policy))
        return self._shown()

    # ---- live

    def _toggled(self, change):
        with self._lock:
            self._label_live()
            self._stopped.set()
            if change.new:
                self._stopped = threading.Event()
                threading.Thread(target=self._go_on, args=(self._stopped,), daemon=True).start()

    def _label_live(self):
        live = self.live.value
        self.live.description, self.live.icon = ("Pause [p]", "pause") if live else ("Play [p]", "play")

    def stop(self):
        """Pause. After this no step is taken."""
        with self._lock:
            self.live.value = False

    def _go_on(self, stopped):
        left = MOST_STEPS
        while left:
            began = time.monotonic()
            with self._lock:
                if stopped.is_set():
                    return
                try:
                    if self._page_follows():
                        self.say(self._play_on())
                        left -= 1
                except Exception as error:  # a thread's traceback would reach nobody
                    self.fail(error_line(error))
                    break
            stopped.wait(max(BREATH, began + 1 / self.fps.value - time.monotonic()))
        with self._lock:
            if not stopped.is_set():
                self.stop()

    def _page_follows(self):
        """Whether the page shows what was half a second ago, or newer: a slow one is waited for.

        True where no script tells what it shows.
        """
        _, seen, *_ = map(int, self.held.value.split())
        return not seen or self.play.steps - seen <= max(FEW, self.fps.value / 2)

    def _play_on(self):
        """Take a step by what is held down or was pressed since the last one, else as `player` says."""
        presses, _, *pressed = map(int, self.held.value.split())
        down = pressed[1:]
        if presses != self._presses:  # the newest, though it may be up again
            down += pressed[:1]
        self._presses = presses
        if down:
            return self._act(lambda play: together(play.choices, down))
        return self._act(self.player.value)

    # ---- the other buttons, and what is seen

    def _step_once(self):
        self.stop()
        return self._play_on()

    def _sync(self):
        self.play.sync()
        return self._shown()

    def _reset(self):
        self.stop()
        recorded = self.arc.value in self.play.starts
        self.play.reset(*(self.arc.value, self.frame.value) if recorded else ())
        self.video.value = self.links.value = ""
        return self._shown()

    def _save(self):
        play = self.play
        name = f"play_{play.source.name}_{time.strftime('%Y%m%d_%H%M%S')}.mp4"
        files = play.save(samples_of(play.system.run.dir) / name, self.fps.value)
        self.video.value = video_tag(files[0])
        self.links.value = download_links(*files)
        return self._shown()

    def _shown(self):
        """Show the newest frames -> words on where the play is."""
        play = self.play
        self.dream.value = png_bytes(play.frames[-1])
        for widget in (self._beside, self.sync, self.sync_when):
            show(widget, play.real is not None)
        if play.real:
            self.real.value = png_bytes(play.real[-1])
        said = [f"step {play.steps}"]
        if play.steps:
            said += [self._name(play.actions[-1]), f"{play.frames_per_second:.0f} frames/s"]
            if play.parted:
                said.append(f"parted from the real game at step {play.parted}")
            if play.synced:
                said.append(f"synced at step {play.synced}")
            if play.over:
                said.append(f"the real game is over: {play.alone}".rstrip(": "))
        elif play.alone:
            said.append(f"no real game beside it: {play.alone}")
        return " · ".join(said)

    def _name(self, action):
        for name, choice in self.play.choices:
            if choice == action:
                return name
        return " ".join(f"{value:+.2g}" for value in action)  # controls between their ends


def steered_runs(*folders):
    """The runs in these folders that take actions; each system is built once, from the first of its runs."""
    found, takes = [], {}
    for run in runs_in(*folders):
        try:
            about = read_config(run)
            name = about["system"]
            if name not in takes:
                cls = system_class(name)
                takes[name] = cls(from_dict(cls.Config, about["config"])).action_space is not None
        except UserError:  # no run that could be opened
            continue
        if takes[name]:
            found.append(run)
    return found
