"""The frames of a video in display order, with the times at which they are shown, and the same at another frame rate.

What a container claims (frame count, duration) is never used to decode: what decodes counts. Times are exact fractions
of seconds from the video's first frame, so a variable frame rate needs no special case and no rounding adds up.
"""

import contextlib
import dataclasses
import functools
from fractions import Fraction

import av
import cv2
import numpy as np
from av.video.reformatter import VideoReformatter

from mtld_core.runtime import UserError

REPEAT_MEAN, REPEAT_SPOT = (
    0.15,
    3.0,
)  # a repeat differs by less, of 255: on the whole, and in the worst of 32 x 32 fields
ENOUGH = 0.9  # of the claimed frames must decode; a few missing at either end are common in healthy files


@dataclasses.dataclass
class Shown:
    """One decoded frame, shown from `begin` to `end` (seconds, Fractions); `index` counts decoded frames."""

    index: int
    begin: Fraction
    end: Fraction
    frame: av.VideoFrame
    video: "Video"

    @functools.cached_property
    def rgb(self):
        """uint8 `[H, W, 3]`, upright, with square pixels; converted when first asked for, since most may be skipped."""
        width = round(self.frame.width * self.video.pixel_aspect)
        rgb = self.video.reformatter.reformat(self.frame, width=width, format="rgb24").to_ndarray()
        return np.ascontiguousarray(np.rot90(rgb, self.frame.rotation // 90))


class Video:
    """A video file, read from front to back by iterating: yields `Shown`. Frames known to be corrupt are left out.

    start, duration: the part to read, in seconds (duration 0: to the end); a frame belongs to it when it begins inside.
    Afterwards `note` says in words what was missing, if anything was.
    Raises UserError, in words that do not name the file, where nothing, or too little of what is claimed, decodes.
    """

    def __init__(self, path, start=0, duration=0):
        self.path = path
        self.start, self.duration = Fraction(str(start)), Fraction(str(duration))
        self.reformatter = VideoReformatter()  # keeps its tables from frame to frame, which is five times as fast
        self.pixel_aspect = Fraction(1)
        self.note = ""

    def __iter__(self):
        held, last = None, self.start + self.duration if self.duration else float("inf")
        try:
            for index, (time, length, frame) in enumerate(self._part()):
                if held:
                    held.end = time
                    yield held
                held = Shown(index, time, min(time + length, last), frame, self)
            if held:
                yield held
        except av.FFmpegError as error:
            empty = self.path.stat().st_size == 0
            raise UserError("the file is empty" if empty else f"not a readable video ({error.strerror})") from None

    def _part(self):
        """(time from the first frame, length, frame) inside the wanted part."""
        first, frames = None, self._decode()
        if self.start:
            first = next((time for time, _, _ in frames), None)
            frames = self._decode(first + self.start) if first is not None else frames
        time = 0
        for time, length, frame in frames:
            first = time if first is None else first
            time -= first
            if self.duration and time >= self.start + self.duration:
                self._judge(self.bad)
                return
            if time >= self.start:
                yield time, length, frame
        if not self.good:
            raise UserError(f"damaged: it claims {self.claimed} frames and none can be decoded")
        if self.start > time:
            raise UserError(f"start {float(self.start):g} s lies beyond the last frame, at {float(time):.2f} s")
        # At the file's end its claim can be checked; not after a jump, for nobody knows how many frames it left out.
        self._judge(self.bad if self.start else max(self.bad, self.claimed - self.hidden - self.good))

    def _judge(self, lost):
        if lost > 0:
            self.note = f"damaged: {self.good} of {self.good + lost} frames can be decoded"
        if self.good < ENOUGH * (self.good + lost):
            raise UserError(f"{self.note}; get the file again, or take its good part with start and duration")

    def _decode(self, wanted=None):
        """(time, length, frame) of every good frame, in the file's own seconds; counts `good`, `bad` and `hidden` ones.

        wanted: jump to the keyframe before this time. "hidden" frames are in the file but not to be shown (a clip
        that was cut without encoding it anew has them).
        """
        self.good = self.bad = self.hidden = 0
        with av.open(str(self.path)) as container:
            stream = container.streams.best("video")
            if stream is None:
                raise UserError("there is no picture in it, only sound or data")
            stream.codec_context.thread_count = 1  # several would lose good frames beside a damaged one
            self.claimed, aspect = stream.frames, stream.sample_aspect_ratio
            if aspect and abs(aspect - 1) > 0.01:  # nearer to 1 it is a rounding artefact
                self.pixel_aspect = aspect
            usual = 1 / Fraction(stream.average_rate or stream.guessed_rate or 25)
            if wanted is not None:
                with contextlib.suppress(av.FFmpegError):  # not every container can jump
                    container.seek(int(wanted / stream.time_base), stream=stream)
            time = None
            for packet in container.demux(stream):
                self.hidden += packet.is_discard
                for frame in self._frames(packet):
                    before, time = time, None if frame.pts is None else frame.pts * Fraction(frame.time_base)
                    if time is None or (before is not None and time <= before):  # no time, or one that runs backwards
                        time = Fraction(0) if before is None else before + usual
                    if wanted is not None and before is None and time > wanted:  # the jump went too far: from the front
                        yield from self._decode()
                        return
                    yield time, (frame.duration or 0) * Fraction(frame.time_base) or usual, frame

    def _frames(self, packet):
        try:
            frames = packet.decode()
        except av.InvalidDataError:
            self.bad += 1
            return
        for frame in frames:
            self.good += not frame.is_corrupt
            self.bad += frame.is_corrupt
            if not frame.is_corrupt:
                yield frame


def at_rate(frames, fps):
    """The `Shown` frame at each tick of `fps` from the first on: some are skipped or come again. fps 0: each once."""
    tick = None
    for shown in frames:
        if not fps:
            yield shown
            continue
        tick = shown.begin if tick is None else tick
        while tick < shown.end:
            yield shown
            tick += 1 / Fraction(str(fps))


def is_repeat(before, after):
    """Whether two uint8 `[H, W, 3]` frames differ by a codec's noise alone. A small thing that moves is no noise."""
    difference = cv2.absdiff(before, after)
    fields = (min(32, after.shape[1]), min(32, after.shape[0]))
    spot = cv2.resize(difference.astype(np.float32), fields, interpolation=cv2.INTER_AREA).max()
    return difference.mean() <= REPEAT_MEAN and spot <= REPEAT_SPOT
