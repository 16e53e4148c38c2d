"""Image files -> RGB pixels, whatever their mode; many of them into a store, the damaged ones left out and
named.
"""

import collections
import io
import math
import os
import struct
import warnings
from hashlib import blake2b

import cv2
import numpy as np
from PIL import Image

from mtld_core.config import UserError
from mtld_core.frames import fit_frame
from mtld_core.media import upright, upright_size
from mtld_core.runtime import for_each

PNG_HEAD = b"\x89PNG\r\n\x1a\n"
EXIF_IN_TEXT = (
    b"Raw profile type",
    b"XML:com.adobe.xmp",
)  # of a PNG file's texts, those in which Pillow looks for EXIF
BAD_SHARE = (
    0.05  # of the files may be unreadable or of another size; with more, something is wrong with the data
)


def read_picture(path):
    """uint8 `[H, W, 3]`, as `media.upright` gives it: turned as EXIF says, colours as in `media.to_rgb`.

    Raises what Pillow raises where the file is damaged, cut short or too large to be meant. Plain PNG goes
    through OpenCV, which gives up Python's lock for the whole of a file, so that threads share the work well,
    and which refuses damaged PNG. Pillow has the last word on what it refuses, and reads the rest: of a cut
    JPEG OpenCV makes a partly grey picture.
    """
    content = _content(path)
    if _is_plain_png(content) and math.prod(_png_size(content)) <= (Image.MAX_IMAGE_PIXELS or math.inf):
        picture = cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_UNCHANGED)
        if picture is not None and picture.dtype == np.uint8 and picture.shape[2:] == (3,):
            return cv2.cvtColor(picture, cv2.COLOR_BGR2RGB)
    with Image.open(io.BytesIO(content)) as image:
        return upright(image)


def _png_size(png):
    """(H, W), as the head of a PNG file says (0, 0 where there is no whole head)."""
    width, height = struct.unpack(">II", png[16:24]) if len(png) >= 24 else (0, 0)
    return height, width


def _is_plain_png(content):
    return content.startswith(PNG_HEAD) and not _has_exif(content)


def _has_exif(png):
    """True where one of a PNG file's chunks, before or behind the pixels, may say how the picture is to be
    turned.
    """
    place = len(PNG_HEAD)
    while place + 8 <= len(png):
        length, kind = struct.unpack_from(">I4s", png, place)
        if kind == b"eXIf" or (
            kind in (b"tEXt", b"zTXt", b"iTXt") and png.startswith(EXIF_IN_TEXT, place + 8)
        ):
            return True
        place += 12 + length  # with the chunk's length, kind and checksum
    return False


class PictureFiles:
    """The part of a source that decodes image files: folder.py and recording.py say which, in which order.

    base: the folder that `names` are relative to, in the order of the store. bad: {index in names: why that
    file is left out}, known after `fill` or taken over from the cache. notes: what else is odd.
    """

    actions = None
    cached = True  # decoding is slow, so what was decoded is worth its room on disk

    def __init__(self, path, height, width, fit):
        self.path, self.fit, self.base = str(path), (height, width, fit), path
        self.names, self.notes, self.bad, self.about = [], [], {}, {}

    @property
    def warnings(self):
        return self.notes + [f"{self.names[i]}: left out, {why}" for i, why in sorted(self.bad.items())]

    def digest(self, workers=0):
        """Hex key of the names and the content of all files: equal only where the decoded frames are."""
        parts = [b""] * len(self.names)

        def read(i):
            content, why = _attempt(_content, self._file(i))
            digest = blake2b(why.encode() if why else content, digest_size=16)
            if not why and content.startswith(PNG_HEAD) and _has_exif(content):
                digest.update(
                    b"upright"
                )  # entries of before PNG files were turned are of no use for these, only
            parts[i] = digest.digest()

        for_each(read, len(parts), workers)
        return blake2b("\n".join(self.names).encode() + b"".join(parts), digest_size=16).hexdigest()

    def measure(self, workers=0):
        """(N, H, W, 3) of the frames to come; H, W are the commonest among some files, `fill` finds those
        that differ.
        """
        height, width, _ = self.fit
        if not (height and width):
            some = np.unique(np.linspace(0, len(self.names) - 1, 64).astype(int))
            sizes = collections.Counter(
                size for i in some if (size := _attempt(self._fitted, self._file(i))[0])
            )
            height, width = max(sizes, key=sizes.get, default=(1, 1))
        return len(self.names), height, width, 3

    def fill(self, store, workers=0, label=None):
        """Decode every file into `store` (uint8, as measured), bad ones left out. Returns how many rows hold
        frames.

        Raises UserError, which lists them, where more than 5 % of the files are bad.
        """
        size = store.shape[1:3]

        def read(i):
            frame, why = _attempt(read_picture, self._file(i))
            if not why and (fitted := fit_frame(frame, *self.fit)).shape[:2] != size:
                why = f"{_text(frame)} where most are {_text(store[0])} (set height and width to use both)"
            if why:
                self.bad[i] = why
            else:
                store[i] = fitted

        with (
            warnings.catch_warnings()
        ):  # an image too large to be meant; below twice its limit Pillow would only warn
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            for_each(read, len(self.names), workers, label)
        bad = [f"{self.names[i]} ({why})" for i, why in sorted(self.bad.items())]
        refuse_many(self.path, "image files", bad, len(self.names))
        kept = [i for i in range(len(self.names)) if i not in self.bad]
        for row, i in enumerate(kept):  # one by one: a whole slice onto itself would be copied first
            if row != i:
                store[row] = store[i]
        return len(kept)

    def _fitted(self, path):
        """(H, W) that the picture at `path` will have."""
        content = _content(path)
        if _is_plain_png(content):
            size = _png_size(content)
        else:
            with Image.open(io.BytesIO(content)) as image:
                size = upright_size(image)
        return fit_frame(np.zeros((*size, 3), np.uint8), *self.fit).shape[:2]

    def _file(self, i):
        return os.path.join(self.base, self.names[i])


def refuse_many(path, what, bad, count):
    """Raise UserError, which lists `bad`, where that is more than 5 % of `count`."""
    if len(bad) > BAD_SHARE * count:
        more = f" and {len(bad) - 20} more" if len(bad) > 20 else ""
        raise UserError(
            f"{path}: {len(bad)} of {count} {what} cannot be used (more than 5 %); mend or remove them: "
            f"{'; '.join(bad[:20])}{more}"
        )


def _text(frame):
    return f"{frame.shape[1]}x{frame.shape[0]} pixels"


def _attempt(function, path):
    """(result, None), or (None, why) where the file cannot be read, is damaged, or is too large to be meant.

    Any exception counts: what comes in are bytes from anywhere, and Pillow's readers fail on them in many
    ways.
    """
    try:
        return function(path), None
    except Exception as error:
        return None, " ".join(str(error).split()) or type(error).__name__


def _content(path):
    with open(path, "rb") as file:
        return file.read()
