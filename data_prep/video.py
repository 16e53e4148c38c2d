"""The frames of a video in display order with the times at which they are shown, also at another rate.

What a container claims (frame count, duration) is never used to decode: what decodes counts. Times are exact
fractions of seconds from the video's first frame, so a variable frame rate needs no special case and no
rounding adds up.
"""

import contextlib
import dataclasses
import functools
import itertools
import os
from collections import deque
from fractions import Fraction
from pathlib import Path

import av
import cv2
import numpy as np
from av.stream import Disposition
from PIL import Image, ImageSequence

from data_prep.picture import UNSPECIFIED, Converter, filter_graph
from mtld_core.config import UserError

# a repeat differs by less, of 255: on the whole, and in the worst of 32 x 32 fields
REPEAT_MEAN = 0.15
REPEAT_SPOT = 3.0
ENOUGH = 0.9  # of the claimed frames must decode; a few missing at either end are common in healthy files
STILL = 10  # seconds for which a frame may claim to be shown; a longer time is a clock that jumped
NO_FILM = "there is no picture in it that moves, only sound or data"
STILLS = ("mjpeg", "png", "bmp", "tiff", "webp")  # codecs of covers
MOST_JUMPS = 3  # that a note tells one by one
# seconds beyond a frame's own time that make a gap: it is not filled; and those back that make a new start
JUMP = 1


def open_video(path):
    """`av.open` for a path and nothing else: what looks like an address ("12:30.mp4") is a file, too."""
    return av.open(os.path.abspath(path))


def picture_stream(container):
    """The stream of moving pictures, or None: the cover of a song is none."""
    covers = Disposition.attached_pic | Disposition.timed_thumbnails
    streams = [stream for stream in container.streams.video if not stream.disposition & covers]
    best = container.streams.best("video")
    return best if best in streams else next(iter(streams), None)


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
        """uint8 `[H, W, 3]`, as a player shows it; made when first asked for, since most may be skipped."""
        return self.video.converter.rgb(self.frame, self.video.pixel_aspect, *self.video.colours)


class Video:
    """A video file, read from front to back by iterating: yields `Shown`.

    start, duration: the part to read, in seconds (duration 0: to the end); a frame belongs to it when it
    begins inside. Interlaced frames come deinterlaced, those known to be corrupt are left out. Where the
    clock jumps, a frame's `end` lies before the next one's `begin`; `skipped` is the time between in all.
    Afterwards `note` says in words what was missing or had to be changed, if anything. Raises UserError, in
    words that do not name the file, where nothing, or too little of what is claimed, decodes.
    """

    def __init__(self, path, start=0, duration=0):
        self.path = Path(path)
        self.start, self.duration = Fraction(str(start)), Fraction(str(duration))
        self.converter = Converter()
        self.pixel_aspect = Fraction(1)
        self.colours = (UNSPECIFIED, UNSPECIFIED)  # primaries and curve, as numbers of ITU-T H.273
        self.skipped = Fraction(0)
        self._first = None  # time of the first frame, in the file's own seconds; later times count from it
        self._damage = ""
        self._deinterlaced = False
        self._ahead, self._back = [], []  # (time, seconds) of jumps of the clock

    @property
    def note(self):
        jumps = [
            f"the clock jumps ahead by {float(by):.1f} s at {float(at):.1f} s, not filled"
            for at, by in self._ahead
        ]
        jumps += [
            f"the clock jumps back by {float(by):.1f} s at {float(at - self._first):.1f} s"
            for at, by in self._back
        ]
        if len(jumps) > MOST_JUMPS:
            jumps[MOST_JUMPS:] = [f"{len(jumps) - MOST_JUMPS} more jumps"]
        done = ["deinterlaced"] if self._deinterlaced else []
        return "; ".join(filter(None, [self._damage, *done, *self.converter.done, *jumps]))

    def __iter__(self):
        held = step = None
        last = self.start + self.duration if self.duration else float("inf")
        try:
            for index, (time, length, frame) in enumerate(self._progressive(self._part())):
                length = min(length, max(STILL, self.usual))
                if held:
                    held.end = self._end(held, time, step or self.usual)
                    step = held.end - held.begin
                    yield held
                held = Shown(index, time, min(time + length, last), frame, self)
            if held:
                yield held
        except av.FFmpegError as error:
            if self.path.stat().st_size == 0:
                raise UserError("the file is empty") from None
            raise UserError(f"not a readable video ({error.strerror})") from None

    def _end(self, held, time, step):
        """When a frame ends whose next one begins at `time`.

        That is then, or after a usual `step` where the clock jumped ahead.
        """
        if time <= max(held.end, held.begin + JUMP):
            return time
        end = min(held.end, held.begin + min(step, JUMP))
        self._ahead.append((end, time - end))
        self.skipped += time - end
        return end

    def _progressive(self, part):
        """The frames of `part`, each interlaced one made whole: its fields are of two moments."""
        graph = kind = None
        waiting, numbers = deque(), itertools.count()
        for time, length, frame in part:
            this_kind = frame.width, frame.height, frame.format.name
            if graph and kind != this_kind:
                yield from _flushed(graph, waiting)
                graph = None
            if not graph and frame.interlaced_frame:
                self._deinterlaced = True
                kind = this_kind
                graph = filter_graph(frame, ("bwdif", {"mode": "send_frame", "deint": "interlaced"}))
            if not graph:
                yield time, length, frame
                continue
            frame.pts = next(numbers)  # out comes one for each, in order
            frame.time_base = Fraction(1, 1000)
            waiting.append((time, length))
            graph.push(frame)
            yield from _pulled(graph, waiting)
        if graph:
            yield from _flushed(graph, waiting)

    def _part(self):
        """(time from the first frame, length, frame) inside the wanted part."""
        frames = self._decode()
        if self.start:
            self._first = next((time for time, _, _ in frames), None)
            if self._first is not None:
                frames = self._decode(self._first + self.start)
        time = None
        for time, length, frame in frames:
            if self._first is None:
                self._first = time
            time -= self._first
            if self.duration and time >= self.start + self.duration:
                self._judge(self.bad)
                return
            if time >= self.start:
                yield time, length, frame
        if time is None:
            raise UserError(f"damaged: it claims {self.claimed} frames and none can be decoded")
        if self.start > time:
            raise UserError(
                f"start {float(self.start):g} s lies beyond the last frame, at {float(time):.2f} s"
            )
        lost = self.bad
        if not self.start:  # the claim can be checked; after a jump nobody knows how many frames it left out
            lost = max(lost, self.claimed - self.unseen - self.good)
        self._judge(lost)

    def _judge(self, lost):
        """Note that frames are lost. Raises UserError where too many are."""
        if lost > 0:
            self._damage = f"damaged: {self.good} of {self.good + lost} frames can be decoded"
        if self.good < ENOUGH * (self.good + lost):
            raise UserError(
                f"{self._damage}; get the file again, or take its good part with start and duration"
            )

    def _decode(self, wanted=None, jump=True):
        """(time, length, frame) of every good frame, in the file's own seconds.

        Counts frames that are `good`, `bad`, and `unseen`: claimed and healthy, but nothing to show. wanted:
        only those from this time on count; those since the keyframe before it, or without `jump` all of them,
        come, too.
        """
        self.good = self.bad = self.unseen = 0
        self._back = []
        if _is_webp(self.path):
            yield from self._animation()
            return
        with open_video(self.path) as container:
            stream = picture_stream(container)
            if stream is None:
                raise UserError(NO_FILM)
            stream.codec_context.thread_count = 1  # several would lose good frames beside a damaged one
            self.claimed, aspect = stream.frames, stream.sample_aspect_ratio
            if aspect and abs(aspect - 1) > 0.01:  # nearer to 1 it is a rounding artefact
                self.pixel_aspect = aspect
            self.usual = 1 / Fraction(stream.average_rate or stream.guessed_rate or 25)
            jump = jump and wanted is not None and not _clock_begins_again(self.path)
            if jump:
                with contextlib.suppress(av.FFmpegError):  # not every container can jump
                    container.seek(int(wanted / stream.time_base), stream=stream)
            timed = self._timed(container, stream, wanted, jump)
            if "mp4" in container.format.name.split(","):
                timed = _until_next(timed, stream)
            yield from timed

    def _timed(self, container, stream, wanted, jumped):
        """(time, length, frame) as the file has them, but with times that only grow.

        Frames before `wanted` do not count.
        """
        usual, time, shift = self.usual, None, 0
        for frame in self._frames(container, stream):
            self.colours = stream.codec_context.color_primaries, stream.codec_context.color_trc
            before, time = time, None
            if frame.pts is not None:
                time = frame.pts * Fraction(frame.time_base) + shift
            if before is not None and time is not None and time < before - JUMP:  # a clock that began again
                by = before + usual - time
                self._back.append((before + usual, by))
                shift += by
                time = before + usual
            if time is None or (before is not None and time <= before):  # no time, or one that runs backwards
                time = Fraction(0) if before is None else before + usual
            if jumped and before is None and time > wanted:  # the jump went too far: from the front
                yield from self._decode(wanted, jump=False)
                return
            if wanted is not None and time < wanted:
                self.good = self.bad = 0
            length = (frame.duration or 0) * Fraction(frame.time_base)
            yield time, length or usual, frame
        if jumped and time is None:  # it went beyond the last frame
            yield from self._decode(wanted, jump=False)

    def _frames(self, container, stream):
        """The good frames of a stream; counts all of them, and at the end those that are `unseen`."""
        packets = hidden = empty = reached = interlaced = silent = 0
        for packet in container.demux(stream):
            if packet.dts is not None:
                reached = packet.dts + 1
                if not packet.size:  # a decoder would take it for the end
                    empty += 1
                    continue
            packets += packet.size > 0
            hidden += packet.is_discard
            try:
                frames = packet.decode()
            except av.InvalidDataError:
                self.bad += 1
                continue
            for frame in frames:
                self.good += not frame.is_corrupt
                self.bad += frame.is_corrupt
                interlaced += frame.interlaced_frame
                if not frame.is_corrupt:
                    yield frame
        if packets == 1 and container.streams.audio and stream.codec.name in STILLS:
            raise UserError(NO_FILM)  # a cover: Matroska does not mark it as one
        if container.format.name == "avi":  # it claims its ticks, also those without a new picture
            empty = (self.claimed if _is_whole_riff(self.path) else reached) - packets
        if stream.codec.name == "mpeg4":  # it stores "the same again" as packets that decode to nothing
            silent = packets - hidden - self.good - self.bad
        elif stream.codec.name == "h264":  # a packet may be one field, and an interlaced frame has two
            silent = min(packets - hidden - self.good - self.bad, interlaced)
        # A clip that was cut without encoding it anew has hidden frames, which are in the file but not to be
        # shown.
        self.unseen = hidden + empty + silent

    def _animation(self):
        """(time, length, frame) of a WebP file, whose animations FFmpeg does not read."""
        time, self.usual = Fraction(0), Fraction(1, 10)
        try:
            with Image.open(self.path) as image:
                self.claimed = image.n_frames
                for picture in ImageSequence.Iterator(image):
                    rgba = np.asarray(picture.convert("RGBA"))  # decodes: only then its duration is known
                    self.good += 1
                    length = Fraction(picture.info.get("duration") or 100, 1000)
                    yield time, length, av.VideoFrame.from_ndarray(rgba, format="rgba")
                    time += length
        except (OSError, EOFError, SyntaxError, ValueError) as error:
            raise UserError(f"not a readable WebP picture ({error})") from None


def _until_next(timed, stream):
    """(time, length, frame) with lengths that reach to the next frame.

    MP4 and MOV have them in decoding order. A longer wait than STILL is no still: the length stays as it is.
    """
    held = None
    for following in timed:
        if held:
            time, length, frame = held
            wait = following[0] - time
            yield time, wait if wait <= STILL else length, frame
        held = following
    if held:
        time, length, frame = held
        if stream.codec_context.has_b_frames:  # then the last frame's own length is another one's
            length = min(length, 1 / Fraction(stream.guessed_rate or stream.average_rate or 25))
        yield time, length, frame


def _flushed(graph, waiting):
    """(time, length, frame) of what a graph still holds, at the end of its input."""
    graph.push(None)
    yield from _pulled(graph, waiting)


def _pulled(graph, waiting):
    """(time, length, frame) of what a graph has ready; `waiting`: (time, length) of what went in."""
    while True:
        try:
            frame = graph.pull()
        except (av.BlockingIOError, av.EOFError):
            return
        yield *waiting.popleft(), frame


def _is_webp(path):
    with open(path, "rb") as file:
        head = file.read(12)
    return head[:4] == b"RIFF" and head[8:] == b"WEBP"


def is_animated_webp(path):
    """Whether a file says that it is a WebP animation. Raises OSError where it cannot be read."""
    with open(path, "rb") as file:
        head = file.read(21)
    return head[:4] == b"RIFF" and head[8:16] == b"WEBPVP8X" and len(head) == 21 and head[20] & 2 > 0


def _clock_begins_again(path):
    """Whether times start over in a file of a kind that can be joined: MPEG-TS, MPEG-PS.

    Then no jump finds its place.
    """
    with open_video(path) as container:
        if container.format.name not in ("mpegts", "mpeg"):
            return False
        stream = picture_stream(container)
        stamps = (packet.dts for packet in container.demux(stream))
        times = (stamp * stream.time_base for stamp in stamps if stamp is not None)
        return any(after < before - JUMP for before, after in itertools.pairwise(times))


def _is_whole_riff(path):
    """Whether the parts of a RIFF file (AVI: one, or one a gigabyte) reach to its end; else it was cut."""
    end, size = 0, path.stat().st_size
    with open(path, "rb") as file:
        while end < size:
            file.seek(end)
            head = file.read(8)
            if head[:4] != b"RIFF":
                return False
            end += 8 + int.from_bytes(head[4:], "little")
    return end == size


def at_rate(frames, fps):
    """The `Shown` frame at each tick of `fps` from the first on: some are skipped, or come again.

    fps 0: each frame once. A gap in the clock has no ticks: they go on with the frame behind it.
    """
    if not fps:
        yield from frames
        return
    tick = None
    for shown in frames:
        tick = shown.begin if tick is None else max(tick, shown.begin)
        while tick < shown.end:
            yield shown
            tick += 1 / Fraction(str(fps))


def is_repeat(before, after):
    """Whether two uint8 `[H, W, 3]` frames differ by a codec's noise alone.

    A small thing that moves is no noise.
    """
    difference = cv2.absdiff(before, after)
    fields = (min(32, after.shape[1]), min(32, after.shape[0]))
    spot = cv2.resize(difference.astype(np.float32), fields, interpolation=cv2.INTER_AREA).max()
    return difference.mean() <= REPEAT_MEAN and spot <= REPEAT_SPOT
