"""One image file -> RGB pixels, whatever its mode, or an error where the file is damaged."""

import io
import struct

import cv2
import numpy as np
from PIL import Image


def read_picture(path):
    """uint8 `[H, W, 3]`: grey and palettes become RGB, alpha is laid over black, 16 bits are scaled to 8.

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
        if image.mode == "RGB" and not image.has_transparency_data:
            return np.asarray(image)
        if image.mode.startswith("I"):  # 16 bits of grey; Pillow's own conversion would clip at 255
            grey = (np.clip(np.asarray(image).astype(np.int32), 0, 65535) + 128) // 257
            return np.repeat(grey.astype(np.uint8)[..., None], 3, axis=-1)
        if image.has_transparency_data:
            rgba = np.asarray(image.convert("RGBA")).astype(np.uint16)
            return ((rgba[..., :3] * rgba[..., 3:] + 127) // 255).astype(np.uint8)
        return np.asarray(image.convert("RGB"))


def _pixels(png):
    """Width times height, as the head of a PNG file says (0 where there is no whole head)."""
    return int(np.prod(struct.unpack(">II", png[16:24]))) if len(png) >= 24 else 0
