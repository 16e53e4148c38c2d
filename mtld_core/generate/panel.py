"""A form to generate with: choose a run and a start, press Generate, and the video appears beside the truth.

Generating can be cancelled, and the notebook stays usable. What was generated hangs below.
"""

import contextlib
import json
import shutil
import tempfile
from base64 import b64decode
from pathlib import Path

import ipywidgets as widgets

from mtld_core.config import UserError, check, find
from mtld_core.data.truth import DIRECTIONS
from mtld_core.frames import fit_frame
from mtld_core.generate.jobs import generate, kept
from mtld_core.generate.source import NOISE, domain_of, path_of, pictures, starts_in
from mtld_core.judge.task import summary
from mtld_core.pages import (
    Cancellable,
    RunPanel,
    data_url,
    displayed,
    download_links,
    offer,
    png_bytes,
    show,
    small,
    video_tag,
)
from mtld_core.runs.checkpoint import list_checkpoints
from mtld_core.runs.folder import (
    BEST,
    EXAMPLES,
    age_of,
    age_of_run,
    newest_preview,
    read_pointer,
    read_report,
    runs_in,
)
from mtld_core.systems.base import Samples, Translates
from mtld_core.systems.opening import open_run, own_dataset

NEWEST = "newest good one"
BESIDE_LABELS = {"margin": "2px 0 2px 90px"}  # where the fields begin
BUTTONS = {"style": {"button_width": "97px"}, "layout": BESIDE_LABELS}
HUNG, HEAVY = 12, 500_000  # pictures in the gallery at most; bytes from which a GIF hangs there as its strip
LIMIT = (
    "Pictures of any size: your browser makes large ones smaller before it sends them; of a video it sends "
    "the last frame. Where a page may run no scripts, JupyterLab takes at most 10 MB and Colab 1 MB."
)
# A front end loses an upload over its limit without a word. So this takes the click away from the button,
# asks for the file itself, and sends what is left of it through a hidden field.
SHRINK = """<style>
.mtld-generate img { image-rendering: pixelated }
.mtld-generate > img, .mtld-generate .widget-html img { image-rendering: auto }  /* these are made smaller */
.mtld-generate .widget-dropdown.widget-dropdown { width: 390px }
</style><script>
if (!window.mtldUpload) {
  const most = 600_000  // bytes; a third more as text, and Colab takes a million
  const send = (panel, message) => {
    const field = panel.querySelector('.mtld-sent textarea')
    field.value = JSON.stringify(message)
    for (const type of ['input', 'change']) field.dispatchEvent(new Event(type, {bubbles: true}))
  }
  const text = blob => new Promise((done, failed) => {
    const reader = new FileReader()
    reader.onload = () => done(reader.result.split(',')[1])
    reader.onerror = failed
    reader.readAsDataURL(blob)
  })
  const lastFrame = async file => {
    const video = document.createElement('video')
    const after = what => new Promise((done, failed) => { video[`on${what}`] = done; video.onerror = failed })
    video.muted = true
    video.src = URL.createObjectURL(file)
    await after('loadeddata')
    video.currentTime = Math.max(0, video.duration - 0.001)
    await after('seeked')
    return createImageBitmap(video)
  }
  const shrunk = async file => {
    const film = file.type.startsWith('video/')
    if (!film && file.size <= most) return file
    const picture = await (film ? lastFrame(file) : createImageBitmap(file))
    for (let side = 1024; ; side /= 2) {
      const scale = Math.min(1, side / Math.min(picture.width, picture.height))
      const canvas = document.createElement('canvas'), pen = canvas.getContext('2d')
      canvas.width = Math.max(1, Math.round(scale * picture.width))
      canvas.height = Math.max(1, Math.round(scale * picture.height))
      pen.imageSmoothingQuality = 'high'
      pen.fillRect(0, 0, canvas.width, canvas.height)  // black behind what is see-through
      pen.drawImage(picture, 0, 0, canvas.width, canvas.height)
      const blob = await new Promise(done => canvas.toBlob(done, 'image/jpeg', 0.95))
      if (blob.size <= most) return blob
    }
  }
  window.mtldUpload = event => {
    const button = event.target.closest?.('.mtld-generate .mtld-upload')
    if (!button || button.disabled) return
    event.preventDefault()
    event.stopImmediatePropagation()
    const panel = button.closest('.mtld-generate'), input = document.createElement('input')
    input.type = 'file'
    input.accept = 'image/*, video/*'
    input.onchange = async () => {
      const file = input.files[0]
      if (!file) return
      const about = {name: file.name, size: file.size}
      try { about.content = await text(await shrunk(file)) } catch (error) { console.warn(error) }
      send(panel, about)
    }
    input.click()
  }
  window.addEventListener('click', window.mtldUpload, true)  // before the button's own
}
</script>"""


class GeneratePanel(Cancellable, RunPanel):
    """A form for the runs beside `run_dir` and in examples/. Its parts are fields: `panel.button.click()`
    generates, `panel.worker.join()` waits for it, `panel.cancel.click()` ends it.
    """

    result = None  # what generation.json holds, of the latest click
    _dataset, _size = None, (0, 0)

    def __init__(self, run_dir="runs/demo", num_frames=48, fps=12, seed=0):
        run_dir = find(run_dir)
        super().__init__([(_label(run), run) for run in runs_in(Path(run_dir).parent, EXAMPLES)], run_dir)
        self.about = widgets.HTML(layout=BESIDE_LABELS)  # the run in a picture and some figures
        self.checkpoint = widgets.Dropdown(options=[(NEWEST, "")], description="checkpoint")
        self.direction = widgets.ToggleButtons(options=DIRECTIONS, **BUTTONS)
        self.start = widgets.ToggleButtons(options=["dataset", "picture"], **BUTTONS)
        self.upload = widgets.FileUpload(accept="image/*", multiple=False, layout=BESIDE_LABELS)
        self.sent = widgets.Textarea(continuous_update=False, layout={"display": "none"})
        self.path = widgets.Text(
            placeholder="or a path or web address, also of a video",
            continuous_update=False,
            layout={"width": "300px"} | BESIDE_LABELS,
        )
        self.picture = widgets.Image(layout={"width": "128px"} | BESIDE_LABELS)  # what it will start from
        self.num_frames = widgets.IntSlider(num_frames, 2, max(240, num_frames), description="length")
        self.fps = widgets.IntSlider(round(fps), 1, 60, description="fps")
        self.seed = widgets.IntText(seed, description="seed")
        self.actions = widgets.Text(description="actions", placeholder="as recorded; or a list: [0, 2, ...]")
        self.add_buttons("Generate")
        self.bar = widgets.IntProgress(layout={"width": "300px"} | BESIDE_LABELS)
        self.strip = widgets.Image(layout={"max_width": "100%", "align_self": "flex-start"})
        self.gallery = widgets.HBox(layout={"flex_flow": "row wrap", "grid_gap": "12px"})
        self._folder, self._file = tempfile.TemporaryDirectory(), None  # of the uploaded picture
        self._lay_out()
        self.on_change(self.direction, self.fill)
        self.on_change(self.start, self.frame_chosen)
        self.on_change(self.upload, self._uploaded)
        self.sent.observe(lambda _: self._sent(), "value")
        self.on_change(self.path, self.frame_chosen)
        self.attempt(self.fill)

    def _lay_out(self):
        script = widgets.Output(outputs=displayed(("text/html", SHRINK)))
        self.limit = widgets.HTML(small(LIMIT), layout={"width": "300px"} | BESIDE_LABELS)
        own = [self.upload, self.path, self.limit, self.sent, script]
        begin = [self.start, self.arc, self.frame, *own, self.picture]
        buttons = widgets.HBox([self.button, self.cancel], layout=BESIDE_LABELS)
        options = [self.num_frames, self.fps, self.seed, self.actions, buttons, self.bar]
        form = widgets.VBox([self.run, self.about, self.checkpoint, self.direction, *begin, *options])
        shown = widgets.VBox([self.video, self.links], layout={"margin": "0 0 0 24px"})
        beside = widgets.HBox([form, shown], layout={"flex_flow": "row wrap"})
        above = widgets.HTML(small("Generated with this run, the newest first:"))
        self.children = [beside, self.message, self.strip, above, self.gallery]
        show(self.strip, False)  # until there is one: an empty picture would look broken
        show(self.bar, False)
        # by which scripts find them
        self.add_class("mtld-generate")
        self.upload.add_class("mtld-upload")
        self.sent.add_class("mtld-sent")

    # ---- what it starts from

    def fill(self):
        """Offer what the chosen run has: its checkpoints, directions, starts and frames."""
        run = Path(self.chosen_run())
        self.about.value = _card(run)
        offer(self.checkpoint, _checkpoints(run))
        self._hang()
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
        if self.upload.value:
            self._keep(*uploaded(self.upload.value))

    def _sent(self):
        """Take what the page's script sends of a file: {"name", "size", "content"}."""
        message, self.sent.value = self.sent.value, ""  # a saved notebook would hold it, too
        if message:
            self.attempt(lambda: self._receive(**json.loads(message)))

    def _receive(self, name, size, content=""):
        about = f"{name}: {size // 1000:,} kB"
        way = "save it as JPEG or PNG, or give its path"
        check(content, f"{about}, and no picture that this browser can read; {way}")
        content = b64decode(content)
        self._keep(name, content)
        return f"{about}, of which your browser sent {len(content) // 1000:,} kB"

    def _keep(self, name, content):
        """Start from an uploaded file."""
        file = Path(self._folder.name) / Path(name).name
        file.write_bytes(content)
        self._file, self.path.value, self.start.value = file, "", "picture"
        self.frame_chosen()

    def frame_chosen(self):
        """Show the chosen start as the model will see it, and only the fields that belong to it."""
        start = self.start.value
        for field in (self.arc, self.frame):
            show(field, start == "dataset")
        for field in (self.upload, self.path, self.limit):
            show(field, start == "picture")
        show(self.picture, False)
        if start == "picture" and (self.path.value or self._file):
            frame = fit_frame(pictures(path_of(self._source()))[-1], *self._size)
        elif start == "dataset" and self._dataset is not None and self.arc.value:
            row = self._dataset.row(self.arc.value, self.frame.value)
            frame = self._dataset.frames[row].cpu()
        else:
            return
        self.picture.value = png_bytes(frame)
        show(self.picture, True)

    def _source(self):
        if self.start.value == "picture":
            check(self.path.value or self._file, "upload a picture first, or start from the dataset")
            return self.path.value.strip() or str(self._file)
        return NOISE if self.start.value == NOISE else f"dataset:{self.arc.value}/{self.frame.value}"

    # ---- what it makes

    def _asked(self):
        hidden = self.actions.layout.display  # then they are of the run before
        return {
            "run_dir": self.chosen_run(),
            "source": self._source(),
            "num_frames": self.num_frames.value,
            "checkpoint": self.checkpoint.value,
            "direction": self._direction,
            "actions": "" if hidden else self.actions.value,
            "fps": self.fps.value,
            "seed": self.seed.value,
        }

    def _work(self):
        self.bar.value, self.bar.max = 0, self.num_frames.value
        show(self.bar, True)
        super()._work()
        show(self.bar, False)

    def _make(self):
        told = []
        self.result = generate(**self._asked(), progress=self._count, say=told.append)
        folder = Path(self.result["out_dir"])
        self._hang()
        return ". ".join([self._show(folder, self.result), *told])

    def _count(self):
        check(not self._cancelled.is_set(), f"cancelled after {self.bar.value} frames; nothing of it is kept")
        self.bar.value += 1

    def _show(self, folder, about):
        compared = about.get("comparison")
        self.video.value = video_tag(folder / ("comparison.mp4" if compared else "video.mp4"))
        links = download_links(folder / "video.mp4", folder / "video.gif")
        self.links.value = f"{compared or 'generated'} · download: {links}"
        self.strip.value = (folder / "strip.png").read_bytes()
        show(self.strip, True)
        return f"frames, videos and strip are in {folder}"

    def attempt(self, action):
        self.say("working ...")
        super().attempt(action)

    def fail(self, text):
        self.video.value = self.links.value = ""
        show(self.strip, False)
        super().fail(text.replace(f"{self._folder.name}/", ""))

    # ---- what is kept

    def _hang(self):
        """Hang up what was generated with the chosen run, the newest first."""
        found = list(kept(self.chosen_run()).items())
        self.gallery.children = [self._hung(*one) for one in found[:HUNG]]

    def _hung(self, folder, about):
        """A picture of the gallery: what was made, how, and what can be done with it."""
        file = folder / "video.gif"
        if file.stat().st_size > HEAVY:
            file = folder / "strip.png"
        picture = widgets.Image(value=file.read_bytes(), format=file.suffix[1:], width=128)
        source = about["source"]
        if not source.startswith("dataset:"):
            source = Path(source).name
        length, made = f"{about['num_frames']} frames", f"seed {about['seed']}, {age_of(file)}"
        start = f"{source} {about.get('direction', '')}"
        words = [start, f"step {about['step']}, {length}, {about['fps']} fps", made]
        if "psnr" in about:
            words.append(f"psnr {about['psnr']:.2f} dB")
        return widgets.VBox([picture, widgets.HTML(small(*words)), self._choices(folder, about)])

    def _choices(self, folder, about):
        view, delete = _button("Show"), _button("Delete")
        keep, sure = _button("Keep"), _button("Really delete", "danger")
        choices = widgets.HBox([view, delete])
        view.on_click(lambda _: self.attempt(lambda: self._show(folder, about)))
        delete.on_click(lambda _: setattr(choices, "children", [keep, sure]))
        keep.on_click(lambda _: setattr(choices, "children", [view, delete]))
        sure.on_click(lambda _: self.attempt(lambda: self._delete(folder)))
        return choices

    def _delete(self, folder):
        shutil.rmtree(folder)
        self._hang()
        return f"deleted {folder}"


def _button(text, style=""):
    return widgets.Button(description=text, button_style=style, layout={"width": "auto"})


def _report(run):
    with contextlib.suppress(UserError):
        return read_report(run)
    return {"system": "figures", "metrics": {}, "judged_at_step": 0}


def _label(run):
    """A run in a list: its name, how good and how old it is."""
    words = [Path(run).name]
    skill = _report(run)["metrics"].get("skill_db")
    if skill is not None:
        words.append(f"skill {skill:+.1f} dB")
    words.append(age_of_run(run))
    return " · ".join(words)


def _card(run):
    """HTML: the newest preview of a run, and its figures."""
    report = _report(run)
    lines = small(f"{report['system']}: {summary(report['metrics'])}")
    picture = newest_preview(run)
    if picture.is_file():
        lines = f'<img style="max-height:128px; max-width:300px" src="{data_url(picture)}">{lines}'
    return lines


def _checkpoints(run):
    """[(what it is, name)] of a run's checkpoints and files of weights, with figures where known."""
    options, report = [(NEWEST, "")], _report(run)
    if best := read_pointer(run / BEST):
        options.append((f"best: step {best['step']:,}, {best['metric']} {best['value']:.2f}", "best"))
    for path in [*list_checkpoints(run), *sorted(run.glob("*.pth"))]:
        label = path.name
        if label.endswith(f"_{report['judged_at_step'] or 0:08d}"):  # None: a run that was never judged
            label += f": {summary(report['metrics'])}"
        options.append((label, path.name))
    return options


def uploaded(value):
    """(name, bytes) of a FileUpload's value, a dict in ipywidgets 7, a tuple in 8."""
    if isinstance(value, dict):
        name, entry = next(iter(value.items()))
    else:
        name, entry = value[0]["name"], value[0]
    return name, bytes(entry["content"])
