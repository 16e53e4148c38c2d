"""A form to generate with: choose a run and a start, press Generate, and the video appears beside the truth.

One click does all its work at once, in the kernel's main thread, so it also works where widgets cannot be
updated from another one.
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
from mtld_core.generate.source import NOISE, domain_of, starts_in
from mtld_core.media import read_image
from mtld_core.pages import RunPanel, download_links, offer, png_bytes, show, video_tag
from mtld_core.runs.checkpoint import list_checkpoints
from mtld_core.runs.folder import runs_in
from mtld_core.systems.base import Samples, Translates
from mtld_core.systems.opening import open_run, own_dataset

NEWEST = "newest good one"
BESIDE_LABELS = {"margin": "2px 0 2px 90px"}  # where the fields begin
BUTTONS = {"style": {"button_width": "97px"}, "layout": BESIDE_LABELS}


class GeneratePanel(RunPanel):
    """A form for the runs beside `run_dir`. Its parts are fields: `panel.button.click()` generates."""

    def __init__(self, run_dir="runs/demo", num_frames=48, fps=12, seed=0):
        super().__init__(runs_in(Path(run_dir).parent), run_dir)
        self.checkpoint = widgets.Dropdown(options=[NEWEST], description="checkpoint")
        self.direction = widgets.ToggleButtons(options=DIRECTIONS, **BUTTONS)
        self.start = widgets.ToggleButtons(options=["dataset", "picture"], **BUTTONS)
        self.upload = widgets.FileUpload(accept="image/*", multiple=False, layout=BESIDE_LABELS)
        self.picture = widgets.Image(layout={"width": "128px"} | BESIDE_LABELS)  # what it will start from
        self.num_frames = widgets.IntSlider(num_frames, 2, max(240, num_frames), description="length")
        self.fps = widgets.IntSlider(round(fps), 1, 60, description="fps")
        self.seed = widgets.IntText(seed, description="seed")
        self.actions = widgets.Text(description="actions", placeholder="as recorded; or a list: [0, 2, ...]")
        self.button = widgets.Button(description="Generate", button_style="primary", layout=BESIDE_LABELS)
        self.strip = widgets.Image(layout={"max_width": "100%", "align_self": "flex-start"})
        self.result = None  # what generation.json holds, of the latest click
        self._folder = tempfile.TemporaryDirectory()  # of the uploaded picture
        self._dataset, self._size = None, (0, 0)
        self._lay_out()
        self.direction.observe(lambda _: self.attempt(self.fill), "value")
        self.start.observe(lambda _: self.attempt(self.frame_chosen), "value")
        self.upload.observe(lambda _: self._uploaded(), "value")
        self.button.on_click(lambda _: self.attempt(self._generate))
        self.attempt(self.fill)

    def _lay_out(self):
        begin = [self.start, self.arc, self.frame, self.upload, self.picture]
        options = [self.num_frames, self.fps, self.seed, self.actions, self.button]
        form = widgets.VBox([self.run, self.checkpoint, self.direction, *begin, *options])
        shown = widgets.VBox([self.video, self.links], layout={"margin": "0 0 0 24px"})
        beside = widgets.HBox([form, shown], layout={"flex_flow": "row wrap"})
        self.children = [beside, self.message, self.strip]
        show(self.strip, False)  # until there is one: an empty picture would look broken
        self.add_class("mtld-generate")

    # ---- what it starts from

    def fill(self):
        """Offer what the chosen run has: its checkpoints, directions, starts and frames."""
        run = Path(self.chosen_run())
        weights = [*list_checkpoints(run), *sorted(run.glob("*.pth"))]
        offer(self.checkpoint, [NEWEST, *(path.name for path in weights)])
        system = open_run(run)
        self._dataset, self._size = None, (system.config.height, system.config.width)
        show(self.actions, system.action_space is not None)
        show(self.direction, isinstance(system, Translates))
        starts = ["dataset", "picture"]
        if isinstance(system, Samples):
            starts.append(NOISE)
        offer(self.start, starts, self.start.value)
        self._dataset = domain_of(own_dataset(system, progress=False), self._direction)
        self.offer_frames(starts_in(system, self._dataset))
        self.frame_chosen()

    @property
    def _direction(self):
        hidden = self.direction.layout.display  # then it is of the run before
        return DIRECTIONS[0] if hidden else self.direction.value

    def _uploaded(self):
        if self.upload.value and self.start.value == "picture":
            self.attempt(self.frame_chosen)
        elif self.upload.value:
            self.start.value = "picture"  # which shows it

    def frame_chosen(self):
        """Show the chosen start as the model will see it, and only the fields that belong to it."""
        start = self.start.value
        show(self.arc, start == "dataset")
        show(self.frame, start == "dataset")
        show(self.upload, start == "picture")
        show(self.picture, False)
        if start == "picture" and self.upload.value:
            frame = fit_frame(read_image(self._uploaded_file()), *self._size)
        elif start == "dataset" and self._dataset is not None and self.arc.value:
            row = self._dataset.row(self.arc.value, self.frame.value)
            frame = self._dataset.frames[row].cpu()
        else:
            return
        self.picture.value = png_bytes(frame)
        show(self.picture, True)

    def _uploaded_file(self):
        name, content = uploaded(self.upload.value)
        file = Path(self._folder.name) / Path(name).name
        file.write_bytes(content)
        return file

    def _source(self):
        if self.start.value == "picture":
            return str(self._uploaded_file())
        return NOISE if self.start.value == NOISE else f"dataset:{self.arc.value}/{self.frame.value}"

    # ---- what it makes

    def _generate(self):
        told = io.StringIO()  # what a callback prints would go to JupyterLab's log
        with contextlib.redirect_stdout(told):
            self.result = generate(
                self.run.value,
                self._source(),
                self.num_frames.value,
                checkpoint="" if self.checkpoint.value == NEWEST else self.checkpoint.value,
                direction=self._direction,
                actions=""
                if self.actions.layout.display
                else self.actions.value,  # hidden: of the run before
                fps=self.fps.value,
                seed=self.seed.value,
            )
        folder, compared = Path(self.result["out_dir"]), self.result.get("comparison")
        self.video.value = video_tag(folder / ("comparison.mp4" if compared else "video.mp4"))
        links = download_links(folder / "video.mp4", folder / "video.gif")
        self.links.value = f"{compared or 'generated'} · download: {links}"
        self.strip.value = (folder / "strip.png").read_bytes()
        show(self.strip, True)
        return ". ".join([f"frames, videos and strip are in {folder}", *told.getvalue().splitlines()])

    def attempt(self, action):
        self.button.disabled = True
        self.say("working ...")
        super().attempt(action)
        self.button.disabled = False

    def fail(self, text):
        self.video.value = self.links.value = ""
        show(self.strip, False)
        super().fail(text.replace(f"{self._folder.name}/", ""))


def uploaded(value):
    """(name, bytes) of a FileUpload's value, a dict in ipywidgets 7, a tuple in 8. Raises UserError."""
    if not value:
        raise UserError("upload a picture first, or start from the dataset")
    if isinstance(value, dict):
        name, entry = next(iter(value.items()))
    else:
        name, entry = value[0]["name"], value[0]
    return name, bytes(entry["content"])
