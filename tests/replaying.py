"""A stand-in for CUDA graphs on a CPU: it records the tensor operations of some work, and replays those.

As with a graph no Python of the work runs again, results land in the memory that they had, and recording
changes nothing. So a number that was computed in Python, or a branch that the host took, stays as it was.
"""

import contextlib

import pytest
import torch
import torch.nn.functional as F
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

# what asks for a tensor's values, for which a GPU would have to be waited for
ASKING = ("aten::_local_scalar_dense", "aten::item", "aten::equal", "aten::is_nonzero", "aten::nonzero")


class Recorder(TorchDispatchMode):
    def __init__(self):
        super().__init__()
        self.calls = []  # (operation, arguments, keywords, results in memory of their own)
        self.made = set()  # storages that were made here
        self.before = {}  # others that were written to -> (storage, what it held)

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if func._schema.name in ASKING:
            raise RuntimeError(f"{func} asks for a value while a graph is recorded")
        for written in self._written(func, args, kwargs):
            self._keep(written)
        given = {_storage(tensor) for tensor in _tensors((args, kwargs))}
        shapes = _aliases((args, kwargs))  # which some operations change in place
        result = func(*args, **kwargs)
        fresh = [tensor for tensor in _tensors(result) if _storage(tensor) not in given]
        self.made |= {_storage(tensor) for tensor in fresh}
        self.calls.append((func, *shapes, _aliases(result)))
        return result

    def _written(self, func, args, kwargs):
        for i, argument in enumerate(func._schema.arguments):
            if argument.alias_info is not None and argument.alias_info.is_write:
                value = args[i] if i < len(args) else kwargs.get(argument.name)
                yield from _tensors(value)

    def _keep(self, tensor):
        key = _storage(tensor)
        if key not in self.made and key not in self.before:
            storage = tensor.untyped_storage()
            self.before[key] = storage, storage.clone()

    def undo(self):
        for storage, held in self.before.values():
            storage.copy_(held)

    @torch.no_grad()
    def replay(self):
        for func, args, kwargs, result in self.calls:
            given = {_storage(tensor) for tensor in _tensors((args, kwargs))}
            args, kwargs = _aliases((args, kwargs))
            again = func(*args, **kwargs)
            for memory, value in zip(_tensors(result), _tensors(again), strict=True):
                if _storage(memory) not in given:
                    memory.copy_(value)


def record(work, stream, generators):
    """`mtld_core.machine.graphs.record` without a GPU."""
    recorder = Recorder()
    with _drawing_nothing(generators), pytest.MonkeyPatch.context() as patch:
        patch.setattr(F, "one_hot", _one_hot)
        try:
            with recorder:
                outputs = work()
        finally:
            recorder.undo()
    return recorder.replay, outputs


def _one_hot(classes, count):
    """torch's own looks at the classes on a CPU, and on a GPU it does not."""
    return (classes[..., None] == torch.arange(count)).long()


@contextlib.contextmanager
def _drawing_nothing(generators):
    generators = [torch.default_generator, *generators]
    states = [generator.get_state() for generator in generators]
    try:
        yield
    finally:
        for generator, state in zip(generators, states, strict=True):
            generator.set_state(state)


def _tensors(tree):
    return [leaf for leaf in pytree.tree_leaves(tree) if isinstance(leaf, torch.Tensor)]


def _aliases(tree):
    """The same tree with tensors that share their memory and have a shape of their own."""
    return pytree.tree_map_only(torch.Tensor, torch.ops.aten.alias, tree)


def _storage(tensor):
    return tensor.untyped_storage()._cdata
