"""Where frames go: the cache (never stale, damaged entries made anew), RAM or disk, peak memory, two
threads.
"""

import os
import subprocess
import sys
import time
from collections import namedtuple
from hashlib import blake2b

import cv2
import h5py
import numpy as np
import pytest
import torch
from PIL import ExifTags, Image

from mtld_core.config import UserError
from mtld_core.data import folder, open_dataset, pictures, store

AS_IS = (0, 0, "crop")


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("MTLD_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def root(tmp_path):
    return put_frames(tmp_path / "d", 12)


def put_frames(root, count, size=16):
    """Smooth pictures in one arc, as PNG."""
    (root / "a").mkdir(parents=True)
    y, x = np.mgrid[:size, :size]
    for i in range(count):
        picture = np.stack([x + i, y + 2 * i, x + y + 3 * i], -1).astype(np.uint8)
        cv2.imwrite(str(root / f"a/frame_{i:05d}.png"), picture, [cv2.IMWRITE_PNG_COMPRESSION, 1])
    return root


def read(path, **options):
    return open_dataset(path, progress=False, **options)


def entries(tmp_path):
    return sorted((tmp_path / "cache/datasets").iterdir())


@pytest.fixture
def no_decoding(monkeypatch):
    """Call it, and from then on decoding is an error."""

    def forbid():
        def refuse(path):
            raise AssertionError(f"{path} was decoded")

        monkeypatch.setattr(pictures, "read_picture", refuse)

    return forbid


@pytest.mark.parametrize("memory", ["auto", "ram", "disk"])
def test_the_second_start_decodes_nothing(root, no_decoding, memory):
    first = read(root, memory=memory)
    no_decoding()
    second = read(root, memory=memory)
    assert torch.equal(first.frames, second.frames)
    assert [(arc.name, arc.numbers.tolist()) for arc in second.arcs] == [("a", list(range(12)))]
    assert read(root, memory="disk").frames[3, 2, 1].tolist() == [1 + 2 + 9, 2 + 6, 1 + 3], "RGB, not BGR"


def test_entries_of_earlier_versions_serve_what_they_had_right(tmp_path):
    """The key of plain PNG files is what it was before PNG files were turned by their EXIF; that of turned
    ones is not.
    """
    (tmp_path / "d/a").mkdir(parents=True)
    for i in range(2):
        (tmp_path / f"d/a/{i}.png").write_bytes(bytes([i]) * 100)
    assert folder.Folder(tmp_path / "d", AS_IS).digest() == "05e02cdf0a12d46ecf2bbd0261cf5540"
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    Image.new("RGB", (8, 4)).save(tmp_path / "d/a/0.png", exif=exif)
    content = (tmp_path / "d/a/0.png").read_bytes()
    parts = [blake2b(one, digest_size=16).digest() for one in (content, bytes([1]) * 100)]
    before = blake2b(b"a/0.png\na/1.png" + b"".join(parts), digest_size=16).hexdigest()
    assert folder.Folder(tmp_path / "d", AS_IS).digest() != before


def test_a_change_of_content_alone_is_noticed(tmp_path):
    file = tmp_path / "d/a/frame_0.bmp"
    file.parent.mkdir(parents=True)
    cv2.imwrite(str(file), np.zeros((8, 8, 3), np.uint8))
    before, content = file.stat(), file.read_bytes()
    assert read(tmp_path / "d").frames.max() == 0
    file.write_bytes(content[:-1] + b"\xff")
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))
    after = file.stat()
    assert (after.st_size, after.st_mtime_ns) == (before.st_size, before.st_mtime_ns)
    assert read(tmp_path / "d").frames.max() == 255


def test_every_input_has_a_part_in_the_key(root, tmp_path):
    read(root)
    read(root, height=8, width=8)
    read(root, height=8, width=8, fit="pad")
    assert len(entries(tmp_path)) == 3
    (root / "a/frame_00011.png").rename(root / "a/frame_00021.png")
    assert read(root).arcs[0].numbers[-1] == 21
    (root / "a/frame_00021.png").unlink()
    assert len(read(root).frames) == 11
    assert len(entries(tmp_path)) == 5


DAMAGE = {
    "cut short": lambda entry: os.truncate(entry / "frames.npy", 500),
    "overwritten": lambda entry: (entry / "frames.npy").write_bytes(
        (entry / "frames.npy").read_bytes()[:200] + bytes(9016)
    ),
    "no frames": lambda entry: (entry / "frames.npy").unlink(),
    "half a meta": lambda entry: (entry / "meta.json").write_text('{"rows": 12'),
    "no meta": lambda entry: (entry / "meta.json").unlink(),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_entry_is_made_anew(root, tmp_path, no_decoding, damage):
    first = read(root)
    frames = first.frames.clone()
    DAMAGE[damage](entries(tmp_path)[0])
    assert torch.equal(read(root).frames, frames)
    no_decoding()
    assert torch.equal(read(root).frames, frames), "the entry was mended"


def test_without_the_cache_the_disk_is_not_touched(root, tmp_path):
    assert len(read(root, cache=False).frames) == 12
    assert not (tmp_path / "cache").exists()
    with pytest.raises(UserError, match="needs cache=true"):
        read(root, cache=False, memory="disk")


def test_a_cache_that_cannot_be_written_costs_a_warning(root, tmp_path):
    (tmp_path / "cache").write_text("a file, where a folder would have to be")
    data = read(root)
    assert len(data.frames) == 12
    assert "cannot be written" in data.warnings[-1]
    with pytest.raises(UserError, match="MTLD_CACHE"):
        read(root, memory="disk")


def test_a_full_disk_costs_a_warning(root, monkeypatch):
    monkeypatch.setattr(store.shutil, "disk_usage", lambda path: namedtuple("Usage", "free")(1000))
    assert "no room" in read(root).warnings[-1]


def test_what_a_killed_process_left_goes_after_a_day(root, tmp_path):
    folder = tmp_path / "cache/datasets"
    left = [folder / f".{'0' * 32}.abc.7.{word}" for word in ("tmp", "old", "new.tmp")]
    for each in left:
        each.mkdir(parents=True)
    for each in left[:2]:
        os.utime(each, (time.time() - 2 * store.DAY,) * 2)
    read(root)
    assert [each.exists() for each in left] == [False, False, True]


def test_the_longest_unused_entry_gives_way(root, tmp_path, monkeypatch):
    read(root)
    first = entries(tmp_path)[0]
    read(root, height=8, width=8)
    second = next(entry for entry in entries(tmp_path) if entry != first)
    (tmp_path / "cache/datasets/mine").mkdir()
    os.utime(first, (1000, 1000))
    os.utime(second, (500, 500))
    read(root)  # a use makes an entry young
    used = sum(file.stat().st_size for entry in (first, second) for file in entry.iterdir())
    monkeypatch.setattr(store.shutil, "disk_usage", lambda path: namedtuple("Usage", "free")(used + 700))
    read(root, height=4, width=8)
    left = entries(tmp_path)
    assert first in left
    assert second not in left
    assert tmp_path / "cache/datasets/mine" in left, "what is no entry is never deleted"
    assert len(left) == 3


@pytest.mark.parametrize("side", [10**6, 2**31])  # bytes of the second are more than int64 holds
def test_frames_that_fit_nowhere_push_none_out(root, tmp_path, side):
    read(root)
    before = entries(tmp_path)
    with pytest.raises(UserError, match=r"have to go into the cache .*no room for \d+\.\d GB"):
        read(root, height=side, width=side)
    assert entries(tmp_path) == before


def test_frames_beyond_the_memory_are_mapped_from_disk(root, monkeypatch):
    monkeypatch.setattr(store, "free_memory", lambda: 5000)
    with pytest.raises(UserError, match=r"take 0.00 GB of RAM and 0.00 GB can be used"):
        read(root, memory="ram")
    with pytest.raises(UserError):
        read(root, cache=False)
    assert isinstance(store.load(folder.Folder(root, AS_IS), "auto", True, 0, None)[0], np.memmap)
    data = read(root)
    data.frames[0] = 7
    assert read(root).frames[0, 0, 0, 0] != 7, "writing to the frames never reaches the cache"


def test_an_hdf5_file_needs_no_copy_on_disk(tmp_path, monkeypatch):
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["frames"] = np.zeros((20, 8, 8, 3), np.uint8)
    read(tmp_path / "a.h5")
    assert not (tmp_path / "cache").exists()
    monkeypatch.setattr(store, "free_memory", lambda: 100)
    assert read(tmp_path / "a.h5").frames[3:].shape == (17, 8, 8, 3)
    assert not (tmp_path / "cache").exists()
    with pytest.raises(UserError, match="can be used"):
        read(tmp_path / "a.h5", memory="ram")


MEASURE = """
import resource, sys, threading
import psutil
from mtld_core.data import open_dataset
open_dataset(sys.argv[2], progress=False, cache=False)  # libraries that load late are not the dataset's
peak, done, me = [0], threading.Event(), psutil.Process()
def watch():
    while not done.wait(0.002):
        peak[0] = max(peak[0], me.memory_info().rss)
before = me.memory_info().rss
threading.Thread(target=watch, daemon=True).start()
data = open_dataset(sys.argv[1], progress=False, memory="ram")
done.set()
print((max(peak[0], me.memory_info().rss) - before) / data.frames.nbytes)
"""


@pytest.mark.versionless  # into which array frames are read
def test_the_peak_of_memory_is_the_frames_and_hardly_more(tmp_path):
    root, small = put_frames(tmp_path / "d", 760, 256), put_frames(tmp_path / "small", 2)
    for start in ("decoding", "from the cache"):
        done = subprocess.run(
            [sys.executable, "-c", MEASURE, root, small], capture_output=True, text=True, check=True
        )
        print(f"{start}: {float(done.stdout):.3f} bytes a pixel channel at the peak")
        assert float(done.stdout) <= 1.05


@pytest.mark.clocked
@pytest.mark.skipif((os.cpu_count() or 1) < 2, reason="needs two cores")
def test_two_threads_decode_faster_than_one(tmp_path):
    root, ratios = put_frames(tmp_path / "d", 150, 256), []

    def seconds(workers):
        start = time.perf_counter()
        read(root, workers=workers, cache=False)
        return time.perf_counter() - start

    def control(workers):
        """Seconds of hashing, which threads share perfectly: tells whether two cores were free at all."""
        from concurrent.futures import ThreadPoolExecutor
        from hashlib import blake2b

        start, block = time.perf_counter(), bytes(2_000_000)
        with ThreadPoolExecutor(workers) as pool:
            list(pool.map(lambda _: blake2b(block).digest(), range(16)))
        return time.perf_counter() - start

    for _ in range(6):
        before = control(1) / control(2)
        ratio = seconds(1) / seconds(2)
        free = min(before, control(1) / control(2))  # the machine may have been busy in between
        ratios.append((round(ratio, 2), round(free, 2)))
        if ratio >= 1.3:
            break
    print(f"speed-up by a second thread, and what the machine allowed: {ratios}")
    best = max(ratio for ratio, _ in ratios)
    if best < 1.3 and all(free < 1.5 for _, free in ratios):
        pytest.skip(f"the machine had no second core free: {ratios}")
    assert best >= 1.3
