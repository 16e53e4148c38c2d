"""Moving MNIST (Srivastava, Mansimov and Salakhutdinov 2015): written digits that move, bounce and overlap.

    python data_prep/make_moving_mnist.py OUT [--sequences 10000 --digits 2 --length 20 --size 64 --seed 0]
    python data_prep/make_moving_mnist.py OUT --source FOLDER_OR_TGZ       without internet, see make_mnist.py

Two HDF5 files come of it:

    OUT/train.h5        `--sequences` of the digits of MNIST's training part, by `--seed`: what OUT opens as
    OUT/test/test.h5    the test set: 10,000 of the digits of its test part, whatever those two are

The protocol is that of the authors' published generator. A digit of 28x28 pixels lies anywhere in the picture
with equal probability and moves in any direction with equal probability, by a tenth of the room that it has
(size - 28) a frame: 3.6 pixels at 64. Where a step would leave the picture it ends at the border, and that
part of the velocity is reversed. Places are cut to whole pixels; where digits overlap, the brighter pixel is
seen. Ten frames are given and ten predicted.
"""

import argparse
import contextlib
import json
import sys
from pathlib import Path

import h5py
import numpy as np

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from data_prep.make_mnist import read_mnist
from mtld_core.chance import seed_of
from mtld_core.config import UserError, can_write
from mtld_core.files import atomic_path
from mtld_core.runtime import command, progress_bar

DIGIT = 28  # pixels of a side
STEP = 0.1  # of the room, a frame
TEST_SEQUENCES = 10_000
TEST_SEED = 0


def make(
    out,
    sequences=10_000,
    digits=2,
    length=20,
    size=64,
    seed=0,
    test_sequences=TEST_SEQUENCES,
    source=None,
    progress=True,
):
    """Write `out`/train.h5 and `out`/test/test.h5, and return their paths.

    sequences: of the training file; the first of them do not depend on how many there are.
    digits: in each sequence. length: frames of a sequence. size: pixels of a side.
    seed: of the training file. The same arguments give the same frames.
    test_sequences: so many, the first, of the test set; 0 for no test file.
    source: a folder or archive with MNIST's files; None: torchvision downloads them.

    Each file has `frames` uint8 `[N, size, size, 3]` (grey), `episode` `[N]`, the sequence that a frame
    belongs to, and `digits` uint8 `[sequences, digits]`, what is to be seen. Raises UserError where `out` is
    taken or cannot be written, a setting is wrong, or MNIST is not to be had.
    """
    for name, value, least in (
        ("sequences", sequences, 1),
        ("digits", digits, 1),
        ("length", length, 2),
        ("size", size, DIGIT + 1),
        ("test_sequences", test_sequences, 0),
    ):
        if value < least:
            raise UserError(f"{name} must be {least} or more, not {value!r}")
    out = Path(out).expanduser().absolute()
    if out.is_file() or any(path.is_file() for path in out.rglob("*")):
        raise UserError(f"{out} is there already and is not overwritten: name another OUT, or delete it")
    train, test = read_mnist(source)
    files = {out / "train.h5": (sequences, train, {"part": "train", "seed": seed})}
    if test_sequences:
        files[out / "test/test.h5"] = test_sequences, test, {"part": "test", "seed": TEST_SEED}
    about = {"source": "Moving MNIST", "digits": digits, "length": length, "cuts": False}
    with (
        can_write(out, "make room there or name another OUT"),
        contextlib.ExitStack() as both,  # take their names together, when both are whole
    ):
        for path, (count, mnist, of_part) in files.items():
            temporary = both.enter_context(atomic_path(path))
            _write(temporary, count, mnist, about | of_part, size, progress)
    return list(files)


def _write(path, count, mnist, about, size, progress):
    """One file of `count` sequences. mnist: (pictures uint8 `[M, 28, 28]`, digits uint8 `[M]`)."""
    (pictures, values), length = mnist, about["length"]
    with (
        h5py.File(path, "w") as file,
        progress_bar(total=count, desc=about["part"], disable=not progress) as bar,
    ):
        shape = (length, size, size, 3)
        packed = {"compression": "gzip", "compression_opts": 1}
        everything = (count * length, size, size, 3)
        frames = file.create_dataset("frames", everything, np.uint8, chunks=shape, **packed)
        file["episode"] = np.repeat(np.arange(count), length)
        digits = file.create_dataset("digits", (count, about["digits"]), np.uint8)
        for n in range(count):
            rows, grey = _sequence(about, n, size, pictures)
            frames[n * length : (n + 1) * length] = np.repeat(grey[..., None], 3, -1)
            digits[n] = values[rows]
            bar.update()
        file.attrs["recording"] = json.dumps(about)


def _sequence(about, n, size, pictures):
    """(rows of `pictures` that are shown, uint8 `[length, size, size]`) of sequence `n`.

    The numbers come straight from the bit generator, of which numpy promises that a seed gives the same for
    ever.
    """
    seed = seed_of("moving MNIST", about["part"], about["seed"], n)
    digits = about["digits"]
    chance = (np.random.PCG64(seed).random_raw(4 * digits) >> 11) * 2.0**-53  # in [0, 1)
    chance = chance.reshape(digits, 4)
    rows = (chance[:, 0] * len(pictures)).astype(np.int64)
    frames = np.zeros((about["length"], size, size), np.uint8)
    for row, (_, *start, turn) in zip(rows, chance, strict=True):
        places = trajectory(start, 2 * np.pi * turn, about["length"], size - DIGIT)
        for frame, (top, left) in zip(frames, places, strict=True):
            seen = frame[top : top + DIGIT, left : left + DIGIT]
            np.maximum(seen, pictures[row], out=seen)
    return rows, frames


def trajectory(start, angle, length, room):
    """int `[length, 2]`: top and left of a digit in each frame, from 0 to `room` pixels.

    start: where it is one step before the first frame, shares of the room. angle: its direction, radians.
    """
    place = np.array(start)
    velocity = STEP * np.array([np.sin(angle), np.cos(angle)])
    places = []
    for _ in range(length):
        place = place + velocity
        velocity = np.where((place <= 0) | (place >= 1), -velocity, velocity)
        place = place.clip(0, 1)
        places.append(place)
    return (room * np.array(places)).astype(np.int64)


@command
def main():
    parser = argparse.ArgumentParser(
        description="Make Moving MNIST: a training file by a seed, and the fixed test set."
    )
    parser.add_argument("out", help="the folder to make")
    parser.add_argument("--sequences", type=int, default=10_000, help="of the training file")
    parser.add_argument("--digits", type=int, default=2, help="in a sequence")
    parser.add_argument("--length", type=int, default=20, help="frames of a sequence")
    parser.add_argument("--size", type=int, default=64, help="pixels of a side")
    parser.add_argument("--seed", type=int, default=0, help="of the training file")
    parser.add_argument(
        "--test-sequences",
        type=int,
        default=TEST_SEQUENCES,
        help="the first so many of the test set; 0: none",
    )
    parser.add_argument(
        "--source", help="a folder or .tgz with MNIST's IDX files; without: torchvision downloads them"
    )
    print(*make(**vars(parser.parse_args())), sep="\n")


if __name__ == "__main__":
    sys.exit(main())
