"""A replay for reinforcement learning: the last transitions in RAM, each of them once in the run's folder.

<run_dir>/replay/000000000000.npy   transitions 0 to 999 at most; the next file is named after its first one

A file is written for a checkpoint, with what has come since the one before, and then never changes. So a
checkpoint holds the names and digests of its files (`state`), however large the replay is, and a kill damages
nothing that a checkpoint rests on.
"""

from pathlib import Path

import numpy as np
import torch

from mtld_core.config import UserError
from mtld_core.files import atomic_path, flush, sha256
from mtld_core.runs.folder import REPLAY

SEGMENT = 1000  # transitions in a file, at most
WAY_OUT = "copy the run's folder once more with all that is in it, or start in another run_dir"


class Replay:
    """The last `capacity` transitions.

    There is room for as many from the start: memory that is not used yet costs nothing. A transition is
    frames uint8 `frame_shape` = `(p + 1, H, W, 3)` (a state of p frames and the frame that was the action:
    the next state is these without the oldest), a reward, a position in the clip, a domain (0 or 1) and
    whether it was the last. folder: the run's. Nothing is written into it before `files`.
    """

    def __init__(self, folder, capacity, frame_shape):
        self.folder = Path(folder) / REPLAY
        self.capacity = capacity
        self.count = 0  # transitions ever added; each has its number, from 0 on
        self._first = 0  # number of the oldest that is still here
        self._saved = 0  # number of the first that is in no file
        self._segments = []  # of the files: [number of the first transition, of what comes after, sha256]
        record = [
            ("frames", "u1", tuple(frame_shape)),
            ("rewards", "<f4"),
            ("positions", "<i8"),
            ("domains", "u1"),
            ("done", "?"),
        ]
        self._ring = np.empty(capacity, record)  # number n lies in row n % capacity

    def __len__(self):
        return self.count - self._first

    def add(self, frames, rewards, positions, domains, done):
        """Append n transitions: frames uint8 `[n, p+1, H, W, 3]`, the others `[n]` or one value for all."""
        end = self.count + len(frames)
        rows = np.arange(self.count, end) % self.capacity
        self._ring["frames"][rows] = frames.cpu()
        self._ring["rewards"][rows] = rewards.detach().float().cpu()  # numpy knows no bfloat16
        self._ring["positions"][rows] = positions
        self._ring["domains"][rows] = domains
        self._ring["done"][rows] = done
        self.count = end
        self._first = max(self._first, end - self.capacity)

    def sample(self, uniform):
        """Transitions by chance: `[n]` numbers in [0, 1) -> dict of `[n, ...]` tensors on the CPU.

        frames uint8, rewards float32, positions and domains int64, done bool. 0 stands for the oldest, almost
        1 for the newest; one may be drawn several times.
        """
        if not len(self):
            raise IndexError("the replay is empty: nothing to sample")
        numbers = self._first + (uniform.cpu().double() * len(self)).long().numpy()
        rows = numbers % self.capacity
        drawn = {name: torch.from_numpy(self._ring[name][rows]) for name in self._ring.dtype.names}
        return drawn | {"domains": drawn["domains"].long()}

    # ---- checkpoints

    def files(self):
        """Write what is in no file yet. Returns {path relative to the run's folder: bytes} of all its files.

        Raises OSError where the disk refuses them.
        """
        begin = max(self._saved, self._first)
        while begin < self.count:
            row = begin % self.capacity
            size = min(SEGMENT, self.count - begin, self.capacity - row)
            path = self.folder / _name(begin)
            _write(path, self._ring[row : row + size])
            self._segments = [*self._segments, [begin, begin + size, sha256(path)]]
            begin += size
            self._saved = begin
        flush(self.folder)
        self._segments = [segment for segment in self._segments if segment[1] > self._first]
        paths = [self.folder / _name(begin) for begin, _, _ in self._segments]
        return {f"{REPLAY}/{path.name}": path.stat().st_size for path in paths}

    def state(self):
        """What a checkpoint keeps of the replay, for `load`; call `files` before."""
        return {"count": self.count, "first": self._first, "segments": self._segments}

    def load(self, state, folder):
        """Take back what the replay was when `state` was taken. folder: of the run that it was taken in.

        Raises UserError, naming the file, where one is missing or damaged.
        """
        self.count = state["count"]
        self._first = max(state["first"], self.count - self.capacity)
        source = Path(folder) / REPLAY
        if "segments" not in state:
            self._load_former(source)
            return
        for begin, _, digest in state["segments"]:
            self._place(begin, _read(source / _name(begin), digest))
        if source.resolve() == self.folder.resolve():  # else all is written anew for the next checkpoint
            self._saved = self.count
            self._segments = state["segments"]

    def _load_former(self, folder):
        """Read the files of a run from before they were .npy: 1,000 transitions each, behind a header."""
        record = [*self._ring.dtype.descr, ("checksum", "<u4")]
        for begin in range(self._first - self._first % 1000, self.count, 1000):
            self._place(begin, np.fromfile(folder / f"{begin:012d}.bin", record, offset=28))

    def _place(self, begin, rows):
        """Put `rows`, transitions from number `begin` on, into the ring, but for those that are too old."""
        numbers = np.arange(max(begin, self._first), min(begin + len(rows), self.count))
        for name in self._ring.dtype.names:
            self._ring[name][numbers % self.capacity] = rows[name][numbers - begin]


def _read(path, digest):
    try:
        whole = sha256(path) == digest
    except OSError as error:
        raise UserError(
            f"{path} cannot be read ({error.strerror}), and the checkpoint rests on it; {WAY_OUT}"
        ) from None
    if not whole:
        raise UserError(f"{path} is damaged: it does not match its sha256; {WAY_OUT}")
    return np.load(path)


def _write(path, rows):
    """Do what `np.save` does, but for a full disk, of which that says nothing."""
    about = np.lib.format.header_data_from_array_1_0(rows)
    with atomic_path(path) as temporary, open(temporary, "wb") as file:
        np.lib.format.write_array_header_1_0(file, about)
        file.write(rows)


def _name(number):
    """Name of the file whose first transition has this number."""
    return f"{number:012d}.npy"
