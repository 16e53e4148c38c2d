"""The endless stream of training batches.

An epoch's order is a function of (seed, epoch), so (epoch, index) is all there is to save.
"""

import math

import torch

from mtld_core.chance import seed_of
from mtld_core.config import check
from mtld_core.frames import rows_of, scale_in_place, to_float
from mtld_core.machine.group import ALONE

CACHE_BYTES = 2**23  # floats converted at once: few calls, and still in the last cache when they are scaled


class Batches:
    """An endless stream of batches of windows: each window comes once an epoch, and batches run over its end.

    dataset: a `Dataset` or a `DomainPair`. starts: for each domain, the rows where its windows of `length`
    frames begin. `next()` gives `count` fresh batches, each a dict:
        "frames": float32 `[B, T, 3, H, W]` in [-1, 1] on `device` (None: where the dataset lives),
        "frames_y": windows of the second domain, if there is one, drawn independently,
        "key": int64 `[B]`, one number a sample that depends on (seed, domain, position in the stream) alone,
        "actions": `[B, T - 1]` or `[B, T - 1, A]` where the dataset has them; actions[:, t] leads from frame
            t to t + 1.
    On a CPU the frames lie in buffers that the next call fills again: a batch is valid until then. group: of
    several processes each draws the whole batch and gets its own share. So where the stream stands does not
    depend on their number. Raises UserError where a domain has no window, or a batch cannot be shared.
    """

    def __init__(
        self,
        dataset,
        starts,
        length,
        batch_size,
        seed,
        count=1,
        device=None,
        group=ALONE,
    ):
        self.count = count
        purposes = ("train", "train/y")[: len(dataset.domains)]
        own = slice(*group.share(batch_size))
        self.streams = [
            _Stream(domain, rows, length, batch_size, seed, device, name, own)
            for domain, rows, name in zip(dataset.domains, starts, purposes, strict=True)
        ]

    @property
    def steps_per_epoch(self):
        """Calls of `next()` until every window of the larger domain was drawn once, rounded up."""
        larger = max(self.streams, key=lambda stream: len(stream.starts))
        return math.ceil(len(larger.starts) / (larger.batch_size * self.count))

    def state(self):
        """Where the stream stands, a dict of plain numbers: epoch and index, of two domains for each."""
        states = [stream.state() for stream in self.streams]
        if len(states) == 1:
            return states[0]
        return dict(zip("xy", states, strict=True))

    def load_state(self, state):
        """Go on exactly where `state()` was taken. Raises UserError where there are fewer windows by now."""
        states = [state["x"], state["y"]] if len(self.streams) == 2 else [state]
        for stream, place in zip(self.streams, states, strict=True):
            stream.load_state(**place)

    def next(self):
        """Draw a list of `count` batches."""
        return [self._batch(slot) for slot in range(self.count)]

    def _batch(self, slot):
        batch = self.streams[0].next(slot)
        if len(self.streams) == 2:
            batch["frames_y"] = self.streams[1].next(slot)["frames"]
        return batch


class _Stream:
    """The batches of one domain."""

    position = 0  # windows that were drawn so far
    _epoch = _order = None  # the newest epoch, and the order of its windows

    def __init__(self, dataset, starts, length, batch_size, seed, device, purpose, own):
        check(len(starts), f"{dataset.path}: there is no window to draw batches from")
        self.dataset = dataset
        self.starts = starts
        self.length = length
        self.batch_size = batch_size
        self.own = own  # slice of each batch that this process computes
        self.seed = seed
        self.purpose = purpose
        self.device = torch.device(device) if device is not None else dataset.frames.device
        self._slots = {}  # number of a batch in one call -> the memory that its frames are copied to

    def state(self):
        epoch, index = divmod(self.position, len(self.starts))
        return {"epoch": epoch, "index": index}

    def load_state(self, epoch, index):
        check(
            0 <= index < len(self.starts),
            f"{self.dataset.path}: the saved position is window {index} of an epoch and there are "
            f"{len(self.starts)} windows; resume with the dataset the run began with",
        )
        self.position = epoch * len(self.starts) + index

    def next(self, slot):
        return self.gather(*self.draw(), slot)

    def draw(self):
        """(first rows, keys) of this process's windows of the next batch: int64 `[B]` each, on the host."""
        positions = range(self.position, self.position + self.batch_size)[self.own]
        self.position += self.batch_size
        keys = [seed_of(self.seed, self.purpose, position) for position in positions]
        chosen = [self._window(position) for position in positions]
        return self.starts[chosen], torch.tensor(keys)

    def gather(self, chosen, keys, slot):
        """The batch, on the device, of the windows that begin at the rows `chosen`.

        slot: number of the batch in one call of `next`, which owns the memory that its frames go through.
        """
        batch = {"frames": self._frames(chosen, slot), "key": keys.to(self.device, non_blocking=True)}
        actions = self.dataset.actions
        if actions is not None:
            rows = rows_of(chosen, self.length - 1)
            chosen_actions = actions[rows.to(actions.device, non_blocking=True)]
            batch["actions"] = chosen_actions.to(self.device, non_blocking=True)
        return batch

    def _window(self, position):
        """The place in `starts` of the window at a position of the stream."""
        epoch, index = divmod(position, len(self.starts))
        if epoch != self._epoch:
            generator = torch.Generator().manual_seed(seed_of(self.seed, self.purpose, "epoch", epoch))
            self._epoch = epoch
            self._order = torch.randperm(len(self.starts), generator=generator)
        return self._order[index].item()

    def _frames(self, chosen, slot):
        """The windows that begin at the rows `chosen`, float32 `[B, T, 3, H, W]` on the device."""
        store = self.dataset.frames
        if store.device.type != "cpu":
            rows = rows_of(chosen, self.length)
            return to_float(store[rows.to(store.device, non_blocking=True)])
        windows = [store[start : start + self.length] for start in chosen.tolist()]
        slots, shape = self._slots, (len(chosen), self.length, *store.shape[1:])
        if self.device.type == "cpu":
            if slot not in slots:  # warm from the second call on: fresh memory costs more than the copy
                slots[slot] = torch.empty(shape)
            return _convert(windows, slots[slot])
        if slot not in slots:
            memory = torch.empty(shape, dtype=torch.uint8, pin_memory=True)
            slots[slot] = memory, torch.cuda.Event()
        pinned, sent = slots[slot]
        sent.synchronize()  # the last transfer from this memory, usually long done
        torch._foreach_copy_(list(pinned.unbind(0)), windows)
        frames = pinned.to(self.device, non_blocking=True)
        sent.record(torch.cuda.current_stream(self.device))
        return to_float(frames)


def _convert(windows, out):
    """Write uint8 windows `[T, H, W, 3]` into `out`, float32 `[B, T, H, W, 3]`, a few at a time.

    Returns it as `[B, T, 3, H, W]` in [-1, 1].
    """
    few = max(1, CACHE_BYTES // out[0].nbytes)
    for i in range(0, len(windows), few):
        piece = out[i : i + few]
        torch._foreach_copy_(list(piece.unbind(0)), windows[i : i + few])
        scale_in_place(piece)
    return out.movedim(-1, -3)
