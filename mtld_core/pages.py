"""What notebooks and panels share: a place to work from, checked parameters, results shown on the page."""

import ast
import base64
import html
import io
import json
import math
import mimetypes
import os
import sys
import threading
from pathlib import Path

import ipywidgets as widgets
import numpy as np
import PIL.Image
from IPython import get_ipython
from IPython.display import HTML, Image, display

from mtld_core.config import UserError, check, find, nearest, places, seconds

# the kinds of parameters; all others are texts
WHOLE = ("height", "width", "workers", "steps", "batch_size", "seed", "devices", "num_frames", "horizon")
NUMBERS = ("fps", "time_budget_minutes")
TIMES = ("start", "duration")
SWITCHES = ("drop_duplicates", "split_scenes")
JSON_TEXTS = {"overrides": dict, "actions": list}  # which may also be given as what they say
WORDS = ("sample", "noise", "auto", "never", "best")  # that are no paths
RED = "#e33530"  # of errors: to be read on white and in a dark theme

# ---- a notebook's beginning


def setup():
    """Work from the project's root where the notebook was opened inside notebooks/: all share one runs/.

    Of an error that the user can mend the page shows the message alone.
    """
    here = Path.cwd()
    places.insert(0, here)
    if here.name == "notebooks" and (here.parent / "mtld_core").is_dir():
        os.chdir(here.parent)
    if shell := get_ipython():
        shell.set_custom_exc((UserError,), _show_user_error)


def _show_user_error(shell, kind, error, traceback, tb_offset=None):
    shell.showtraceback((kind, error, traceback), exception_only=True)  # papermill still sees a failed cell


def parameters(namespace, names, inputs=""):
    """Check a notebook's parameters -> dict of their values, which `namespace` gets, too.

    namespace: the notebook's `globals()`. names: the parameters, words in one string; inputs: those of them
    whose paths are also looked for beside the notebook and in the project. Raises UserError for a value of
    the wrong kind, and for a name that the notebook does not have, of which papermill only warns.
    """
    names = names.split()
    for source in namespace.get("In", []):  # IPython's record of the cells run so far
        if source.startswith("# Parameters\n"):  # the cell that papermill puts in
            for name in _assigned(source):
                check(name in names, f"this notebook has no parameter {name!r}{nearest(name, names)}")
    values = {name: parameter(name, namespace[name]) for name in names}
    for name in inputs.split():
        values[name] = _beside(name, values[name])
    namespace.update(values)  # for cells that take one by its name
    return values


def _assigned(source):
    """Names that a cell of plain assignments sets."""
    statements = ast.parse(source).body
    return [statement.targets[0].id for statement in statements if isinstance(statement, ast.Assign)]


def parameter(name, value):
    """Check a parameter -> the value as it is used. Raises UserError that names the parameter.

    papermill hands over a number for each text that looks like one: where a text is wanted, a number is taken
    for a name ("2024"). Nothing else is bent.
    """
    is_switch = isinstance(value, bool)
    is_number = isinstance(value, (int, float)) and not is_switch
    if name in WHOLE:
        check(is_number and value % 1 == 0, f"{name} must be a whole number, not {value!r}")
        return int(value)
    if name in NUMBERS:
        check(is_number and abs(value) < math.inf, f"{name} must be a number, not {value!r}")
    elif name in TIMES:
        try:
            seconds(value)
        except UserError as error:
            raise UserError(f"{name}: {error}") from None
    elif name in SWITCHES:
        check(is_switch, f"{name} must be true or false, not {value!r}")
    elif name == "interactive":
        check(is_switch or value == "auto", f"{name} must be 'auto', true or false, not {value!r}")
    elif name in JSON_TEXTS and isinstance(value, JSON_TEXTS[name]):
        return json.dumps(value)
    elif is_number:
        way = f"papermill's -r {name} hands over a text as it is"
        print(f"{name} = {value!r} is taken as the name {str(value)!r}; {way}")
        return str(value)
    else:
        check(isinstance(value, str), f"{name} must be a text, not {value!r}")
    return value


def _beside(name, value):
    """`value`, or where nothing of that name is here, what lies beside the notebook or in the project."""
    path = value if value in WORDS else find(value)
    if path != os.path.expanduser(value):
        print(f"{name} = {path!r}")
        return path
    return value


# ---- results on the page


def show_picture(picture):
    """Show a picture: a file's path or a uint8 array `[H, W, 3]`."""
    data = Path(picture).read_bytes() if isinstance(picture, (str, Path)) else png_bytes(picture)
    display(Image(data, format="png"))  # a Pillow image would go in twice, as PNG and as JPEG


def png_bytes(picture):
    """Encode a uint8 array or tensor `[H, W, 3]` as a PNG file's bytes."""
    file = io.BytesIO()
    PIL.Image.fromarray(np.asarray(picture)).save(file, "png")
    return file.getvalue()


def show_video(path):
    """Show a video that plays and repeats."""
    display(HTML(video_tag(path)))


def video_tag(path):
    """HTML that plays a video file again and again, enlarged without smoothing."""
    style = "height:256px; max-width:100%; image-rendering:pixelated"
    options = "autoplay loop muted controls playsinline"
    return f'<video {options} style="{style}" src="{data_url(path)}"></video>'


def download_links(mp4, gif):
    """HTML of two links that save these files."""
    links = []
    for path, text in ((mp4, "mp4"), (gif, "GIF")):
        # some front ends take away what makes a link look like one
        style = "color: #1976d2; text-decoration: underline"
        name = html.escape(Path(path).name)
        links.append(f'<a style="{style}" download="{name}" href="{data_url(path)}">{text}</a>')
    return " · ".join(links)


def data_url(path):
    """A URL that holds the file itself, so that no server is needed: it works on Colab and Kaggle, too."""
    kind, _ = mimetypes.guess_type(path)
    data = base64.b64encode(Path(path).read_bytes()).decode()
    return f"data:{kind};base64,{data}"


def show_table(rows):
    """Print a dict in two columns, without what is empty and without lists of figures or dicts of such."""
    rows = _worth_showing(rows)
    width = max(map(len, rows), default=0)
    for name, value in rows.items():
        print(f"{name:<{width}}  {value}")


def table_html(rows, hint=lambda name: ""):
    """HTML of a dict in two columns, without what is empty and without lists of figures or dicts of such.

    hint: a name -> what the pointer says over its row; "": nothing.
    """
    lines = []
    for name, value in _worth_showing(rows).items():
        words = html.escape(hint(name))
        title = f' title="{words}" style="cursor:help"' if words else ""
        lines.append(f"<tr{title}><td>{html.escape(name)}&emsp;</td><td>{html.escape(value)}</td></tr>")
    return f"<table>{''.join(lines)}</table>"


def show_folded(title, rows):
    """Show a dict as `table_html` does, behind a line that opens it."""
    display(HTML(f"<details><summary>{html.escape(title)}</summary>{table_html(rows)}</details>"))


def picture_tag(data, words):
    """HTML of a PNG, whose bytes are in it: as wide as its place, and as high before it is decoded."""
    width, height = (int.from_bytes(data[i : i + 4], "big") for i in (16, 20))
    style = f"width:100%; max-width:{width}px; aspect-ratio:{width}/{height}"
    shown = base64.b64encode(data).decode()
    return f'<img alt="{html.escape(words)}" style="{style}" src="data:image/png;base64,{shown}">'


def _worth_showing(rows):
    shown = {}
    for name, value in rows.items():
        if value not in ("", None) and not (isinstance(value, dict) or name.endswith("_by_horizon")):
            shown[name] = f"{value:.4g}" if isinstance(value, float) else str(value)
    return shown


# ---- panels


class Panel(widgets.VBox):
    """A panel with a line of words, `message`.

    Core ipywidgets only, in the forms that 7.7 (Colab) and 8.1 share.
    """

    def __init__(self):
        # as wide as its place, whatever is in it: JupyterLab 3 cuts off what sticks out
        super().__init__(layout={"width": "0", "min_width": "100%"})
        self.message = widgets.HTML()

    def attempt(self, action):
        """Do what was asked for and show the words that it returns; an error becomes one red line.

        A traceback inside a callback would reach nobody.
        """
        try:
            self.say(action() or "")
        except (Exception, KeyboardInterrupt) as error:
            self.fail(error_line(error))

    def on_change(self, widget, action):
        """Attempt something whenever the value of a widget changes."""
        widget.observe(lambda _: self.attempt(action), "value")

    def say(self, text, colour="inherit"):
        self.message.value = in_colour(text, colour)

    def fail(self, text):
        self.say(text, RED)


class Cancellable:
    """For a `Panel` with a long work: it runs in a thread of its own, so that the notebook stays usable.

    `button` starts it and `cancel` ends it; `worker` is its thread. On Colab, which shows no change that a
    thread made, it holds the click until it is done. A panel adds `_make`, which does the work and
    returns words to show; where `_cancelled` is set meanwhile, it raises a UserError that says so.
    """

    def add_buttons(self, text):
        """Make the two buttons. text: what the first one says."""
        self.button = widgets.Button(description=text, button_style="primary")
        self.cancel = widgets.Button(description="Cancel", disabled=True)
        self.worker = threading.Thread()
        self._cancelled = threading.Event()
        self.button.on_click(lambda _: self._begin())
        self.cancel.on_click(lambda _: self._cancelled.set())

    def _begin(self):
        self._cancelled.clear()
        self.button.disabled, self.cancel.disabled = True, False
        self.worker = threading.Thread(target=self._work, daemon=True)
        if "google.colab" in sys.modules:
            self.worker.run()
        else:
            self.worker.start()

    def _work(self):
        self.attempt(self._make)
        self.button.disabled, self.cancel.disabled = False, True


class RunPanel(Panel):
    """A panel that works on a run and, chosen by `arc` and `frame`, one of its frames.

    runs: folders to offer, or (label, folder) of each, of which `run_dir` is chosen where it is among them. A
    panel adds two methods: `fill`, called when a run was chosen, offers its frames; `frame_chosen` is called
    when one of these was chosen.
    """

    NO_RUN = "there is no run yet: train one (notebooks/02_train)"
    _offering = False

    def __init__(self, runs, run_dir):
        super().__init__()
        self.run = widgets.Dropdown(options=runs, value=None, description="run")
        chosen = Path(find(run_dir)).as_posix()
        if chosen in values_of(runs):
            self.run.value = chosen
        self.arc = widgets.Dropdown(options=[], description="arc")
        self.frame = widgets.SelectionSlider(options=[0], description="frame", continuous_update=False)
        self.video, self.links = widgets.HTML(), widgets.HTML()
        self._frames = {}
        self.on_change(self.run, self.fill)
        self.arc.observe(self._start_chosen, "value")
        self.frame.observe(self._start_chosen, "value")

    def chosen_run(self):
        """The folder of the chosen run. Raises UserError where none is."""
        check(self.run.value, "choose a run" if self.run.options else self.NO_RUN)
        return self.run.value

    def offer_frames(self, frames, arc=None, number=None):
        """Offer `frames`, {arc: numbers of its frames}, and choose one; `frame_chosen` is not called."""
        self._frames, self._offering = frames, True
        offer(self.arc, list(frames), arc)
        offer(self.frame, frames.get(self.arc.value, [0]), number)
        self._offering = False

    def _start_chosen(self, change):
        if self._offering:
            return
        if change.owner is self.arc:
            self.offer_frames(self._frames, self.arc.value)
        self.frame_chosen()


def error_line(error):
    """An error in one line; of what the user can mend the message alone."""
    words = " ".join(str(error).split())
    if isinstance(error, KeyboardInterrupt):
        return "interrupted"
    if isinstance(error, UserError):
        return words
    return f"{type(error).__name__}: {words}".removesuffix(": ")


def in_colour(text, colour):
    return f'<span style="color:{colour}">{html.escape(text)}</span>'


def small(*lines):
    """HTML of lines beside what matters more."""
    text = "<br>".join(map(html.escape, lines))
    return f'<div style="font-size:12px; line-height:1.5; opacity:0.8">{text}</div>'


def offer(widget, options, value=None):
    """Give a selection new options and choose `value`, or else the first: of itself it may choose none."""
    widget.options = options
    values = values_of(options)
    widget.value = value if value in values else next(iter(values), None)


def values_of(options):
    """What a selection's options stand for: each is a value, or (label, value)."""
    return [option[1] if isinstance(option, tuple) else option for option in options]


def displayed(*parts):
    """What an Output widget takes as its `outputs`. parts: (kind, content) of each, as "text/html"."""
    return tuple({"output_type": "display_data", "data": dict([part]), "metadata": {}} for part in parts)


def show(widget, visible):
    """Let a widget take its place on the page, or none."""
    widget.layout.display = "" if visible else "none"
