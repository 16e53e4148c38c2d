"""A replay for reinforcement learning: the last transitions on the device, each once in the run's folder.

<run_dir>/replay/000000000000.npy   transitions 0 to 999 at most; the next file is named after its first one

A file is written for a checkpoint, with what has come since the one before, and then never changes. So a
checkpoint holds the names and digests of its files (`state`), however large the replay is, and a kill damages
nothing that a checkpoint rests on.
"""

from pathlib import Path

import numpy as np
import torch

from mtld_core.config import UserError, check
from mtld_core.files import atomic_path, flush, sha256
from mtld_core.runs.folder import REPLAY

SEGMENT = 1000  # transitions in a file, at most
KINDS = {"u1": torch.uint8, "<f4": torch.float32, "<i8": torch.int64, "?": torch.bool}  # of numpy, in torch
WAY_OUT = "copy the run's folder once more with all that is in it, or start in another run_dir"


class Replay:
    """The last `capacity` transitions, of the domains 0 and 1 by turns.

    There is room for as many from the start. A transition is frames uint8 `frame_shape` = `(p + 1, H, W, 3)`
    (a state of p frames and the frame that was the action: the next state is these without the oldest), a
    reward, a position in the clip, a domain (that of an even number is 0) and whether it was the last.
    Adding and drawing do not wait for the device. folder: the run's. Nothing is written into it before
    `files`. Raises UserError where the device has no room.
    """

    count = 0  # transitions ever added; each has its number, from 0 on
    _first = 0  # number of the oldest that is still here
    _saved = 0  # number of the first that is in no file

    def __init__(self, folder, capacity, frame_shape, device="cpu"):
        self.folder = Path(folder) / REPLAY
        self.capacity, self.device = capacity, device
        self._segments = []  # of the files: [number of the first transition, of what comes after, sha256]
        self._record = [
            ("frames", "u1", tuple(frame_shape)),
            ("rewards", "<f4", ()),
            ("positions", "<i8", ()),
            ("domains", "u1", ()),
            ("done", "?", ()),
        ]
        self._ring = {}  # name -> `[capacity, ...]`; number n lies in row n % capacity
        try:
            for name, kind, shape in self._record:
                self._ring[name] = torch.empty((capacity, *shape), dtype=KINDS[kind], device=device)
        except torch.OutOfMemoryError:
            raise UserError(
                f"replay_size={capacity}: there is no room for so many transitions in the memory of "
                f"{device}; use fewer"
            ) from None

    def __len__(self):
        return self.count - self._first

    def add(self, frames, rewards, positions, domains, done):
        """Append n transitions: frames uint8 `[n, p+1, H, W, 3]`, the others `[n]` or one number for all."""
        n = len(frames)
        kept = min(n, self.capacity)
        end = self.count + n
        rows = torch.arange(end - kept, end, device=self.device) % self.capacity
        values = (frames, rewards, positions, domains, done)
        for ring, given in zip(self._ring.values(), values, strict=True):
            if not torch.is_tensor(given):
                given = torch.full((n,), given, device=self.device)
            ring.index_copy_(0, rows, given.detach()[n - kept :].to(self.device, ring.dtype))
        self.count = end
        self._first = max(self._first, end - self.capacity)

    def take(self, numbers):
        """The transitions with these numbers, int64 `[n]` on the device: a dict of `[n, ...]`, copies.

        frames uint8, rewards float32, positions int64, domains uint8, done bool.
        """
        rows = numbers % self.capacity
        return {name: ring[rows] for name, ring in self._ring.items()}

    def draw(self, uniform, domain):
        """Numbers of transitions of a domain by chance: `[n]` in [0, 1), 0 for the oldest -> int64 `[n]`."""
        oldest, newest = (self._first + 1) // 2, self.count // 2
        return 2 * (oldest + (uniform.double() * (newest - oldest)).long()) + domain

    def newest(self, places, of, domain):
        """Numbers of a domain's newest transitions: places int64 `[n]`, 0 the first of the last `of` ones."""
        number = self.count - 2 * of + 2 * places + domain
        return number.clamp(
            min=2 * ((self._first + 1) // 2) + domain
        )  # the replay may be smaller than a batch

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
            _write(path, self._records(row, size))
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
        self._take_turns()

    def _load_former(self, folder):
        """Read the files of a run from before they were .npy: 1,000 transitions each, behind a header."""
        record = [*self._record, ("checksum", "<u4")]
        for begin in range(self._first - self._first % 1000, self.count, 1000):
            self._place(begin, np.fromfile(folder / f"{begin:012d}.bin", record, offset=28))
        self._take_turns()

    def _place(self, begin, rows):
        """Put `rows`, transitions from number `begin` on, into the ring, but for those that are too old."""
        numbers = np.arange(max(begin, self._first), min(begin + len(rows), self.count))
        places = torch.from_numpy(numbers % self.capacity).to(self.device)
        for name, ring in self._ring.items():
            values = np.ascontiguousarray(rows[name][numbers - begin])
            ring[places] = torch.from_numpy(values).to(self.device)

    def _take_turns(self):
        """Bring transitions of before, when a batch's came domain by domain, into turns.

        They get new numbers, behind those that they had: the files of these stay as they are.
        """
        numbers = torch.arange(self._first, self.count, device=self.device)
        held = self.take(numbers)
        if torch.equal(held["domains"].long(), numbers % 2):
            return
        of_domains = [(held["domains"] == domain).nonzero().flatten() for domain in (0, 1)]
        pairs = min(map(len, of_domains))
        order = torch.stack([rows[len(rows) - pairs :] for rows in of_domains], 1).flatten()
        self.count += self.count % 2
        self._first = self._saved = self.count
        self._segments = []
        self.add(*[held[name][order] for name in self._ring])

    def _records(self, row, size):
        """Rows of the ring as a file has them: a numpy array of records."""
        records = np.empty(size, self._record)
        for name, ring in self._ring.items():
            records[name] = ring[row : row + size].cpu()
        return records


def _read(path, digest):
    try:
        whole = sha256(path) == digest
    except OSError as error:
        raise UserError(
            f"{path} cannot be read ({error.strerror}), and the checkpoint rests on it; {WAY_OUT}"
        ) from None
    check(whole, f"{path} is damaged: it does not match its sha256; {WAY_OUT}")
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
