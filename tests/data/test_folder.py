"""Folders of frames: which files become which arc in which order, what is left out and said, how pixels are
read.
"""

import errno
import os
import zlib

import numpy as np
import pytest
from PIL import ExifTags, Image

from mtld_core.config import UserError
from mtld_core.data import DomainPair, folder, open_dataset
from mtld_core.data.pictures import read_picture
from mtld_core.media import read_image


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("MTLD_CACHE", str(tmp_path / "cache"))


def put(path, value=0, size=(8, 8)):
    """Write a picture whose every byte is `value`; (H, W)."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((*size, 3), value, np.uint8)).save(path)


def read(path, **options):
    return open_dataset(path, progress=False, **options)


def values(dataset):
    return dataset.frames[:, 0, 0, 0].tolist()


def test_arcs_and_frames_come_in_the_order_of_their_numbers(tmp_path):
    root = tmp_path / "d"
    for arc, names in {
        "arc_10": ["f10.png", "f9.png"],
        "arc_2": ["frame_0011.png", "frame_2.png", "frame_0100.bmp"],
    }.items():
        for name in names:
            put(root / arc / name, int("".join(c for c in name.split(".")[0] if c.isdigit())))
    data = read(root)
    assert data.kind == "arcs"
    assert [(arc.name, arc.start, arc.stop) for arc in data.arcs] == [("arc_2", 0, 3), ("arc_10", 3, 5)]
    assert values(data) == [2, 11, 100, 9, 10]
    assert data.arcs[0].numbers.tolist() == [2, 11, 100]
    assert data.describe() == {"path": str(root), "arcs": 2, "frames": 5, "size": [8, 8]}
    put(root / "arc_10/f10.png", 77)
    assert data.digest() != read(root).digest()
    put(root / "arc_10/f10.png", 10)
    assert data.digest() == read(root).digest()
    assert data.row("arc_10", 10) == 4


def test_the_first_number_of_a_name_counts(tmp_path):
    put(tmp_path / "d/a/1_take_9.png", 1)
    put(tmp_path / "d/a/2_take_3.png", 2)
    assert values(read(tmp_path / "d")) == [1, 2]


NAMES = {  # names in their order -> the numbers of the frames
    "a number that all share": ([f"ep2_frame_{i}.png" for i in range(12)], [*range(12)]),
    "padded": ([f"ep2_frame_{i:04d}.png" for i in range(12)], [*range(12)]),
    "season and episode": ([f"S01E02-{i}.png" for i in range(8, 13)], [*range(8, 13)]),
    "nothing but numbers": ([f"0001-{i}.png" for i in range(8, 13)], [*range(8, 13)]),
    "a date": ([f"2024-05-01_{i}.png" for i in range(8, 13)], [*range(8, 13)]),
    "a time": ([f"2024-05-01 10.20.{i}.png" for i in (8, 9, 10, 11)], [8, 9, 10, 11]),
    "numbers behind it": ([f"frame_{i}_1080p_v2.png" for i in range(8, 13)], [*range(8, 13)]),
    "on both sides": ([f"cam1_{i}_x264.png" for i in range(8, 13)], [*range(8, 13)]),
    "two that change": (["s1_8.png", "s1_9.png", "s1_10.png", "s2_1.png", "s2_2.png"], [1, 1, 1, 2, 2]),
    "over midnight": (["d1_23-59.png", "d2_0-0.png", "d2_0-1.png"], [1, 2, 2]),
    "more digits than int64 holds": ([f"{'9' * 30}_{i}.png" for i in range(8, 13)], [*range(8, 13)]),
    "one file": (["frame_0007.png"], [7]),
    "one without": (["ep2_8.png", "ep2_9.png", "ep2_10.png", "ep2.png"], [8, 9, 10, 11]),
    "one stray": ([*[f"v2_frame_{i}.png" for i in (1, 2, 3, 10)], "mask_1.png"], [1, 2, 3, 10, 11]),
    "a stray with more numbers": (
        [*[f"v2_frame_{i}.png" for i in (1, 2, 10)], "mask_1_5.png"],
        [1, 2, 10, 11],
    ),
    "a stray that changes nothing": (
        ["frame_1.png", "shot_2.png", "frame_3.png", "frame_10.png"],
        [1, 2, 3, 10],
    ),
    "letters of two kinds": (["b1_8.png", "b1_9.png", "a2_1.png", "a2_2.png"], [1, 1, 2, 2]),
    "none that changes": (["a_v2.png", "b_v2.png"], [0, 1]),
}


@pytest.mark.parametrize("kind", NAMES)
def test_the_first_number_that_changes_orders_the_frames(tmp_path, kind):
    names, numbers = NAMES[kind]
    for value, name in enumerate(names):
        put(tmp_path / "d/a" / name, value)
    data = read(tmp_path / "d")
    assert values(data) == [*range(len(names))] and data.arcs[0].numbers.tolist() == numbers
    assert data.kind == ("images" if kind == "none that changes" else "arcs")
    assert data.row("a", numbers[-1]) == numbers.index(numbers[-1]), "the first of those with this number"
    assert (read(tmp_path / "d/a").arcs[0].numbers == numbers).all()


def test_numbers_of_several_files_are_told_in_few_lines(tmp_path):
    for name in [f"{take}_{i}.png" for take in range(9) for i in (10, 9)]:
        put(tmp_path / "d/a" / name)
    warnings = read(tmp_path / "d").warnings
    assert len(warnings) == 6
    assert (
        warnings[0]
        == "a: 2 files have the number 0 (0_9.png, 0_10.png), in the order of the numbers that follow"
    )
    assert warnings[5] == "a: 4 more numbers belong to several files"


def test_row_names_what_is_there(tmp_path):
    for number in (3, 4, 5):
        put(tmp_path / f"d/winter/frame_{number:04d}.png")
    data = read(tmp_path / "d")
    with pytest.raises(UserError, match="did you mean 'winter'"):
        data.row("wintre", 3)
    with pytest.raises(UserError, match=r"'winter' has no frame 9; its frames go from 3 to 5"):
        data.row("winter", 9)


def test_a_folder_with_frames_right_inside_is_one_arc(tmp_path):
    for number in range(3):
        put(tmp_path / f"solo/frame_{number}.png", number)
    data = read(tmp_path / "solo")
    assert [(arc.name, len(arc)) for arc in data.arcs] == [("solo", 3)]
    assert values(data) == [0, 1, 2]


def test_an_image_folder_without_numbers_is_sorted_by_name_after_a_warning(tmp_path):
    for index, name in enumerate(["cat/b.png", "cat/a.png", "dog/z.png"]):
        put(tmp_path / "d" / name, index)
    data = read(tmp_path / "d")
    assert data.kind == "images"
    assert values(data) == [1, 0, 2]
    assert any("cat: 2 files have no number in the name" in line for line in data.warnings)


def test_an_image_folder_is_read_as_torchvision_reads_it(tmp_path):
    from torchvision.datasets import ImageFolder
    from torchvision.datasets.folder import IMG_EXTENSIONS

    assert set(IMG_EXTENSIONS) == set(folder.SUFFIXES)
    for number, suffix in enumerate(IMG_EXTENSIONS):
        put(tmp_path / f"d/cat/{'ab'[number % 2]}{suffix.upper() if number > 4 else suffix}", 10 * number)
    for number, name in enumerate(
        ["cat/more/c.png", "cat/more/still/7.png", "cat/more/still/8.png", "dog/pug/a.png"]
    ):
        put(tmp_path / "d" / name, 101 + number)
    (tmp_path / "d/dog/empty").mkdir()
    (tmp_path / "d/dog/pug/notes.txt").write_text("x")
    theirs, ours = ImageFolder(tmp_path / "d"), read(tmp_path / "d", height=8, width=8)
    assert ours.kind == "images" and [(arc.name, len(arc)) for arc in ours.arcs] == [("cat", 12), ("dog", 1)]
    wanted = sorted((theirs.classes[label], round(np.asarray(image)[0, 0, 0] / 4)) for image, label in theirs)
    found = [
        (arc.name, round(v / 4))
        for arc in ours.arcs
        for v in ours.frames[arc.start : arc.stop, 0, 0, 0].tolist()
    ]
    assert sorted(found) == wanted
    assert any("dog/pug/notes.txt: not an image" in line for line in ours.warnings)


def test_deeper_arcs_are_read_where_there_are_no_others(tmp_path):
    for number in range(3):
        put(tmp_path / f"d/season_1/ep/{number}.png", number)
        put(tmp_path / f"d/season_1/ep/masks/{number}.png", 255)
        put(tmp_path / f"d/season_2/{number}/{number}.png", 10 + number)
    (tmp_path / "d/season_1/again").symlink_to(tmp_path / "d")
    data = read(tmp_path / "d")
    assert [arc.name for arc in data.arcs] == ["season_1/ep", "season_2/0", "season_2/1", "season_2/2"]
    assert values(data) == [0, 1, 2, 10, 11, 12] and data.row("season_1/ep", 2) == 2
    assert "season_1/ep/masks: a folder inside an arc, left out" in data.warnings
    put(tmp_path / "d/season_3/1.png")
    assert [arc.name for arc in read(tmp_path / "d").arcs] == ["season_3"]


def test_gaps_equal_numbers_and_other_files_are_told(tmp_path):
    arc = tmp_path / "d/arc_1"
    for number in (0, 1, 2, 30, 43, 44, 45):
        put(arc / f"frame_{number:04d}.png", number)
    put(arc / "frame_44.png", 144)
    (arc / "notes.txt").write_text("x")
    (arc / ".DS_Store").write_text("x")
    data = read(tmp_path / "d")
    assert data.warnings == [
        "arc_1/notes.txt: not an image (.png, .jpg, .jpeg, .webp, .bmp, .ppm, .pgm, .tif, .tiff), left out",
        "arc_1: 2 files have the number 44 (frame_0044.png, frame_44.png), sorted by name",
        "arc_1: 27 frames missing after frame_0002.png",
        "arc_1: 12 frames missing after frame_0030.png",
    ]
    assert values(data) == [0, 1, 2, 30, 43, 44, 144, 45]
    assert len(data.windows(8, cross_cuts=True)) == 1, "a gap does not split windows"


def test_an_even_step_is_no_gap(tmp_path):
    for number in range(0, 30, 3):
        put(tmp_path / f"d/a/{number}.png")
    assert read(tmp_path / "d").warnings == []


def damaged_set(tmp_path, bad, count=60):
    """`count` frames of which the first `bad` are cut short, empty, of another size, or no picture at all."""
    arc = tmp_path / "d/a"
    for number in range(count):
        put(arc / f"{number}.jpg", 100, (32, 32))
    ways = [
        lambda file: file.write_bytes(file.read_bytes()[:-60]),
        lambda file: file.write_bytes(b""),
        lambda file: put(file, 0, (16, 32)),
        lambda file: file.write_text("hello"),
    ]
    for number in range(bad):
        ways[number % 4](arc / f"{number}.jpg")
    return tmp_path / "d"


@pytest.mark.parametrize("memory", ["ram", "disk"])
def test_bad_files_are_left_out_and_named(tmp_path, memory):
    root = damaged_set(tmp_path, 4, 100)
    for _ in range(2):  # the second time from the cache
        data = read(root, memory=memory)
        assert len(data.frames) == 96
        assert data.arcs[0].numbers.tolist() == list(range(4, 100))
        assert data.frames.float().mean() == pytest.approx(100, abs=2)
        assert [line.split(":")[0] for line in data.warnings] == ["a/0.jpg", "a/1.jpg", "a/2.jpg", "a/3.jpg"]
        assert "32x16 pixels where most are 32x32" in data.warnings[2]


def test_too_many_bad_files_stop_with_a_list(tmp_path):
    with pytest.raises(UserError, match=r"24 of 60 image files.*a/0.jpg \(.*and 4 more$"):
        read(damaged_set(tmp_path, 24))


def test_other_sizes_are_welcome_where_a_size_is_given(tmp_path):
    put(tmp_path / "d/a/1.png", 10, (20, 40))
    put(tmp_path / "d/a/2.png", 10, (60, 60))
    assert read(tmp_path / "d", height=12, width=16, fit="stretch").size == (12, 16)
    data = read(tmp_path / "d", height=12, width=16, fit="pad")
    assert data.frames[0, 0, 8, 0] == 0, "padded above"
    assert data.frames[0, 6, 8, 0] == 10


def test_an_image_too_large_to_be_meant_is_bad(tmp_path, monkeypatch):
    root = damaged_set(tmp_path, 0, 40)
    put(root / "a/40.jpg", 0, (64, 64))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 3000)
    data = read(root, height=32, width=32)
    assert len(data.frames) == 40
    assert "decompression bomb" in data.warnings[0]


def test_domains(tmp_path):
    for name, value in {"X/a/0.png": 1, "Y/b/0.png": 2, "Y/b/1.png": 3, "truth/X_in_Y/a/0.png": 9}.items():
        put(tmp_path / "d" / name, value)
    pair = read(tmp_path / "d")
    assert isinstance(pair, DomainPair)
    assert (values(pair.x), values(pair.y)) == ([1], [2, 3])
    assert pair.describe() == {"path": str(tmp_path / "d"), "arcs": 2, "frames": 3, "size": [8, 8]}
    put(tmp_path / "d/Y/b/1.png", 4)
    assert pair.digest() != read(tmp_path / "d").digest()
    put(tmp_path / "d/X/a/0.png", 1, (8, 16))
    with pytest.raises(UserError, match="X has frames of 16x8 pixels and Y of 8x8"):
        read(tmp_path / "d")


def test_what_cannot_be_opened_names_the_path_and_the_way_out(tmp_path):
    def refuses(name, match):
        with pytest.raises(UserError, match=match) as caught:
            read(tmp_path / name)
        assert str(tmp_path / name) in str(caught.value)
        assert "\n" not in str(caught.value)

    refuses("missing", "does not exist")
    (tmp_path / "empty").mkdir()
    refuses("empty", "holds no images")
    (tmp_path / "videos").mkdir()
    (tmp_path / "videos/a.MP4").write_bytes(b"x")
    refuses("videos", "01_extract_frames")
    refuses("videos/a.MP4", "01_extract_frames")
    (tmp_path / "log").mkdir()
    (tmp_path / "log/recording_log.jsonl").write_text("{}")
    refuses("log", r"1 of 1 lines cannot be used .*: line 1 \(no field 'frame_filename'\)")
    refuses("log/recording_log.jsonl", "no field 'frame_filename'")
    (tmp_path / "a.h5").write_bytes(b"no")
    refuses("a.h5", "no HDF5 file")


PICTURES = {
    "grey": (Image.fromarray(np.full((4, 4), 77, np.uint8)), (77, 77, 77)),
    "grey16": (Image.fromarray(np.full((4, 4), 77 * 257, np.uint16)), (77, 77, 77)),
    "palette": (
        Image.new("RGB", (4, 4), (200, 10, 30)).convert("P", palette=Image.Palette.ADAPTIVE),
        (200, 10, 30),
    ),
    "alpha": (Image.new("RGBA", (4, 4), (200, 100, 50, 128)), (100, 50, 25)),
    "grey alpha": (Image.new("LA", (4, 4), (200, 0)), (0, 0, 0)),
    "colour": (Image.new("RGB", (4, 4), (200, 100, 50)), (200, 100, 50)),
    "one bit": (Image.new("1", (4, 4), 1), (255, 255, 255)),
}


def test_a_folder_of_grey_pictures_is_rgb(tmp_path):
    grey = np.random.default_rng(0).integers(0, 256, (3, 8, 8), np.uint8)
    for number, picture in enumerate(grey):
        (tmp_path / f"d/{number}").mkdir(parents=True)
        Image.fromarray(picture).save(tmp_path / f"d/{number}/picture.png")
    data = read(tmp_path / "d")
    assert data.frames.shape == (3, 8, 8, 3) and data.kind == "images"
    assert all(np.array_equal(data.frames[..., channel], grey) for channel in range(3))


@pytest.mark.parametrize("name", PICTURES)
def test_every_mode_becomes_rgb(tmp_path, name):
    picture, expected = PICTURES[name]
    picture.save(tmp_path / "a.png")
    pixels = read_picture(tmp_path / "a.png")
    assert (pixels.shape, pixels.dtype) == ((4, 4, 3), np.uint8)
    assert pixels[1, 2].tolist() == list(expected)


# ---- EXIF


def photo(path, orientation, **options):
    """A picture of 16x32 pixels, red on the left and green in the upper left corner, as it is stored."""
    path.parent.mkdir(parents=True, exist_ok=True)
    picture, exif = np.zeros((16, 32, 3), np.uint8), Image.Exif()
    picture[:, :8], picture[:8, :8] = (250, 0, 0), (0, 250, 0)
    exif[ExifTags.Base.Orientation] = orientation
    Image.fromarray(picture).save(path, exif=exif, **options)
    return picture


SHOWN = {  # what a viewer shows of a stored picture, by the meaning of the orientations in the EXIF standard
    1: lambda p: p,
    2: lambda p: p[:, ::-1],
    3: lambda p: p[::-1, ::-1],
    4: lambda p: p[::-1],
    5: lambda p: p.swapaxes(0, 1),
    6: lambda p: np.rot90(p, -1),
    7: lambda p: p[::-1, ::-1].swapaxes(0, 1),
    8: lambda p: np.rot90(p),
}


@pytest.mark.parametrize("suffix", ["png", "jpg", "webp", "tif"])
@pytest.mark.parametrize("orientation", SHOWN)
def test_frames_are_what_a_viewer_shows(tmp_path, orientation, suffix):
    options = {"lossless": True} if suffix == "webp" else {"quality": 98} if suffix == "jpg" else {}
    for name in ("d/a/1", "d/a/2", "d/a/3", "r/1"):
        stored = photo(tmp_path / f"{name}.{suffix}", orientation, **options)
    shown = SHOWN[orientation](stored).astype(int)
    (tmp_path / "r/log.jsonl").write_text(
        f'{{"frame_filename": "1.{suffix}", "controls": [0], "timestamp": 0}}\n'
    )
    height, width = shown.shape[:2]
    for found in [
        read(tmp_path / "d").frames[1],
        read(tmp_path / "d").frames[1],  # from the cache
        read(tmp_path / "d", height=height, width=width).frames[2],
        read(tmp_path / "r").frames[0],
        read_picture(tmp_path / f"d/a/1.{suffix}"),
        read_image(tmp_path / f"d/a/1.{suffix}"),
    ]:
        assert (
            found.shape == shown.shape and np.abs(np.asarray(found).astype(int) - shown)[::5, ::5].mean() < 10
        )


def test_exif_in_a_png_may_lie_anywhere_or_be_damaged(tmp_path):
    stored = photo(tmp_path / "a.png", 6)
    png = (tmp_path / "a.png").read_bytes()
    start = png.index(b"eXIf") - 4
    chunk = png[start : start + 12 + int.from_bytes(png[start : start + 4], "big")]
    assert chunk in png and png.endswith(b"IEND\xaeB`\x82")
    end = len(png) - 12
    ways = {
        "behind": (png[:start] + png[start + len(chunk) : end] + chunk + png[end:], np.rot90(stored, -1)),
        "none": (png[:start] + png[start + len(chunk) :], stored),
    }
    damaged = b"\xff" * 30
    damaged = (
        len(damaged).to_bytes(4, "big") + b"eXIf" + damaged + zlib.crc32(b"eXIf" + damaged).to_bytes(4, "big")
    )
    ways["damaged"] = png[:start] + damaged + png[start + len(chunk) :], stored
    for name, (content, shown) in ways.items():
        for number in range(2):
            (tmp_path / name / "a").mkdir(parents=True, exist_ok=True)
            (tmp_path / name / f"a/{number}.png").write_bytes(content)
        data = read(tmp_path / name)
        assert np.array_equal(data.frames[0], shown) and data.warnings == [], name


@pytest.mark.parametrize("suffix", ["png", "jpg", "webp", "bmp", "tif", "ppm", "pgm"])
def test_a_file_cut_anywhere_is_refused(tmp_path, suffix):
    whole = tmp_path / f"whole.{suffix}"
    noise = np.random.default_rng(0).integers(0, 256, (40, 40, 3), dtype=np.uint8)
    Image.fromarray(noise).save(whole)
    content = whole.read_bytes()
    for length in range(0, len(content) - 20, len(content) // 40):
        part = tmp_path / f"part.{suffix}"
        part.write_bytes(content[:length])
        with pytest.raises((OSError, SyntaxError, ValueError)):
            read_picture(part)


def test_a_link_that_leads_to_itself_is_left_out_by_name(tmp_path):
    put(tmp_path / "d/a/f_1.png", 1)
    for place in ("d/loop", "d/a/loop"):
        (tmp_path / place).symlink_to("loop")
    data = read(tmp_path / "d")
    assert values(data) == [1]
    assert [line.partition(":")[0] for line in data.warnings] == ["loop", "a/loop"]


def test_a_pipe_among_the_pictures_is_left_out_by_name(tmp_path):
    put(tmp_path / "d/a/f_1.png", 1)
    for name in ("a/f_2.png", "log.jsonl", "frames.h5"):
        os.mkfifo(tmp_path / "d" / name)
    (tmp_path / "d/more.h5").mkdir()
    data = read(tmp_path / "d")
    assert values(data) == [1]
    assert "a/f_2.png" in data.warnings[-1]


def test_names_in_letters_of_another_time(tmp_path):
    put(tmp_path / "d" / os.fsdecode(b"fr\xfch") / os.fsdecode(b"\xe4_1.png"), 1)
    data = read(tmp_path / "d")
    assert values(data) == [1] and data.arcs[0].name == os.fsdecode(b"fr\xfch")


def test_a_folder_that_may_not_be_read_is_one_line(tmp_path, monkeypatch):
    (tmp_path / "d").mkdir()

    def refuse(path=None):
        raise PermissionError(errno.EACCES, "Permission denied", path)

    for name in ("listdir", "scandir"):  # root may read everything
        monkeypatch.setattr(os, name, refuse)
    with pytest.raises(UserError, match=r"d cannot be read \(Permission denied\); make it readable"):
        read(tmp_path / "d")
