"""Decoded frames as pictures: how they are turned, their colours, what is see-through."""

import math
from fractions import Fraction

import av
import numpy as np
import pytest
from av.video.reformatter import Colorspace
from conftest import with_matrix
from PIL import Image

from data_prep.picture import standard
from data_prep.video import Video
from mtld_core.media import to_rgb

COLOURS = np.array([(200, 30, 30), (30, 180, 30), (40, 40, 200), (220, 220, 220)], np.uint8)
TO_2020 = [
    [0.6274, 0.3293, 0.0433],
    [0.0691, 0.9195, 0.0114],
    [0.0164, 0.0880, 0.8956],
]  # linear, from BT.709 (BT.2087)
TO_P3 = [[0.8225, 0.1774, 0.0], [0.0332, 0.9669, 0.0], [0.0171, 0.0724, 0.9108]]


def quarters(height=48, width=64):
    """uint8 [H, W, 3]: a quarter of the picture for each of COLOURS."""
    return np.kron(COLOURS.reshape(2, 2, 3), np.ones((height // 2, width // 2, 1), np.uint8))


def write(path, frames, codec="libx264", kind="yuv444p", options=None, **tags):
    """frames: `av.VideoFrame`s of `kind`; tags: attributes of the codec's context."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=10, options=options or {})
        stream.width, stream.height, stream.pix_fmt = frames[0].width, frames[0].height, kind
        for name, value in tags.items():
            setattr(stream.codec_context, name, value)
        for i, frame in enumerate(frames):
            frame.pts, frame.time_base = i, Fraction(1, 10)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


def rgb_frame(picture, kind="yuv444p", matrix=Colorspace.ITU601):
    return av.VideoFrame.from_ndarray(picture, format="rgb24").reformat(format=kind, dst_colorspace=matrix)


def first(path):
    """(the first picture, what the video's note says)"""
    video = Video(path)
    picture = next(iter(video)).rgb
    return picture, video.note


def patches(picture):
    """[4, 3]: the colours in the middle of the quarters."""
    height, width = picture.shape[:2]
    return np.array([picture[y * height // 4, x * width // 4] for y in (1, 3) for x in (1, 3)], int)


# ---- orientation


@pytest.fixture(scope="module")
def upright(tmp_path_factory):
    path = tmp_path_factory.mktemp("upright") / "v.mp4"
    return write(path, [rgb_frame(quarters())] * 3, options={"qp": "4"})


def shown_at(picture, a, b, c, d):
    """The same, done pixel by pixel."""
    y, x = np.mgrid[: picture.shape[0], : picture.shape[1]]
    to_x, to_y = a * x + c * y, b * x + d * y
    to_x, to_y = to_x - to_x.min(), to_y - to_y.min()
    result = np.zeros((to_y.max() + 1, to_x.max() + 1, 3), picture.dtype)
    result[to_y, to_x] = picture
    return result


@pytest.mark.parametrize(
    ("matrix", "words"),
    [
        ((1, 0, 0, 1), ""),
        ((0, 1, -1, 0), "turned by 90 degrees"),
        ((-1, 0, 0, -1), "turned by 180 degrees"),
        ((0, -1, 1, 0), "turned by 270 degrees"),
        ((-1, 0, 0, 1), "mirrored"),
        ((1, 0, 0, -1), "mirrored; turned by 180 degrees"),
        ((0, 1, 1, 0), "mirrored; turned by 270 degrees"),
        ((0, -1, -1, 0), "mirrored; turned by 90 degrees"),
    ],
)
def test_all_eight_orientations(upright, tmp_path, matrix, words):
    straight = first(upright)[0]
    found, note = first(with_matrix(upright, tmp_path / "v.mp4", *matrix))
    assert np.array_equal(found, shown_at(straight, *matrix))
    assert note == words


@pytest.mark.parametrize("mirrored", [False, True])
@pytest.mark.parametrize(
    ("angle", "quarter"), [(2, 0), (-2, 0), (44, 0), (46, 90), (88, 90), (-91, -90), (181, 180), (359, 0)]
)
def test_the_nearest_quarter(upright, tmp_path, angle, quarter, mirrored):
    def matrix(degrees):
        cos, sin = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
        return (-cos, -sin, -sin, cos) if mirrored else (cos, sin, -sin, cos)

    found = first(with_matrix(upright, tmp_path / "v.mp4", *matrix(angle)))[0]
    assert np.array_equal(found, shown_at(first(upright)[0], *(round(value) for value in matrix(quarter))))


# ---- colours


def linear(colours):
    x = np.asarray(colours) / 255
    return np.where(x <= 0.04045, x / 12.92, ((x + 0.055) / 1.055) ** 2.4)


def coded(light, curve):
    """Linear light, 1 for diffuse white, as the curve 16 (PQ) or 18 (HLG) of ITU-T H.273 codes it, else as
    sRGB.
    """
    light = np.clip(light, 0, None)
    if curve == 16:
        y = (light * 203 / 10000) ** 0.1593017578125
        return ((0.8359375 + 18.8515625 * y) / (1 + 18.6875 * y)) ** 78.84375
    if curve == 18:
        e = 0.265 * light
        return np.where(
            e <= 1 / 12,
            np.sqrt(3 * e),
            0.17883277 * np.log(np.maximum(12 * e - 0.28466892, 1e-9)) + 0.55991073,
        )
    return np.where(light <= 0.0031308, 12.92 * light, 1.055 * light ** (1 / 2.4) - 0.055)


def wide_frame(rgb, bits=10):
    """Coded BT.2020 colours [H, W, 3] in 0..1 -> a frame, limited range, not subsampled."""
    luma = rgb @ [0.2627, 0.6780, 0.0593]
    blue, red = (rgb[..., 2] - luma) / 1.8814, (rgb[..., 0] - luma) / 1.4746
    frame = av.VideoFrame(rgb.shape[1], rgb.shape[0], "yuv444p10le" if bits == 10 else "yuv444p")
    unit = 1 << (bits - 8)
    for plane, values in zip(frame.planes, [luma * 219 + 16, blue * 224 + 128, red * 224 + 128], strict=True):
        values = (values * unit).round().astype("<u2" if bits == 10 else np.uint8)
        rows = np.zeros((plane.height, plane.line_size), np.uint8)
        rows[:, : values[0].nbytes] = values.view(np.uint8)
        plane.update(rows.tobytes())
    return frame


def write_wide(path, rgb, curve, primaries=9, bits=10):
    tags = {"color_primaries": primaries, "color_trc": curve, "colorspace": 9, "color_range": 1}
    frame = wide_frame(rgb, bits)
    return write(path, [frame], "ffv1", frame.format.name, **tags)


@pytest.mark.parametrize(
    ("curve", "primaries", "bits", "words"),
    [
        (16, 9, 10, "HDR (PQ) tone-mapped to SDR"),
        (16, 2, 10, "HDR (PQ) tone-mapped to SDR"),
        (16, 12, 10, "HDR (PQ) tone-mapped to SDR"),
        (16, 1, 10, "HDR (PQ) tone-mapped to SDR"),
        (16, 9, 8, "HDR (PQ) tone-mapped to SDR"),
        (18, 9, 10, "HDR (HLG) tone-mapped to SDR"),
        (14, 9, 10, "wide colours brought to sRGB"),
        (1, 9, 8, "wide colours brought to sRGB"),
        (2, 9, 10, "wide colours brought to sRGB"),
        (13, 12, 10, "wide colours brought to sRGB"),
    ],
)
def test_hdr_and_wide_colours_keep_their_colours(tmp_path, curve, primaries, bits, words):
    to_primaries = {9: TO_2020, 2: TO_2020, 12: TO_P3}.get(primaries, np.eye(3))
    path = write_wide(
        tmp_path / "v.mkv",
        coded(linear(quarters()) @ np.transpose(to_primaries), curve),
        curve,
        primaries,
        bits,
    )
    found, note = first(path)
    assert np.abs(patches(found) - COLOURS).max() <= (6 if bits == 10 else 12)
    assert note == words


@pytest.mark.parametrize(("curve", "brightest"), [(16, 1000 / 203), (18, 1 / 0.265)])
def test_highlights_are_squeezed_not_cut(curve, brightest):
    light = np.array([0.0, 0.1, 0.5, 0.8, 1.0, 2.0, 3.0, brightest])
    greys = standard(coded(np.repeat(light[:, None], 3, 1), curve), 9, curve)
    assert np.ptp(greys, axis=1).max() < 1e-3  # grey stays grey
    assert np.abs(linear(255 * greys[:4, 0]) - light[:4]).max() < 1e-3
    assert (np.diff(greys[:, 0]) > 0.003).all() and 0.99 < greys[-1, 0] <= 1


def test_colours_that_srgb_lacks_keep_their_hue():
    red, green, blue = standard(coded(0.5 * np.eye(3), 16), 9, 16)
    assert red.argmax() == 0 and green.argmax() == 1 and blue.argmax() == 2
    assert min(red.min(), green.min(), blue.min()) >= 0


@pytest.mark.parametrize(
    ("size", "matrix"),
    [
        ((480, 640), Colorspace.ITU601),
        ((576, 1024), Colorspace.ITU601),
        ((720, 1280), Colorspace.ITU709),
        ((1280, 720), Colorspace.ITU709),
        ((534, 1280), Colorspace.ITU709),
    ],
)
def test_untagged_colours_go_by_the_size_as_players_have_it(tmp_path, size, matrix):
    frame = rgb_frame(quarters(*size), matrix=matrix)
    frame.colorspace = 2
    found = first(write(tmp_path / "v.mkv", [frame], options={"qp": "2", "preset": "ultrafast"}))[0]
    assert np.abs(patches(found) - COLOURS).max() <= 4


@pytest.mark.parametrize(
    ("size", "matrix", "tag"),
    [
        ((480, 640), Colorspace.ITU709, 1),
        ((720, 1280), Colorspace.ITU601, 6),
        ((720, 1280), Colorspace.ITU601, 5),
    ],
)
def test_a_tag_wins_over_the_size(tmp_path, size, matrix, tag):
    frame = rgb_frame(quarters(*size), matrix=matrix)
    found = first(
        write(tmp_path / "v.mkv", [frame], options={"qp": "2", "preset": "ultrafast"}, colorspace=tag)
    )[0]
    assert np.abs(patches(found) - COLOURS).max() <= 4


def test_full_range_is_told_by_its_tag(tmp_path):
    from av.video.reformatter import ColorRange

    picture = av.VideoFrame.from_ndarray(quarters(), format="rgb24")
    frame = picture.reformat(
        format="yuv444p", dst_colorspace=Colorspace.ITU709, dst_color_range=ColorRange.JPEG
    )
    found = first(write(tmp_path / "v.mp4", [frame], options={"qp": "2"}, colorspace=1, color_range=2))[0]
    assert np.abs(patches(found) - COLOURS).max() <= 4


def test_motion_jpeg_of_hd_size_is_bt601(tmp_path):
    picture = quarters(720, 1280)
    Image.fromarray(picture).save(tmp_path / "a.jpg", quality=95)
    with av.open(str(tmp_path / "a.jpg")) as still, av.open(str(tmp_path / "v.avi"), "w") as container:
        stream = container.add_stream_from_template(still.streams.video[0])
        packet = next(iter(still.demux()))
        packet.stream, packet.pts, packet.dts = stream, 0, 0
        container.mux(packet)
    assert np.abs(patches(first(tmp_path / "v.avi")[0]) - COLOURS).max() <= 4


# ---- see-through parts


@pytest.mark.parametrize(
    ("codec", "kind", "suffix"), [("qtrle", "argb", "mov"), ("png", "rgba", "mov"), ("ffv1", "bgra", "mkv")]
)
def test_see_through_parts_lie_over_black_as_in_pictures(tmp_path, codec, kind, suffix):
    rgba = np.full((24, 32, 4), (255, 0, 255, 0), np.uint8)
    rgba[:12, :16], rgba[12:, 16:] = (0, 200, 0, 255), (100, 200, 50, 128)
    frame = av.VideoFrame.from_ndarray(rgba, format="rgba").reformat(format=kind)
    found = first(write(tmp_path / f"v.{suffix}", [frame], codec, kind))[0]
    assert np.array_equal(found, to_rgb(Image.fromarray(rgba)))
    assert not found[:12, 16:].any()


def test_a_gif_that_is_see_through(tmp_path):
    picture = Image.new("P", (16, 16), 1)
    picture.putpalette([255, 0, 255, 0, 200, 0])
    picture.paste(0, (0, 0, 8, 16))
    picture.save(tmp_path / "a.gif", transparency=0)
    found = first(tmp_path / "a.gif")[0]
    assert not found[:, :8].any() and found[4, 12].tolist() == [0, 200, 0]
