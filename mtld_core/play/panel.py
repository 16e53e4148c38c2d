"""A panel to play with: choose a run and a recorded frame, then steer the dream by buttons or keys.

A click does its one step in the kernel's main thread; "Dream on" takes step after step in a thread of its
own, so that the notebook stays usable, and clicks count meanwhile. A little JavaScript turns keys into clicks
while the pointer is over the panel or the focus in it; a front end that runs none loses nothing else.
"""

import threading
import time
from pathlib import Path

import ipywidgets as widgets

from mtld_core.config import UserError, from_dict
from mtld_core.pages import RunPanel, download_links, error_line, png_bytes, show, video_tag
from mtld_core.play import Play
from mtld_core.runs.folder import read_config, runs_in, samples_of
from mtld_core.systems import system_class
from mtld_core.systems.opening import open_run

SHOWN, BESIDE = 256, 544  # pixels: a picture's height at least, the room for two
MOST_STEPS = 10_000  # that a dream goes on for: nobody may be watching
BREATH = 0.01  # seconds between two steps at least, for clicks
PLAYERS = {
    "hold the last action": "hold",
    "sticky random": "sticky",
    "track what moves": "track",
}
WORDS = {
    "UP": "ArrowUp KeyW",
    "DOWN": "ArrowDown KeyS",
    "LEFT": "ArrowLeft KeyA",
    "RIGHT": "ArrowRight KeyD",
    "FIRE": "Space",
    "NOOP": "KeyN",
}
SIGNS = {"ArrowUp": "↑", "ArrowDown": "↓", "ArrowLeft": "←", "ArrowRight": "→", "Space": "space"}
STYLE = "<style>.mtld-play img { image-rendering: pixelated }</style>"
KEYS = """<script>
if (!window.mtldKeys) {
  window.mtldKeys = event => {
    const panels = [...document.querySelectorAll('.mtld-play')]
    const panel = panels.find(one => one.matches(':hover, :focus-within'))
    const typing = event.target.closest?.('input, textarea, select, [contenteditable=true], [role=slider]')
    if (!panel || typing || event.ctrlKey || event.metaKey || event.altKey) return
    const button = panel.querySelector(`button.mtld-key-${event.code}`)
    if (!button) return
    event.preventDefault()
    event.stopImmediatePropagation()
    const seen = panel.querySelector('.mtld-step').innerText
    // a held key waits for each picture
    if (event.type == 'keyup' || (event.repeat && seen == window.mtldSeen)) return
    window.mtldSeen = seen
    button.click()
  }
  // before the page's own
  for (const type of ['keydown', 'keyup']) window.addEventListener(type, window.mtldKeys, true)
}
</script>"""


class PlayPanel(RunPanel):
    """Play with the runs beside `run_dir` that take actions. `panel.buttons[2].click()` is one step.

    `panel.dreams_on.value = True` lets it go on by itself, at `fps` steps a second at most, as `panel.player`
    says, until it is False again, or a reset, an error, 10,000 steps or a new panel ends it.
    """

    NO_RUN = "there is no run with actions yet: train one first"
    _newest = None

    def __init__(self, run_dir="runs/demo", fps=12):
        self._lock, self._stopped = threading.RLock(), threading.Event()
        super().__init__(steered_runs(Path(run_dir).parent), run_dir)
        if PlayPanel._newest is not None:  # a cell that runs again takes its panel off the page
            PlayPanel._newest.stop()
        PlayPanel._newest = self
        self.play, self.fps = None, fps
        self.reset, self.save = widgets.Button(description="Reset"), widgets.Button(description="Save mp4")
        self.dreams_on = widgets.ToggleButton(description="Dream on", icon="play", disabled=True)
        self.player = widgets.Dropdown(options=PLAYERS, value="sticky", description="who plays")
        self.dream, self.real = widgets.Image(), widgets.Image()
        self.buttons, self._actions = [], widgets.HBox(layout={"flex_flow": "row wrap"})
        self._lay_out()
        self.reset.on_click(lambda _: self._press(self._reset))
        self.save.on_click(lambda _: self._press(self._save))
        self.dreams_on.observe(self._toggled, "value")
        self.attempt(self.fill)

    def _lay_out(self):
        self._beside = widgets.VBox([widgets.HTML("the real game"), self.real])
        dream = widgets.VBox([widgets.HTML(f"{STYLE}the dream"), self.dream])
        pictures = widgets.HBox([self._beside, dream], layout={"flex_flow": "row wrap", "grid_gap": "8px"})
        buttons = widgets.HBox([self.reset, self.save])
        form = widgets.VBox([self.run, self.arc, self.frame, buttons, self.player, self.dreams_on])
        keys = {"output_type": "display_data", "data": {"text/html": KEYS}, "metadata": {}}
        script = widgets.Output(outputs=(keys,))
        played = [pictures, self.message, self._actions, script]
        left = widgets.VBox(played, layout={"max_width": f"{BESIDE}px"})
        beside = widgets.HBox([left, form], layout={"flex_flow": "row wrap"})
        self.children = [beside, self.links, self.video]
        # by which the keys and a page's other scripts find them
        self.add_class("mtld-play")
        self.dream.add_class("mtld-dream")
        self.message.add_class("mtld-step")

    def fill(self):
        """Offer the chosen run's actions and frames; it starts where its first held-out window does."""
        self.stop()
        self.play, self.buttons, self._actions.children = None, [], ()
        self.dreams_on.disabled = True
        self.play = play = Play(open_run(self.chosen_run()))
        height, width = play.dataset.size
        for picture in (self.dream, self.real):
            picture.layout.width = f"{width * -(-SHOWN // height)}px"
        for (name, action), keys in zip(play.choices, keys_of(play.labels), strict=True):
            self.buttons.append(self._button(name, action, keys))
        self._actions.children = self.buttons
        self.dreams_on.disabled = False
        self.offer_frames(play.starts, *play.start)
        return self._shown()

    def _button(self, name, action, keys):
        signs = [SIGNS.get(key, key[-1].lower()) for key in keys]
        text = f"{name}  {signs[0]}" if keys else name
        layout = {"width": "auto", "min_width": "72px"}
        button = widgets.Button(description=text, tooltip=" or ".join(signs) or name, layout=layout)
        for key in keys:
            button.add_class(f"mtld-key-{key}")
        button.on_click(lambda _: self.attempt(lambda: self._act(action)))
        return button

    def frame_chosen(self):
        self._press(self._reset)

    def attempt(self, action):
        with self._lock:  # a dream that goes on does nothing meanwhile
            super().attempt(action)

    def _press(self, action):
        """Do what needs something to play; where there is nothing, the line that says why stays."""
        if self.play is not None:
            self.attempt(action)

    def _act(self, action):
        self.play.act(action)
        return self._shown()

    # ---- dreaming on

    def _toggled(self, change):
        with self._lock:
            self._stopped.set()
            if change.new:
                self._stopped = threading.Event()
                threading.Thread(target=self._dream_on, args=(self._stopped,), daemon=True).start()

    def stop(self):
        """Let a dream that goes on by itself go on no longer. After this it takes no step."""
        with self._lock:
            self.dreams_on.value = False

    def _dream_on(self, stopped):
        for _ in range(MOST_STEPS):
            began = time.monotonic()
            with self._lock:
                if stopped.is_set():
                    return
                try:
                    list(self.play.dream_on(1, self.player.value))
                    self.say(self._shown())
                except Exception as error:  # a thread's traceback would reach nobody
                    self.fail(error_line(error))
                    break
            stopped.wait(max(BREATH, began + 1 / self.fps - time.monotonic()))
        with self._lock:
            if not stopped.is_set():
                self.stop()

    # ---- the other buttons, and what is seen

    def _reset(self):
        self.stop()
        self.play.reset(self.arc.value, self.frame.value)
        self.video.value = self.links.value = ""
        return self._shown()

    def _save(self):
        play = self.play
        name = f"play_{play.source.name}_{time.strftime('%Y%m%d_%H%M%S')}.mp4"
        files = play.save(samples_of(play.system.run.dir) / name, self.fps)
        self.video.value = video_tag(files[0])
        self.links.value = download_links(*files)
        return self._shown()

    def _shown(self):
        """Show the newest frames -> words on where the play is."""
        play = self.play
        self.dream.value = png_bytes(play.frames[-1])
        show(self._beside, play.real is not None)
        if play.real is not None:
            self.real.value = png_bytes(play.real[-1])
        said = [f"step {play.steps}"]
        if play.steps:
            said += [self._name(play.actions[-1]), f"{play.frames_per_second:.0f} frames/s"]
            if play.parted:
                said.append(f"parted from the real game at step {play.parted}")
            if play.over:
                said.append("the real game is over")
        elif play.alone:
            said.append(f"no real game beside it: {play.alone}")
        return " · ".join(said)

    def _name(self, action):
        for name, choice in self.play.choices:
            if choice == action:
                return name
        return " ".join(f"{value:+.2g}" for value in action)  # controls between their ends


def keys_of(names):
    """For each action's name a list of key codes (`KeyboardEvent.code`); the n-th also has the digit n."""
    words = dict(WORDS)
    if "UP" not in names:  # Pong's paddle goes up by RIGHT
        words["RIGHT"] += f" {words['UP']}"
    if "DOWN" not in names:
        words["LEFT"] += f" {words['DOWN']}"
    keys = []
    for i, name in enumerate(names):
        digits = [f"Digit{(i + 1) % 10}"] if i < 10 else []
        keys.append(words.get(name, "").split() + digits)
    return keys


def steered_runs(folder):
    """The runs in `folder` that take actions; each system is built once, from the first of its runs."""
    found, takes = [], {}
    for run in runs_in(folder):
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
