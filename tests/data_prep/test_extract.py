"""Videos to arcs. A frame's number is written into its brightness, so that a test can tell which frame it
got.
"""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from av.stream import Disposition
from conftest import moving_square, write_video
from PIL import Image

from data_prep import extract_frames, sources, video
from data_prep.extract_frames import extract
from data_prep.lists import LONGEST, safe_name
from data_prep.picture import png_bytes
from data_prep.report import fitting_shape
from mtld_core.config import UserError

SCRIPT = Path(extract_frames.__file__)


def numbered(count, height=48, width=64, first=0):
    """Frames whose brightness is 30 + 6 x their number, with a ramp that says where left and top are."""
    ramp = np.linspace(0, 20, width)[None, :, None] + np.linspace(0, 20, height)[:, None, None]
    return [
        np.broadcast_to(30 + 6 * (first + i) + ramp, (height, width, 3)).astype(np.uint8)
        for i in range(count)
    ]


def numbers(folder):
    """The numbers of the frames in an arc, read back from their brightness."""
    return [round((picture.mean() - 50) / 6) for picture in pictures(folder)]


def pictures(folder):
    return [
        np.asarray(Image.open(path).convert("RGB")).astype(float)
        for path in sorted(folder.glob("frame_*.png"))
    ]


def run_script(*args):
    return subprocess.run(
        [sys.executable, SCRIPT, *map(str, args)], capture_output=True, text=True, cwd=SCRIPT.parents[1]
    )


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    return write_video(tmp_path_factory.mktemp("clip") / "clip.mp4", numbered(20))


# ---- which frames


@pytest.mark.parametrize(
    ("fps", "expected"),
    [
        (0, list(range(20))),
        (5, list(range(0, 20, 2))),
        (20, [i // 2 for i in range(40)]),
        (4, [0, 2, 5, 7, 10, 12, 15, 17]),
    ],
)
def test_frame_rate_picks_the_frame_that_is_shown(clip, tmp_path, fps, expected):
    row = extract(clip, tmp_path, fps=fps, progress=False).rows[0]
    assert numbers(tmp_path / "clip") == expected
    assert (row.frames, row.fps, row.seconds) == (len(expected), fps or 10, 2)


def test_variable_frame_rate_follows_the_times(tmp_path):
    path = write_video(tmp_path / "slow.mkv", numbered(4), times=[0, 100, 700, 800])
    extract(path, tmp_path / "root", fps=10, progress=False)
    assert numbers(tmp_path / "root" / "slow")[:9] == [0, 1, 1, 1, 1, 1, 1, 2, 3]


@pytest.mark.parametrize("start", [1, "0:01", "0:00:01.0"])
def test_start_and_duration(clip, tmp_path, start):
    extract(clip, tmp_path, start=start, duration=0.5, progress=False)
    assert numbers(tmp_path / "clip") == [10, 11, 12, 13, 14]


class LateSeek:
    """A container whose jumps land a second too far, as those of some formats do."""

    def __init__(self, path):
        self.container = open_video(path)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.container.close()

    def __getattr__(self, name):
        return getattr(self.container, name)

    def seek(self, offset, stream):
        self.container.seek(offset + int(1 / stream.time_base), stream=stream)


open_video = av.open


def test_a_jump_that_lands_too_late_is_noticed(clip, tmp_path, monkeypatch):
    monkeypatch.setattr(video.av, "open", LateSeek)
    extract(clip, tmp_path, start=1, duration=0.5, progress=False)
    assert numbers(tmp_path / "clip") == [10, 11, 12, 13, 14]


def test_repeats_are_dropped_but_not_small_motion(tmp_path):
    frames = [frame for frame in numbered(5) for _ in range(3)]
    path = write_video(tmp_path / "threes.mp4", frames)
    row = extract(path, tmp_path / "root", drop_duplicates=True, progress=False).rows[0]
    assert numbers(tmp_path / "root" / "threes") == [0, 1, 2, 3, 4] and row.duplicates == 10
    still = numbered(1)[0]
    moved = still.copy()
    moved[20, 20] = 255  # an eye that opens
    assert video.is_repeat(still, still + np.uint8(0)) and not video.is_repeat(still, moved)


def test_the_sample_has_five_repeats(tmp_path):
    row = extract("sample", tmp_path, height=64, width=64, drop_duplicates=True, progress=False).rows[0]
    assert (row.frames, row.duplicates, row.size, row.fps) == (127, 5, (64, 64), 25)


def test_shots_become_arcs(tmp_path):
    rng = np.random.default_rng(0)
    scenes = [np.kron(rng.integers(0, 255, (4, 4, 3)), np.ones((12, 16, 1))) for _ in range(3)]
    frames = [np.clip(scene + i, 0, 255).astype(np.uint8) for scene in scenes for i in range(14)]
    path = write_video(tmp_path / "film.mp4", frames)
    rows = extract(path, tmp_path / "root", split_scenes=True, progress=False).rows
    assert [(row.arc, row.frames) for row in rows] == [(f"film_shot_{i:03d}", 14) for i in range(3)]
    for i, scene in enumerate(scenes):
        arc = pictures(tmp_path / "root" / f"film_shot_{i:03d}")
        assert all(np.abs(picture - np.clip(scene + 7, 0, 255)).mean() < 20 for picture in arc)
    extract(path, tmp_path / "root", split_scenes=False, progress=False)
    assert sorted(p.name for p in (tmp_path / "root").iterdir()) == [
        "contact_sheet.png",
        "film",
    ]  # the shots are gone
    assert len(pictures(tmp_path / "root" / "film")) == 42


def test_a_video_under_32_pixels_that_changes_its_size_is_split(tmp_path):
    data = b""
    for side, light in ((24, 40), (64, 200)):
        frames = [np.full((side, side, 3), light, np.uint8)] * 12
        data += write_video(tmp_path / f"{side}.ts", frames).read_bytes()
    (tmp_path / "film.ts").write_bytes(data)
    rows = extract(
        tmp_path / "film.ts", tmp_path / "root", height=16, width=16, split_scenes=True, progress=False
    ).rows
    assert [row.frames for row in rows] == [12, 12]


# ---- clocks


def write_ticks(path, ticks, codec="libx264", kind="yuv420p", rate=10, count=None, options=None):
    """A video whose frame i, of brightness i (as `numbered`), is shown at ticks[i] of `rate` a second."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=rate, options={"bf": "0", "g": "5"} | (options or {}))
        stream.height, stream.width, stream.pix_fmt = 48, 64, kind
        for rgb, tick in zip(numbered(len(ticks)), ticks, strict=True):
            frame = av.VideoFrame.from_ndarray(rgb, format="rgb24").reformat(format=kind)
            frame.pts, frame.time_base = tick, Fraction(1, rate)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


@pytest.mark.parametrize("suffix", ["ts", "mkv", "mp4"])
@pytest.mark.parametrize(("fps", "frames"), [(5, 10), (20, 40), (0, 20)])
def test_a_clock_that_jumps_far_ahead_is_not_filled(tmp_path, suffix, fps, frames):
    path = write_ticks(tmp_path / f"v.{suffix}", [*range(10), *range(1200, 1210)])
    row = extract(path, tmp_path / "root", fps=fps, progress=False).rows[0]
    assert (row.frames, row.fps) == (frames, fps or 10)
    assert row.note == "the clock jumps ahead by 119.0 s at 1.0 s, not filled"
    assert numbers(tmp_path / "root" / "v")[-1] == (18 if fps == 5 else 19)


@pytest.mark.parametrize(("fps", "frames"), [(5, 10), (0, 20)])
def test_a_clock_that_begins_again_goes_on(tmp_path, fps, frames):
    parts = [
        write_ticks(tmp_path / f"{i}.ts", [tick + 300 * i for tick in range(10)]).read_bytes() for i in (1, 0)
    ]
    (tmp_path / "v.ts").write_bytes(b"".join(parts))
    row = extract(tmp_path / "v.ts", tmp_path / "root", fps=fps, progress=False).rows[0]
    assert row.frames == frames and row.fps == (fps or 10)
    assert "the clock jumps back by" in row.note
    assert numbers(tmp_path / "root" / "v") == 2 * list(range(0, 10, 2 if fps else 1))


@pytest.mark.parametrize("start", [0.6, 1.4, 2, 3])
@pytest.mark.parametrize("suffix", ["ts", "mpg"])
def test_a_start_in_a_file_whose_clock_begins_again(tmp_path, suffix, start):
    codec = "libx264" if suffix == "ts" else "mpeg1video"
    part = write_ticks(tmp_path / f"part.{suffix}", range(35), codec, rate=25, options={"g": "5"})
    path = tmp_path / f"v.{suffix}"
    path.write_bytes(3 * part.read_bytes())
    extract(path, tmp_path / "whole", progress=False)
    extract(path, tmp_path / "root", start=start, duration=0.4, progress=False)
    whole, first = numbers(tmp_path / "whole" / "v"), int(25 * start + 0.5)
    assert len(whole) == 105 and whole[70:100] == list(range(30))
    assert numbers(tmp_path / "root" / "v") == whole[first : first + 10]
    with pytest.raises(UserError, match="start 9 s lies beyond the last frame"):
        extract(path, tmp_path / "beyond", start=9, progress=False)


@pytest.mark.parametrize("suffix", ["ts", "mkv", "mp4"])
def test_a_start_at_the_last_frame(tmp_path, suffix):
    path = write_ticks(tmp_path / f"v.{suffix}", range(20), options={"bf": "2"})
    extract(path, tmp_path / "root", start=1.9, progress=False)
    assert numbers(tmp_path / "root" / "v") == [19]
    with pytest.raises(UserError, match=r"start 5 s lies beyond the last frame, at 1\.90 s"):
        extract(path, tmp_path / "beyond", start=5, progress=False)


def test_one_wild_time_costs_no_frame(tmp_path):
    path = write_ticks(tmp_path / "v.mkv", [0, 1, 2, 3, 4, 50000, 50001])
    row = extract(path, tmp_path / "root", fps=10, progress=False).rows[0]
    assert numbers(tmp_path / "root" / "v") == [0, 1, 2, 3, 4, 5, 6] and "ahead by 4999.5 s" in row.note


def test_pictures_that_stand_for_seconds_are_no_jump(tmp_path):
    path = write_ticks(tmp_path / "slides.mp4", [0, 30, 60, 90], rate=10)
    row = extract(path, tmp_path / "root", fps=5, progress=False).rows[0]
    assert numbers(tmp_path / "root" / "slides")[:45] == [i // 15 for i in range(45)] and row.note == ""


STILLS_AND_MOTION = [0, 33, 66, 100, 3100, 3133, 3166, 3200, 6200, 6233, 6266, 9000]


@pytest.mark.parametrize("reordered", ["0", "3"])
@pytest.mark.parametrize("suffix", ["mp4", "mov"])
def test_stills_between_motion_keep_their_time(tmp_path, suffix, reordered):
    """MP4 stores how long samples last in the order of decoding, which with B-frames is not that of
    showing.
    """
    times, options = STILLS_AND_MOTION, {"bf": reordered, "g": "250"}
    path = write_ticks(tmp_path / f"v.{suffix}", times, rate=1000, options=options)
    row = extract(path, tmp_path / "root", fps=10, progress=False).rows[0]
    shown = [max(i for i, time in enumerate(times) if time <= 100 * tick) for tick in range(91)]
    assert (numbers(tmp_path / "root" / "v"), row.note) == (shown, "")
    extract(path, tmp_path / "front", fps=10, duration=2, progress=False)
    assert numbers(tmp_path / "front" / "v") == shown[:20]
    extract(path, tmp_path / "middle", fps=10, start=3.1, duration=2, progress=False)
    assert numbers(tmp_path / "middle" / "v") == shown[31:51]


# ---- ticks without a picture


@pytest.mark.parametrize(("codec", "kind"), [("mjpeg", "yuvj420p"), ("mpeg4", "yuv420p")])
@pytest.mark.parametrize("every", [3, 10])
def test_an_avi_with_dropped_ticks_is_healthy(tmp_path, codec, kind, every):
    path = write_ticks(tmp_path / "v.avi", [every * i for i in range(12)], codec, kind, rate=30)
    row = extract(path, tmp_path / "root", progress=False).rows[0]
    assert (row.frames, row.note) == (12, "")
    assert row.fps == pytest.approx(30 / every)
    at_30 = extract(path, tmp_path / "thirty", fps=30, progress=False).rows[0]
    assert at_30.frames == 11 * every + 1 and at_30.note == ""


def test_ticks_that_are_dropped_at_the_end(tmp_path):
    data = bytearray(write_ticks(tmp_path / "v.avi", range(12), "mjpeg", "yuvj420p").read_bytes())
    for name, before in ((b"avih", 8 + 16), (b"strh", 8 + 32)):  # where the headers count frames
        at = data.index(name) + before
        assert data[at : at + 4] == (12).to_bytes(4, "little")
        data[at : at + 4] = (30).to_bytes(4, "little")
    (tmp_path / "v.avi").write_bytes(data)
    assert extract(tmp_path / "v.avi", tmp_path / "root", progress=False).rows[0].note == ""
    middle = (data.index(b"movi") + data.index(b"idx1")) // 2
    (tmp_path / "cut.avi").write_bytes(data[:middle])  # here they are gone, not dropped
    with pytest.raises(UserError, match=r"damaged: \d+ of \d+ frames can be decoded"):
        extract(tmp_path / "cut.avi", tmp_path / "root", progress=False)


@pytest.mark.parametrize("suffix", ["avi", "mp4", "mkv"])
def test_mpeg4_pictures_that_are_not_coded_are_healthy(tmp_path, suffix):
    """Every third VOP says that nothing has changed: what encoders write for a screen that stands still."""
    with (
        av.open(str(write_ticks(tmp_path / "all.avi", range(21), "mpeg4"))) as coded,
        av.open(str(tmp_path / f"v.{suffix}"), "w") as container,
    ):
        stream = container.add_stream_from_template(coded.streams.video[0])
        for i, packet in enumerate(p for p in coded.demux() if p.size):
            if i % 3 == 1:  # start code, P, no full second, marker, 4 bits of time, marker, not coded
                same = av.Packet(bytes([0, 0, 1, 0xB6, 0b01010000, 0b10000000]))
                same.pts, same.dts, same.time_base = packet.pts, packet.dts, packet.time_base
                packet = same
            packet.stream = stream
            container.mux(packet)
    row = extract(tmp_path / f"v.{suffix}", tmp_path / "root", progress=False).rows[0]
    assert row.frames == 14 and row.note == ""


# ---- interlaced film


def comb(picture):
    """How much neighbouring rows differ more than rows two apart: the fields of two moments side by side."""
    rows = picture.mean(2)
    return np.abs(np.diff(rows, axis=0)).mean() - np.abs(rows[2:] - rows[:-2]).mean() / 2


@pytest.mark.parametrize("codec", ["libx264", "mpeg2video"])
def test_interlaced_film_is_deinterlaced(tmp_path, codec):
    fields = []
    for i in range(24):  # a bar that moves on with each field
        field = np.full((48, 96, 3), 40, np.uint8)
        field[:, 4 + 3 * i : 16 + 3 * i] = 220
        fields.append(field)
    woven = [
        np.where(np.arange(48)[:, None, None] % 2 == 0, a, b)
        for a, b in zip(fields[::2], fields[1::2], strict=True)
    ]
    path = tmp_path / "tv.mkv"
    with av.open(str(path), "w") as container:
        options = {"flags": "+ildct+ilme", "qp": "4", "qscale": "2", "x264-params": "tff=1"}
        stream = container.add_stream(codec, rate=25, options=options)
        stream.height, stream.width, stream.pix_fmt = (
            48,
            96,
            "yuv422p" if codec == "mpeg2video" else "yuv420p",
        )
        for i, rgb in enumerate(woven):
            frame = av.VideoFrame.from_ndarray(rgb, format="rgb24").reformat(format=stream.pix_fmt)
            frame.pts, frame.time_base = i, Fraction(1, 25)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    row = extract(path, tmp_path / "root", progress=False).rows[0]
    found = pictures(tmp_path / "root" / "tv")
    assert (row.frames, row.fps, row.note) == (12, 25, "deinterlaced")
    assert all(comb(woven[i].astype(float)) > 8 and comb(found[i]) < 4 for i in range(12))
    middle = [np.flatnonzero(picture.mean((0, 2)) > 130).mean() for picture in found]
    assert np.allclose(np.diff(middle), 6, atol=1.5)  # one frame a frame, in order
    part = extract(path, tmp_path / "part", start=0.2, duration=0.12, progress=False).rows[0]
    assert part.frames == 3


def test_interlaced_film_with_lost_packets_is_damaged(tmp_path):
    options = {"flags": "+ildct+ilme", "bf": "0"}
    with (
        av.open(
            str(write_ticks(tmp_path / "all.mkv", range(24), "mpeg2video", rate=25, options=options))
        ) as whole,
        av.open(str(tmp_path / "tv.mp4"), "w") as container,
    ):
        stream = container.add_stream_from_template(whole.streams.video[0])
        for i, packet in enumerate(p for p in whole.demux() if p.size):
            if i % 3 == 1:
                lost = av.Packet(bytes(packet.size))
                lost.pts, lost.dts, lost.time_base = packet.pts, packet.dts, packet.time_base
                packet = lost
            packet.stream = stream
            container.mux(packet)
    with pytest.raises(UserError, match=r"damaged: 16 of 24 frames can be decoded"):
        extract(tmp_path / "tv.mp4", tmp_path / "root", progress=False)


# ---- what they look like


def test_crop_pad_and_stretch(clip, tmp_path):
    size = {"height": 24, "width": 24}
    got = {}
    for fit in ("crop", "pad", "stretch"):
        extract(clip, tmp_path / fit, fit=fit, **size, progress=False)
        got[fit] = pictures(tmp_path / fit / "clip")[19].mean(2)
        assert got[fit].shape == (24, 24)
    left_to_right = {fit: picture[12, -1] - picture[12, 0] for fit, picture in got.items()}
    assert left_to_right["stretch"] > left_to_right["crop"] + 2  # the crop lacks the ends of the ramp
    assert got["pad"][0].max() == got["pad"][-1].max() == 0 and got["pad"][12].min() > 100
    extract(clip, tmp_path / "wide", width=32, progress=False)
    assert pictures(tmp_path / "wide" / "clip")[0].shape == (24, 32, 3)  # the height follows


def test_what_is_cut_away_is_said_and_a_shape_is_proposed(tmp_path):
    clip = write_video(tmp_path / "phone.mp4", moving_square(10, 160, 90))
    table = extract(clip, tmp_path / "square", height=32, width=32, progress=False).table()
    assert "done (44% cut away, top and bottom)" in table
    assert (
        "44% of phone is cut away (top and bottom): it is 160 high and 90 wide, and 32 high and 32 wide was asked for."
        in table
    )
    assert "height=64 and width=32 cut 11%; fit='pad' cuts nothing" in table
    assert extract(clip, tmp_path / "square", height=32, width=32, progress=False).table() == table.replace(
        "done", "kept"
    )
    for options in ({"fit": "pad"}, {"fit": "stretch"}, {"height": 0}, {"width": 18}):
        settings = {"height": 32, "width": 32} | options
        assert "cut away" not in extract(clip, tmp_path / "other", progress=False, **settings).table()
    old = tmp_path / "square/phone/.arc.json"
    old.write_text(json.dumps({k: v for k, v in json.loads(old.read_text()).items() if k != "original"}))
    assert "cut away" not in extract(clip, tmp_path / "square", height=32, width=32, progress=False).table()


@pytest.mark.parametrize(
    ("original", "size", "shape"),
    [
        ((1920, 1080), (64, 64), (112, 64)),
        ((1080, 1920), (64, 64), (64, 112)),
        ((1920, 1080), (128, 224), (256, 144)),
        ((480, 640), (64, 64), (48, 64)),
        ((100, 100), (8, 8), (8, 8)),
    ],
)
def test_the_shape_that_is_proposed(original, size, shape):
    assert fitting_shape(original, size) == shape


def test_a_turned_phone_video_comes_out_upright(clip, tmp_path):
    data = bytearray(clip.read_bytes())
    at = data.index(b"tkhd") + 4 + 40  # the matrix in the track's header
    assert data[at : at + 4] == (0x10000).to_bytes(4, "big")
    for i, value in enumerate([0, 0x10000, 0, -0x10000, 0, 0]):  # a quarter turn clockwise
        data[at + 4 * i : at + 4 * i + 4] = value.to_bytes(4, "big", signed=True)
    (tmp_path / "turned.mp4").write_bytes(data)
    extract(tmp_path / "turned.mp4", tmp_path / "root", progress=False)
    extract(clip, tmp_path / "root", progress=False)
    turned, straight = (pictures(tmp_path / "root" / name)[5] for name in ("turned", "clip"))
    assert np.array_equal(turned, np.rot90(straight, -1))


def test_pixels_that_are_not_square(tmp_path):
    with av.open(str(tmp_path / "dvd.mp4"), "w") as container:
        stream = container.add_stream("libx264", rate=10)
        stream.height, stream.width, stream.pix_fmt = 48, 64, "yuv420p"
        stream.codec_context.sample_aspect_ratio = Fraction(3, 2)
        for frame in numbered(3):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())
    assert extract(tmp_path / "dvd.mp4", tmp_path / "root", progress=False).rows[0].size == (48, 96)


def test_contact_sheet_and_table(clip, tmp_path):
    extraction = extract(clip, tmp_path, progress=False)
    with Image.open(extraction.contact_sheet) as sheet:
        row = np.asarray(sheet)[60, 66::132]
    assert (np.diff(row.mean(1).astype(int)) > 0).sum() >= 6  # the frames of the row grow brighter
    assert "| clip | 20 | 48x64 | 10 | 2.00 | 0 | done |" in extraction.table()


# ---- what is there already


def test_a_finished_arc_is_not_decoded_again(clip, tmp_path, monkeypatch):
    extract(clip, tmp_path, progress=False)
    monkeypatch.setattr(extract_frames, "Video", None)  # whoever decodes now fails
    assert extract(clip, tmp_path, progress=False).rows[0].status == "kept"


@pytest.mark.parametrize("change", [{"fps": 5}, {"height": 24}, {"start": 1}, {"drop_duplicates": True}])
def test_other_settings_replace_the_arc(clip, tmp_path, change):
    extract(clip, tmp_path, progress=False)
    assert extract(clip, tmp_path, progress=False, **change).rows[0].status == "done"
    record = json.loads((tmp_path / "clip" / ".arc.json").read_text())
    assert record["made_from"]["settings"][next(iter(change))] == next(iter(change.values()))
    assert len(pictures(tmp_path / "clip")) == record["frames"]


def test_an_arc_of_an_older_version_is_done_anew(clip, tmp_path):
    extract(clip, tmp_path, progress=False)
    record = json.loads((tmp_path / "clip" / ".arc.json").read_text())
    del record["made_from"]["frames_version"]
    (tmp_path / "clip" / ".arc.json").write_text(json.dumps(record))
    (tmp_path / "clip" / "frame_0003.png").write_bytes((tmp_path / "clip" / "frame_0000.png").read_bytes())
    assert extract(clip, tmp_path, progress=False).rows[0].status == "done"
    assert numbers(tmp_path / "clip") == list(range(20))
    assert extract(clip, tmp_path, progress=False).rows[0].status == "kept"


def test_a_changed_video_or_a_lost_frame_is_done_anew(tmp_path):
    path, root = write_video(tmp_path / "a.mp4", numbered(5)), tmp_path / "root"
    extract(path, root, progress=False)
    (root / "a" / "frame_0003.png").unlink()
    assert extract(path, root, progress=False).rows[0].status == "done" and len(pictures(root / "a")) == 5
    write_video(path, numbered(5, first=3))
    extract(path, root, progress=False)
    assert numbers(root / "a") == [3, 4, 5, 6, 7]


def test_what_others_made_is_never_deleted(clip, tmp_path):
    (tmp_path / "clip").mkdir()
    (tmp_path / "clip" / "frame_0000.png").write_bytes(b"mine")
    with pytest.raises(UserError, match="clip is in the way"):
        extract(clip, tmp_path, progress=False)
    assert (tmp_path / "clip" / "frame_0000.png").read_bytes() == b"mine"


@pytest.mark.parametrize("text", ["{", "[]", "{}", '{"source": "a", "made_from": 3}'])
def test_a_folder_with_another_ones_record_is_in_the_way(clip, tmp_path, text):
    folder = tmp_path / "d" / clip.stem
    folder.mkdir(parents=True)
    (folder / ".arc.json").write_text(text)
    with pytest.raises(UserError, match="is in the way, and this tool did not make it"):
        extract(clip, tmp_path / "d", progress=False)


def test_a_folder_of_videos_that_may_not_be_read(tmp_path, monkeypatch):
    def refuse(path=None):
        raise PermissionError(13, "Permission denied", path)

    for name in ("listdir", "scandir"):  # root may read everything
        monkeypatch.setattr(os, name, refuse)
    with pytest.raises(UserError, match=r"cannot be read \(Permission denied\)"):
        extract(tmp_path, tmp_path / "d", progress=False)


def test_what_lies_between_the_videos_and_is_none(clip, tmp_path):
    """A pipe would let the extraction wait for ever; a link to itself ended it."""
    folder = tmp_path / "videos"
    (folder / "folder.mp4").mkdir(parents=True)
    for name in ("pipe.mp4", "pipe.webp"):
        os.mkfifo(folder / name)
    (folder / "loop.mp4").symlink_to("loop.mp4")
    for name in (b"-dash %d.mp4", b"fr\xfch.mp4"):
        shutil.copy(clip, os.path.join(os.fsencode(folder), name))
    (folder / os.fsdecode(b"f\xfc.mp4")).write_bytes(b"")
    done = run_script(folder, tmp_path / "root")
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert "| -dash_d | 20 |" in done.stdout and "| fr_h | 20 |" in done.stdout
    failed = [line for line in done.stdout.splitlines() if line.startswith("FAILED")]
    assert len(failed) == 2 and "symbolic links" in failed[1]
    assert failed[0].endswith("f\\udcfc.mp4: the file is empty")


def test_a_frame_an_hour_is_a_rate(tmp_path):
    path = write_video(tmp_path / "slow.mov", numbered(2), rate=Fraction(1, 3600))
    [row] = extract(path, tmp_path / "root", progress=False).rows
    assert row.frames == 2 and row.fps == pytest.approx(1 / 3600, rel=0.01) and row.seconds > 3600


def test_a_folder_under_ones_home(clip, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    assert extract(clip, "~/d", progress=False).dataset_root == tmp_path / "d"
    assert not (tmp_path / "~").exists()


def test_another_video_of_the_same_name_does_not_replace_the_arc(clip, tmp_path):
    extract(clip, tmp_path / "root", progress=False)
    other = write_video(tmp_path / "clip.mp4", numbered(5))
    with pytest.raises(UserError, match="was made from"):
        extract(other, tmp_path / "root", progress=False)
    assert len(pictures(tmp_path / "root" / "clip")) == 20


def test_kill_leaves_no_half_arc(tmp_path):
    videos = tmp_path / "videos"
    videos.mkdir()
    long = write_video(videos / "long.mp4", [np.roll(frame, i) for i, frame in enumerate(numbered(20) * 60)])
    root = tmp_path / "root"
    child = subprocess.Popen(
        [sys.executable, SCRIPT, long, root, "--height", "720"], stderr=subprocess.DEVNULL
    )
    deadline = time.monotonic() + 60
    while not list(root.glob(".extracting-*/frame_0005.png")) and time.monotonic() < deadline:
        time.sleep(0.01)
    os.kill(child.pid, signal.SIGKILL)
    child.wait()
    assert list(root.glob(".extracting-*")) and not (root / "long").exists()  # it was killed in the middle
    row = extract(long, root, height=24, progress=False).rows[0]
    assert (row.status, row.frames, len(pictures(root / "long"))) == ("done", 1200, 1200)
    assert not list(root.glob(".extracting-*"))


def test_two_processes_at_once_make_one_arc(clip, tmp_path, monkeypatch):
    write = extract_frames._write_frames

    def while_another_does_it(*args):
        result = write(*args)
        monkeypatch.setattr(extract_frames, "_write_frames", write)
        monkeypatch.setattr(os, "getpid", lambda: 1)
        assert extract(clip, tmp_path, progress=False).rows[0].status == "done"
        return result

    monkeypatch.setattr(extract_frames, "_write_frames", while_another_does_it)
    monkeypatch.setattr(extract_frames.psutil, "pid_exists", lambda pid: True)
    assert extract(clip, tmp_path, progress=False).rows[0].status == "kept"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["clip", "contact_sheet.png"]


def test_full_disk(clip, tmp_path, monkeypatch):
    def full(self, data):
        raise OSError(28, "No space left on device", str(self))

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(UserError, match="No space left on device"):
        extract(clip, tmp_path, progress=False)
    assert list(tmp_path.iterdir()) == []


# ---- names and places


@pytest.mark.parametrize(
    "name", ["2024-01-01T12:30:00.mp4", "c:lip.mp4", "file:x.mp4", "http:.mp4", "data:,x.mp4", "%d:1.mp4"]
)
def test_a_colon_in_a_relative_name(clip, tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    Path(name).write_bytes(clip.read_bytes())
    assert extract(name, "root", progress=False).rows[0].frames == 20
    Path("list.txt").write_text(f"{name} listed\n")
    assert extract("list.txt", "other:root", progress=False).rows[0].arc == "listed"
    Path("the:folder").mkdir()
    os.rename(name, f"the:folder/{name}")
    assert extract("the:folder", "third", progress=False).rows[0].frames == 20


SCRIPTS = {
    "Japanese": "\u6771", "Korean": "\ud55c", "Cyrillic": "\u0436", "Greek": "\u03c9", "Arabic": "\u0639", "Hebrew": "\u05d0",
    "Thai": "\u0e01", "Devanagari": "\u0939", "Gothic": "\U00010330", "Han outside the plane": "\U00020000", "French": "\u00e9",
}  # fmt: skip


@pytest.mark.parametrize("script", SCRIPTS)
@pytest.mark.parametrize("shift", range(4))
def test_long_names_are_cut_by_bytes(script, shift):
    text = ("x" * shift + SCRIPTS[script] * 150)[: 245 // len(SCRIPTS[script].encode())]
    name = safe_name(text)
    assert text.startswith(name) and len(name.encode()) <= LONGEST and len(name) <= 80
    assert len(name) == 80 or len(name.encode()) > LONGEST - len(SCRIPTS[script].encode())


@pytest.mark.parametrize("script", ["Japanese", "Gothic"])
def test_long_names_stay_apart_and_the_file_system_takes_them(clip, tmp_path, script):
    letter = SCRIPTS[script]
    for end in ("1", "2"):
        (tmp_path / "in").mkdir(exist_ok=True)
        name = letter * (240 // len(letter.encode())) + end + ".mp4"
        (tmp_path / "in" / name).write_bytes(clip.read_bytes())
    rows = extract(tmp_path / "in", tmp_path / "root", height=16, split_scenes=True, progress=False).rows
    assert len({row.arc for row in rows}) == 2 and rows[1].arc == rows[0].arc.replace("_shot", "_2_shot")
    assert (
        extract(tmp_path / "in", tmp_path / "root", height=16, split_scenes=True, progress=False)
        .rows[1]
        .status
        == "kept"
    )


@pytest.mark.parametrize("name", ["nowhere.mp4", "empty.mp4", "no-such-list.txt", "nothing.txt"])
def test_nothing_is_made_for_a_source_that_is_none(tmp_path, name):
    (tmp_path / "empty.mp4").write_bytes(b"")
    (tmp_path / "nothing.txt").write_text("gone.mp4 gone\n")
    with pytest.raises(UserError):
        extract(tmp_path / name, tmp_path / "root", progress=False)
    assert not (tmp_path / "root").exists()


def test_a_relative_source_that_is_not_there_names_the_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=rf"no such file or folder \(looked in {re.escape(str(tmp_path))}\)"):
        extract("film.mp4", "root", progress=False)


# ---- several videos, and bad ones


@pytest.fixture(scope="module")
def broken(tmp_path_factory, clip):
    """A folder with one good video and one of each kind of bad one."""
    folder = tmp_path_factory.mktemp("broken")
    rng = np.random.default_rng(0)
    noise = [rng.integers(0, 255, (64, 64, 3), np.uint8) for _ in range(30)]
    data = write_video(folder / "cut.mp4", noise, movflags="faststart").read_bytes()
    begin = data.index(b"mdat")
    (folder / "cut.mp4").write_bytes(data[: begin + (len(data) - begin) // 20])  # claims 30 frames, holds 1
    (folder / "text.mp4").write_text("this is no video\n" * 50)
    (folder / "empty.mp4").write_bytes(b"")
    (folder / "short.mp4").write_bytes(write_video(folder / "short.mp4", numbered(2)).read_bytes())
    (folder / "good.mp4").write_bytes(clip.read_bytes())
    with av.open(str(folder / "sound.mp4"), "w") as container:
        stream = container.add_stream("aac", rate=8000, layout="mono")
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
        frame.sample_rate = 8000
        container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return folder


def test_bad_videos_are_named_and_the_others_go_on(broken, tmp_path):
    extraction = extract(broken, tmp_path, start=0.5, duration=1, progress=False)
    assert [row.arc for row in extraction.rows] == ["good"]
    failed = {Path(source).name: reason for source, reason in extraction.failed}
    assert set(failed) == {"cut.mp4", "text.mp4", "empty.mp4", "short.mp4", "sound.mp4"}
    assert "the file is empty" in failed["empty.mp4"] and "not a readable video" in failed["text.mp4"]
    assert "start 0.5 s lies beyond" in failed["short.mp4"] and "no picture" in failed["sound.mp4"]
    assert all(f"{name}: {reason}" in extraction.table() for name, reason in failed.items())
    assert sorted(p.name for p in tmp_path.iterdir()) == ["contact_sheet.png", "good"]


def test_a_damaged_video_says_how_much_decodes(broken, tmp_path):
    with pytest.raises(UserError, match=r"cut\.mp4: damaged: 1 of 30 frames can be decoded"):
        extract(broken / "cut.mp4", tmp_path, progress=False)


def test_one_bad_frame_is_left_out_and_noted(tmp_path):
    path = write_video(tmp_path / "spot.mp4", numbered(30))
    with av.open(str(path)) as container:
        packet = [(packet.pos, packet.size) for packet in container.demux(video=0) if packet.size][-1]
    data = bytearray(path.read_bytes())
    data[packet[0] : sum(packet)] = b"\xff" * packet[1]
    path.write_bytes(data)
    row = extract(path, tmp_path / "root", progress=False).rows[0]
    assert row.frames == 29 and row.note == "damaged: 29 of 30 frames can be decoded"


@pytest.mark.parametrize("suffix", ["mp3", "m4a", "mp4", "mkv"])
@pytest.mark.parametrize("film", [False, True])
def test_a_cover_is_no_film(clip, tmp_path, suffix, film):
    if film and suffix in ("mp3", "m4a"):
        pytest.skip("such a file holds no film")
    path = tmp_path / f"song.{suffix}"
    Image.new("RGB", (40, 40), "red").save(tmp_path / "cover.jpg")
    muxer = "mp4" if suffix == "m4a" else "matroska" if suffix == "mkv" else suffix
    with (
        av.open(str(path), "w", format=muxer) as container,
        av.open(str(tmp_path / "cover.jpg")) as cover,
        av.open(str(clip)) as moving,
    ):
        sound = container.add_stream("libmp3lame" if suffix == "mp3" else "aac", rate=44100)
        picture = container.add_stream_from_template(cover.streams.video[0])
        picture.disposition = Disposition.attached_pic.value
        target = container.add_stream_from_template(moving.streams.video[0]) if film else None
        container.start_encoding()
        packet = next(p for p in cover.demux() if p.size)
        packet.stream, packet.pts, packet.dts = picture, 0, 0
        container.mux(packet)
        for packet in moving.demux() if film else ():
            if packet.size:
                packet.stream = target
                container.mux(packet)
        for i in range(20):
            channels = len(sound.layout.channels)
            frame = av.AudioFrame.from_ndarray(
                np.zeros((channels, 1024), np.float32), "fltp", sound.layout.name
            )
            frame.sample_rate, frame.pts, frame.time_base = 44100, 1024 * i, Fraction(1, 44100)
            container.mux(sound.encode(frame))
        container.mux(sound.encode())
    if film:
        extract(path, tmp_path / "root", progress=False)
        assert numbers(tmp_path / "root" / "song") == list(range(20))
        return
    with pytest.raises(UserError, match="no picture in it that moves"):
        extract(path, tmp_path / "root", progress=False)


def test_an_animated_webp(tmp_path):
    frames = [Image.new("RGBA", (64, 48), (40 * i, 0, 90, 255 if i else 0)) for i in range(6)]
    path = tmp_path / "a.webp"
    frames[0].save(
        path, save_all=True, append_images=frames[1:], duration=[100, 100, 300, 100, 100, 100], lossless=True
    )
    row = extract(path, tmp_path / "root", fps=10, progress=False).rows[0]
    assert (row.frames, row.seconds, row.note) == (8, 0.8, "")
    found = pictures(tmp_path / "root" / "a")
    assert [picture[5, 5].tolist() for picture in found[:4]] == [
        [0, 0, 0],
        [40, 0, 90],
        [80, 0, 90],
        [80, 0, 90],
    ]
    path.write_bytes(path.read_bytes()[:60])
    with pytest.raises(UserError, match="not a readable WebP"):
        extract(path, tmp_path / "cut", progress=False)


def test_a_folder_of_animated_webps(tmp_path):
    frames = [Image.new("RGB", (64, 48), (40 * i, 0, 90)) for i in range(4)]
    (tmp_path / "in").mkdir()
    frames[0].save(tmp_path / "in" / "still.webp", lossless=True)
    with pytest.raises(UserError, match=r"no video in this folder .* animated \.webp"):
        extract(tmp_path / "in", tmp_path / "root", progress=False)
    frames[0].save(tmp_path / "in" / "a.webp", save_all=True, append_images=frames[1:], duration=100)
    rows = extract(tmp_path / "in", tmp_path / "root", progress=False).rows
    assert [(row.arc, row.frames) for row in rows] == [("a", 4)]


def test_the_frames_of_one_video_are_packed_by_several_threads(clip, tmp_path, monkeypatch):
    both = threading.Barrier(2, timeout=20)  # passes where two pack at once, and breaks where one is alone
    packed = []

    def pack(rgb):
        packed.append(len(packed))
        if len(packed) <= 2:
            both.wait()
        return png_bytes(rgb)

    monkeypatch.setattr(extract_frames, "png_bytes", pack)
    extract(clip, tmp_path / "two", workers=2, progress=False)
    monkeypatch.undo()
    extract(clip, tmp_path / "one", workers=1, progress=False)
    one, two = (
        {path.name: path.read_bytes() for path in (tmp_path / name / "clip").glob("*.png")}
        for name in ("one", "two")
    )
    assert len(packed) == len(two) > 2 and one == two


def test_two_workers_give_the_same_bytes_as_one(clip, tmp_path):
    videos = tmp_path / "videos"
    videos.mkdir()
    for name in ("b.mp4", "a.mp4", "a.MKV", "Q 1 (x).mp4"):
        (videos / name).write_bytes(clip.read_bytes())
    made = {}
    for workers in (1, 2):
        root = tmp_path / f"root{workers}"
        rows = extract(videos, root, fps=7, height=20, workers=workers, progress=False).rows
        assert [row.arc for row in rows] == ["Q_1_x", "a", "a_2", "b"]
        made[workers] = {
            path.relative_to(root): path.read_bytes() for path in root.rglob("*") if path.is_file()
        }
    assert len(made[1]) == 4 * 15 + 1 and made[1] == made[2]


def test_a_list_names_parts_of_videos(clip, tmp_path):
    listing = tmp_path / "list.txt"
    (tmp_path / "local.mp4").write_bytes(clip.read_bytes())
    listing.write_text(
        "# url name start duration\n\nlocal.mp4 one 0:01 0.3\nlocal.mp4 two\nlocal.mp4 two 1.9\nno.mp4 gone\n"
    )
    extraction = extract(listing, tmp_path / "root", start=0.2, duration=0.4, progress=False)
    assert [row.arc for row in extraction.rows] == ["one", "two", "two_2"]
    assert [numbers(tmp_path / "root" / name) for name in ("one", "two", "two_2")] == [
        [10, 11, 12],
        [2, 3, 4, 5],
        [19],
    ]
    assert [source for source, _ in extraction.failed] == ["no.mp4"]


def test_a_list_downloads_each_address_once(clip, tmp_path, monkeypatch):
    asked = []

    def fake(url, folder, name, progress):
        asked.append(url)
        folder.mkdir(exist_ok=True)
        (folder / f"{name}.mp4").write_bytes(clip.read_bytes())
        return folder / f"{name}.mp4"

    monkeypatch.setattr(sources, "download", fake)
    (tmp_path / "list.txt").write_text("http://127.0.0.1/v a 0 1\nhttp://127.0.0.1/v b 1 1\n")
    for _ in range(2):
        assert len(extract(tmp_path / "list.txt", tmp_path / "root", progress=False).rows) == 2
    assert asked == ["http://127.0.0.1/v"] and len(list((tmp_path / "root" / ".videos").iterdir())) == 1


def test_bad_lines_are_named_by_number(tmp_path):
    (tmp_path / "list.txt").write_text("a.mp4 a\njust-one\na.mp4 a 1:xx\na.mp4 a 1 2 3\n")
    with pytest.raises(UserError, match=r"line 2 .*, line 3 \('1:xx' is not a time.*, line 4 "):
        extract(tmp_path / "list.txt", tmp_path / "root", progress=False)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"fps": -1}, "fps must be"),
        ({"height": -2}, "height must be"),
        ({"fit": "crob"}, "did you mean 'crop'"),
        ({"start": "soon"}, "is not a time"),
        ({"duration": -1}, "is not a time"),
        ({"workers": -1}, "workers must be"),
        ({"source": "nowhere.mp4"}, "no such file"),
        ({"source": "."}, "no video in this folder"),
    ],
)
def test_bad_settings(clip, tmp_path, monkeypatch, settings, message):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=message):
        extract(**{"source": clip, "dataset_root": tmp_path / "root", "progress": False} | settings)


def test_the_script_says_with_its_exit_code_what_happened(broken, tmp_path):
    good = run_script(broken / "good.mp4", tmp_path / "a", "--fps", 5, "--height", 24, "--duration", "0:01")
    assert good.returncode == 0 and "| good | 5 | 24x32 | 5 | 1.00 |" in good.stdout
    some = run_script(broken, tmp_path / "b", "--drop-duplicates")
    assert some.returncode == 1 and some.stderr.splitlines()[-1].startswith(
        "error: 4 of the videos failed (cut.mp4, empty"
    )
    assert "text.mp4: not a readable video" in some.stdout and "Traceback" not in some.stderr
