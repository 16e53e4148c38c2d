"""A form to generate with: choose a run and a start, press Generate, and the video appears beside what it is
compared with.

Core ipywidgets only, in the forms that 7.7 (Colab) and 8.1 share. One click does all its work at once, in the
kernel's main thread, so it also works where widgets cannot be updated from another one.
"""

import contextlib
import io
import tempfile
from pathlib import Path

import ipywidgets as widgets

from mtld_core.config import UserError
from mtld_core.data.truth import DIRECTIONS
from mtld_core.frames import fit_frame
from mtld_core.generate import generate
from mtld_core.generate.source import NOISE, context_of, domain_of
from mtld_core.media import read_image
from mtld_core.pages import download_link, error_line, in_colour, offer, png_bytes, video_tag
from mtld_core.runs.checkpoint import list_checkpoints
from mtld_core.runs.folder import runs_in
from mtld_core.systems.base import Samples, Translates
from mtld_core.systems.opening import open_run, own_dataset

NEWEST = "newest good one"
BESIDE_LABELS = {"margin": "2px 0 2px 90px"}  # where the fields begin


class GeneratePanel(widgets.VBox):
    """The form, for the runs beside `run_dir`. Its parts are fields: `panel.button.click()` is what a person
    does.
    """

    def __init__(self, run_dir="runs/demo", num_frames=48, fps=12, seed=0):
        runs = runs_in(Path(run_dir).parent)
        chosen = Path(run_dir).as_posix()
        self.run = widgets.Dropdown(options=runs, value=chosen if chosen in runs else None, description="run")
        self.checkpoint = widgets.Dropdown(options=[NEWEST], description="checkpoint")
        self.direction = widgets.ToggleButtons(
            options=DIRECTIONS, style={"button_width": "97px"}, layout=BESIDE_LABELS
        )
        self.start = widgets.ToggleButtons(
            options=["dataset", "picture"], style={"button_width": "97px"}, layout=BESIDE_LABELS
        )
        self.arc = widgets.Dropdown(options=[], description="arc")
        self.frame = widgets.SelectionSlider(options=[0], description="frame", continuous_update=False)
        self.upload = widgets.FileUpload(accept="image/*", multiple=False, layout=BESIDE_LABELS)
        self.num_frames = widgets.IntSlider(num_frames, 2, max(240, num_frames), description="length")
        self.fps = widgets.IntSlider(round(fps), 1, 60, description="fps")
        self.seed = widgets.IntText(seed, description="seed")
        self.actions = widgets.Text(description="actions", placeholder="as recorded; or a list: [0, 2, ...]")
        self.button = widgets.Button(description="Generate", button_style="primary", layout=BESIDE_LABELS)
        self.message, self.video, self.links = widgets.HTML(), widgets.HTML(), widgets.HTML()
        self.strip = widgets.Image(
            layout={"max_width": "100%", "display": "none", "align_self": "flex-start"}
        )
        self.result = None  # what generation.json holds, of the latest click
        self._arcs = {}  # name -> numbers of the frames that a rollout can start from
        self.run.observe(lambda _: self._try(self._fill), "value")
        self.direction.observe(lambda _: self._try(self._fill), "value")
        self.arc.observe(lambda _: self._fill_frames(), "value")
        self.button.on_click(lambda _: self._try(self._generate))
        self.upload.observe(lambda _: self._uploaded(), "value")
        self.frame.observe(lambda _: self._show_start(), "value")
        self.start.observe(lambda _: self._try(self._show_start), "value")
        self.picture = widgets.Image(
            layout={"width": "128px", "margin": BESIDE_LABELS["margin"]}
        )  # what it will start from
        self._folder = tempfile.TemporaryDirectory()  # of the uploaded picture
        self._from_dataset, self._from_picture = (
            widgets.VBox([self.arc, self.frame]),
            widgets.VBox([self.upload]),
        )
        self._dataset, self._size = None, (0, 0)
        options = widgets.VBox([self.num_frames, self.fps, self.seed, self.actions])
        start = [self.start, self._from_dataset, self._from_picture, self.picture]
        form = widgets.VBox([self.run, self.checkpoint, self.direction, *start, options, self.button])
        shown = widgets.VBox([self.video, self.links], layout={"margin": "0 0 0 24px"})
        super().__init__(
            [widgets.HBox([form, shown], layout={"flex_flow": "row wrap"}), self.message, self.strip]
        )
        self.add_class("mtld-generate")
        self._try(self._fill)

    def _fill(self):
        """The chosen run's checkpoints and arcs."""
        if not self.run.value:
            raise UserError(
                "choose a run" if self.run.options else "there is no run yet: train one (notebooks/02_train)"
            )
        files = sorted(Path(self.run.value).glob("*.pth"))
        offer(self.checkpoint, [NEWEST, *(path.name for path in [*list_checkpoints(self.run.value), *files])])
        system = open_run(self.run.value)
        self._dataset, self._size = None, (system.config.height, system.config.width)
        self.actions.layout.display = "none" if system.action_space is None else ""
        self.direction.layout.display = "" if isinstance(system, Translates) else "none"
        offer(
            self.start,
            ["dataset", "picture", NOISE] if isinstance(system, Samples) else ["dataset", "picture"],
            self.start.value,
        )
        self._dataset = dataset = domain_of(own_dataset(system, progress=False), self._direction)
        first = context_of(system) - 1
        self._arcs = {arc.name: arc.numbers[first:].tolist() for arc in dataset.arcs if len(arc) > first}
        offer(self.arc, list(self._arcs))
        self._fill_frames()  # an arc of the same name is no change, but its frames may be others

    @property
    def _direction(self):
        return (
            DIRECTIONS[0] if self.direction.layout.display else self.direction.value
        )  # hidden: of the run before

    def _fill_frames(self):
        offer(self.frame, self._arcs.get(self.arc.value, [0]))
        self._show_start()

    def _uploaded(self):
        if self.upload.value and self.start.value == "picture":
            self._try(self._show_start)
        elif self.upload.value:
            self.start.value = "picture"  # which shows it

    def _show_start(self):
        """The chosen frame or picture as the model will see it, and only the fields that belong to it."""
        start = self.start.value
        self._from_dataset.layout.display = "" if start == "dataset" else "none"
        self._from_picture.layout.display = "" if start == "picture" else "none"
        self.picture.layout.display = "none"  # until there is one: an empty one would look broken
        frame = None
        if start == "picture" and self.upload.value:
            frame = fit_frame(read_image(self._uploaded_file()), *self._size)
        elif start == "dataset" and self._dataset is not None and self.arc.value:
            frame = self._dataset.frames[self._dataset.row(self.arc.value, self.frame.value)].cpu()
        if frame is not None:
            self.picture.value, self.picture.layout.display = png_bytes(frame), ""

    def _uploaded_file(self):
        name, content = uploaded(self.upload.value)
        file = Path(self._folder.name) / Path(name).name
        file.write_bytes(content)
        return file

    def _source(self):
        if self.start.value == "picture":
            return str(self._uploaded_file())
        return NOISE if self.start.value == NOISE else f"dataset:{self.arc.value}/{self.frame.value}"

    def _generate(self):
        checkpoint = "" if self.checkpoint.value == NEWEST else self.checkpoint.value
        actions = "" if self.actions.layout.display else self.actions.value  # hidden: of the run before
        settings = {
            "checkpoint": checkpoint,
            "actions": actions,
            "fps": self.fps.value,
            "seed": self.seed.value,
        }
        settings["direction"] = self._direction
        with contextlib.redirect_stdout(
            io.StringIO()
        ) as told:  # what a callback prints would go to JupyterLab's log
            self.result = generate(self.run.value, self._source(), self.num_frames.value, **settings)
        folder, compared = Path(self.result["out_dir"]), self.result.get("comparison")
        self.video.value = video_tag(folder / ("comparison.mp4" if compared else "video.mp4"))
        links = [
            download_link(folder / file, text) for file, text in (("video.mp4", "mp4"), ("video.gif", "GIF"))
        ]
        self.links.value = f"{compared or 'generated'} · download: {' · '.join(links)}"
        self.strip.value, self.strip.layout.display = (folder / "strip.png").read_bytes(), ""
        return ". ".join([f"frames, videos and strip are in {folder}", *told.getvalue().splitlines()])

    def _try(self, action):
        """Run `action` with the button off and show the words that it returns; an error becomes one line in
        the form.
        """
        self.button.disabled = True
        self._say("working ...")
        try:
            self._say(action() or "")
        except (Exception, KeyboardInterrupt) as error:  # a traceback inside a callback would reach nobody
            self.video.value = self.links.value = ""
            self.strip.layout.display = "none"
            self._say(error_line(error).replace(f"{self._folder.name}/", ""), "#c00")
        finally:
            self.button.disabled = False

    def _say(self, text, colour="inherit"):
        self.message.value = in_colour(text, colour)


def uploaded(value):
    """(name, bytes) from a FileUpload's value: a dict in ipywidgets 7, a tuple in 8. Raises UserError if
    empty.
    """
    if not value:
        raise UserError("upload a picture first, or start from the dataset")
    name, entry = next(iter(value.items())) if isinstance(value, dict) else (value[0]["name"], value[0])
    return name, bytes(entry["content"])
