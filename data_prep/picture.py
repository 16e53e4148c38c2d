"""A decoded frame as a player shows it: uint8 RGB in sRGB, upright, square pixels, over black; and as PNG."""

import functools
import math
import tempfile
from fractions import Fraction
from pathlib import Path

import av
import av.filter
import cv2
import numpy as np
from av.sidedata.sidedata import Type
from av.video.reformatter import Colorspace, VideoReformatter
from PIL import Image

from mtld_core.media import to_rgb

# matrices, primaries and curves by their numbers in ITU-T H.273
RGB = 0
UNSPECIFIED = 2
BT2020 = 9
P3 = 12
PQ = 16
HLG = 18
TO_BT709 = {  # linear RGB of wide primaries -> linear RGB of BT.709
    BT2020: [[1.6605, -0.5876, -0.0728], [-0.1246, 1.1329, -0.0083], [-0.0182, -0.1006, 1.1187]],
    P3: [[1.2249, -0.2247, 0.0], [-0.0420, 1.0419, 0.0], [-0.0197, -0.0786, 1.0979]],
}
WHITE = {PQ: 203.0, HLG: 0.265}  # where diffuse white lies (BT.2408): nits, scene light
BRIGHTEST = {PQ: 1000.0, HLG: 1.0}  # what becomes the brightest there is
KNEE = 0.8  # of diffuse white: what is darker stays as it is, what is lighter is squeezed
CUBE = 65  # colours along each side of the table


def png_bytes(rgb):
    """A uint8 `[H, W, 3]` picture as the content of a PNG file, packed fast rather than tightly.

    Python writes it to disk: OpenCV's own writer does not tell that a disk is full.
    """
    bgr = cv2.cvtColor(rgb, cv2.COLOR_RGB2BGR)
    _, png = cv2.imencode(".png", bgr, [cv2.IMWRITE_PNG_COMPRESSION, 1])
    return png


class Converter:
    """Makes pictures of one video's frames. `done` collects, in words, what had to be changed."""

    def __init__(self):
        # keeps its tables from frame to frame, which is five times as fast
        self.reformatter = VideoReformatter()
        self.done = {}  # an ordered set
        self._tone = None  # of what colours and size, and a filter graph for them

    def rgb(self, frame, pixel_aspect, primaries, curve):
        """uint8 `[H, W, 3]`. primaries, curve: those of the stream, as numbers of ITU-T H.273."""
        width = round(frame.width * pixel_aspect)
        colours = _unusual_colours(frame, primaries, curve)
        if _has_alpha(frame.format.name):
            rgba = self._reformat(frame, width, "rgba").to_ndarray()
            rgb = to_rgb(Image.fromarray(rgba)) if rgba[..., 3].min() < 255 else rgba[..., :3]
        elif colours:
            rgb = self._standard_colours(self._reformat(frame, width, "rgb48le"), *colours).to_ndarray()
        else:
            rgb = self._reformat(frame, width, "rgb24").to_ndarray()
        return np.ascontiguousarray(self._upright(rgb, frame))

    def _reformat(self, frame, width, kind):
        matrix = int(frame.colorspace)
        if matrix == UNSPECIFIED:  # then players go by the size: HD is BT.709
            is_hd = frame.width >= 1280 or frame.height > 576
            matrix = int(Colorspace.ITU709 if is_hd else Colorspace.ITU601)
        # All is said outright, for PyAV 15 takes for BT.601 what it is told nothing about.
        source = {"src_colorspace": matrix, "src_color_range": int(frame.color_range)}
        return self.reformatter.reformat(
            frame, width=width, format=kind, dst_colorspace=Colorspace.DEFAULT, **source
        )

    def _standard_colours(self, frame, primaries, curve):
        """An rgb48le frame of wide colours or HDR as rgb24 in sRGB."""
        key = primaries, curve, frame.width, frame.height
        if self._tone is None or self._tone[0] != key:
            self._tone = key, _tone_graph(frame, primaries, curve)
        if curve in WHITE:
            self.done[f"HDR ({'PQ' if curve == PQ else 'HLG'}) tone-mapped to SDR"] = True
        else:
            self.done["wide colours brought to sRGB"] = True
        frame.colorspace = RGB  # it still names the YUV that it was, which the filters would take for true
        _, graph = self._tone
        graph.push(frame)
        return graph.pull()

    def _upright(self, rgb, frame):
        """The picture in that of the eight orientations which is nearest to the frame's display matrix."""
        matrix = frame.side_data.get(Type.DISPLAYMATRIX)
        if matrix is None:
            return rgb
        rows = np.frombuffer(matrix, np.int32).reshape(3, 3)
        (a, b), (c, d) = rows[:2, :2].tolist()
        if a * d < b * c:
            self.done["mirrored"] = True
            rgb, a, b = rgb[:, ::-1], -a, -b
        quarters = round(math.atan2(b - c, a + d) / (math.pi / 2)) % 4  # clockwise
        if quarters:
            self.done[f"turned by {90 * quarters} degrees"] = True
        return np.rot90(rgb, -quarters)


def _unusual_colours(frame, primaries, curve):
    """(primaries, curve) where a frame is HDR or has wide colours, else None."""
    if primaries == UNSPECIFIED and (curve in WHITE or frame.colorspace in (BT2020, BT2020 + 1)):
        primaries = BT2020  # what such streams have
    return (primaries, curve) if curve in WHITE or primaries in TO_BT709 else None


@functools.cache
def _has_alpha(name):
    format = av.VideoFormat(name)
    return format.has_palette or any(component.is_alpha for component in format.components)


def _tone_graph(frame, primaries, curve):
    """rgb48le frames in, rgb24 ones in sRGB out."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "table.cube"
        path.write_text(_cube(primaries, curve))
        return filter_graph(frame, ("lut3d", {"file": str(path)}), ("format", {"pix_fmts": "rgb24"}))


def filter_graph(frame, *filters):
    """An av.filter.Graph of `filters` (name, options) in a row, for frames of this one's size and format."""
    graph = av.filter.Graph()
    nodes = [
        graph.add_buffer(
            width=frame.width, height=frame.height, format=frame.format.name, time_base=Fraction(1, 1000)
        )
    ]
    nodes += [graph.add(name, **options) for name, options in filters]
    nodes.append(graph.add("buffersink"))
    graph.link_nodes(*nodes).configure()
    return graph


@functools.cache
def _cube(primaries, curve):
    """The text of a .cube file: sRGB for a grid of coded colours, red running fastest."""
    steps = np.linspace(0, 1, CUBE)
    blue, green, red = np.meshgrid(steps, steps, steps, indexing="ij")
    coded = np.stack([red, green, blue], -1).reshape(-1, 3)
    colours = standard(coded, primaries, curve)
    lines = len(colours) * "%.5f %.5f %.5f\n"
    return f"LUT_3D_SIZE {CUBE}\n" + lines % tuple(colours.ravel().tolist())


def standard(coded, primaries, curve):
    """Coded colours `[N, 3]` in 0..1 -> sRGB `[N, 3]`: diffuse white and what is darker keep their colours.

    Lighter ones are squeezed between there and white, colours that sRGB lacks are paled until it has them.
    """
    light = _light(coded, curve) @ np.transpose(TO_BT709.get(primaries, np.eye(3)))
    grey = (light @ [0.2126, 0.7152, 0.0722])[:, None]
    low = light.min(1, keepdims=True)
    light = np.where(low < 0, grey + (light - grey) * grey / np.maximum(grey - low, 1e-9), light)
    if curve in WHITE:
        brightest = BRIGHTEST[curve] / WHITE[curve]
        high = light.max(1, keepdims=True)
        light *= _squeezed(high, brightest) / np.maximum(high, 1e-9)
    light = light.clip(0, 1)
    return np.where(light <= 0.0031308, 12.92 * light, 1.055 * light ** (1 / 2.4) - 0.055)


def _light(coded, curve):
    """Linear light, 1 for diffuse white."""
    if curve == PQ:  # SMPTE ST 2084
        root = coded ** (1 / 78.84375)
        share = np.maximum(root - 0.8359375, 0) / (18.8515625 - 18.6875 * root)
        nits = 10000 * share ** (1 / 0.1593017578125)
        return nits / WHITE[PQ]
    if curve == HLG:  # BT.2100, the light of the scene: what an SDR camera would have seen
        bright = (np.exp((coded - 0.55991073) / 0.17883277) + 0.28466892) / 12
        scene = np.where(coded <= 0.5, coded**2 / 3, bright)
        return scene / WHITE[HLG]
    return np.where(coded <= 0.04045, coded / 12.92, ((coded + 0.055) / 1.055) ** 2.4)


def _squeezed(light, brightest):
    """Up to KNEE as it is; from there on Reinhard's curve, as steep at first, which is 1 at `brightest`."""
    over = np.maximum(light - KNEE, 0) / (1 - KNEE)
    most = (brightest - KNEE) / (1 - KNEE)
    return np.minimum(light, KNEE) + (1 - KNEE) * over * (1 + over / most**2) / (1 + over)
