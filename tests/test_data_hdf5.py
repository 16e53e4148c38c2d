"""HDF5 files: episodes, actions, sizes, and what is refused in which words."""

import h5py
import numpy as np
import pytest
import torch

from mtld_core.data import open_dataset
from mtld_core.runtime import UserError


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
    assert data.frames[:, 0, 0, 0].tolist() == [0, 1, 3, 2, 4, 5]
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
        ({"frames": np.zeros((4, 6, 8), np.uint8)}, r"\[4, 6, 8\]"),
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
