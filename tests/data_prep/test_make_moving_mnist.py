"""Moving MNIST of blocks in place of digits: where they are, how they move and bounce, and which part they
are of.
"""

import hashlib
import json
import subprocess
import sys
from pathlib import Path

import h5py
import numpy as np
import pytest
from test_make_mnist import idx

from data_prep.make_moving_mnist import make, trajectory
from mtld_core.config import UserError
from mtld_core.data import open_dataset, split_windows

ROOT = Path(__file__).parents[2]
FIRST = {"train": 10, "t10k": 130}  # the grey of a part's digit 0; of digit n it is 12 n brighter


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """MNIST's four files, 40 blocks of one grey in each part."""
    folder = tmp_path_factory.mktemp("source")
    for part, grey in FIRST.items():
        labels = np.arange(40, dtype=np.uint8) % 10
        pictures = np.broadcast_to((grey + 12 * labels)[:, None, None], (40, 28, 28)).astype(np.uint8)
        (folder / f"{part}-images-idx3-ubyte").write_bytes(idx(pictures))
        (folder / f"{part}-labels-idx1-ubyte").write_bytes(idx(labels))
    return folder


def made(out, source, sequences=12, test_sequences=6, **settings):
    return make(out, sequences, test_sequences=test_sequences, source=source, progress=False, **settings)


def contents(file):
    with h5py.File(file) as opened:
        return {name: opened[name][()] for name in ("frames", "episode", "digits")}, json.loads(
            opened.attrs["recording"]
        )


# ---- the protocol


def test_a_digit_steps_a_tenth_of_its_room_and_turns_at_the_border():
    right = trajectory((0.5, 0.53), 0.0, 9, 36)
    assert right[:, 0].tolist() == [18] * 9
    assert right[:, 1].tolist() == [22, 26, 29, 33, 36, 32, 28, 25, 21]  # the fifth step would lead to 37
    down = trajectory((0.03, 0.5), -np.pi / 2, 4, 36)
    assert down.tolist() == [[0, 18], [3, 18], [7, 18], [10, 18]]
    aslant = trajectory((0.2, 0.2), np.pi / 4, 8, 36_000)
    assert np.linalg.norm(np.diff(aslant, axis=0), axis=1) == pytest.approx([3600] * 7, abs=2)


def test_start_and_direction_are_drawn_evenly(tmp_path, source):
    """Of one block in each sequence, from its places in the first two frames."""
    found, _ = contents(made(tmp_path / "out", source, 400, 0, digits=1, length=2)[0])
    lit = found["frames"][..., 0].reshape(400, 2, 64, 64) > 0
    assert (lit.sum((2, 3)) == 28 * 28).all()  # whole, in every frame
    places = np.stack([lit.any(3).argmax(2), lit.any(2).argmax(2)], -1)  # [400, 2, (top, left)]
    assert (
        places.min() == 0 and places.max() == 36 and places.mean((0, 1)) == pytest.approx([18, 18], abs=1.5)
    )
    inside = ((places > 0) & (places < 36)).all((1, 2))
    steps = np.diff(places[inside], axis=1)[:, 0]
    assert np.abs(np.linalg.norm(steps, axis=1) - 3.6).max() < 1.5  # a pixel is cut off at either end
    quarters = np.bincount((steps[:, 0] > 0) * 2 + (steps[:, 1] > 0), minlength=4) / len(steps)
    assert quarters == pytest.approx([0.25] * 4, abs=0.08)


def test_the_brighter_of_two_digits_is_seen_whole(tmp_path, source):
    found, _ = contents(made(tmp_path / "out", source, 30, 0)[0])
    frames, hidden = found["frames"].reshape(30, 20, 64, 64, 3), 0
    assert (frames == frames[..., :1]).all()
    for sequence, digits in zip(frames[..., 0], found["digits"].astype(int), strict=True):
        low, high = np.sort(FIRST["train"] + 12 * digits)
        assert set(np.unique(sequence)) <= {0, low, high}
        assert ((sequence == high).sum((1, 2)) >= 784).all()
        hidden += ((sequence == low).sum((1, 2)) < 784).any() and low < high
    assert hidden > 5  # they do overlap


def test_digits_come_from_their_own_part_of_mnist(tmp_path, source):
    train, test = made(tmp_path / "out", source)
    for file, part in ((train, "train"), (test, "t10k")):
        found, _ = contents(file)
        greys = set(np.unique(found["frames"])) - {0}
        assert len(greys) > 4 and greys <= {FIRST[part] + 12 * n for n in range(10)}


# ---- the files


def test_the_folder_opens_as_the_training_file_and_test_as_the_test_set(tmp_path, source):
    files = made(tmp_path / "out", source)
    assert files == [tmp_path / "out/train.h5", tmp_path / "out/test/test.h5"]
    data, test = (
        open_dataset(folder, progress=False) for folder in (tmp_path / "out", tmp_path / "out/test")
    )
    assert (data.kind, data.size, len(data.frames), len(data.arcs)) == (
        "hdf5",
        (64, 64),
        240,
        12,
    ) and data.warnings == []
    assert data.about == {
        "source": "Moving MNIST",
        "digits": 2,
        "length": 20,
        "cuts": False,
        "part": "train",
        "seed": 0,
    }
    assert (len(test.frames), len(test.arcs), test.about["part"]) == (120, 6, "test")
    train, held = split_windows(data, 20)
    assert len(train) == 11 and len(held) == 1 and (train % 20 == 0).all()  # whole sequences


def test_other_sizes_lengths_and_numbers_of_digits(tmp_path, source):
    [file] = made(tmp_path / "out", source, 2, 0, digits=3, length=5, size=40)
    found, about = contents(file)
    assert found["frames"].shape == (10, 40, 40, 3) and found["digits"].shape == (2, 3)
    assert found["episode"].tolist() == [0] * 5 + [1] * 5 and (about["digits"], about["length"]) == (3, 5)
    assert not (tmp_path / "out/test").exists()


def test_the_seed_is_of_the_training_file_alone_and_the_first_sequences_stay(tmp_path, source):
    one = [contents(file)[0] for file in made(tmp_path / "one", source)]
    same = [contents(file)[0] for file in made(tmp_path / "same", source, 20, 4)]
    other = [contents(file)[0] for file in made(tmp_path / "other", source, seed=1)]
    assert all(np.array_equal(one[0][name], same[0][name][: len(one[0][name])]) for name in one[0])
    assert all(np.array_equal(one[1][name][: len(same[1][name])], same[1][name]) for name in one[1])
    assert not np.array_equal(one[0]["frames"], other[0]["frames"])
    assert all(np.array_equal(one[1][name], other[1][name]) for name in one[1])


def test_the_test_set_stays_what_it_is(tmp_path, source):
    """A figure on it means something only as long as nobody changes how it is made."""
    found, _ = contents(made(tmp_path / "out", source, 1, 25)[1])
    assert hashlib.sha256(found["frames"].tobytes()).hexdigest()[:16] == "8972df42dad45b0f"


def test_a_file_that_says_so_has_no_cuts(tmp_path):
    frames = np.repeat([[10], [240]], [10, 10], axis=0)[..., None, None] * np.ones((1, 16, 16, 3))
    for name, about in (("plain", {}), ("one_shot", {"cuts": False})):
        with h5py.File(tmp_path / f"{name}.h5", "w") as file:
            file["frames"] = frames.reshape(20, 16, 16, 3).astype(np.uint8)
            file.attrs["recording"] = json.dumps(about)
    cuts = {
        name: open_dataset(tmp_path / f"{name}.h5", progress=False).cuts.tolist()
        for name in ("plain", "one_shot")
    }
    assert cuts == {"plain": [10], "one_shot": []}
    lazy = open_dataset(tmp_path / "one_shot.h5", memory="disk", progress=False)
    assert lazy.cuts.tolist() == []


# ---- what is refused


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"sequences": 0}, "sequences must be 1 or more, not 0"),
        ({"test_sequences": -1}, "test_sequences must be 0 or more, not -1"),
        ({"digits": 0}, "digits must be 1 or more, not 0"),
        ({"length": 1}, "length must be 2 or more, not 1"),
        ({"size": 28}, "size must be 29 or more, not 28"),
        ({"source": "nowhere"}, "nowhere: no such file or folder"),
    ],
)
def test_wrong_settings_leave_nothing(tmp_path, source, settings, words):
    with pytest.raises(UserError, match=words):
        made(tmp_path / "out", **{"source": source} | settings)
    assert not (tmp_path / "out").exists()


def test_a_full_disk_leaves_neither_file(tmp_path, source, monkeypatch):
    def full(about, *_):
        if about["part"] == "test":
            raise OSError(28, "No space left on device")
        return np.array([0, 1]), np.zeros((20, 64, 64), np.uint8)

    monkeypatch.setattr("data_prep.make_moving_mnist._sequence", full)
    with pytest.raises(UserError, match=r"out cannot be written \(No space left on device\)"):
        made(tmp_path / "out", source)
    assert [path for path in (tmp_path / "out").rglob("*") if path.is_file()] == []
    monkeypatch.undo()
    assert all(path.is_file() for path in made(tmp_path / "out", source))  # what is left is no hindrance


def test_the_command_line(tmp_path, source):
    out = tmp_path / "out"
    command = [
        sys.executable,
        "data_prep/make_moving_mnist.py",
        str(out),
        "--sequences",
        "3",
        "--test-sequences",
        "2",
    ]
    command += ["--source", str(source)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, f"{out / 'train.h5'}\n{out / 'test/test.h5'}\n"), done.stderr
    refused = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert refused.returncode == 1 and refused.stderr.count("\n") == 1 and "not overwritten" in refused.stderr
