"""What every notebook needs: a place to work from, checked parameters, and results shown on the page."""

import ast
import base64
import html
import io
import mimetypes
import os
from pathlib import Path

import numpy as np
from IPython import get_ipython
from IPython.display import HTML, Image, display

from mtld_core.config import ConfigError, nearest
from mtld_core.runtime import UserError


def setup():
    """Work from the project's root folder when the notebook was opened inside notebooks/, so that runs/ is the same for all."""
    if Path.cwd().name == "notebooks" and (Path.cwd().parent / "mtld_core").is_dir():
        os.chdir("..")
    if shell := get_ipython():
        shell.set_custom_exc((UserError, ConfigError), _show_user_error)


def _show_user_error(shell, kind, error, traceback, tb_offset=None):
    """Of what the user can mend the page shows the message alone; papermill still sees a failed cell."""
    shell.showtraceback((kind, error, traceback), exception_only=True)


def parameters(namespace, names):
    """dict of the notebook's parameters: `names` (words in one string) looked up in `namespace`, its `globals()`.

    papermill only warns when it is given a name that the notebook does not have; here that is a UserError.
    """
    names = names.split()
    for source in namespace.get("In", []):  # IPython's record of the cells run so far
        if source.startswith("# Parameters\n"):  # the cell that papermill puts in
            for name in _assigned(source):
                if name not in names:
                    raise UserError(f"this notebook has no parameter {name!r}{nearest(name, names)}")
    return {name: namespace[name] for name in names}


def _assigned(source):
    """Names that a cell of plain assignments sets."""
    targets = [target for node in ast.parse(source).body if isinstance(node, ast.Assign) for target in node.targets]
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
    """HTML that plays a video file again and again, enlarged without smoothing. The file's bytes are inside it."""
    data = base64.b64encode(Path(path).read_bytes()).decode()
    style = f"height:{height}px; max-width:100%; image-rendering:pixelated"
    return f'<video autoplay loop muted controls playsinline style="{style}" src="data:video/mp4;base64,{data}"></video>'


def download_link(path, text):
    """HTML: a link that saves a file's bytes, which are inside it. It needs no server, so it works on Colab and Kaggle, too."""
    kind = mimetypes.guess_type(path)[0] or "application/octet-stream"
    data = base64.b64encode(Path(path).read_bytes()).decode()
    style = "color: #1976d2; text-decoration: underline"  # some front ends take away what makes a link look like one
    return (
        f'<a style="{style}" download="{html.escape(Path(path).name)}" href="data:{kind};base64,{data}">{html.escape(text)}</a>'
    )


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
    rows = {name: value for name, value in rows.items() if value not in ("", None) and not name.endswith("_by_horizon")}
    return {name: f"{value:.4g}" if isinstance(value, float) else str(value) for name, value in rows.items()}
