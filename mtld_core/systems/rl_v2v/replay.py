"""A replay for reinforcement learning: the last transitions in RAM, and each of them written once into the
run's folder.

<run_dir>/replay/000000000000.bin   a header, then transitions 0 to 999; 000000001000.bin goes on, and so
forth

So a checkpoint holds two numbers (`state`) and the names of the files that they rest on (`files`), however
large the replay is.
"""

import os
import shutil
import struct
import zlib
from pathlib import Path

import numpy as np
import torch

from mtld_core.config import UserError
from mtld_core.files import flush
from mtld_core.runs.folder import REPLAY

SEGMENT = 1000  # transitions in a file
MAGIC, VERSION = b"MTLD RPL", 1
HEADER = struct.Struct("<8sIIIII")  # magic, version, shape of a transition's frames
WAY_OUT = "copy the run's folder once more with all that is in it, or start in another run_dir"


class Replay:
    """The last `capacity` transitions, with room for as many taken from the start (memory that is not used
    yet costs nothing).

    A transition is frames uint8 `frame_shape` = `(p + 1, H, W, 3)` (a state of p frames and the frame that
    was the action: the next state is these without the oldest), a reward, a position in the clip, a domain (0
    or 1) and whether it was the last.

    folder: the run's. Nothing is written into it before the first `add`.
    """

    def __init__(self, folder, capacity, frame_shape):
        self.folder, self.capacity, self.frame_shape = Path(folder) / REPLAY, capacity, tuple(frame_shape)
        self.count = 0  # transitions ever added; each has its number, from 0 on
        self._first = 0  # number of the oldest that is still here
        record = [
            ("frames", "u1", self.frame_shape),
            ("rewards", "<f4"),
            ("positions", "<i8"),
            ("domains", "u1"),
        ]
        self._ring = np.empty(
            capacity, [*record, ("done", "?"), ("crc", "<u4")]
        )  # number n lies in row n % capacity
        self._unflushed = set()

    def __len__(self):
        return self.count - self._first

    def add(self, frames, rewards, positions, domains, done):
        """Append n transitions: frames uint8 `[n, p+1, H, W, 3]`, the others `[n]`, on any device.

        Raises OSError where the disk refuses them, and ValueError for frames of another kind.
        """
        if frames.dtype != torch.uint8 or tuple(frames.shape[1:]) != self.frame_shape:
            raise ValueError(
                f"frames are {frames.dtype} {list(frames.shape)}, wanted is uint8 [n, "
                f"*{list(self.frame_shape)}]"
            )
        rewards = rewards.detach().float()  # numpy knows no bfloat16
        given = {
            "frames": frames,
            "rewards": rewards,
            "positions": positions,
            "domains": domains,
            "done": done,
        }
        columns = {name: values.cpu().numpy() for name, values in given.items()}
        for begin, rows in self._pieces(self.count, self.count + len(frames)):
            part = slice(begin - self.count, begin - self.count + len(rows))
            for name, values in columns.items():
                rows[name] = values[part]
            rows["crc"] = _checksums(rows)
            self._write(begin, rows)
        self.count += len(frames)
        self._first = max(self._first, self.count - self.capacity)

    def sample(self, uniform):
        """Transitions by chance: `[n]` numbers in [0, 1) -> dict of `[n, ...]` tensors on the CPU, drawn with
        repetition.

        frames uint8, rewards float32, positions and domains int64, done bool. 0 stands for the oldest, almost
        1 for the newest.
        """
        if not len(self):
            raise IndexError("the replay is empty: nothing to sample")
        numbers = self._first + (uniform.cpu().double() * len(self)).long().numpy()
        rows = numbers % self.capacity
        drawn = {name: torch.from_numpy(self._ring[name][rows]) for name in self._ring.dtype.names[:-1]}
        return drawn | {"domains": drawn["domains"].long()}

    # ---- checkpoints

    def state(self):
        return {"count": self.count, "first": self._first}

    def files(self):
        """{path relative to the run's folder: bytes of it} that the present state rests on; they are on disk
        on return.
        """
        for path in self._unflushed:
            with open(path, "r+b") as file:
                os.fsync(file.fileno())
        self._unflushed.clear()
        flush(self.folder)
        return {f"{REPLAY}/{name}": size for name, size in self._segments(self._first, self.count)}

    def load(self, state, folder):
        """Take back what the replay was when `state` was taken. folder: of the run that it was taken in.

        Another run's files are copied. What this run wrote after `state` is deleted. Raises UserError, naming
        the file, where one is missing, cut short, damaged, or made for frames of another size.
        """
        self.count, self._first = state["count"], max(state["first"], state["count"] - self.capacity)
        source, needed = Path(folder) / REPLAY, list(self._segments(self._first, self.count))
        for name, size in needed:
            self._check(source / name, size)
        for path in self.folder.glob(f"{'[0-9]' * 12}.bin"):
            if int(path.stem) >= self.count:
                path.unlink()
        if source.resolve() != self.folder.resolve():
            self.folder.mkdir(parents=True, exist_ok=True)
            for name, _ in needed:
                shutil.copyfile(source / name, self.folder / name)
        for name, size in needed:
            os.truncate(self.folder / name, size)
            self._unflushed.add(self.folder / name)
        for begin, rows in self._pieces(self._first, self.count):
            self._read(begin, rows)

    # ---- files

    def _pieces(self, begin, end):
        """(number, rows of the ring) for the transitions from `begin` to before `end`, cut where a file or
        the ring ends.
        """
        while begin < end:
            row = begin % self.capacity
            size = min(end - begin, self.capacity - row, SEGMENT - begin % SEGMENT)
            yield begin, self._ring[row : row + size]
            begin += size

    def _segments(self, first, end):
        """(file's name, bytes of it that are needed) for the transitions from `first` to before `end`."""
        for start in range(first - first % SEGMENT, end, SEGMENT):
            yield _name(start), self._offset(min(SEGMENT, end - start))

    def _offset(self, transitions):
        return HEADER.size + transitions * self._ring.itemsize

    def _header(self):
        return HEADER.pack(MAGIC, VERSION, *self.frame_shape)

    def _write(self, begin, rows):
        path, offset = self.folder / _name(begin), self._offset(begin % SEGMENT)
        if begin % SEGMENT == 0:
            self.folder.mkdir(parents=True, exist_ok=True)
            path.write_bytes(self._header())
        self._unflushed.add(path)
        with open(path, "r+b") as file:
            file.seek(offset)
            file.write(rows.view(np.uint8))

    def _read(self, begin, rows):
        path = self.folder / _name(begin)
        with open(path, "rb") as file:
            file.seek(self._offset(begin % SEGMENT))
            file.readinto(rows.view(np.uint8))
        wrong = np.flatnonzero(rows["crc"] != _checksums(rows))
        if len(wrong):
            raise UserError(
                f"{path} is damaged: transition {begin + wrong[0]} does not match its checksum; {WAY_OUT}"
            )

    def _check(self, path, size):
        """That a file has this run's layout and its first `size` bytes."""
        try:
            with open(path, "rb") as file:
                header = file.read(HEADER.size)
                found = os.fstat(file.fileno()).st_size
        except OSError as error:
            raise UserError(
                f"{path} cannot be read ({error.strerror}), and the checkpoint rests on it; {WAY_OUT}"
            ) from None
        if header != self._header():
            if len(header) < HEADER.size or not header.startswith(MAGIC):
                raise UserError(f"{path} is damaged, or no file of a replay; {WAY_OUT}")
            _, version, *shape = HEADER.unpack(header)
            raise UserError(
                f"{path} holds transitions of frames {shape} (version {version}), this run has "
                f"{list(self.frame_shape)} "
                f"(version {VERSION}); keep the frames' size and number as they were, or start in another "
                "run_dir"
            )
        if found < size:
            raise UserError(f"{path} has {found} bytes of the {size} that the checkpoint rests on; {WAY_OUT}")


def _name(number):
    """Of the file that holds this transition."""
    return f"{number - number % SEGMENT:012d}.bin"


def _checksums(rows):
    """CRC-32 of each row but for its own last four bytes, which hold it."""
    return [zlib.crc32(row[:-4]) for row in rows.view(np.uint8).reshape(len(rows), -1)]
