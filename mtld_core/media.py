"""Pictures and videos: an image file read safely, frames written one at a time, strips for reports.

A frame is uint8 `[H, W, 3]` RGB, an array or a CPU tensor. A writer is a context manager that gives a
function `write(frame)`; it holds one frame at a time, and its file appears whole when the block ends, or not
at all where the block raises.
"""

import collections
import contextlib
import functools
import glob
import http.client
import itertools
import math
import os
import re
import shutil
import tempfile
import urllib.parse
import urllib.request
from fractions import Fraction
from pathlib import Path

import numpy as np
import psutil
from PIL import ExifTags, Image, ImageDraw, ImageFont, ImageOps, JpegImagePlugin

from mtld_core.config import UserError, check, reason_of
from mtld_core.files import atomic_folder, atomic_path

MOST_PIXELS = 64_000_000  # that are decoded at once: 8000 x 8000
LARGE = 2048  # a JPEG whose shorter side is a multiple of this is decoded at 1/2, 1/4 or 1/8
MOST_BYTES = 200_000_000  # that are fetched from an address
LONGEST = 50  # letters, 200 bytes at most, of a name that goes into a longer one: file systems take 255
TAIL = 2  # seconds at a video's end in which its last frames are looked for first
UNSPECIFIED, HDR = 2, (16, 18)  # no matrix, and the curves PQ and HLG: numbers of ITU-T H.273
GIF_MOST_FPS = 50  # browsers slow a GIF with shorter delays down to 10 frames a second
SIDEWAYS = (5, 6, 7, 8)  # EXIF orientations that exchange height and width

# ---- reading


def read_image(path):
    """Any picture that Pillow opens -> uint8 `[H, W, 3]` array, upright (EXIF), colours as in `to_rgb`.

    Of an animation it is the first frame. A JPEG whose shorter side has 4096 pixels or more comes reduced by
    2, 4 or 8, never below 2048, so that its memory stays bounded. Raises UserError naming the file where it
    is missing, damaged, cut short, no picture, or larger than 64 million pixels.
    """
    path = Path(path)
    check(os.path.isfile(path), f"{path}: no such image file")  # `Path.is_file` raises for a long name
    try:
        with _open(path) as image:
            whole = image.size
            image.draft(None, (LARGE, LARGE))  # does nothing to other formats
            # a progressive JPEG keeps all coefficients whatever its scale
            width, height = whole if image.info.get("progressive") else image.size
            if width * height > MOST_PIXELS:
                raise Image.DecompressionBombError
            return upright(image)
    except Image.DecompressionBombError:
        most = f"over {MOST_PIXELS // 10**6} million pixels"
        raise UserError(f"{path} is too large to decode ({most}); shrink it first") from None
    except Exception as error:  # Pillow's readers fail on damaged bytes in many ways
        raise UserError(f"{path} cannot be read as a picture: {reason_of(error)}") from None


def _open(path):
    with open(path, "rb") as file:
        jpeg = file.read(3) == b"\xff\xd8\xff"
    # Image.open refuses a huge JPEG by its full size, although it is never decoded at that size
    return JpegImagePlugin.JpegImageFile(path) if jpeg else Image.open(path)


def upright(image):
    """Pillow image -> uint8 `[H, W, 3]` as a viewer shows it: turned as EXIF says, in RGB (see `to_rgb`)."""
    image.load()  # here Pillow turns a TIFF by itself, and finds the EXIF that a PNG has behind its pixels
    with contextlib.suppress(Exception):  # Pillow fails on damaged EXIF in many ways; viewers pass it over
        ImageOps.exif_transpose(image, in_place=True)
    return to_rgb(image)


def upright_size(image):
    """(H, W) that `upright` will give, from the head of the file alone."""
    width, height = image.size
    with contextlib.suppress(Exception):  # as above
        is_sideways = image.getexif().get(ExifTags.Base.Orientation) in SIDEWAYS
        if is_sideways and image.format != "TIFF":  # whose size Pillow gives as it will be after turning
            return width, height
    return height, width


def last_frames(path, count, say=print):
    """The last `count` frames of a video, or all where it has fewer: a list of uint8 `[H, W, 3]`, upright.

    say: is told of HDR, whose colours come out pale here. Raises UserError where nothing can be decoded.
    """
    import av

    try:
        with av.open(os.path.abspath(path)) as video:
            stream = video.streams.best("video")
            check(stream, f"{path} holds no moving picture")
            for start in ((video.duration or 0) - TAIL * 10**6, 0):  # in microseconds
                video.seek(max(0, start))
                newest = collections.deque(video.decode(stream), count)
                if len(newest) == count:
                    break
        check(newest, f"{path}: no frame of it can be decoded")
        if stream.codec_context.color_trc in HDR:
            say(f"{Path(path).name} is HDR: its colours come out paler than notebook 01 makes them")
        return [_shown(frame) for frame in newest]
    except av.FFmpegError as error:
        raise UserError(f"{path} cannot be read as a video: {error.strerror}") from None


def _shown(frame):
    """uint8 `[H, W, 3]` of a decoded frame, turned as its display matrix says."""
    from av.video.reformatter import Colorspace

    matrix = int(frame.colorspace)
    if matrix == UNSPECIFIED:  # then players go by the size
        is_hd = frame.width >= 1280 or frame.height > 576
        matrix = int(Colorspace.ITU709 if is_hd else Colorspace.ITU601)
    told = {"src_colorspace": matrix, "src_color_range": int(frame.color_range)}
    plain = frame.reformat(format="rgb24", dst_colorspace=Colorspace.DEFAULT, **told)
    return np.ascontiguousarray(np.rot90(plain.to_ndarray(), frame.rotation // 90))


@functools.lru_cache(maxsize=1)  # a form shows what it then starts from
def fetch(address):
    """Fetch what a web address gives -> path of a file that the process takes along. Raises UserError."""
    way = "save it and give the file's path"
    plain = urllib.parse.quote(address, safe="%/:=&?~#+!$,;'@()*[]")
    try:
        request = urllib.request.Request(plain, headers={"User-Agent": "mtld"})
        with urllib.request.urlopen(request, timeout=20) as reply:
            kind, content = reply.headers.get_content_type(), reply.read(MOST_BYTES + 1)
    except (OSError, ValueError, http.client.HTTPException) as error:
        raise UserError(f"{address} cannot be fetched ({reason_of(error)}): {way}") from None
    check(kind != "text/html", f"{address} is a web page: give the address of the picture or video itself")
    check(len(content) <= MOST_BYTES, f"{address} has more than 200 MB: {way}")
    check(not getattr(reply, "length", 0), f"{address}: the connection broke on the way; try again, or {way}")
    name = urllib.parse.unquote(urllib.parse.urlsplit(plain).path).rpartition("/")[2]
    path = Path(_fetched().name, re.sub(r"[^\w. -]", "", name)[-LONGEST:].strip(". ") or "fetched")
    path.write_bytes(content)
    return path


_fetched = functools.cache(tempfile.TemporaryDirectory)


def to_rgb(image):
    """Pillow image of any mode -> uint8 `[H, W, 3]`; alpha lies over black, 16 bits become 8."""
    grey = None
    if image.mode.startswith("I"):  # 16 bits of grey; Pillow's own conversion would clip at 255
        grey = (np.clip(np.asarray(image).astype(np.int32), 0, 65535) + 128) // 257
    elif image.mode == "F":  # floats: black is 0 and white is 1
        grey = np.round(np.clip(np.nan_to_num(np.asarray(image)), 0, 1) * 255)
    if grey is not None:
        return np.repeat(grey.astype(np.uint8)[..., None], 3, axis=-1)
    if image.has_transparency_data:
        over_black = image.convert("RGBA").convert("RGBa")  # "a": already multiplied by alpha
        return np.asarray(over_black)[..., :3].copy()
    return np.array(image if image.mode == "RGB" else image.convert("RGB"))


# ---- writing


@contextlib.contextmanager
def frame_writer(folder):
    """`write(frame)` saves `<folder>/frame_0000.png`, `frame_0001.png`, ...

    The folder replaces an earlier one. Raises UserError where that holds anything but such frames.
    """
    folder = Path(folder)
    there = os.listdir(folder) if folder.exists() else []
    check(
        all(re.fullmatch(r"frame_\d+\.png", name) for name in there),
        f"{folder} holds other files than frames, so it is not replaced; choose another out_dir",
    )
    _sweep(folder)
    numbers = itertools.count()
    with atomic_folder(folder) as temporary:

        def write(frame):
            file = temporary / f"frame_{next(numbers):04d}.png"
            # three times as fast as the default, a tenth more room
            _picture(frame).save(file, compress_level=1)

        yield write


def _sweep(folder):
    """Remove what writers of `folder` left that were killed."""
    for left in folder.parent.glob(f".{glob.escape(folder.name)}.*"):
        found = re.search(r"\.(\d+)\.(tmp|old)$", left.name)
        if not found:
            continue
        owner = int(found[1])
        if owner == os.getpid() or not psutil.pid_exists(owner):
            shutil.rmtree(left, ignore_errors=True)


@contextlib.contextmanager
def _video_stream(path, codec, rate, height, width, pixels, options, codec_options=None):
    """A new video file with one stream: gives (stream, `encode(picture)`), which takes a PyAV frame."""
    import av

    with (
        atomic_path(path) as temporary,
        av.open(os.path.abspath(temporary), "w", options=options) as container,
    ):
        stream = container.add_stream(codec, rate=rate, options=codec_options)
        stream.width, stream.height, stream.pix_fmt = width, height, pixels
        yield stream, lambda picture: container.mux(stream.encode(picture))
        container.mux(stream.encode())


@contextlib.contextmanager
def video_writer(path, fps, height, width):
    """`write(frame)` appends to an H.264 mp4 that browsers play (yuv420p); odd sides grow by a pixel."""
    import av
    from av.video.reformatter import ColorRange, Colorspace

    rate = Fraction(fps).limit_denominator(1001)
    pad = ((0, height % 2), (0, width % 2), (0, 0))
    height, width = height + height % 2, width + width % 2
    numbers = itertools.count()
    options = {"movflags": "+faststart"}
    file = _video_stream(path, "libx264", rate, height, width, "yuv420p", options, {"crf": "16"})
    with file as (stream, encode):
        codec = stream.codec_context  # said outright, or players guess the colours from the picture's size
        codec.colorspace = codec.color_primaries = codec.color_trc = int(Colorspace.ITU709)
        codec.color_range = int(ColorRange.MPEG)

        def write(frame):
            padded = np.pad(np.asarray(frame), pad, mode="edge")
            picture = av.VideoFrame.from_ndarray(padded, format="rgb24")
            picture = picture.reformat(format="yuv420p", dst_colorspace=Colorspace.ITU709)
            picture.pts, picture.time_base = next(numbers), 1 / rate
            encode(picture)

        yield write


@contextlib.contextmanager
def gif_writer(path, fps, height, width):
    """`write(frame)` appends to a GIF that loops for ever; each frame has 256 colours of its own, no dither.

    A GIF's clock ticks 100 times a second: delays are whole ticks that keep the rate on average, and 50
    frames a second is the most. Pillow would keep all frames in memory; it only picks the colours here.
    """
    import av

    ticks = 100 / min(fps, GIF_MOST_FPS)  # a frame
    numbers = itertools.count()
    options = {"loop": "0", "final_delay": str(round(ticks))}
    with _video_stream(path, "gif", 100, height, width, "pal8", options) as (_, encode):

        def write(frame):
            picture = _picture(frame)
            exact = picture.getcolors(256) is not None
            # for many colours the octree is 70 times as fast as the median cut, and 1 dB behind it
            method = Image.Quantize.MEDIANCUT if exact else Image.Quantize.FASTOCTREE
            indexed = picture.quantize(256, method)
            colours = np.array(indexed.getpalette(), np.uint8).reshape(-1, 3)
            palette = np.zeros((256, 4), np.uint8)  # alpha, red, green, blue
            palette[:, 0] = 255
            palette[: len(colours), 1:] = colours
            packed = av.VideoFrame.from_ndarray((np.asarray(indexed), palette), format="pal8")
            packed.pts, packed.time_base = round(next(numbers) * ticks), Fraction(1, 100)
            encode(packed)

        yield write


@contextlib.contextmanager
def open_writers(out_dir, fps, height, width):
    """`write(frame)` feeds `<out_dir>/frames/`, `video.mp4` and `video.gif` together."""
    out_dir = Path(out_dir)
    with (
        frame_writer(out_dir / "frames") as frames,
        video_writer(out_dir / "video.mp4", fps, height, width) as video,
        gif_writer(out_dir / "video.gif", fps, height, width) as gif,
    ):

        def write(frame):
            for writer in (frames, video, gif):
                writer(frame)

        yield write


# ---- pictures made of frames


def strip(rows, labels=None, columns=None):
    """Rows of frames -> one uint8 picture `[H', W', 3]` on white.

    rows: lists (or arrays) of frames, all of one size. labels: a word for each row, on its left; columns: a
    word for each column, above it. Frames lower than 96 pixels, or narrower than a column's word, are larger
    by a whole factor, unsmoothed.
    """
    height, width = rows[0][0].shape[:2]
    font, gap = ImageFont.load_default(22), 4
    widest = max(map(font.getlength, columns or [""]))
    factor = math.ceil(max(96 / height, widest / width))
    height, width = factor * height, factor * width
    left = 2 * gap + round(max(map(font.getlength, labels))) if labels else 0
    top = 30 if columns else 0
    down, across = height + gap, width + gap
    size = left + max(map(len, rows)) * across - gap, top + len(rows) * down - gap
    canvas = Image.new("RGB", size, "white")
    draw = ImageDraw.Draw(canvas)
    for j, word in enumerate(columns or ()):
        draw.text((left + j * across + width // 2, top // 2), word, "black", font, anchor="mm")
    for i, row in enumerate(rows):
        y = top + i * down
        if labels:
            draw.text((left - gap, y + height // 2), labels[i], "black", font, anchor="rm")
        for j, frame in enumerate(row):
            enlarged = _picture(frame).resize((width, height), Image.Resampling.NEAREST)
            canvas.paste(enlarged, (left + j * across, y))
    return np.asarray(canvas)


def _picture(frame):
    return Image.fromarray(np.asarray(frame))


def save_picture(path, picture):
    """Write a uint8 `[H, W, 3]` picture as PNG, whole or not at all."""
    with atomic_path(path) as temporary:
        _picture(picture).save(temporary)
