"""One image file -> RGB pixels, whatever its mode, or an error where the file is damaged."""

import io
import struct

import cv2
import numpy as np
from PIL import Image, ImageOps

from mtld_core.media import to_rgb


def read_picture(path):
    """uint8 `[H, W, 3]`, upright (EXIF), colours as in `media.to_rgb`.

    Raises what Pillow raises where the file is damaged, cut short or too large to be meant. Plain PNG goes through OpenCV,
    which gives up Python's lock for the whole of a file, so that threads share the work well, and which refuses damaged
    PNG. Pillow has the last word on what it refuses, and reads the rest: of a cut JPEG OpenCV makes a partly grey picture.
    """
    with open(path, "rb") as file:
        content = file.read()
    if content.startswith(b"\x89PNG\r\n\x1a\n") and _pixels(content) <= (Image.MAX_IMAGE_PIXELS or np.inf):
        picture = cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_UNCHANGED)
        if picture is not None and picture.dtype == np.uint8 and picture.shape[2:] == (3,):
            return cv2.cvtColor(picture, cv2.COLOR_BGR2RGB)
    with Image.open(io.BytesIO(content)) as image:
        return to_rgb(ImageOps.exif_transpose(image))


def _pixels(png):
    """Width times height, as the head of a PNG file says (0 where there is no whole head)."""
    return int(np.prod(struct.unpack(">II", png[16:24]))) if len(png) >= 24 else 0
