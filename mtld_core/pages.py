"""What every notebook needs: a place to work from, checked parameters, and results shown on the page."""

import ast
import base64
import html
import io
import json
import math
import mimetypes
import os
from pathlib import Path

import numpy as np
from IPython import get_ipython
from IPython.display import HTML, Image, display

from mtld_core.config import UserError, nearest, seconds

# the kinds of parameters; all others are texts
WHOLE = ("height", "width", "workers", "steps", "batch_size", "seed", "devices", "num_frames")
NUMBERS = ("fps", "time_budget_minutes")
TIMES = ("start", "duration")
SWITCHES = ("drop_duplicates", "split_scenes")
JSON_TEXTS = {"overrides": dict, "actions": list}  # which may also be given as what they say
WORDS = ("sample", "noise", "auto", "never", "best")  # that are no paths
places = [Path(__file__).parents[1] / "notebooks"]  # folders in which a path is also looked for


def setup():
    """Work from the project's root folder when the notebook was opened inside notebooks/, so that runs/ is
    the same for all.
    """
    places.insert(0, Path.cwd())
    if Path.cwd().name == "notebooks" and (Path.cwd().parent / "mtld_core").is_dir():
        os.chdir("..")
    if shell := get_ipython():
        shell.set_custom_exc(UserError, _show_user_error)


def _show_user_error(shell, kind, error, traceback, tb_offset=None):
    """Of what the user can mend the page shows the message alone; papermill still sees a failed cell."""
    shell.showtraceback((kind, error, traceback), exception_only=True)


def parameters(namespace, names, inputs=""):
    """dict of the notebook's parameters: `names` (words in one string) looked up in `namespace`, its
    `globals()`.

    papermill only warns when it is given a name that the notebook does not have; here that is a UserError,
    and so is a value of the wrong kind (see `parameter`). inputs: those of the names whose paths are also
    looked for beside the notebook.
    """
    names = names.split()
    for source in namespace.get("In", []):  # IPython's record of the cells run so far
        if source.startswith("# Parameters\n"):  # the cell that papermill puts in
            for name in _assigned(source):
                if name not in names:
                    raise UserError(f"this notebook has no parameter {name!r}{nearest(name, names)}")
    values = {name: parameter(name, namespace[name]) for name in names}
    values |= {name: _beside(name, values[name]) for name in inputs.split()}
    namespace.update(values)  # for cells that take one by its name
    return values


def parameter(name, value):
    """A parameter's value as what it stands for: papermill hands over a number for each text that looks like
    one.

    A number that stands for a text is its name ("2024"); nothing else is bent. Raises UserError that names
    the parameter.
    """
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if name in WHOLE + NUMBERS:
        whole = name in WHOLE
        if not number or not math.isfinite(value) or (whole and value != int(value)):
            raise UserError(f"{name} must be a {'whole number' if whole else 'number'}, not {value!r}")
        return int(value) if whole else value
    if name in TIMES:
        try:
            seconds(value)
        except UserError as error:
            raise UserError(f"{name}: {error}") from None
        return value
    if name in SWITCHES:
        if not isinstance(value, bool):
            raise UserError(f"{name} must be true or false, not {value!r}")
        return value
    if name == "interactive":
        if not isinstance(value, bool) and value != "auto":
            raise UserError(f"{name} must be 'auto', true or false, not {value!r}")
        return value
    if isinstance(value, JSON_TEXTS.get(name, str)):
        return json.dumps(value) if name in JSON_TEXTS else value
    if number:
        print(
            f"{name} = {value!r} is taken as the name {str(value)!r}; papermill's -r {name} hands over a "
            "text as it is"
        )
        return str(value)
    if not isinstance(value, str):
        raise UserError(f"{name} must be a text, not {value!r}")
    return value


def _beside(name, value):
    """A path that is not there from the folder in which the notebook works, where it is beside the
    notebook.
    """
    if (
        value and value not in WORDS and not os.path.exists(os.path.expanduser(value))
    ):  # Path's own raise at some names
        for place in places:
            if os.path.exists(place / value):
                print(f"{name} = {str(place / value)!r}")
                return str(place / value)
    return value


def _assigned(source):
    """Names that a cell of plain assignments sets."""
    targets = [
        target for node in ast.parse(source).body if isinstance(node, ast.Assign) for target in node.targets
    ]
    return [target.id for target in targets if isinstance(target, ast.Name)]


def show_picture(picture):
    """A picture on the page: a file's path or a uint8 array `[H, W, 3]`."""
    data = Path(picture).read_bytes() if isinstance(picture, (str, Path)) else png_bytes(picture)
    display(Image(data, format="png"))  # a Pillow image would go in twice, as PNG and as JPEG


def png_bytes(picture):
    """A uint8 array or tensor `[H, W, 3]` as the bytes of a PNG file."""
    from PIL import Image

    file = io.BytesIO()
    Image.fromarray(np.asarray(picture)).save(file, "png")
    return file.getvalue()


def show_video(path):
    """A video on the page, playing and repeating."""
    display(HTML(video_tag(path)))


def video_tag(path, height=256):
    """HTML that plays a video file again and again, enlarged without smoothing. The file's bytes are inside
    it.
    """
    data = base64.b64encode(Path(path).read_bytes()).decode()
    style = f"height:{height}px; max-width:100%; image-rendering:pixelated"
    options = "autoplay loop muted controls playsinline"
    return f'<video {options} style="{style}" src="data:video/mp4;base64,{data}"></video>'


def download_link(path, text):
    """HTML: a link that saves a file's bytes, which are inside it. It needs no server, so it works on Colab
    and Kaggle, too.
    """
    kind = mimetypes.guess_type(path)[0] or "application/octet-stream"
    data = base64.b64encode(Path(path).read_bytes()).decode()
    # some front ends take away what makes a link look like one
    style = "color: #1976d2; text-decoration: underline"
    name = html.escape(Path(path).name)
    return f'<a style="{style}" download="{name}" href="data:{kind};base64,{data}">{html.escape(text)}</a>'


def show_table(rows):
    """A dict as a two-column table of text, without what is empty and without lists of figures."""
    rows = _worth_showing(rows)
    width = max(map(len, rows), default=0)
    for name, value in rows.items():
        print(f"{name:<{width}}  {value}")


def table_html(rows):
    """The same as HTML."""
    lines = [
        f"<tr><td>{html.escape(name)}&emsp;</td><td>{html.escape(value)}</td></tr>"
        for name, value in _worth_showing(rows).items()
    ]
    return f"<table>{''.join(lines)}</table>"


def _worth_showing(rows):
    rows = {
        name: value
        for name, value in rows.items()
        if value not in ("", None) and not name.endswith("_by_horizon")
    }
    return {name: f"{value:.4g}" if isinstance(value, float) else str(value) for name, value in rows.items()}


def error_line(error):
    """An error in one line; of what the user can mend the message alone."""
    words = " ".join(str(error).split())
    if isinstance(error, KeyboardInterrupt):
        return "interrupted"
    return words if isinstance(error, UserError) else f"{type(error).__name__}: {words}".removesuffix(": ")


def in_colour(text, colour="inherit"):
    return f'<span style="color:{colour}">{html.escape(text)}</span>'


def offer(widget, options, value=None):
    """Give a selection new options and choose `value`, or else the first: of itself ipywidgets may choose
    none.
    """
    widget.options = options
    widget.value = value if value in options else options[0] if options else None
