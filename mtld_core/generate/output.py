"""What a generation leaves behind: frames, videos, a strip, and figures where the truth is known.

A job (`Continuation`, `Translation`) is an iterable of a `Moment` for each frame that is written. `compared`:
words for the pictures in comparison.mp4 from left to right ([]: there is none); `rows`: words for the strip's
rows; `columns`: dict frame's number -> word, of those that the strip shows; `facts()`: what generation.json
says of it, a dict, when it is through. Frames are uint8 `[H, W, 3]`.
"""

import contextlib
import time
import typing
from pathlib import Path

import torch

from mtld_core import media, metrics
from mtld_core.frames import evenly

STRIP_COLUMNS = 8
ENDED = 96  # the grey where the truth has ended, of 255


class Moment(typing.NamedTuple):
    """What a job gives at a time: the frame to write, and what is shown with it."""

    frame: torch.Tensor
    beside: typing.Sequence = ()  # the pictures of comparison.mp4, () where there is none
    cells: typing.Sequence = ()  # a column of the strip


def write(job, out_dir, fps, size, progress):
    """Run a job into all writers -> (names of what was written, number of frames).

    progress: is called after each frame. Where it or the job raises, nothing is left.
    """
    out_dir, (height, width) = Path(out_dir), size
    comparison = out_dir / "comparison.mp4"
    files, columns, compare = ["frames", "video.mp4", "video.gif", "strip.png"], [], None
    with contextlib.ExitStack() as stack:
        write_frame = stack.enter_context(media.open_writers(out_dir, fps, height, width))
        if job.compared:
            files.append(comparison.name)
        else:
            comparison.unlink(missing_ok=True)  # of an earlier generation
        for number, moment in enumerate(job):
            write_frame(moment.frame)
            if moment.beside:
                shown = media.strip([moment.beside], columns=job.compared)
                if compare is None:
                    compare = stack.enter_context(media.video_writer(comparison, fps, *shown.shape[:2]))
                compare(shown)
            if number in job.columns:
                columns.append(moment.cells)
            progress()
        rows = list(zip(*columns, strict=True))
        media.save_picture(out_dir / "strip.png", media.strip(rows, job.rows, list(job.columns.values())))
    return files, number + 1


class Timed:
    """Frames from an iterator, and how fast they came: only the time spent inside it counts."""

    count, seconds = 0, 0.0

    def __init__(self, frames):
        self.frames = frames

    @property
    def per_second(self):
        return self.count / self.seconds

    def __iter__(self):
        return self

    def __next__(self):
        began = time.perf_counter()
        frame = next(self.frames)
        self.seconds += time.perf_counter() - began
        self.count += 1
        return frame


class Continuation:
    """The frames that a system makes, after the last context frame if there is one, beside the truth.

    frames: `Timed`, of `count` frames. context: uint8 `[k, H, W, 3]`, or None. truth: uint8 `[n, H, W, 3]`,
    of the first n; from there on its place is grey. actions: the list that led there, None where there are
    none.
    """

    def __init__(self, frames, count, context, truth, actions):
        self.frames, self.truth, self.actions = frames, truth[:count], actions
        self.first = None if context is None else context[-1]
        self.errors = []  # (MSE of the model, of the last context frame repeated) a frame
        self.compared, self.rows = [], ["generated"]
        if len(self.truth):
            self.compared = ["truth", "generated"]
            self.rows = [*self.compared, "error x4"]
        if context is None:
            self.columns = _columns(count)
        else:
            self.columns = _columns(torch.arange(1, count + 1), "+")

    def __iter__(self):
        if self.first is not None:
            yield Moment(self.first, [self.first] * len(self.compared))
        for t, frame in enumerate(self.frames):
            if not self.compared:
                yield Moment(frame, cells=[frame])
                continue
            if t >= len(self.truth):
                grey = torch.full_like(frame, ENDED)
                yield Moment(frame, [grey, frame], [grey, frame, grey])
                continue
            real = self.truth[t].cpu()
            self.errors.append(metrics.mse(torch.stack([frame, self.first]), real).tolist())
            yield Moment(frame, [real, frame], [real, frame, metrics.error_picture(frame, real)])

    def facts(self):
        facts = _comparison(self.compared)
        if self.actions is not None:
            facts["actions"] = self.actions
        return facts | _figures(self.errors, "baseline_copy_psnr")


class Translation:
    """A clip beside its translation, and beside its truth where that is known.

    frames: `Timed`, the translated ones. clip: uint8 `[n, H, W, 3]`. truth: the same, or `[0, H, W, 3]`.
    shots: where in the clip a new shot begins. direction: "x_to_y" or "y_to_x".
    """

    def __init__(self, frames, clip, truth, shots, direction):
        self.frames, self.clip, self.truth, self.shots = frames, clip, truth, shots
        self.direction = direction
        self.errors = []  # (MSE of the translation, of the source) a frame
        self.flickers = []  # (of the translation, of the source) at each frame that two of its shot precede
        self.compared = ["source", "translated"]
        if len(truth):
            self.compared.append("truth")
        self.rows = self.compared
        self.columns = _columns(len(clip))

    def __iter__(self):
        latest = []  # up to three frames of the shot, and their sources
        for t, frame in enumerate(self.frames):
            source = self.clip[t].cpu()
            if t in self.shots:
                latest = []
            both = torch.stack([frame, source])
            latest = [*latest[-2:], both]
            if len(latest) == 3:
                # tensors would hold memory apart
                self.flickers.append(metrics.flicker(torch.stack(latest, 1)).tolist())
            pictures = [source, frame]
            if len(self.truth):
                real = self.truth[t].cpu()
                self.errors.append(metrics.mse(both, real).tolist())
                pictures.append(real)
            yield Moment(frame, pictures, pictures)

    def facts(self):
        flickers = zip(*self.flickers or [(0.0, 0.0)], strict=True)
        translated, source = (sum(figures) / len(figures) for figures in flickers)
        facts = {"direction": self.direction, "flicker": translated, "flicker_source": source}
        return _comparison(self.compared) | facts | _figures(self.errors, "baseline_identity_psnr")


def _columns(numbers, sign=""):
    return {number: f"{sign}{number}" for number in evenly(numbers, STRIP_COLUMNS).tolist()}


def _comparison(compared):
    return {"comparison": " | ".join(compared)} if compared else {}


def _figures(errors, baseline):
    """PSNR of (the model's, the baseline's) MSEs; {} where there are none."""
    if not errors:
        return {}
    model, other = torch.tensor(errors, dtype=torch.float64).unbind(1)
    return {
        "psnr": metrics.mean_psnr(model),
        baseline: metrics.mean_psnr(other),
        "psnr_by_horizon": metrics.psnr(model).tolist(),
    }
