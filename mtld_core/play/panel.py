"""A panel to play with: choose a run and a recorded frame, then steer the dream by buttons, or by keys where
they arrive.

Core ipywidgets only, in the forms that 7.7 (Colab) and 8.1 share. A click does its one step in the kernel's
main thread. A little JavaScript turns keys into clicks while the pointer is over the panel or the focus in
it; a front end that runs none loses nothing else.
"""

import time
from pathlib import Path

import ipywidgets as widgets

from mtld_core.config import UserError, from_dict
from mtld_core.pages import download_link, error_line, in_colour, offer, png_bytes, video_tag
from mtld_core.play import Play
from mtld_core.runs.folder import SAMPLES, read_config, runs_in
from mtld_core.systems import system_class
from mtld_core.systems.opening import open_run

SHOWN, BESIDE = 256, 544  # pixels: a picture's height at least, the room for two
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


class PlayPanel(widgets.VBox):
    """For the runs beside `run_dir` that take actions. Its parts are fields: `panel.buttons[2].click()` is
    one step.
    """

    def __init__(self, run_dir="runs/demo", fps=12):
        runs, chosen = steered_runs(Path(run_dir).parent), Path(run_dir).as_posix()
        self.play, self.fps, self._last, self._filling = None, fps, "", False
        self.run = widgets.Dropdown(options=runs, value=chosen if chosen in runs else None, description="run")
        self.arc = widgets.Dropdown(options=[], description="arc")
        self.frame = widgets.SelectionSlider(options=[0], description="frame", continuous_update=False)
        self.reset, self.save = widgets.Button(description="Reset"), widgets.Button(description="Save mp4")
        self.dream, self.real = widgets.Image(), widgets.Image()
        self.buttons, self._actions = [], widgets.HBox(layout={"flex_flow": "row wrap"})
        self.status, self.video, self.links = widgets.HTML(), widgets.HTML(), widgets.HTML()
        self.dream.add_class("mtld-dream")
        self.status.add_class("mtld-step")
        self.run.observe(lambda _: self._try(self._fill), "value")
        self.arc.observe(lambda _: self._press(self._fill_frames), "value")
        self.frame.observe(lambda _: self._press(self._reset), "value")
        self.reset.on_click(lambda _: self._press(self._reset))
        self.save.on_click(lambda _: self._press(self._save))
        self._beside = widgets.VBox([widgets.HTML("the real game"), self.real])
        dream = widgets.VBox([widgets.HTML(f"{STYLE}the dream"), self.dream])
        pictures = widgets.HBox([self._beside, dream], layout={"flex_flow": "row wrap", "grid_gap": "8px"})
        form = widgets.VBox([self.run, self.arc, self.frame, widgets.HBox([self.reset, self.save])])
        keys = {"output_type": "display_data", "data": {"text/html": KEYS}, "metadata": {}}
        script = widgets.Output(outputs=(keys,))
        played = widgets.VBox(
            [pictures, self.status, self._actions, script], layout={"max_width": f"{BESIDE}px"}
        )
        super().__init__(
            [widgets.HBox([played, form], layout={"flex_flow": "row wrap"}), self.links, self.video]
        )
        self.add_class("mtld-play")  # by which the keys and a page's other scripts find it
        self._try(self._fill)

    def _fill(self):
        """The chosen run's arcs and actions; it starts where its first held-out window does."""
        self.play, self.buttons, self._actions.children = None, [], ()
        if not self.run.value:
            raise UserError(
                "choose a run" if self.run.options else "there is no run with actions yet: train one first"
            )
        self.play = play = Play(open_run(self.run.value))
        height, width = play.dataset.size
        for picture in (self.dream, self.real):
            picture.layout.width = f"{width * -(-SHOWN // height)}px"
        self.buttons = [
            self._button(*choice, keys)
            for choice, keys in zip(play.choices, keys_of(play.labels), strict=True)
        ]
        self._actions.children = self.buttons
        arc, _, number = play.source.text.removeprefix("dataset:").rpartition("/")
        self._filling = True
        offer(self.arc, list(play.starts), arc)
        offer(self.frame, play.starts[arc], int(number))
        self._filling = False

    def _fill_frames(self):
        self._filling = True
        offer(self.frame, self.play.starts[self.arc.value])
        self._filling = False
        self._reset()

    def _button(self, name, action, keys):
        signs = [SIGNS.get(key, key[-1].lower()) for key in keys]
        button = widgets.Button(
            description=f"{name}  {signs[0]}" if keys else name, tooltip=" or ".join(signs) or name
        )
        button.layout.width, button.layout.min_width = "auto", "72px"
        for key in keys:
            button.add_class(f"mtld-key-{key}")
        button.on_click(lambda _: self._try(lambda: self._act(name, action)))
        return button

    def _act(self, name, action):
        self.play.act(action)
        self._last = name

    def _reset(self):
        self.play.reset(self.arc.value, self.frame.value)
        self.video.value = self.links.value = ""

    def _save(self):
        play = self.play
        name = f"play_{play.source.name}_{time.strftime('%Y%m%d_%H%M%S')}.mp4"
        files = play.save(Path(play.system.run.dir) / SAMPLES / name, self.fps)
        self.video.value = video_tag(files[0])
        self.links.value = " · ".join(
            download_link(file, text) for file, text in zip(files, ("mp4", "GIF"), strict=True)
        )

    def _press(self, action):
        """What a person does, and not `_fill`: it needs something to play."""
        if self.play is not None and not self._filling:
            self._try(action)

    def _try(self, action):
        """Do it and show where the play is; an error becomes one line in the panel."""
        try:
            action()
            self._show()
        except (Exception, KeyboardInterrupt) as error:  # a traceback inside a callback would reach nobody
            self.status.value = in_colour(error_line(error), "#c00")

    def _show(self):
        play = self.play
        self.dream.value = png_bytes(play.frames[-1])
        self._beside.layout.display = "none" if play.real is None else ""
        if play.real is not None:
            self.real.value = png_bytes(play.real[-1])
        if play.actions:
            said = [
                self._last,
                f"{play.frames_per_second:.0f} frames/s",
                *["the real game is over"] * play.over,
            ]
        else:
            said = [f"no real game beside it: {play.alone}"] if play.alone else []
        self.status.value = in_colour(" · ".join([f"step {len(play.actions)}", *said]))


def keys_of(names):
    """For each action's name the codes of its keys (`KeyboardEvent.code`), the plainest first; the n-th has
    the digit n.
    """
    words = dict(WORDS)
    for word, stand_in in (("UP", "RIGHT"), ("DOWN", "LEFT")):  # Pong's paddle goes up by RIGHT
        if word not in names:
            words[stand_in] += f" {words[word]}"
    digits = [[f"Digit{(i + 1) % 10}"] if i < 10 else [] for i in range(len(names))]
    return [words.get(name, "").split() + digit for name, digit in zip(names, digits, strict=True)]


def steered_runs(folder):
    """The runs in `folder` whose system takes actions; each system is built once, from the first of its
    runs.
    """
    found, takes = [], {}
    for run in runs_in(folder):
        try:
            about = read_config(run)
            if (name := about["system"]) not in takes:
                cls = system_class(name)
                takes[name] = cls(from_dict(cls.Config, about["config"])).action_space is not None
        except UserError:  # no run that could be opened
            continue
        if takes[name]:
            found.append(run)
    return found
