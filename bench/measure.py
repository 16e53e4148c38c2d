"""What the measurements share: the machine and its own rates, the work of a call, medians taken in turn."""

import collections
import math
import platform
import statistics
import time

import psutil
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry, sdpa_flop_count

GEMM = 1024  # rows and columns of the matrix product whose rate is the floor of arithmetic
ATEN = torch.ops.aten
NO_WORK = (
    ATEN.detach,
    ATEN._unsafe_view,
    ATEN.empty,
    ATEN.empty_like,
    ATEN.empty_strided,
    ATEN.new_empty,
    ATEN.new_empty_strided,
)
PRODUCT = 2 * GEMM**3  # its operations
COPIED = 2**28  # bytes of the copy whose rate is the floor of memory: far above any cache


def machine():
    """What a figure was measured on, with its own rates: a dict."""
    return names() | {"gflops": gemm_rate(), "copied_gb_per_second": copy_rate()}


def names():
    """What a machine is called, a dict: figures of two with other names are not to be compared."""
    return {
        "processor": _processor(),
        "cores": psutil.cpu_count(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "python": platform.python_version(),
    }


def _processor():
    try:
        with open("/proc/cpuinfo") as file:
            return next(line.split(": ")[1].strip() for line in file if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def gemm_rate(device="cpu"):
    """GFLOP/s of a float32 matrix product, the median of several."""
    return PRODUCT / median_seconds(product(device), 50) / 1e9


def product(device="cpu", dtype=torch.float32, size=GEMM):
    """A call that makes one product of square matrices: in float32 of this size, `PRODUCT` operations."""
    a, out = torch.randn(2, size, size, device=device).to(dtype).unbind()
    return lambda: torch.mm(a, a, out=out)[0, 0].item()


def copy_rate():
    """GB/s that a copy of a large array moves, reading and writing, the median of several."""
    source = torch.ones(COPIED, dtype=torch.uint8)
    target = torch.empty_like(source)
    return 2 * COPIED / median_seconds(lambda: target.copy_(source), 9) / 1e9


def seconds(call, *arguments):
    """Wall-clock seconds of one call."""
    began = time.perf_counter()
    call(*arguments)
    return time.perf_counter() - began


def median_seconds(call, repeats):
    """Median seconds of a call, after some to warm up."""
    for _ in range(max(1, repeats // 5)):
        call()
    return statistics.median(seconds(call) for _ in range(repeats))


def in_turn(calls, rounds):
    """Median seconds of each of several calls, all of them in turn, so that a busy moment meets each.

    calls: name -> call. One round warms up and does not count.
    """
    found = collections.defaultdict(list)
    for turn in range(rounds + 1):
        for name, call in calls.items():
            used = seconds(call)
            if turn:
                found[name].append(used)
    return {name: statistics.median(each) for name, each in found.items()}


class Work(TorchDispatchMode):
    """Counts what is computed inside `with Work() as work`, kernel by kernel.

    kernels: how many were called. flop: of products and convolutions. floor(machine): the seconds that it
    takes at least where each kernel runs at the rate of a matrix product, or of a copy of what it reads and
    writes, whichever is slower: so much is forbidden by memory as long as kernels are not fused.
    torch's FlopCounterMode breaks under a gradient penalty (2.14); its formulas are the ones used here.
    """

    def __init__(self):
        super().__init__()
        self.kernels, self.flop = 0, 0
        self._each = []  # (flop, bytes) of each kernel

    def __torch_dispatch__(self, function, types, arguments=(), keywords=None):
        keywords = keywords or {}
        if function._overloadpacket not in flop_registry and function is not torch.ops.prim.device.default:
            with self:  # without autograd what is made of others arrives whole, such as a linear layer
                parts = function.decompose(*arguments, **keywords)
            if parts is not NotImplemented:
                return parts
        result = function(*arguments, **keywords)
        if not looks_on(function):
            flop = _flop(function._overloadpacket, arguments, keywords, result)
            moved = sum(_bytes(leaf) for leaf in tree_leaves((arguments, keywords, result)))
            self.kernels += 1
            self.flop += flop
            self._each.append((flop, moved))
        return result

    def floor(self, machine):
        """Seconds. machine: as `machine()` gives it."""
        rate, copied = 1e9 * machine["gflops"], 1e9 * machine["copied_gb_per_second"]
        return math.fsum(max(flop / rate, moved / copied) for flop, moved in self._each)


def looks_on(function):
    """Whether a function only looks at memory in another way, or takes some, and computes nothing."""
    packet = function._overloadpacket
    if packet in NO_WORK:
        return True
    returns = function._schema.returns
    return any(each.alias_info is not None and not each.alias_info.is_write for each in returns)


def _flop(packet, arguments, keywords, result):
    if packet is ATEN._scaled_dot_product_flash_attention_for_cpu:  # torch has no formula for these two
        query, key, value = arguments[:3]
        return sdpa_flop_count(query.shape, key.shape, value.shape)
    if packet is ATEN._scaled_dot_product_flash_attention_for_cpu_backward:
        _, query, key, value = arguments[:4]
        there = sdpa_flop_count(query.shape, key.shape, value.shape)
        return 5 * there // 2  # five products, where the way there has two
    if packet not in flop_registry:
        return 0
    return flop_registry[packet](*arguments, **keywords, out_val=result)


def _bytes(leaf):
    return leaf.numel() * leaf.element_size() if isinstance(leaf, torch.Tensor) else 0


# ---- tables


def table(rows):
    """Lines of a Markdown table. rows: dicts with the same names."""
    lines = [f"| {' | '.join(rows[0])} |", "|" + "---|" * len(rows[0])]
    for row in rows:
        lines.append(f"| {' | '.join(map(_cell, row.values()))} |")
    return lines


def print_table(rows):
    print("\n".join(table(rows)))


def _cell(value):
    if isinstance(value, bool):
        return "yes" if value else "no"
    if not isinstance(value, float):
        return f"{value:,}" if isinstance(value, int) else str(value)
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"
