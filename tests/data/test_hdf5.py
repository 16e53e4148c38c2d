"""HDF5 files: episodes, actions, sizes, frames that stay in the file, and what is refused in which words."""

import os
import subprocess
import sys

import h5py
import numpy as np
import pytest
import torch
from conftest import moving_square
from PIL import Image

from mtld_core.config import UserError
from mtld_core.data import Batches, hdf5_file, open_dataset, store
from mtld_core.data.hdf5_file import LazyFrames
from mtld_core.generate import generate
from mtld_core.train import train


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("MTLD_CACHE", str(tmp_path / "cache"))


def put(path, **columns):
    with h5py.File(path, "w") as file:
        for name, values in columns.items():
            file[name] = values
    return path


def ramp(count, height=6, width=8):
    return np.broadcast_to(np.arange(count, dtype=np.uint8)[:, None, None, None], (count, height, width, 3))


@pytest.mark.parametrize("memory", ["ram", "disk"])
def test_rows_are_put_in_order_by_episode(tmp_path, memory):
    path = put(tmp_path / "a.h5", frames=ramp(6), episode=[2, 2, 10, 2, 10, 10], actions=np.arange(6) * 10)
    data = open_dataset(path, memory=memory, progress=False)
    assert data.kind == "hdf5"
    assert [(arc.name, arc.start, arc.stop) for arc in data.arcs] == [
        ("episode_2", 0, 3),
        ("episode_10", 3, 6),
    ]
    assert data.frames[:][:, 0, 0, 0].tolist() == [0, 1, 3, 2, 4, 5]
    assert data.actions.tolist() == [0, 10, 30, 20, 40, 50]
    assert data.actions.dtype == torch.int64
    assert data.row("episode_10", 2) == 5
    assert data.windows(3).tolist() == [0, 3]


def test_float_actions_one_episode_and_a_new_size(tmp_path):
    actions = np.random.default_rng(0).random((300, 2))
    path = put(tmp_path / "a.h5", frames=ramp(300 % 256 + 206, 12, 16)[:250], actions=actions[:250])
    data = open_dataset(path, height=6, width=8, progress=False)
    assert data.size == (6, 8)
    assert data.frames[:, 3, 3, 1].tolist() == list(range(250))
    assert data.actions.dtype == torch.float32
    assert np.allclose(data.actions.numpy(), actions[:250])
    assert [arc.name for arc in data.arcs] == ["episode_0"]


def test_a_folder_may_hold_the_file(tmp_path):
    put(tmp_path / "a.h5", frames=ramp(4))
    assert len(open_dataset(tmp_path, progress=False).frames) == 4


@pytest.mark.parametrize(
    ("columns", "match"),
    [
        ({"frame": ramp(4)}, "no dataset 'frames'; did you mean 'frame'"),
        (
            {"frames": np.zeros((4, 6, 8, 3), np.float32)},
            r"'frames' is float32 \[4, 6, 8, 3\]; wanted is uint8",
        ),
        ({"frames": np.zeros((4, 3, 6, 8), np.uint8)}, r"uint8 \[4, 3, 6, 8\].*channels last"),
        ({"frames": np.zeros((0, 6, 8, 3), np.uint8)}, r"\[0, 6, 8, 3\]"),
        ({"frames": np.zeros((4, 6), np.uint8)}, r"\[4, 6\]; wanted is uint8 \[N, H, W, 3\]$"),
        (
            {"frames": np.zeros((4, 6, 8), np.uint8)},
            r"\[4, 6, 8\]; .*grey, np\.repeat\(frames\.reshape\(N, H, W, 1\), 3, ",
        ),
        ({"frames": np.zeros((4, 6, 8, 1), np.uint8)}, r"\[4, 6, 8, 1\]; .*grey, np\.repeat"),
        ({"frames": np.zeros((4, 1, 6, 8), np.uint8)}, r"\[4, 1, 6, 8\]; .*grey, np\.repeat"),
        ({"actions": np.zeros(3)}, "no dataset 'frames'; known: actions"),
        ({}, "no dataset 'frames'; the file is empty"),
        (
            {"frames": np.moveaxis(ramp(4), -1, 1).astype(np.float32)},
            r"float32 \[4, 3, 6, 8\].*channels last",
        ),
        ({"frames": ramp(4), "actions": np.zeros((5, 2))}, r"'actions' is float64 \[5, 2\].*N = 4"),
        (
            {"frames": ramp(4), "actions": np.zeros((4, 2, 2))},
            r"'actions' is float64 \[4, 2, 2\]; wanted are numbers \[N\] or",
        ),
        ({"frames": ramp(4), "actions": np.zeros(3)}, r"'actions' is float64 \[3\].*N = 4"),
        (
            {"frames": ramp(4), "actions": np.array([0, 1, np.nan, 2])},
            "'actions' holds values that are not finite",
        ),
        ({"frames": ramp(4), "episode": np.zeros(5, int)}, r"'episode' is int64 \[5\].*N = 4"),
    ],
)
def test_refusals_name_dataset_type_and_shape(tmp_path, columns, match):
    path = put(tmp_path / "a.h5", **columns)
    with pytest.raises(UserError, match=match) as caught:
        open_dataset(path, progress=False)
    assert str(path) in str(caught.value)


def test_what_a_recording_says_about_itself(tmp_path):
    path = put(tmp_path / "a.h5", frames=ramp(4))
    assert open_dataset(path, progress=False).about == {}
    for text, about in (
        ('{"action_names": ["up"]}', {"action_names": ["up"]}),
        ("{", {}),
        ("[]", {}),
        (3, {}),
    ):
        with h5py.File(path, "a") as file:
            file.attrs["recording"] = text
        data = open_dataset(path, progress=False)
        assert data.about == about
        said = [] if about else [f"{path}: attribute 'recording': passed over, not a JSON object"]
        assert data.warnings == said
    moved = open_dataset(put(tmp_path / "b.h5", frames=ramp(4)), progress=False)
    moved.about["env"] = "Pong"
    assert moved.to("meta").about == {"env": "Pong"}


def test_the_way_out_for_grey_frames_is_one(tmp_path):
    grey = np.random.default_rng(0).integers(0, 256, (4, 1, 6, 8), np.uint8)
    data = open_dataset(
        put(tmp_path / "a.h5", frames=np.repeat(grey.reshape(4, 6, 8, 1), 3, axis=3)), progress=False
    )
    assert all(np.array_equal(data.frames[..., channel], grey[:, 0]) for channel in range(3))


def test_a_frame_of_one_row_is_not_taken_for_grey(tmp_path):
    assert open_dataset(put(tmp_path / "a.h5", frames=ramp(4, height=1)), progress=False).size == (1, 8)


def test_pictures_in_no_order_have_no_shots(tmp_path):
    frames = np.repeat(np.array([0, 250], np.uint8), 20)[:, None, None, None] + np.zeros(
        (1, 16, 16, 3), np.uint8
    )
    for name, about in (("film", "{}"), ("pictures", '{"unordered": true}')):
        with h5py.File(tmp_path / f"{name}.h5", "w") as file:
            file["frames"], file.attrs["recording"] = frames, about
    film, pictures = (open_dataset(tmp_path / f"{name}.h5", progress=False) for name in ("film", "pictures"))
    assert (film.kind, film.cuts.tolist()) == ("hdf5", [20]) and (pictures.kind, pictures.cuts.tolist()) == (
        "images",
        [],
    )


# ---- episodes that are told by their ends

DONE = {  # what a file says -> lengths of its episodes
    "bool": ({"dones": np.array([0, 0, 1, 0, 1, 0], bool)}, [3, 2, 1]),
    "uint8, the last one flagged": ({"terminals": np.array([0, 0, 1, 0, 0, 1], np.uint8)}, [3, 3]),
    "floats in a column": ({"dones": np.array([[0.0], [1], [0], [0], [0], [0]])}, [2, 4]),
    "one less than frames": ({"dones": np.array([0, 0, 1, 0, 1], bool)}, [3, 2, 1]),
    "two kinds": (
        {"terminals": np.array([0, 1, 0, 0, 0, 0]), "timeouts": np.array([0, 0, 0, 1, 0, 0], bool)},
        [2, 2, 2],
    ),
    "one frame's": ({"done": np.array([0, 0, 1, 0, 0, 0])}, [3, 3]),
    "a D3 file's": ({"terminal": np.array([[0], [1], [0], [0], [0], [1]])}, [2, 4]),
    "Gymnasium's": (
        {"terminated": np.array([0, 1, 0, 0, 0, 0]), "truncated": np.array([0, 0, 0, 1, 0, 0])},
        [2, 2, 2],
    ),
    "RLDS'": ({"is_last": np.array([0, 0, 0, 1, 0, 1], bool)}, [4, 2]),
    "none": ({"dones": np.zeros(6)}, [6]),
    "ends": ({"episode_ends": np.array([2, 3, 6])}, [2, 1, 3]),
    "ends, one a frame": ({"episode_ends": np.arange(1, 7)}, [1] * 6),
    "ends as flags": ({"episode_ends": np.array([0, 1, 0, 0, 0, 1])}, [2, 4]),
    "episode wins": ({"dones": np.ones(6), "episode": np.array([1, 1, 1, 1, 2, 2])}, [4, 2]),
}


@pytest.mark.parametrize("kind", DONE)
def test_flags_that_end_episodes(tmp_path, kind):
    columns, lengths = DONE[kind]
    data = open_dataset(
        put(tmp_path / "a.h5", frames=ramp(6), actions=np.arange(6), **columns), progress=False
    )
    first = 1 if "episode" in columns else 0
    assert [(arc.name, len(arc)) for arc in data.arcs] == [
        (f"episode_{first + i}", n) for i, n in enumerate(lengths)
    ]
    assert data.frames[:, 0, 0, 0].tolist() == data.actions.tolist() == [*range(6)]


@pytest.mark.parametrize(
    ("columns", "match"),
    [
        (
            {"dones": np.zeros(4)},
            r"'dones' is float64 \[4\]; wanted is 0 or 1 for each row, and 'frames' has N = 6",
        ),
        ({"dones": np.array([0, 2, 0, 0, 0, 0])}, "'dones' .*wanted is 0 or 1"),
        ({"terminals": np.array([0, np.nan, 0, 0, 0, 0])}, "'terminals' holds values that are not finite"),
        ({"dones": np.zeros((6, 2))}, r"'dones' is float64 \[6, 2\]"),
        ({"episode_ends": np.array([2, 5])}, "'episode_ends' .*the last is N = 6"),
        ({"episode_ends": np.array([3, 2, 6])}, "'episode_ends' .*rising"),
        ({"episode_ends": np.zeros(0, int)}, r"'episode_ends' is int64 \[0\]; wanted are rising numbers"),
    ],
)
def test_flags_that_make_no_sense_are_refused(tmp_path, columns, match):
    with pytest.raises(UserError, match=match):
        open_dataset(put(tmp_path / "a.h5", frames=ramp(6), **columns), progress=False)


# ---- several files


@pytest.mark.parametrize("memory", ["ram", "disk"])
def test_several_files_in_a_folder_are_episodes(tmp_path, monkeypatch, memory):
    monkeypatch.setattr(hdf5_file, "MOST_OPEN", 1)
    for number, suffix in ((10, "hdf5"), (9, "h5"), (11, "H5")):
        put(
            tmp_path / f"take_{number}.{suffix}",
            frames=ramp(4) + np.uint8(10 * number),
            actions=np.arange(4) + number,
        )
    put(
        tmp_path / "take_12.h5",
        frames=ramp(4) + np.uint8(120),
        actions=[12, 13, 14, 15],
        episode=[1, 0, 1, 0],
    )
    data = open_dataset(tmp_path, memory=memory, progress=False)
    names = ["take_9", "take_10", "take_11", "take_12/episode_0", "take_12/episode_1"]
    assert (data.kind, [arc.name for arc in data.arcs]) == ("hdf5", names)
    assert data.frames[:][:, 0, 0, 0].tolist() == [
        90,
        91,
        92,
        93,
        100,
        101,
        102,
        103,
        110,
        111,
        112,
        113,
        121,
        123,
        120,
        122,
    ]
    assert data.actions.tolist() == [9, 10, 11, 12, 10, 11, 12, 13, 11, 12, 13, 14, 13, 15, 12, 14]
    assert data.frames[torch.tensor([15, 3, 4])][:, 0, 0, 0].tolist() == [122, 93, 100]
    assert data.row("take_12/episode_1", 1) == 15


def test_files_that_do_not_belong_together_are_both_named(tmp_path):
    def refuses(match):
        with pytest.raises(UserError, match=match):
            open_dataset(tmp_path, progress=False)

    put(tmp_path / "a.h5", frames=ramp(4), actions=np.arange(4))
    put(tmp_path / "b.h5", frames=ramp(4, 12, 16), actions=np.arange(4))
    refuses("a.h5 has frames of 8x6 pixels and b.h5 has frames of 16x12 pixels; set height and width")
    assert open_dataset(tmp_path, height=6, width=8, progress=False).frames.shape == (8, 6, 8, 3)
    put(tmp_path / "b.h5", frames=ramp(4))
    refuses(r"a.h5 has 'actions' \[4\] and b.h5 has no 'actions'; give both")
    put(tmp_path / "b.h5", frames=ramp(4), actions=np.zeros((4, 2)))
    refuses(r"a.h5 has 'actions' \[4\] and b.h5 has 'actions' \[4, 2\]")
    put(tmp_path / "b.h5", weights=np.zeros(3))
    refuses(
        "b.h5 has no dataset 'frames'.*the 2 HDF5 files in .* are read together: name the one that you want"
    )
    Image.new("RGB", (8, 8)).save(tmp_path / "frame_0.png")
    assert open_dataset(tmp_path, progress=False).kind == "arcs", "images win, as ever"


# ---- what HDF5 would read as zeros, or not at all


def refused(path, *words):
    with pytest.raises(UserError) as caught:
        open_dataset(path, progress=False)
    text = str(caught.value)
    assert str(path) in text and "\n" not in text and all(word in text for word in words), text
    assert "record or download it again" not in text and "damaged" not in text, text


def virtual(folder, name="frames", values=None, covered=3):
    """all.h5, whose dataset `name` lies in part_0.h5, part_1.h5 and part_2.h5, 10 rows in each."""
    values = ramp(30) + np.uint8(100) if values is None else values
    layout = h5py.VirtualLayout(values.shape, values.dtype)
    for i in range(3):
        put(folder / f"part_{i}.h5", data=values[10 * i : 10 * i + 10])
        if i < covered:
            layout[10 * i : 10 * i + 10] = h5py.VirtualSource(f"part_{i}.h5", "data", (10, *values.shape[1:]))
    with h5py.File(folder / "all.h5", "w") as file:
        file.create_virtual_dataset(name, layout)
        if name != "frames":
            file["frames"] = ramp(30)
    return folder / "all.h5"


def test_a_virtual_dataset_that_is_whole(tmp_path):
    data = open_dataset(virtual(tmp_path), progress=False)
    assert data.frames[:, 0, 0, 0].tolist() == [*range(100, 130)]


GONE = {
    "a file": (lambda folder: (folder / "part_1.h5").unlink(), ["part in part_1.h5, which is missing"]),
    "all files": (
        lambda folder: [(folder / f"part_{i}.h5").unlink() for i in range(3)],
        ["part in part_0.h5"],
    ),
    "its dataset": (lambda folder: put(folder / "part_2.h5", other=[1]), ["part_2.h5 has no dataset 'data'"]),
    "some rows": (
        lambda folder: put(folder / "part_0.h5", data=ramp(9)),
        ["part_0.h5, whose dataset 'data' is [9"],
    ),
}


@pytest.mark.parametrize("what", GONE)
@pytest.mark.parametrize("name", ["frames", "actions", "episode", "dones"])
def test_virtual_parts_that_are_gone_are_named(tmp_path, name, what):
    path, (lose, words) = (
        virtual(tmp_path, name, None if name == "frames" else np.zeros(30, np.uint8)),
        GONE[what],
    )
    lose(tmp_path)
    refused(path, f"dataset {name!r}", *words)


def test_a_slice_of_a_part_that_has_become_shorter(tmp_path):
    put(tmp_path / "part.h5", data=ramp(8))
    layout = h5py.VirtualLayout((4, 6, 8, 3), np.uint8)
    layout[:] = h5py.VirtualSource(str(tmp_path / "part.h5"), "data", (8, 6, 8, 3))[3:7]
    with h5py.File(tmp_path / "all.h5", "w") as file:
        file.create_virtual_dataset("frames", layout)
    assert open_dataset(tmp_path / "all.h5", progress=False).frames[:, 0, 0, 0].tolist() == [3, 4, 5, 6]
    put(tmp_path / "part.h5", data=ramp(6))
    refused(tmp_path / "all.h5", "part.h5, whose dataset 'data' is [6, 6, 8, 3] now")


@pytest.mark.parametrize("names", [["."], ["y.h5", "x.h5"]])
def test_a_dataset_that_is_a_part_of_itself(tmp_path, names):
    """By its own file, or in a circle of two."""
    for name, part in zip(["x.h5", "y.h5"], names, strict=False):
        layout = h5py.VirtualLayout((4, 6, 8, 3), np.uint8)
        layout[:] = h5py.VirtualSource(part, "frames", (4, 6, 8, 3))
        with h5py.File(tmp_path / name, "w") as file:
            file.create_virtual_dataset("frames", layout)
    refused(tmp_path / "x.h5", "dataset 'frames' is a part of itself", "make it anew")


def test_rows_that_no_part_holds_are_refused(tmp_path):
    refused(virtual(tmp_path, covered=2), f"{10 * 6 * 8 * 3} of its {30 * 6 * 8 * 3} values lie in none")


def external(folder, name, values):
    """A file whose dataset `name` lies in raw.bin, beside it."""
    with h5py.File(folder / "a.h5", "w") as file:
        file.create_dataset(name, data=values, external=[("raw.bin", 0, h5py.h5f.UNLIMITED)])
        if name != "frames":
            file["frames"] = ramp(30)
    return folder / "a.h5"


@pytest.mark.parametrize("name", ["frames", "actions"])
def test_external_values_that_are_gone_or_cut_short_are_named(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    path = external(tmp_path, name, ramp(30) if name == "frames" else np.arange(30))
    assert len(open_dataset(path, progress=False).frames) == 30
    os.truncate(tmp_path / "raw.bin", 200)
    refused(path, f"dataset {name!r}", "raw.bin, which was cut short (200 bytes, ")
    (tmp_path / "raw.bin").unlink()
    refused(path, f"dataset {name!r}", "keeps its values in the file raw.bin, which is not at ")


@pytest.mark.parametrize("name", ["frames", "actions", "episode"])
def test_links_that_lead_nowhere_are_told(tmp_path, name):
    columns = {} if name == "frames" else {"frames": ramp(4)}
    for link, words in [
        (
            h5py.ExternalLink("gone.h5", "/data"),
            ["a link to '/data' in the file gone.h5, which is not there"],
        ),
        (h5py.ExternalLink("there.h5", "/data"), ["in the file there.h5, in which it cannot be read"]),
        (h5py.SoftLink("/data"), ["a link to '/data' that leads nowhere"]),
    ]:
        path = put(tmp_path / "a.h5", **columns)
        put(tmp_path / "there.h5", other=[1])
        with h5py.File(path, "a") as file:
            file[name] = link
        refused(path, name, *words)
    put(tmp_path / "there.h5", data=ramp(4) if name == "frames" else [1, 1, 1, 1])
    with h5py.File(path, "a") as file:
        del file[name]
        file[name] = h5py.ExternalLink("there.h5", "/data")
    for memory in ("ram", "disk"):
        assert len(open_dataset(path, memory=memory, progress=False).frames[:]) == 4


def test_a_group_is_told_with_the_way_out(tmp_path):
    path = put(tmp_path / "a.h5", **{"frames/depth": np.zeros((4, 6, 8), np.float32), "frames/rgb": ramp(4)})
    with pytest.raises(
        UserError, match=r"'frames' is a group \(depth, rgb\), where a dataset is wanted; .*: with"
    ) as caught:
        open_dataset(path, progress=False)
    exec(str(caught.value).split("the name: ")[1], {"h5py": h5py})
    assert open_dataset(path, progress=False).frames[:, 0, 0, 0].tolist() == [0, 1, 2, 3], "the way out works"
    refused(put(tmp_path / "b.h5", **{"frames": ramp(4), "actions/x": [1]}), "'actions' is a group (x)")


def compressed(path, name, values, code=32001):
    """`values` in one chunk of bytes that only a filter which is not installed could read."""
    with h5py.File(path, "a") as file:
        plist = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
        plist.set_chunk(values.shape)
        plist.set_filter(code, h5py.h5z.FLAG_OPTIONAL, (2, 2, 1))
        kind = h5py.h5t.py_create(values.dtype)
        made = h5py.h5d.create(file.id, name.encode(), kind, h5py.h5s.create_simple(values.shape), plist)
        made.write_direct_chunk((0,) * values.ndim, bytes(64))


@pytest.mark.parametrize("name", ["frames", "actions", "dones"])
def test_a_filter_that_is_not_installed_is_named(tmp_path, monkeypatch, name):
    monkeypatch.setitem(sys.modules, "hdf5plugin", None)
    path = put(tmp_path / "a.h5", **({} if name == "frames" else {"frames": ramp(4)}))
    compressed(path, name, np.array(ramp(4)) if name == "frames" else np.arange(4))
    refused(path, f"dataset {name!r} is compressed with filter 32001, which", "pip install hdf5plugin")
    there = h5py.h5z.filter_avail
    monkeypatch.setattr(h5py.h5z, "filter_avail", lambda code: code != 1 and there(code))
    path = put(tmp_path / "b.h5", **({} if name == "frames" else {"frames": ramp(4)}))
    compressed(path, name, np.array(ramp(4)) if name == "frames" else np.arange(4), 1)
    refused(path, f"dataset {name!r} is compressed with filter 1 deflate, which", "pip install hdf5plugin")


def test_a_filter_that_was_missing_when_a_file_was_written_does_no_harm(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "hdf5plugin", None)
    with h5py.File(tmp_path / "a.h5", "w") as file:
        plist = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
        plist.set_chunk((1, 6, 8, 3))
        plist.set_filter(32001, h5py.h5z.FLAG_OPTIONAL, (2, 2, 1))
        made = h5py.h5d.create(
            file.id, b"frames", h5py.h5t.NATIVE_UINT8, h5py.h5s.create_simple((4, 6, 8, 3)), plist
        )
        h5py.Dataset(made)[:] = ramp(4)
    assert open_dataset(tmp_path / "a.h5", progress=False).frames[:, 0, 0, 0].tolist() == [0, 1, 2, 3]


@pytest.mark.parametrize(
    ("mode", "words"), [("a", "open for writing in another program"), ("swmr", "h5clear -s")]
)
def test_a_file_that_another_program_writes(tmp_path, mode, words):
    path = put(tmp_path / "a.h5", frames=ramp(4))
    code = "import h5py, sys\nf = h5py.File(sys.argv[1], 'a', libver='latest')\n"
    code += "f.swmr_mode = True\n" if mode == "swmr" else ""
    code += "print(flush=True)\nsys.stdin.read()"
    if mode == "swmr":
        with h5py.File(path, "w", libver="latest") as file:
            file["frames"] = ramp(4)
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen([sys.executable, "-c", code, path], **pipes) as writer:
        writer.stdout.readline()
        refused(path, words)
        writer.stdin.close()
    assert len(open_dataset(path, progress=False).frames) == 4


# ---- frames that stay in the file


def recorded(path, height=16, width=16):
    """Six episodes of 20 frames, played two at a time, in small chunks; with actions."""
    with h5py.File(path, "w") as file:
        games = [moving_square(20, height, width, seed=i) for i in range(6)]
        rows = [(episode, t) for pair in (0, 2, 4) for t in range(20) for episode in (pair, pair + 1)]
        frames = np.stack([games[episode][t] for episode, t in rows])
        file.create_dataset("frames", data=frames, chunks=(7, height, width, 3), compression="gzip")
        file["episode"], file["actions"] = [episode for episode, _ in rows], [t % 3 for _, t in rows]
    return path


@pytest.mark.parametrize("size", [(0, 0), (8, 12)])
def test_frames_in_the_file_are_the_frames_in_memory(tmp_path, monkeypatch, size):
    monkeypatch.setattr(hdf5_file, "PIECE", 5 * 16 * 16 * 3)
    path = recorded(tmp_path / "a.h5")
    near, far = (open_dataset(path, *size, memory=memory, progress=False) for memory in ("ram", "disk"))
    a, b = near.frames, far.frames
    assert isinstance(b, LazyFrames) and not (tmp_path / "cache").exists()
    assert (b.shape, b.dtype, b.device, b.nbytes, len(b)) == (a.shape, a.dtype, a.device, a.nbytes, len(a))
    assert (
        near.describe() == far.describe()
        and near.digest() == far.digest()
        and near.arcs[3].start == far.arcs[3].start
    )
    rows = torch.randint(0, 120, (3, 4, 2))
    for index in (
        0,
        -1,
        slice(None),
        slice(3, 3),
        slice(7, 50),
        slice(-5, None),
        slice(0, 90, 7),
        rows,
        rows[:0],
        rows[0, 0, 0],
    ):
        assert torch.equal(a[index], b[index]) and b[index].dtype == torch.uint8, index
    assert torch.equal(a, b.to("cpu"))
    with pytest.raises(IndexError):
        b[120]
    b[0][:] = 7
    assert torch.equal(a[0], b[0]), "what is indexed is a copy"


def test_only_what_is_indexed_is_read(tmp_path, monkeypatch):
    frames = open_dataset(recorded(tmp_path / "a.h5"), memory="disk", progress=False).frames
    read, one = [], LazyFrames._read
    monkeypatch.setattr(LazyFrames, "_read", lambda self, run: read.extend(run) or one(self, run))
    frames[torch.tensor([[3, 4], [4, 3]])]
    assert read == [6, 8], "rows of the file, each once"


def test_a_file_that_loses_its_frames(tmp_path):
    path = recorded(tmp_path / "a.h5", 64, 64)
    data = path.read_bytes()
    with h5py.File(path) as file:
        where = file["frames"].id.get_chunk_info(9)
    path.write_bytes(data[: where.byte_offset] + bytes(where.size) + data[where.byte_offset + where.size :])
    with pytest.raises(UserError, match=r"a\.h5: its frames cannot be read .*record or download it again"):
        open_dataset(path, memory="disk", progress=False).frames[:]


def test_no_cut_is_looked_for_where_there_are_actions(tmp_path):
    """A game may flash and jump: that is what is to be learned."""
    frames = np.zeros((40, 16, 16, 3), np.uint8)
    frames[20:] = 250
    for name, actions in (("film", None), ("game", np.arange(40) % 2)):
        with h5py.File(tmp_path / f"{name}.h5", "w") as file:
            file["frames"] = frames
            if actions is not None:
                file["actions"] = actions
    film, game = (open_dataset(tmp_path / f"{name}.h5", progress=False) for name in ("film", "game"))
    assert film.cuts.tolist() == [20] and game.cuts.tolist() == []


def test_batches_are_the_same_wherever_the_frames_are(tmp_path):
    path = recorded(tmp_path / "a.h5")
    near, far = (open_dataset(path, memory=memory, progress=False) for memory in ("ram", "disk"))
    assert near.windows(4).tolist() == far.windows(4).tolist()
    for a, b in zip(
        *(Batches(data, [data.windows(4)], 4, 8, seed=1, count=2).next() for data in (near, far)), strict=True
    ):
        assert a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def test_training_and_generating_from_frames_in_the_file(tmp_path, monkeypatch):
    path, seen = recorded(tmp_path / "a.h5"), []
    for name in ("ram", "disk"):
        if name == "disk":
            monkeypatch.setattr(store, "free_memory", lambda: 1000)
        report = train(
            "mtld", "tiny", str(path), {"perceptual": "none"}, run_dir=str(tmp_path / name), steps=3
        )
        for source in ("dataset:episode_3/2", str(path)):
            generate(str(tmp_path / name), source, 3, tmp_path / "out")
            seen.append(
                (
                    report["metrics"],
                    [file.read_bytes() for file in sorted((tmp_path / "out/frames").iterdir())],
                )
            )
    assert seen[:2] == seen[2:] and seen[0] != seen[1]


@pytest.mark.parametrize(
    ("actions", "kind", "shape"),
    [
        (np.zeros(6), torch.int64, (6,)),
        (np.array([0.5, 0, 0, 0, 0, 0]), torch.float32, (6, 1)),
        (np.array([0, 1, 2, 0, 1, 2], np.uint8), torch.int64, (6,)),
        (np.zeros((6, 2)), torch.float32, (6, 2)),
    ],
)
def test_actions_are_whole_numbers_or_vectors(actions, kind, shape, tmp_path):
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["frames"], file["actions"] = np.zeros((6, 8, 8, 3), np.uint8), actions
    found = open_dataset(tmp_path / "a.h5", progress=False).actions
    assert found.dtype == kind and tuple(found.shape) == shape


def test_negative_actions_are_refused(tmp_path):
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["frames"], file["actions"] = np.zeros((3, 8, 8, 3), np.uint8), np.array([0, -1, 2])
    with pytest.raises(UserError, match=r"'actions' has -1 in row 1; discrete actions count from 0"):
        open_dataset(tmp_path / "a.h5", progress=False)
