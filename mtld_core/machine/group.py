"""Several processes that train one run together: who they are, how they add up, and how they agree.

torchrun starts them, one for each card (on a CPU as many as it is told to), and tells each its number. Each
computes its share of every batch, and all take the same step. The first one leads: it alone writes, prints
and judges, and its clock counts.
"""

import contextlib
import dataclasses
import datetime
import hashlib
import os

import torch
import torch.distributed as dist

from mtld_core.config import UserError, check, reason_of

# for which the others wait while the first one judges or somebody pauses; a process that dies is seen at once
PATIENCE = datetime.timedelta(days=7)
GONE = (
    "another process of this run has died or lost its way; start the same again, with as many processes as "
    "you like, to go on from the newest checkpoint"
)

MOST_SAID = 120  # characters of torch's own words about that


@dataclasses.dataclass
class Group:
    """The processes of a run. By default one alone, for which all of this does nothing.

    rank: number of this process, from 0 on. size: how many there are. place, here: the same among those on
    this machine. host: torch's group for what they tell each other beside gradients.
    """

    rank: int = 0
    size: int = 1
    place: int = 0
    here: int = 1
    host: object = None

    @property
    def alone(self):
        return self.size == 1

    @property
    def leads(self):
        """Whether this process writes, prints and judges."""
        return self.rank == 0

    def card(self, wanted):
        """The setting `device` as this process has to read it: "cuda:1" for the second one on a machine.

        Raises ConfigError where one card is named for all.
        """
        if self.alone or wanted == "cpu" or not torch.cuda.is_available():
            return wanted
        check(
            wanted in ("auto", "cuda"),
            f"device={wanted!r} is one card for {self.size} processes: use 'auto', 'cuda' or 'cpu'",
        )
        return f"cuda:{self.place}"

    def share(self, count):
        """Find the samples of a batch of `count` that this process computes: (first, last), last excluded.

        Raises ConfigError where they cannot be shared evenly.
        """
        check(
            count % self.size == 0,
            f"batch_size={count} cannot be shared by {self.size} processes evenly; use a multiple of "
            f"{self.size}, such as {-(-count // self.size) * self.size}, or other devices",
        )
        each = count // self.size
        return self.rank * each, (self.rank + 1) * each

    # ---- on the device

    def add_up(self, tensors):
        """Replace each of `tensors` by its sum over all processes, in one exchange and without waiting."""
        if self.alone:
            return
        flat = torch.cat([tensor.detach().reshape(-1) for tensor in tensors])
        with _others():
            dist.all_reduce(flat)
        parts = flat.split([tensor.numel() for tensor in tensors])
        pairs = zip(parts, tensors, strict=True)
        torch._foreach_copy_(list(tensors), [part.view(tensor.shape) for part, tensor in pairs])

    def spread(self, tensors):
        """Overwrite `tensors` with those of the first process."""
        if not self.alone:
            for tensor in tensors:
                whole = tensor.detach().contiguous()
                with _others():
                    dist.broadcast(whole, 0)
                tensor.detach().copy_(whole)

    # ---- between the hosts

    def agree(self, **wishes):
        """What any process wishes: the largest number under each name, a dict of floats."""
        if self.alone:
            return wishes
        numbers = torch.tensor(list(wishes.values()), dtype=torch.float64)
        with _others():
            dist.all_reduce(numbers, dist.ReduceOp.MAX, self.host)
        return dict(zip(wishes, numbers.tolist(), strict=True))

    def meet(self):
        """Wait until all are here."""
        self.agree(here=1)

    def told(self, value):
        """The value that the first process gives; it may be a text, a number, or dicts of them."""
        if self.alone:
            return value
        values = [value]
        with _others():
            dist.broadcast_object_list(values, 0, self.host)
        return values[0]

    @contextlib.contextmanager
    def in_turn(self, turn, turns):
        """Run the block in this process's turn, while those of other turns wait."""
        for now in range(turns):
            if now == turn:
                yield
            self.meet()

    def compare(self, state, step):
        """Raise UserError unless all processes hold the same. state: dict of tensors, compared to the bit."""
        if self.alone:
            return
        digest = hashlib.blake2b(digest_size=7)
        for tensor in state.values():
            digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
        low = float(int.from_bytes(digest.digest(), "little") >> 4)  # 52 bits, which a float holds
        found = self.agree(most=low, least=-low)
        if found["most"] != -found["least"]:
            raise UserError(
                f"at step {step} the weights differ between the {self.size} processes, so nothing was saved: "
                "use machines and cards of one kind and one version of torch, and go on from the newest "
                "checkpoint"
            )


ALONE = Group()


@contextlib.contextmanager
def joined():
    """Join the processes that torchrun started this one with: yields their `Group`, `ALONE` without one.

    Tensors of a CPU are added up by gloo, those of a card by NCCL.
    """
    size = int(os.environ.get("WORLD_SIZE", 1))
    if size == 1:
        yield ALONE
        return
    place = int(os.environ["LOCAL_RANK"])
    cards = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if place < cards:
        torch.cuda.set_device(place)
    with _others():
        dist.init_process_group("cpu:gloo,cuda:nccl" if cards else "gloo")
        host = dist.new_group(backend="gloo", timeout=PATIENCE)
    group = Group(dist.get_rank(), size, place, int(os.environ["LOCAL_WORLD_SIZE"]), host)
    yield group
    dist.destroy_process_group()  # not after an error: it would wait for the others
    # ends gloo's threads: one that still works as Python ends would abort the process
    host = group.host = None


@contextlib.contextmanager
def _others():
    """Say in plain words that another process is gone, which torch says in many."""
    try:
        yield
    except RuntimeError as error:
        raise UserError(f"{GONE} ({reason_of(error)[:MOST_SAID]})") from error


# ---- inside a loss: statistics of the whole batch


def processes():
    """How many processes train this run."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def process():
    """Number of this process among them, from 0 on."""
    return dist.get_rank() if processes() > 1 else 0


def averaged(tensor):
    """Average `tensor` over all processes, with gradient: for the statistics of a whole batch."""
    return tensor if processes() == 1 else _Sum.apply(tensor) / processes()


def gathered(tensor):
    """Join `[n, ...]` of every process, in their order: `[size * n, ...]`, without gradient."""
    if processes() == 1:
        return tensor
    tensor = tensor.detach().contiguous()
    whole = tensor.new_empty(processes() * len(tensor), *tensor.shape[1:])
    with _others():
        dist.all_gather(list(whole.split(len(tensor))), tensor)
    return whole


def over_all(function, tensor):
    """Apply a function, whose rows depend on each other, to those of every process; returns this one's.

    function: of float `[n, ...]`, and keeps n. With gradient.
    """
    if processes() == 1:
        return function(tensor)
    n, first = len(tensor), process() * len(tensor)
    room = tensor.new_zeros(n * (processes() - 1), *tensor.shape[1:])
    whole = _Sum.apply(torch.cat([room[:first], tensor, room[first:]]))
    return function(whole)[first : first + n]


class _Sum(torch.autograd.Function):
    """The sum over all processes. Each one's loss depends on it, so gradients add up, too."""

    @staticmethod
    def forward(ctx, tensor):
        whole = tensor.clone(memory_format=torch.contiguous_format)
        with _others():
            dist.all_reduce(whole)
        return whole

    @staticmethod
    def backward(ctx, gradient):
        return _Sum.apply(gradient)
