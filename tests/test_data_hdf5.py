"""HDF5 files: episodes, actions, sizes, frames that stay in the file, and what is refused in which words."""

import h5py
import numpy as np
import pytest
import torch
from conftest import moving_square

from mtld_core.data import Batches, lazy, open_dataset, store
from mtld_core.data.lazy import LazyFrames
from mtld_core.generate import generate
from mtld_core.runtime import UserError
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
    assert [(arc.name, arc.start, arc.stop) for arc in data.arcs] == [("episode_2", 0, 3), ("episode_10", 3, 6)]
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
        ({"frames": np.zeros((4, 6, 8, 3), np.float32)}, r"'frames' is float32 \[4, 6, 8, 3\]; wanted is uint8"),
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
        ({"frames": np.moveaxis(ramp(4), -1, 1).astype(np.float32)}, r"float32 \[4, 3, 6, 8\].*channels last"),
        ({"frames": ramp(4), "actions": np.zeros((5, 2))}, r"'actions' is float64 \[5, 2\].*N = 4"),
        ({"frames": ramp(4), "actions": np.zeros((4, 2, 2))}, r"'actions' is float64 \[4, 2, 2\]; wanted are numbers \[N\] or"),
        ({"frames": ramp(4), "actions": np.zeros(3)}, r"'actions' is float64 \[3\].*N = 4"),
        ({"frames": ramp(4), "actions": np.array([0, 1, np.nan, 2])}, "'actions' holds values that are not finite"),
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
    for text, about in (('{"action_names": ["up"]}', {"action_names": ["up"]}), ("{", {}), ("[]", {}), (3, {})):
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
    data = open_dataset(put(tmp_path / "a.h5", frames=np.repeat(grey.reshape(4, 6, 8, 1), 3, axis=3)), progress=False)
    assert all(np.array_equal(data.frames[..., channel], grey[:, 0]) for channel in range(3))


def test_a_frame_of_one_row_is_not_taken_for_grey(tmp_path):
    assert open_dataset(put(tmp_path / "a.h5", frames=ramp(4, height=1)), progress=False).size == (1, 8)


def test_pictures_in_no_order_have_no_shots(tmp_path):
    frames = np.repeat(np.array([0, 250], np.uint8), 20)[:, None, None, None] + np.zeros((1, 16, 16, 3), np.uint8)
    for name, about in (("film", "{}"), ("pictures", '{"unordered": true}')):
        with h5py.File(tmp_path / f"{name}.h5", "w") as file:
            file["frames"], file.attrs["recording"] = frames, about
    film, pictures = (open_dataset(tmp_path / f"{name}.h5", progress=False) for name in ("film", "pictures"))
    assert (film.kind, film.cuts.tolist()) == ("hdf5", [20]) and (pictures.kind, pictures.cuts.tolist()) == ("images", [])


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
    monkeypatch.setattr(lazy, "PIECE", 5 * 16 * 16 * 3)
    path = recorded(tmp_path / "a.h5")
    near, far = (open_dataset(path, *size, memory=memory, progress=False) for memory in ("ram", "disk"))
    a, b = near.frames, far.frames
    assert isinstance(b, LazyFrames) and not (tmp_path / "cache").exists()
    assert (b.shape, b.dtype, b.device, b.nbytes, len(b)) == (a.shape, a.dtype, a.device, a.nbytes, len(a))
    assert near.describe() == far.describe() and near.arcs[3].start == far.arcs[3].start
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
    for a, b in zip(*(Batches(data, data.windows(4), 4, 8, seed=1, count=2).next() for data in (near, far)), strict=True):
        assert a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def test_training_and_generating_from_frames_in_the_file(tmp_path, monkeypatch):
    path, seen = recorded(tmp_path / "a.h5"), []
    for name in ("ram", "disk"):
        if name == "disk":
            monkeypatch.setattr(store, "free_memory", lambda: 1000)
        report = train("mtld", "tiny", str(path), {"perceptual": "none"}, run_dir=str(tmp_path / name), steps=3)
        for source in ("dataset:episode_3/2", str(path)):
            generate(str(tmp_path / name), source, 3, tmp_path / "out")
            seen.append((report["metrics"], [file.read_bytes() for file in sorted((tmp_path / "out/frames").iterdir())]))
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
