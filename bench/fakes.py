"""What a training step of a preset costs, counted on tensors that have a shape and a device but no numbers.

    python bench/fakes.py [--preset gpu] [--system NAME]

So it needs no card, no data and hardly any memory. A step is a forward and a backward pass of every phase,
and the update, in bf16. Memory: what stays for as long as a run lasts (weights, gradients, two moments, the
moving average), and what the largest phase keeps for its backward pass; what single kernels take is not in
it. Of rl_v2v it is the half without reinforcement, in the middle of the clips.
"""

import argparse
import contextlib
import dataclasses
import sys
import tempfile
from pathlib import Path
from unittest import mock

import numpy as np
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.autograd.graph import saved_tensors_hooks

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from kernels import FUSED_GRU  # noqa: F401 (what it registers is asked for on a card alone)
from measure import Work, print_table

from mtld_core.data import Arc, Dataset
from mtld_core.nn.conv import to_channels_last
from mtld_core.runtime import command
from mtld_core.systems import SYSTEMS
from mtld_core.train.settings import plan
from mtld_core.train.stepper import Stepper

SIZE = 64  # pixels of a side, where a case names no other
SIZES = {"mtld": 128}
FRAMES = 48  # of the data that the configs are fitted to
TAPPED = (64, 128, 256, 512, 512)  # channels of the maps of VGG16 that LPIPS compares
LASTING = 5 * 4  # bytes of a parameter: itself, gradient, two moments, moving average


class Kept(Stepper):
    """A stepper that also counts `kept`, the most bytes that a phase keeps for its backward pass."""

    kept = 0

    def _backward(self, phase, loss_fn, batch, size):
        own = {tensor.untyped_storage()._cdata for tensor in self.parameters[phase]}
        storages = {}

        def keep(tensor):
            storage = tensor.untyped_storage()
            if storage._cdata not in own:
                storages[storage._cdata] = storage
            return tensor

        with saved_tensors_hooks(keep, lambda tensor: tensor):
            loss = super()._backward(phase, loss_fn, batch, size)
        self.kept = max(self.kept, sum(storage.nbytes() for storage in storages.values()))
        return loss


class FakeStep:
    """A system of a preset on fake tensors: calling it is one training step.

    size: pixels of a side; 0: as the tables have it. device: where its tensors pretend to be.
    """

    def __init__(self, name, preset, overrides=None, size=0, device="cpu"):
        self.device = torch.device(device)
        size = size or SIZES.get(name, SIZE)
        cls, config, self.training = fitted(name, preset, overrides or {}, size)
        self.mode = FakeTensorMode()
        with self.mode, tempfile.TemporaryDirectory() as folder, built_on(self.device):
            self.system = cls(config).train()
            to_channels_last(self.system)
            self.system.setup_training(Path(folder))
            self.needs = self.system.needs()
            self.batch = self._batch(size)
            clip_norm = self.training.clip_norm
            optimizers = self.system.optimizers()
            self.stepper = Kept(optimizers, self.device, torch.bfloat16, clip_norm=clip_norm)

    def _batch(self, size):
        count, window = self.training.batch_size, self.needs.window
        frames = torch.empty(count, window, 3, size, size, device=self.device)
        batch = {"frames": frames, "key": torch.empty(count, dtype=torch.int64, device=self.device)}
        if self.needs.domains == 2:
            batch["frames_y"] = frames.clone()
        if self.needs.actions:
            batch["actions"] = torch.empty(count, window - 1, dtype=torch.int64, device=self.device)
        return batch

    def __call__(self):
        with self.mode, middle_moment():
            return self.system.training_step([self.batch] * self.needs.batches, self.stepper)

    @property
    def parameters(self):
        """How many numbers learn."""
        return sum(tensor.numel() for tensor in self.system.parameters() if tensor.requires_grad)


def fitted(name, preset, overrides, size):
    """`plan` of a preset for square frames with two actions, on a tokenizer of the same preset if need be."""
    overrides = overrides | {"height": size, "width": size}
    if name == "dynamics":
        below = "codes" if preset == "codes" else preset
        tokenizer = plan("tokenizer", below, {"height": size, "width": size})[1]
        overrides["tokenizer"] = dataclasses.asdict(tokenizer)
    if name == "rl_v2v":
        overrides["rl_every"] = 0  # its replay asks what the tensors hold
    cls, config, training = plan(name, preset, overrides)
    frames = torch.zeros(FRAMES, size, size, 3, dtype=torch.uint8)
    arc = Arc("arc", 0, FRAMES, np.arange(FRAMES))
    dataset = Dataset("memory", "arcs", frames, [arc], np.zeros(0, np.int64), torch.arange(FRAMES) % 2)
    return cls, cls.fit_config(config, dataset), training


@contextlib.contextmanager
def built_on(device):
    """Build modules on a device at once, as fake ones cannot be moved, and LPIPS without files of weights."""
    from torchvision.models.vgg import cfgs, make_layers

    with contextlib.ExitStack() as stack, device:
        layers = make_layers(cfgs["D"]).state_dict()
        trunk = {f"features.{name}": weight for name, weight in layers.items()}
        heads = {f"lin{i}.model.1.weight": torch.empty(1, width, 1, 1) for i, width in enumerate(TAPPED)}
        stack.enter_context(mock.patch.object(nn.Module, "to", lambda module, *where, **how: module))
        stack.enter_context(mock.patch("mtld_core.nn.perceptual.torch.load", lambda *what, **how: heads))
        for system in ("mtld", "tinydreams"):
            where = f"mtld_core.systems.{system}.system.load_trunk"
            stack.enter_context(mock.patch(where, lambda given: trunk))
        yield


@contextlib.contextmanager
def on_a_card():
    """Let a step run on fake CUDA tensors where there is no card.

    Forward as on one, by CUDA's own rules of what autocast casts. A backward pass asks for the driver, so
    that gradients are taken as given, fake as all else, and the update goes on from these. So is what a GRU
    gives, of whose kernels torch knows no shapes.
    """

    def backward(loss, gradient=None, inputs=()):
        for parameter in inputs:
            parameter.grad = torch.empty_like(parameter)

    def grad(outputs, inputs, *more, **options):
        return tuple(map(torch.empty_like, inputs if isinstance(inputs, (tuple, list)) else [inputs]))

    def gru(network, sequence, state=None):
        given = sequence.new_empty(*sequence.shape[:-1], network.hidden_size)
        return given, sequence.new_empty(network.num_layers, len(sequence), network.hidden_size)

    with (
        mock.patch("torch.cuda.amp.common.amp_definitely_not_available", lambda: False),
        mock.patch("torch.cuda.is_bf16_supported", lambda *how: True),
        mock.patch.object(nn.RNNBase, "flatten_parameters", lambda network: None),
        mock.patch.object(nn.GRU, "forward", gru),
        mock.patch.object(torch.Tensor, "backward", backward),
        mock.patch("torch.autograd.grad", grad),
    ):
        yield


@contextlib.contextmanager
def middle_moment():
    """Let what draws one moment of a clip draw the middle one: a fake number cannot be read."""
    draw = torch.randint

    def drawn(low, high, size, **more):
        return (low + high) // 2 if size == () else draw(low, high, size, **more)

    with mock.patch.object(torch, "randint", drawn):
        yield


def rows_of(preset="gpu", names=tuple(SYSTEMS)):
    """A row for each of these systems, a dict."""
    return [row_of(name, preset) for name in names]


def row_of(name, preset):
    step = FakeStep(name, preset)
    with Work() as work:
        step()
    with on_a_card():  # whose autocast keeps more in fp32 than a CPU's
        there = FakeStep(name, preset, device="cuda:0")
        there()
    side = step.batch["frames"].shape[-1]
    return {
        "preset": f"{name} `{preset}`",
        "frames": f"{side}x{side}",
        "batch": step.training.batch_size,
        "parameters, M": step.parameters / 1e6,
        "TFLOP a step": work.flop / 1e12,
        "lasting memory, GB": LASTING * step.parameters / 1e9,
        "for the backward pass, GB": there.stepper.kept / 1e9,
    }


@command
def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--preset", default="gpu")
    parser.add_argument("--system", default="", help="of this one alone")
    given = parser.parse_args()
    print_table(rows_of(given.preset, [given.system] if given.system else tuple(SYSTEMS)))


if __name__ == "__main__":
    sys.exit(main())
