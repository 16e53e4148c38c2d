"""How many kernels a training step of each system launches on a GPU, counted without one.

    python bench/kernels.py [--system NAME] [--preset small] [--precision fp16] [--operators] [--lines]

The step runs on fake tensors that claim to be on a card: shapes, types, memory layouts and CUDA's own rules
of autocast, but no numbers. What torch's engine does for gradients is done by `backward` here, since that
engine asks for a card. A kernel is a call of one operator, with these exceptions: what only looks at memory
counts as none; an operator on lists of tensors counts the launches that CUDA cuts it into (`launches`); a
convolution of what is not in channels_last also counts the copies that cuDNN makes of it.
Attention counts as one fused kernel each way. In bf16 torch takes no card for able to keep channels_last.
"""

import argparse
import collections
import contextlib
import dataclasses
import re
import sys
import traceback
import warnings
from pathlib import Path
from unittest.mock import patch

import torch
import torch.nn.functional as F
from torch import nn
from torch._subclasses import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from measure import ATEN, looks_on, print_table

from mtld_core.config import field_names, from_dict
from mtld_core.nn import perceptual
from mtld_core.nn.average import move
from mtld_core.nn.conv import to_channels_last
from mtld_core.runtime import command
from mtld_core.systems import SYSTEMS, system_class
from mtld_core.train.settings import TrainConfig
from mtld_core.train.stepper import Stepper

CARD = torch.device("cuda:0")
COUNTED = [name for name in SYSTEMS if name != "rl_v2v"]  # which draws the length of its clips on the host
SIZE = 64  # pixels along a side
ACTIONS = 3
PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
BACKWARD = []  # nodes of autograd whose gradients are computed now, the innermost last
# of torch's multi_tensor_apply: numbers that a block works on, blocks of a launch, and tensors of a launch by
# how many lists there are
CHUNK, BLOCKS, TENSORS = 65536, 320, {1: 110, 2: 64, 3: 48, 4: 36, 5: 30}


@dataclasses.dataclass
class Count(TorchDispatchMode):
    """What is launched inside `with Count() as count`."""

    kernels: collections.Counter  # operator -> launches
    lines: collections.Counter  # where `by_line`: line of mtld_core that asks for them -> launches
    convolutions: int = 0
    nchw: int = 0  # convolutions, and their gradients, of an input that is not in channels_last
    waits: list = dataclasses.field(default_factory=list)  # operators that make the host wait for the card

    def __init__(self, by_line=False):
        super().__init__()
        self.kernels, self.lines, self.waits = collections.Counter(), collections.Counter(), []
        self.convolutions = self.nchw = 0
        self.by_line = by_line

    @property
    def total(self):
        return self.kernels.total()

    def __torch_dispatch__(self, function, types, arguments=(), keywords=None):
        keywords = keywords or {}
        result = function(*arguments, **keywords)
        packet = function._overloadpacket
        before = self.total
        if function.namespace not in ("prim", "profiler") and not looks_on(function):
            if waits(packet, arguments, keywords, result):
                self.waits.append(str(packet))
            if packet is not ATEN.promote_types:
                self.kernels[str(packet)] += launches(packet, arguments, result)
        if packet in (ATEN.convolution, ATEN.convolution_backward) and arguments[0].dim() == 4:
            self._look_at_convolution(packet, arguments)
        if self.by_line and self.total > before:
            self.lines[_line()] += self.total - before
        return result

    def _look_at_convolution(self, packet, arguments):
        self.convolutions += 1
        pictures = [each for each in arguments[:2] if each.dim() == 4]
        if packet is ATEN.convolution:
            pictures = pictures[:1]
        copied = [each for each in pictures if not each.is_contiguous(memory_format=torch.channels_last)]
        self.nchw += any(each is pictures[-1] for each in copied)  # the first is a gradient
        self.kernels["copies inside of convolutions"] += len(copied)


def _line():
    """The line of mtld_core that asks for what is computed now; of a gradient the line that it belongs to."""
    if BACKWARD:
        text = "".join(BACKWARD[-1].metadata.get("traceback_", ()))
        frames = re.findall(r'File "([^"]+)", line (\d+)', text)
    else:
        frames = [(frame.filename, frame.lineno) for frame in traceback.extract_stack()]
    ours = [f"{file.split('/mtld_core/')[1]}:{number}" for file, number in frames if "/mtld_core/" in file]
    return (ours[-1] if ours else "torch") + (", its gradient" if BACKWARD else "")


def launches(packet, arguments, result):
    """Kernels that CUDA launches for a call of an operator.

    Lists of tensors are cut into chunks. A list whose tensors do not have the layouts of those of the other
    lists goes one by one.
    """
    name = packet.__name__
    if not name.startswith(("_foreach", "_fused", "_amp_foreach")):
        return 1
    lists = [each for each in arguments if isinstance(each, (list, tuple)) and len(each)]
    lists = [each for each in lists if torch.is_tensor(each[0]) and each[0].dim() + each[0].numel() > 1]
    if not lists:
        return 1
    first = lists[0]
    alike = all(a.stride() == b.stride() for other in lists[1:] for a, b in zip(first, other, strict=True))
    if not alike and name.startswith("_foreach"):
        return len(first)
    depth = len(lists) + (not name.endswith("_") and isinstance(result, (list, tuple)))
    return 1 + _cuts(first, TENSORS[min(depth, 5)])


def _cuts(tensors, most):
    """How often a launch is full before the last tensor is through."""
    cuts = blocks = held = 0
    for i, tensor in enumerate(tensors):
        held += 1
        chunks = -(-tensor.numel() // CHUNK)
        for chunk in range(chunks):
            blocks += 1
            last = i + 1 == len(tensors) and chunk + 1 == chunks
            full = blocks == BLOCKS or (held == most and chunk + 1 == chunks)
            if full and not last:
                cuts += 1
                blocks = 0
                held = 0 if chunk + 1 == chunks else 1
    return cuts


def waits(packet, arguments, keywords, result):
    """Whether the host waits for the card: it asks for a number, or copies without `non_blocking`."""
    if packet in (ATEN._local_scalar_dense, ATEN.nonzero, ATEN.masked_select):
        return True
    if packet is ATEN._to_copy:
        return arguments[0].device != result.device and not keywords.get("non_blocking", False)
    if packet is ATEN.copy_:
        free = keywords.get("non_blocking", len(arguments) > 2 and arguments[2])
        return arguments[0].device != arguments[1].device and not free
    return False


# ---- gradients without torch's engine


def backward(loss, gradient=None, inputs=()):
    """What `loss.backward(gradient, inputs=inputs)` does, on fake tensors."""
    first = torch.ones_like(loss) if gradient is None else gradient
    for leaf, gradient in zip(inputs, gradients([loss], [first], inputs), strict=True):
        if gradient is not None:
            leaf.grad = gradient if leaf.grad is None else leaf.grad + gradient


def gradients(outputs, grads, inputs, create_graph=False):
    """The gradient of each of `inputs`, or None: what torch's engine computes, one node after another."""
    wanted = {_place(x): i for i, x in enumerate(inputs)}
    order, leads = _order([x.grad_fn for x in outputs], wanted)
    waiting = collections.defaultdict(dict)  # node -> number of its output -> gradient
    for output, each in zip(outputs, grads, strict=True):
        waiting[output.grad_fn][output.output_nr] = each
    found = [None] * len(inputs)
    for node in order:
        here = waiting.pop(node, {})
        for number, gradient in here.items():
            if (node, number) in wanted:
                found[wanted[node, number]] = gradient
        if not here or not leads[node] or hasattr(node, "variable"):
            continue
        taken = [here.get(number) for number in range(len(node._input_metadata))]
        for (after, number), gradient in zip(
            node.next_functions, _call_in_turn(node, taken, create_graph), strict=True
        ):
            if after is None or gradient is None or not (leads[after] or (after, number) in wanted):
                continue
            gradient = _as_declared(gradient, after._input_metadata[number])
            before = waiting[after].get(number)
            waiting[after][number] = gradient if before is None else before + gradient
    return found


def _place(x):
    """(node, number) at which the gradient of x arrives."""
    if x.grad_fn is not None:
        return x.grad_fn, x.output_nr
    return x.expand_as(x).grad_fn.next_functions[0][0], 0


def _order(roots, wanted):
    """All nodes behind the roots, each before those that it hands on to; and whether it leads to `wanted`."""
    order, leads, seen = [], {}, set()
    stack = [(root, False) for root in roots]
    while stack:
        node, done = stack.pop()
        after = [each for each in node.next_functions if each[0] is not None]
        if done:
            leads[node] = (node, 0) in wanted or any(leads[each] or (each, i) in wanted for each, i in after)
            order.append(node)
        elif node not in seen:
            seen.add(node)
            stack.append((node, True))
            stack += [(each, False) for each, _ in after if each not in seen]
    return order[::-1], leads


def _call_in_turn(node, taken, create_graph):
    BACKWARD.append(node)
    try:
        return _call(node, taken, create_graph)
    finally:
        BACKWARD.pop()


def _call(node, taken, create_graph):
    """The gradients that a node hands on, as many as it has `next_functions`."""
    with torch.set_grad_enabled(create_graph):
        if not isinstance(node, torch.autograd.function.BackwardCFunction):
            made = node(*taken)
            return made if isinstance(made, tuple) else (made,)
        made = node.apply(*taken)
    made = made if isinstance(made, tuple) else (made,)
    needed = node.needs_input_grad  # of each argument that was given; `made` may end in more Nones
    others = len(needed) - len(
        node.next_functions
    )  # arguments that are no tensors: they get None, and no node
    kept = []
    for gradient, wanted in zip(made, needed, strict=False):
        if others and gradient is None and not wanted:
            others -= 1
        else:
            kept.append(gradient)
    return kept


def _as_declared(gradient, declared):
    if gradient.shape != tuple(declared.shape):
        gradient = gradient.sum_to_size(tuple(declared.shape))
    return gradient.to(declared.dtype)


# ---- a system on a card that is not there


@contextlib.contextmanager
def card():
    """Inside, tensors are fake ones on `CARD`, and gradients are computed by `gradients`."""

    def grad(outputs, inputs, grad_outputs=None, create_graph=False):
        outputs, inputs = [[x] if torch.is_tensor(x) else list(x) for x in (outputs, inputs)]
        given = grad_outputs or [torch.ones_like(x) for x in outputs]
        return tuple(gradients(outputs, given, inputs, create_graph))

    def attention(query, key, value, attn_mask=None):
        mask = attn_mask
        if mask is not None:
            mask = mask.to(query.dtype).expand(*query.shape[:3], key.shape[2])
        return ATEN._scaled_dot_product_efficient_attention(query, key, value, mask, True)[0]

    forward = nn.GRU.forward

    def gru(layer, *arguments):
        with torch.backends.cudnn.flags(enabled=False):  # whose own has no fake
            return forward(layer, *arguments)

    answers = (
        patch.object(nn.GRU, "forward", gru),
        patch.object(torch.Tensor, "backward", backward),
        patch.object(torch.autograd, "grad", grad),
        patch.object(F, "scaled_dot_product_attention", attention),
        patch.object(torch.cuda.amp.common, "amp_definitely_not_available", lambda: False),
        patch.object(torch.cuda, "is_bf16_supported", lambda: True),
    )
    with contextlib.ExitStack() as stack:
        for each in (*answers, warnings.catch_warnings(), FakeTensorMode(), CARD):
            stack.enter_context(each)
        warnings.simplefilter("ignore")
        yield


def _register_fused_gru():
    """What comes out of torch's fused GRU cell, and of its gradient: torch has it for a card alone."""

    def cell(from_input, from_hidden, hidden, *biases):
        return torch.empty_like(hidden), hidden.new_empty(len(hidden), 5 * hidden.shape[1])

    def gradient(grad, workspace, has_bias):
        size, five = workspace.shape
        gates = workspace.new_empty(size, 3 * five // 5)
        return gates, torch.empty_like(gates), torch.empty_like(grad), None, None

    library = torch.library.Library("aten", "IMPL", "Meta")
    library.impl("_thnn_fused_gru_cell", cell)
    library.impl("_thnn_fused_gru_cell_backward", gradient)
    return library


FUSED_GRU = _register_fused_gru()


def build(name, preset, overrides):
    """(system, its TrainConfig) for a dataset of `SIZE` pixels with `ACTIONS` actions, untrained."""
    cls = system_class(name)
    values = cls.PRESETS[preset] | overrides | {"height": SIZE, "width": SIZE}
    own = field_names(cls.Config)
    mine = {field: value for field, value in values.items() if field in own}
    if "action_count" in own:
        mine["action_count"] = ACTIONS
    if name == "dynamics":
        mine["tokenizer"] = _stage("tokenizer", preset)
    training = {field: value for field, value in values.items() if field not in own}
    return cls(from_dict(cls.Config, mine)).train(), from_dict(TrainConfig, training)


def _stage(name, preset):
    cls = system_class(name)
    own = field_names(cls.Config)
    values = cls.PRESETS[preset] | {"height": SIZE, "width": SIZE}
    return dataclasses.asdict(
        from_dict(cls.Config, {key: value for key, value in values.items() if key in own})
    )


def untrained_lpips():
    """The network of LPIPS with weights of any value."""
    from torchvision.models.vgg import cfgs, make_layers

    layers = make_layers(cfgs["D"])
    weights = {f"features.{name}": value for name, value in layers.state_dict().items()}
    with patch.object(nn.Module, "to", lambda module, **_: module):  # which fake weights do not allow
        network = perceptual.LPIPS(weights)
    for name, buffer in list(network.named_buffers()):
        network.register_buffer(name, torch.ones(buffer.shape))  # those from a file are on no device
    to_channels_last(network)
    return network


def make_batch(system, size):
    """A batch as `Batches` gives it, of any values."""
    needs = system.needs()
    frames = torch.randn(size, needs.window, SIZE, SIZE, 3).movedim(-1, -3)
    batch = {"frames": frames, "key": torch.zeros(size, dtype=torch.int64)}
    if needs.domains == 2:
        batch["frames_y"] = frames.clone()
    if needs.actions:
        batch["actions"] = torch.zeros(size, needs.window - 1, dtype=torch.int64)
    return batch


def count_step(name, preset="small", precision="fp16", overrides=None, by_line=False):
    """The `Count` of one whole step: losses, gradients, clipping, updates and the moving average."""
    remembering = torch.autograd.set_detect_anomaly(by_line, check_nan=False)  # each node its line
    with card(), remembering:
        system, training = build(name, preset, overrides or {})
        averaged, _ = build(name, preset, overrides or {})
        to_channels_last(system)
        to_channels_last(averaged)
        weights = getattr(system.config, "weights", {})
        if weights.get("lpips") or getattr(system.config, "lambda_lpips", 0):
            system.frozen["lpips"] = untrained_lpips()
        optimizers = system.optimizers()
        stepper = Stepper(
            optimizers, CARD, PRECISIONS[precision], clip_norm=training.clip_norm, system=system
        )
        for _ in range(2):  # the first step also makes what stays
            batches = [make_batch(system, training.batch_size) for _ in range(system.needs().batches)]
            with Count(by_line) as count:
                system.training_step(batches, stepper)
                move(averaged, system, 0.1)
    return count


@command
def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--system", choices=COUNTED, default="", help="this system alone")
    parser.add_argument("--preset", default="small")
    parser.add_argument("--precision", choices=PRECISIONS, default="fp16")
    parser.add_argument("--operators", action="store_true", help="and which ones")
    parser.add_argument("--lines", action="store_true", help="and which lines of mtld_core ask for them")
    given = parser.parse_args()
    rows = []
    for name in [given.system] if given.system else COUNTED:
        count = count_step(name, given.preset, given.precision, by_line=given.lines)
        rows.append(
            {
                "step of": f"{name} `{given.preset}`",
                "kernels": count.total,
                "convolutions": count.convolutions,
                "of NCHW": count.nchw,
                "waits": len(count.waits),
            }
        )
        if given.operators:
            print_table([{"operator": each, "kernels": n} for each, n in count.kernels.most_common()])
        if given.lines:
            print_table([{"line": each, "kernels": n} for each, n in count.lines.most_common()])
    print_table(rows)


if __name__ == "__main__":
    sys.exit(main())
