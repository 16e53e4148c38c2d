"""How fast data comes, beside the least that it can take: batches, a dataset from disk, extraction, start-up.

    python bench/data_path.py

A batch: against the same bytes copied once (memcpy), and converted to floats by one call. Extraction of a
film of 640x360: against the ffmpeg program that writes the same PNGs with as many threads, where it is
installed; else against PyAV's decoding and OpenCV's PNG writing alone, on one thread. Start-up: of the
interpreter with the package, beside the interpreter alone.
"""

import argparse
import shutil
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import av
import cv2
import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from measure import in_turn, machine, print_table, seconds

from data_prep.extract_frames import extract
from mtld_core.data import Batches, open_dataset, split_windows
from mtld_core.media import video_writer
from mtld_core.runtime import command, core_count

SIZE, LENGTH, BATCH = 64, 16, 16
FILM = 640, 360, 240  # width, height, frames
ROUNDS = 5


def film(path):
    """Write a film with motion and grain, so that PNGs have something to do."""
    width, height, count = FILM
    chance = np.random.default_rng(0)
    picture = cv2.resize(chance.integers(0, 256, (18, 64, 3), np.uint8), (2 * width, height))
    with video_writer(path, 24, height, width) as write:
        for i in range(count):
            grain = chance.integers(-4, 5, (height, width, 3))
            frame = picture[:, 2 * i : 2 * i + width] + grain
            write(torch.from_numpy(frame.clip(0, 255).astype(np.uint8)))


def by_ffmpeg(source, out):
    out.mkdir()
    threads = str(core_count())
    line = ["ffmpeg", "-v", "error", "-threads", threads, "-i", source, "-threads", threads, out / "%04d.png"]
    subprocess.run(line, check=True)


def by_hand(source, out):
    out.mkdir()
    with av.open(str(source)) as container:
        container.streams.video[0].thread_type = "AUTO"
        for i, frame in enumerate(container.decode(video=0)):
            cv2.imwrite(str(out / f"{i:04d}.png"), frame.to_ndarray(format="bgr24"))


def extraction(folder):
    source = folder / "film.mp4"
    film(source)
    peer, way = ("ffmpeg", by_ffmpeg) if shutil.which("ffmpeg") else ("PyAV and OpenCV, by hand", by_hand)
    times = {"ours": [], peer: []}
    for turn in range(ROUNDS):
        ours, theirs = folder / f"ours{turn}", folder / f"theirs{turn}"
        times["ours"].append(seconds(lambda ours=ours: extract(source, ours, progress=False)))
        times[peer].append(seconds(way, source, theirs))
    width, height, count = FILM
    found = {name: statistics.median(each) for name, each in times.items()}
    work = f"{count} frames of {width}x{height} to PNG"
    return [_row(work, found["ours"], f"by {peer}", found[peer])]


def batches(folder):
    """A batch, and a dataset's first and second opening."""
    root = folder / "dataset"
    extract("sample", root, height=SIZE, width=SIZE, progress=False)
    first = seconds(lambda: open_dataset(root, progress=False))
    dataset = open_dataset(root, progress=False)
    again = statistics.median(seconds(lambda: open_dataset(root, progress=False)) for _ in range(ROUNDS))
    learned, _ = split_windows(dataset, LENGTH, 0.1, True, True)
    stream = Batches(dataset, [learned], LENGTH, BATCH, 0)
    raw = torch.zeros(BATCH, LENGTH, SIZE, SIZE, 3, dtype=torch.uint8)
    floats, copied = torch.empty(raw.shape), torch.empty(raw.shape)
    found = in_turn(
        {
            "batch": stream.next,
            "converted": lambda: copied.copy_(raw),
            "memcpy": lambda: copied.copy_(floats),
        },
        50,
    )
    work = f"a batch of {BATCH} x {LENGTH} frames of {SIZE}x{SIZE}"
    count = len(dataset.frames)
    return [
        _row(work, found["batch"], "converted by one call", found["converted"]),
        _row(work, found["batch"], "memcpy of the floats", found["memcpy"]),
        _row(f"opening {count} frames again", again, "the first time", first),
    ]


def start_up():
    def run(code):
        subprocess.run([sys.executable, "-c", code], check=True)

    found = in_turn(
        {
            "ours": lambda: run("import mtld_core"),
            "python": lambda: run("pass"),
            "training": lambda: run("import mtld_core.train"),
            "torch": lambda: run("import torch"),
        },
        ROUNDS,
    )
    return [
        _row("import mtld_core", found["ours"], "python alone", found["python"]),
        _row("import mtld_core.train", found["training"], "import torch", found["torch"]),
    ]


def _row(work, ours, beside, theirs):
    return {
        "work": work,
        "ms": 1000 * ours,
        "beside": beside,
        "its ms": 1000 * theirs,
        "share of its speed": theirs / ours,
    }


def rows_of():
    """A row for each piece of work, a dict."""
    with tempfile.TemporaryDirectory() as folder:
        return batches(Path(folder)) + extraction(Path(folder)) + start_up()


@command
def main():
    argparse.ArgumentParser(description=__doc__.splitlines()[0]).parse_args()
    print(machine())
    print_table(rows_of())


if __name__ == "__main__":
    sys.exit(main())
