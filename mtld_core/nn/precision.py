"""Half precision: copies of the weights that networks run in, and fp32 for whatever is averaged."""

import contextlib

import torch
from torch import nn

# whose weights autocast would convert anew at each use
LAYERS = nn.Linear, nn.Conv2d, nn.Conv3d, nn.ConvTranspose2d


def in_fp32(x):
    """`x` in fp32 where it is in half precision, else as it is."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def without_autocast(x):
    """A context in which products on the device of `x` are in the type of their factors."""
    kind = x.device.type
    if not torch.amp.is_autocast_available(kind):  # "meta"
        return contextlib.nullcontext()
    return torch.autocast(kind, enabled=False)


class FullWeights:
    """A mixin for modules that `HalfWeights` leaves alone, with all that is inside them.

    Such are those that run outside autocast, too, or compute with their weights as numbers.
    """


class HalfWeights:
    """The weights of a module's layers in half precision, for as long as `with half_weights():` lasts.

    Autocast converts a weight, in a kernel of its own, each time that a layer is called, and its gradient as
    often. Here all weights are converted together, once, and so are their gradients. dtype: with
    torch.float32 nothing is done.
    """

    def __init__(self, module, dtype):
        self.dtype = dtype
        self.places = []  # (layer, name, parameter)
        if dtype != torch.float32:
            self._collect(module)

    def _collect(self, module):
        compiled = module._compiled_call_impl is not None  # whose compiler does that
        if compiled or isinstance(module, FullWeights):
            return
        if isinstance(module, LAYERS):
            for name, parameter in module.named_parameters(recurse=False):
                self.places.append((module, name, parameter))
        for child in module.children():
            self._collect(child)

    @contextlib.contextmanager
    def __call__(self):
        copies = ()
        if self.places:
            copies = Converted.apply(self.dtype, *(parameter for _, _, parameter in self.places))
        try:
            for (layer, name, _), copy in zip(self.places, copies, strict=True):
                layer._parameters[name] = copy
            yield
        finally:
            for layer, name, parameter in self.places:
                layer._parameters[name] = parameter


class Converted(torch.autograd.Function):
    """Tensors in another type, many in one kernel, and their gradients in fp32 likewise."""

    @staticmethod
    def forward(ctx, dtype, *tensors):
        ctx.set_materialize_grads(False)
        return _converted(tensors, dtype)

    @staticmethod
    def backward(ctx, *grads):
        there = [grad for grad in grads if grad is not None]
        converted = iter(_converted(there, torch.float32))
        return None, *(None if grad is None else next(converted) for grad in grads)


def _converted(tensors, dtype):
    copies = [torch.empty_like(tensor, dtype=dtype) for tensor in tensors]
    torch._foreach_copy_(copies, list(tensors))
    return tuple(copies)
