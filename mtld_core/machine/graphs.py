"""Work on a GPU that is recorded once, as a CUDA graph, and then replayed.

A step of a small model is a thousand small kernels. A processor takes longer to start them one by one than a
GPU takes to compute them; a graph starts all of them at once. What a graph replays are the kernels and the
addresses that they read and write: no Python runs, so whatever changes from one time to the next has to be in
a tensor that is filled in place.
"""

import contextlib
import threading
import warnings

import torch
from torch.utils import _pytree as pytree

from mtld_core.config import UserError, check, reason_of
from mtld_core.machine import memory

WARM = 3  # times that work runs before it is recorded: libraries choose kernels, optimizers make their state
MOST_TRIES = 16  # at recording where memory is full, for the work takes less of it each time

_state = threading.local()
_one_at_a_time = threading.Lock()  # a process may capture one graph at a time


def can_record(device):
    return device.type == "cuda"


def why_not(setting, device, alike, accumulate, processes=1):
    """Why training steps are not recorded, by the setting `graphs` ("auto", "on" or "off"); "": they are.

    "auto" does so on a GPU, where the system's steps are `alike`, one process trains, and a batch is computed
    in one part. Raises UserError for "on" where they cannot be.
    """
    if setting == "off":
        return "graphs='off'"
    missing = ""
    if not can_record(device):
        missing = f"graphs need a CUDA device, and this is {device}"
    elif not alike:
        missing = "the steps of this system differ from each other"
    elif processes > 1:
        missing = f"graphs are for one process, and these are {processes}"
    elif accumulate > 1 and setting == "auto":
        missing = f"a batch is computed in {accumulate} parts (accumulate)"
    check(setting == "auto" or not missing, f"graphs='on': {missing}; use graphs='auto'")
    return missing


def is_recording():
    """Whether this thread records just now: then nothing is computed, and nothing may wait for the GPU."""
    return getattr(_state, "recording", False)


class Recorded:
    """`work(inputs)`, as it is for the first times, and then recorded and replayed.

    work: a function of one tree (dicts, lists, tuples) of tensors that returns another. It has to do the same
    whenever it is called: Python code runs no more once it is recorded. Generators among the inputs go on
    drawing. Each call does the work once. Inputs are copied to memory that stays, and outputs are in memory
    that the next call writes to again. Where the inputs' shapes change, all begins anew. Whatever goes wrong
    on the way is said in a line, and from then on `work` is called as it is. name: of the work, for that
    line, which `say` takes. why_not: a reason to call it as it is from the first time on; "" for none.
    """

    tries = replays = 0
    _side = None  # the stream that work runs on before it is recorded, and is recorded on

    def __init__(self, work, device, name, say=print, why_not=""):
        self.work, self.device = work, device
        self.name, self.say = name, say
        self.why_not = why_not
        self.forget()

    def forget(self, form=None):
        """Let go of what is recorded, and of its memory; after some calls it is recorded anew."""
        self.form, self.runs, self.thread = form, 0, None
        self.static, self.replay, self.outputs = [], None, None

    def __call__(self, inputs):
        if self.why_not:
            return self.work(inputs)
        leaves, spec = pytree.tree_flatten(inputs)
        form = spec, [_form(leaf) for leaf in leaves]
        if form != self.form:
            self.forget(form)
        if self.replay is not None:
            return self._replayed(leaves)
        try:
            if self._is_warm():
                self._record(leaves, spec)
                return self._replayed(leaves)  # the first launch takes memory, too
            return self._run(inputs)
        except UserError:
            raise
        except Exception as error:  # the work itself, a library that cannot be recorded, or the driver
            self._failed(error)
        # outside the except block, where the traceback no longer holds tensors
        memory.give_back()
        return self(inputs)

    def _is_warm(self):
        """Whether this very thread has done the work often enough: each has library handles of its own."""
        if self.thread != threading.get_ident():
            self.runs, self.thread = 0, threading.get_ident()
        return self.runs >= WARM

    def _replayed(self, leaves):
        self._fill(leaves)
        self.replay()
        self.replays += 1
        return self.outputs

    def _run(self, inputs):
        """Do the work as it is, on a stream of its own, as a later capture wants it."""
        self.runs += 1
        if self.device.type != "cuda":
            return self.work(inputs)
        if self._side is None:
            self._side = torch.cuda.Stream(self.device)
        here = torch.cuda.current_stream(self.device)
        self._side.wait_stream(here)
        with torch.cuda.stream(self._side):
            outputs = self.work(inputs)
        here.wait_stream(self._side)
        return outputs

    def _record(self, leaves, spec):
        self.static = [leaf.clone() if torch.is_tensor(leaf) else leaf for leaf in leaves]
        inputs = pytree.tree_unflatten(self.static, spec)
        generators = [leaf for leaf in leaves if isinstance(leaf, torch.Generator)]
        with _one_at_a_time, _recording():
            self.replay, self.outputs = record(lambda: self.work(inputs), self._side, generators)

    @torch.no_grad()
    def _fill(self, leaves):
        pairs = [pair for pair in zip(self.static, leaves, strict=True) if torch.is_tensor(pair[0])]
        if pairs:
            torch._foreach_copy_(*map(list, zip(*pairs, strict=True)), non_blocking=True)

    def _failed(self, error):
        """Take less memory the next time, where that was it; else give up."""
        self.forget(self.form)
        self.tries += 1
        # the end of a capture that failed may say so in words of its own, and hide why
        hidden = None if error.__suppress_context__ else error.__context__
        full = memory.is_full(error) or memory.is_full(hidden)
        if full and self.tries < MOST_TRIES:
            return
        self.why_not = reason_of(error)[:200]
        self.say(f"{self.name} cannot be recorded as a CUDA graph ({self.why_not}): going on without")


def record(work, stream, generators):
    """Record `work()` on a stream, without doing it -> (function that does it, what it returned).

    What it returned is filled each time. generators: those that it draws from, beside the device's own. Where
    it cannot be recorded, all is as before.
    """
    graph, pool = torch.cuda.CUDAGraph(), torch.cuda.graph_pool_handle()
    for generator in generators:
        graph.register_generator_state(generator)
    with torch.cuda.device(stream.device):
        before = torch.cuda.current_stream()
        try:
            # other threads, which watch or draw pictures, may go on with what a capture forbids
            with torch.cuda.graph(graph, pool=pool, stream=stream, capture_error_mode="thread_local"):
                outputs = work()
        except BaseException:
            _clean_up(before, stream, pool, generators)
            raise
    return graph.replay, outputs


def _clean_up(before, stream, pool, generators):
    """Mend what a capture that failed leaves behind.

    Its stream stays the current one. Before torch 2.12 the allocator also goes on filling the graph's pool,
    and generators refuse to draw until another capture has ended.
    """
    torch.cuda.set_stream(before)
    with contextlib.suppress(RuntimeError):  # the pool of a capture that ended in order is closed already
        torch._C._cuda_endAllocateToPool(stream.device_index, pool)
        torch._C._cuda_releasePool(stream.device_index, pool)
    empty = torch.cuda.CUDAGraph()
    for generator in generators:
        empty.register_generator_state(generator)
    with warnings.catch_warnings(), contextlib.suppress(RuntimeError):
        warnings.simplefilter("ignore")  # that it is empty
        with torch.cuda.graph(empty, stream=stream):
            pass
    torch.cuda.set_stream(before)


@contextlib.contextmanager
def _recording():
    _state.recording = True
    try:
        yield
    finally:
        _state.recording = False


def _form(leaf):
    """What has to stay as it is for a graph: all of an input but its numbers, or the very same object."""
    if torch.is_tensor(leaf):
        return leaf.shape, leaf.stride(), leaf.dtype, leaf.device
    return leaf


# ---- optimizers


def with_rates_in_tensors(optimizer, device):
    """Let a fused optimizer of torch keep its learning rates in tensors, for graphs to read them there."""
    for group in optimizer.param_groups:
        group["lr"] = torch.tensor(float(group["lr"]), device=device)
        group["capturable"] = True
    # it warns where a step is not captured, which the first ones are not
    optimizer._warned_capturable_if_run_uncaptured = True


def set_rate(group, rate):
    """Set the learning rate of one of an optimizer's groups, in place where it is in a tensor."""
    if torch.is_tensor(group["lr"]):
        group["lr"].fill_(rate)
    else:
        group["lr"] = rate


def plain_state(optimizer):
    """An optimizer's state_dict whose learning rates are floats, as one without graphs has them."""
    state = optimizer.state_dict()
    groups = [group | {"lr": float(group["lr"]), "capturable": False} for group in state["param_groups"]]
    return state | {"param_groups": groups}
