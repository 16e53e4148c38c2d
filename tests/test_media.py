"""Pictures that are read, files that are written: opened again with other tools and compared with what went
in.
"""

import av
import numpy as np
import pytest
from conftest import shown
from PIL import Image

from mtld_core import media
from mtld_core.config import UserError


def clip(count, height, width):
    """A smooth moving gradient: what a codec should carry almost unchanged."""
    y, x = np.mgrid[:height, :width]
    shifts = range(0, 8 * count, 8)
    return [
        np.stack([x * 200 // width + s % 50, y * 200 // height, 0 * x + 90], -1).astype(np.uint8)
        for s in shifts
    ]


def error(a, b):
    return np.abs(np.asarray(a).astype(int) - np.asarray(b)).mean()


# ---- read_image


def saved(tmp_path, name, image, **options):
    image.save(tmp_path / name, **options)
    return media.read_image(tmp_path / name)


@pytest.mark.parametrize("suffix", ["png", "jpg", "webp", "bmp", "tiff", "gif", "ppm"])
def test_formats(tmp_path, suffix):
    frame = np.zeros((20, 30, 3), np.uint8)
    frame[:, 15:] = (255, 0, 0)
    found = saved(
        tmp_path,
        f"a.{suffix}",
        Image.fromarray(frame),
        **({"quality": 95} if suffix in ("jpg", "webp") else {}),
    )
    assert found.shape == (20, 30, 3) and found.dtype == np.uint8 and error(found, frame) < 4


def test_modes(tmp_path):
    ramp = np.arange(256, dtype=np.uint8).reshape(16, 16)
    wanted = np.repeat(ramp[..., None], 3, -1)
    assert np.array_equal(saved(tmp_path, "l.png", Image.fromarray(ramp)), wanted)
    assert np.array_equal(saved(tmp_path, "p.png", Image.fromarray(ramp).convert("P")), wanted)
    assert np.array_equal(saved(tmp_path, "i.png", Image.fromarray(ramp.astype(np.uint16) * 257)), wanted)
    assert np.array_equal(saved(tmp_path, "f.tiff", Image.fromarray(ramp.astype(np.float32) / 255)), wanted)
    assert set(np.unique(saved(tmp_path, "1.png", Image.fromarray(ramp > 127)))) == {0, 255}
    cmyk = saved(tmp_path, "c.tiff", Image.fromarray(wanted).convert("CMYK"))
    assert error(cmyk, wanted) < 2


def test_alpha_lies_over_black(tmp_path):
    rgba = np.full((4, 4, 4), (200, 100, 50, 255), np.uint8)
    rgba[0, :, 3], rgba[1, :, 3] = 0, 128
    found = saved(tmp_path, "a.png", Image.fromarray(rgba))
    assert found[:3, 0].tolist() == [[0, 0, 0], [100, 50, 25], [200, 100, 50]]
    key = saved(tmp_path, "key.png", Image.fromarray(rgba[..., :3]), transparency=(200, 100, 50))
    assert not key.any()


def test_exif_turns_the_picture(tmp_path):
    frame = np.zeros((16, 32, 3), np.uint8)
    frame[:, :16] = 255  # white on the left
    exif = Image.Exif()
    exif[0x0112] = 6  # to be shown turned clockwise by a quarter
    found = saved(tmp_path, "a.jpg", Image.fromarray(frame), exif=exif)
    assert found.shape == (32, 16, 3) and found[:14].mean() > 240 and found[18:].mean() < 15


def test_the_first_frame_of_an_animation(tmp_path):
    first, *rest = [Image.new("RGB", (8, 8), colour) for colour in ("red", "lime", "blue")]
    assert saved(tmp_path, "a.gif", first, save_all=True, append_images=rest)[0, 0].tolist() == [255, 0, 0]


@pytest.mark.parametrize("name", ["cut.png", "cut.jpg", "text.png", "empty.png"])
def test_damaged_files_are_named(tmp_path, name):
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8))
    noise.save(tmp_path / f"whole.{name[-3:]}")
    whole = (tmp_path / f"whole.{name[-3:]}").read_bytes()
    content = {"cut": whole[: len(whole) // 2], "text": b"no picture", "empty": b""}[name[:-4]]
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=rf"{name} cannot be read as a picture: \S"):
        media.read_image(tmp_path / name)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(UserError, match=r"none\.png: no such image file"):
        media.read_image(tmp_path / "none.png")


def test_a_large_jpeg_is_reduced_and_a_large_png_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(media, "LARGE", 32)
    monkeypatch.setattr(media, "MOST_PIXELS", 5000)
    monkeypatch.setattr(
        Image, "MAX_IMAGE_PIXELS", 5000
    )  # Pillow itself refuses twice as many, and warns before
    frame = clip(1, 128, 200)[0]
    found = saved(tmp_path, "a.jpg", Image.fromarray(frame), quality=95)
    assert found.shape == (32, 50, 3) and error(found, Image.fromarray(frame).resize((50, 32))) < 3
    for name, options in (("b.png", {}), ("c.jpg", {"progressive": True})):
        with pytest.raises(UserError, match=f"{name} is too large"):
            saved(tmp_path, name, Image.fromarray(frame), **options)


# ---- writers


def read_video(path):
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        return stream, stream.codec_context, [shown(f) for f in container.decode(video=0)]


@pytest.mark.parametrize("height, width, fps", [(48, 64, 12), (45, 63, 23.976), (32, 32, 1)])
def test_a_video_is_what_browsers_play(tmp_path, height, width, fps):
    frames, path = clip(70, height, width), tmp_path / "a.mp4"  # more than x264 looks ahead
    with media.video_writer(path, fps, height, width) as write:
        for frame in frames:
            write(frame)
    stream, codec, found = read_video(path)
    assert (codec.name, codec.pix_fmt, len(found)) == ("h264", "yuv420p", 70)
    assert float(stream.average_rate) == pytest.approx(fps, rel=1e-3)
    assert (codec.height, codec.width) == (height + height % 2, width + width % 2)
    assert max(error(f[:height, :width], frame) for f, frame in zip(found, frames, strict=True)) < 4
    assert (codec.colorspace, codec.color_range) == (1, 1)  # BT.709, limited
    head = path.read_bytes()
    assert head.index(b"moov") < head.index(b"mdat")  # plays while it loads
    assert [f.name for f in tmp_path.iterdir()] == ["a.mp4"]


def test_a_videos_colours_are_right(tmp_path):
    colours = np.array(
        [(255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 255), (0, 0, 0), (20, 200, 90)], np.uint8
    )
    frame = np.repeat(np.repeat(colours[None], 16, 1), 16, 0)
    with media.video_writer(tmp_path / "a.mp4", 10, *frame.shape[:2]) as write:
        write(frame)
    (found,) = read_video(tmp_path / "a.mp4")[2]
    assert np.abs(found[8, 8::16].astype(int) - colours).max() < 6


@pytest.mark.parametrize("fps, wanted", [(10, {100}), (24, {40, 50}), (60, {20}), (0.5, {2000})])
def test_a_gif_loops_with_the_right_delays(tmp_path, fps, wanted):
    frames = clip(9, 33, 45)
    frames[4] = frames[3]  # a still moment is a frame, too
    with media.gif_writer(tmp_path / "a.gif", fps, 33, 45) as write:
        for frame in frames:
            write(frame)
    with Image.open(tmp_path / "a.gif") as gif:
        assert gif.n_frames == 9 and gif.info["loop"] == 0 and gif.size == (45, 33)
        delays = []
        for i, frame in enumerate(frames):
            gif.seek(i)
            delays.append(gif.info["duration"])
            assert error(gif.convert("RGB"), frame) < 4
    assert set(delays) == wanted and abs(sum(delays) - 9000 / min(fps, 50)) <= 10


def test_a_gif_of_few_colours_is_exact(tmp_path):
    frames = [np.zeros((20, 20, 3), np.uint8) for _ in range(6)]
    for i, frame in enumerate(frames):
        frame[3 * i : 3 * i + 4, 5:9] = (255, 40 * i, 7)
    with media.gif_writer(tmp_path / "a.gif", 10, 20, 20) as write:
        for frame in frames:
            write(frame)
    with Image.open(tmp_path / "a.gif") as gif:
        for i, frame in enumerate(frames):
            gif.seek(i)
            assert np.array_equal(gif.convert("RGB"), frame)


def test_frames_are_numbered_and_exact(tmp_path):
    frames = clip(3, 9, 7)
    with media.frame_writer(tmp_path / "frames") as write:
        for frame in frames:
            write(frame)
    names = sorted(path.name for path in (tmp_path / "frames").iterdir())
    assert names == ["frame_0000.png", "frame_0001.png", "frame_0002.png"]
    for name, frame in zip(names, frames, strict=True):
        assert np.array_equal(media.read_image(tmp_path / "frames" / name), frame)


def test_frames_replace_earlier_ones_but_nothing_else(tmp_path):
    folder = tmp_path / "frames"
    for count in (3, 1):
        with media.frame_writer(folder) as write:
            for frame in clip(count, 8, 8):
                write(frame)
    assert [path.name for path in folder.iterdir()] == ["frame_0000.png"]
    (folder / "notes.txt").write_text("mine")
    with pytest.raises(UserError, match="holds other files"), media.frame_writer(folder):
        pass
    assert (folder / "notes.txt").read_text() == "mine" and [p.name for p in tmp_path.iterdir()] == ["frames"]


@pytest.mark.parametrize("written", [0, 2])
def test_an_exception_leaves_nothing_half_written(tmp_path, written):
    (tmp_path / "video.gif").write_bytes(b"an earlier one")
    with pytest.raises(KeyError, match="broken"), media.open_writers(tmp_path, 10, 16, 16) as write:
        for frame in clip(written, 16, 16):
            write(frame)
        raise KeyError("broken")
    assert [path.name for path in tmp_path.iterdir()] == ["video.gif"]
    assert (tmp_path / "video.gif").read_bytes() == b"an earlier one"


def test_all_three_hold_the_same_frames(tmp_path):
    frames = clip(5, 32, 32)
    with media.open_writers(tmp_path / "new", 10, 32, 32) as write:
        for frame in frames:
            write(frame)
    assert sorted(path.name for path in (tmp_path / "new").iterdir()) == ["frames", "video.gif", "video.mp4"]
    for i, found in enumerate(read_video(tmp_path / "new/video.mp4")[2]):
        assert error(found, media.read_image(tmp_path / f"new/frames/frame_{i:04d}.png")) < 4


def test_a_folder_with_a_colon_is_no_address(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with media.open_writers("http:out", 10, 16, 16) as write:
        write(clip(1, 16, 16)[0])
    assert sorted(path.name for path in (tmp_path / "http:out").iterdir()) == [
        "frames",
        "video.gif",
        "video.mp4",
    ]


# ---- strips


def test_a_strip_holds_its_frames():
    frames = np.random.default_rng(0).integers(0, 256, (2, 3, 48, 60, 3), np.uint8)
    picture = media.strip(frames)
    assert picture.shape == (96 * 2 + 4, 120 * 3 + 8, 3)
    for i in range(2):
        for j in range(3):
            cell = picture[100 * i : 100 * i + 96, 124 * j : 124 * j + 120]
            assert np.array_equal(cell[::2, ::2], frames[i, j]) and np.array_equal(
                cell[1::2, 1::2], frames[i, j]
            )


def test_a_strips_words_have_room():
    frames = np.zeros((2, 3, 96, 96, 3), np.uint8)
    plain, words = media.strip(frames), media.strip(frames, ["truth", "generated"], ["+1", "+2", "+3"])
    height, width = plain.shape[:2]
    assert np.array_equal(words[-height:, -width:], plain)
    left, above = words[:, :-width], words[:-height]
    assert left.min() < 128 and left.max() == 255 and above.min() < 128 and above.max() == 255
    upright = media.strip(np.zeros((1, 2, 112, 20, 3), np.uint8), columns=["truth", "generated"])
    assert upright.shape[0] > 30 + 2 * 112 and upright[:30, [0, -1]].min() == 255  # the word is not cut off
