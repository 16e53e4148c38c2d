"""Image files into RGB pixels, whatever their mode; many of them into a store, the damaged ones named."""

import collections
import io
import math
import os
import struct
import warnings
from hashlib import blake2b
from pathlib import Path

import cv2
import numpy as np
from PIL import Image

from mtld_core.config import UserError, reason_of
from mtld_core.frames import fit_frame, fitted_size
from mtld_core.media import upright, upright_size
from mtld_core.runtime import for_each

PNG_HEAD = b"\x89PNG\r\n\x1a\n"
TEXTS = (b"tEXt", b"zTXt", b"iTXt")  # chunks of a PNG file
# beginnings of the names of texts in which Pillow looks for EXIF
EXIF_IN_TEXT = (b"Raw profile type", b"XML:com.adobe.xmp")
BAD_SHARE = 0.05  # of the files may be unreadable or of another size; with more, the data is at fault
LISTED = 20  # bad files that an error lists


def read_picture(path):
    """Read an image file: uint8 `[H, W, 3]`, turned as EXIF says, whatever its mode (see `media.to_rgb`).

    Raises what Pillow raises where the file is damaged, cut short or too large to be meant. Plain PNG goes
    through OpenCV, which releases Python's lock for a whole file, so that threads share the work well. What
    OpenCV refuses, and every other format, Pillow reads: of a JPEG that is cut short, OpenCV would make a
    partly grey picture.
    """
    content = path.read_bytes()
    size = _plain_png_size(content)
    if size and math.prod(size) <= (Image.MAX_IMAGE_PIXELS or math.inf):
        picture = cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_UNCHANGED)
        if picture is not None and picture.dtype == np.uint8 and picture.shape[2:] == (3,):
            return cv2.cvtColor(picture, cv2.COLOR_BGR2RGB)
    with Image.open(io.BytesIO(content)) as image:
        return upright(image)


class PictureFiles:
    """The part of a source that decodes image files: `Folder` and `Recording` say which, in which order.

    size: (height, width, fit), see `fit_frame`. names: of the files, relative to the folder `base`, in the
    order of the store. bad: {index in names: why that file is left out}, known after `fill` or taken over
    from the cache. notes: a line for whatever else is odd.
    """

    actions = None
    cached = True  # decoding is slow, so what was decoded is worth its room on disk

    def __init__(self, path, size):
        self.path = str(path)
        self.base = path
        self.size = size
        self.names = []
        self.notes = []
        self.bad = {}
        self.about = {}

    @property
    def warnings(self):
        """The notes, and a line for each file that is left out."""
        return self.notes + [f"{self.names[i]}: left out, {why}" for i, why in sorted(self.bad.items())]

    def kept(self):
        """int64 array: for each row of the store the place of its file in `names`."""
        return np.delete(np.arange(len(self.names)), list(self.bad))

    def digest(self, workers=0):
        """Hex digest of the names and the content of all files: equal only where the decoded frames are."""
        parts = [b""] * len(self.names)

        def read(i):
            content, why = self._attempt(Path.read_bytes, i)
            digest = blake2b(why.encode() if why else content, digest_size=16)
            if not why and _is_turned_png(content):
                # so that cache entries from before such files were turned are passed over, and only those
                digest.update(b"upright")
            parts[i] = digest.digest()

        for_each(read, len(parts), workers)
        names = os.fsencode("\n".join(self.names))  # which may be in no letters of today
        return blake2b(names + b"".join(parts), digest_size=16).hexdigest()

    def measure(self):
        """(N, H, W, 3) of the frames to come, where N counts all files, the bad ones too.

        H, W are the commonest size among some files; `fill` finds those that differ.
        """
        height, width, _ = self.size
        if not (height and width):
            sizes = collections.Counter()
            for i in np.unique(np.linspace(0, len(self.names) - 1, 64).astype(int)):
                size, why = self._attempt(_size, i)
                if not why:
                    sizes[fitted_size(*size, height, width)] += 1
            height, width = max(sizes, key=sizes.get, default=(1, 1))
        return len(self.names), height, width, 3

    def fill(self, store, workers, label):
        """Decode every file into `store`, a uint8 array of the shape measured, without the bad ones.

        Returns how many rows hold frames. Raises UserError, which lists the bad files, where they are more
        than 5 %.
        """

        def read(i):
            frame, why = self._attempt(read_picture, i)
            if not why:
                fitted = fit_frame(frame, *self.size)
                if fitted.shape == store[i].shape:
                    store[i] = fitted
                    return
                why = (
                    f"{_pixels(frame)} where most are {_pixels(store[0])} (set height and width to use both)"
                )
            self.bad[i] = why

        with warnings.catch_warnings():
            # an image too large to be meant: below twice its limit Pillow would only warn
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            for_each(read, len(self.names), workers, label)
        bad = [f"{self.names[i]} ({why})" for i, why in sorted(self.bad.items())]
        refuse_many(self.path, "image files", bad, len(self.names))
        kept = self.kept()
        for row, i in enumerate(kept):  # one by one: a whole slice onto itself would be copied first
            if row != i:
                store[row] = store[i]
        return len(kept)

    def _attempt(self, function, i):
        """(what `function` gives for the path of file `i`, None), or (None, why) where it raises anything.

        Any exception counts: the bytes come from anywhere, and Pillow's readers fail on them in many ways.
        """
        try:
            return function(Path(self.base, self.names[i])), None
        except Exception as error:
            return None, reason_of(error)


def refuse_many(path, what, bad, count):
    """Raise UserError, which lists the strings `bad`, where they are more than 5 % of `count`.

    what: what is counted, in the plural.
    """
    if len(bad) <= BAD_SHARE * count:
        return
    more = f" and {len(bad) - LISTED} more" if len(bad) > LISTED else ""
    raise UserError(
        f"{path}: {len(bad)} of {count} {what} cannot be used (more than 5 %); mend or remove them: "
        f"{'; '.join(bad[:LISTED])}{more}"
    )


def _size(path):
    """Read (H, W) of a picture from the head of its file, as `read_picture` would turn it."""
    content = path.read_bytes()
    size = _plain_png_size(content)
    if size:
        return size
    with Image.open(io.BytesIO(content)) as image:
        return upright_size(image)


def _plain_png_size(content):
    """(H, W) as the head of a PNG file says; None for other files, and for those that EXIF may turn."""
    if not content.startswith(PNG_HEAD) or len(content) < 24 or _is_turned_png(content):
        return None
    width, height = struct.unpack(">II", content[16:24])
    return height, width


def _is_turned_png(content):
    """Whether a chunk of a PNG file, before or behind the pixels, may say how the picture is to be turned."""
    if not content.startswith(PNG_HEAD):
        return False
    place = len(PNG_HEAD)
    while place + 8 <= len(content):
        length, kind = struct.unpack_from(">I4s", content, place)
        if kind == b"eXIf" or (kind in TEXTS and content.startswith(EXIF_IN_TEXT, place + 8)):
            return True
        place += 12 + length  # with the chunk's length, kind and checksum
    return False


def _pixels(frame):
    return f"{frame.shape[1]}x{frame.shape[0]} pixels"
