"""One optimisation phase of a training step: split, autocast, backward, clip, guard, update.

A system with several networks calls its stepper once a phase. As the batch is split *inside* a phase,
accumulating and halving on a full GPU keep the order of a full batch: the generator's update is whole before
the discriminator's begins.
"""

import contextlib
import functools
import itertools

import torch

from mtld_core.config import UserError
from mtld_core.machine import graphs, memory
from mtld_core.machine.group import ALONE
from mtld_core.nn.precision import HalfWeights
from mtld_core.runtime import computing
from mtld_core.systems.base import Loss, Place

# of fp16 losses: from 2 ** 12 on the first steps of some systems would overflow, so it grows soon
INITIAL_SCALE, GROWTH_STEPS = 2.0**9, 200


class Stepper:
    """`stepper(phase, loss_fn, batch)` -> `Loss` whose logs and carry are detached and cover the whole batch.

    loss_fn(batch) -> Loss. batch: dict of tensors `[B, ...]`. loss_fn gets part of it, and as "place" that
    part's `Place`. Only the parameters of `optimizers[phase]` receive gradient, whatever networks the loss
    runs through. Nothing here waits for the device: a step whose gradient is not finite is skipped on the
    device (`found_inf`) and counted in `skipped[phase]`, a 0-dim tensor; `calls[phase]` counts all, in
    another.

    group: of several processes each is given its share of the batch; gradients, losses and logs are added up
    once a phase, so that all take the step of the whole batch. make_room: called where the GPU is full even
    with one sample at a time; returns whether it has freed some. system: whose weights are converted
    together, once a phase and part, see `HalfWeights`; None leaves that to autocast.
    """

    compiling = None  # a `Compiling`, told of each phase

    def __init__(
        self,
        optimizers,
        device,
        dtype=torch.float32,
        accumulate=1,
        clip_norm=0.0,
        say=print,
        group=ALONE,
        make_room=lambda: False,
        system=None,
    ):
        unfused = [name for name, optimizer in optimizers.items() if not optimizer.defaults.get("fused")]
        if unfused:
            raise TypeError(
                f"optimizers {unfused} must be fused (fused=True): only those can skip a step without a "
                "device sync"
            )
        self.device, self.dtype = device, dtype
        self.clip_norm, self.say = clip_norm, say
        self.group, self.make_room = group, make_room
        self.half_weights = contextlib.nullcontext if system is None else HalfWeights(system, dtype)
        self.optimizers = optimizers
        self.parameters = {name: _parameters(optimizer) for name, optimizer in optimizers.items()}
        self.scalers = {
            name: torch.amp.GradScaler(
                device.type,
                init_scale=INITIAL_SCALE,
                growth_interval=GROWTH_STEPS,
                enabled=dtype == torch.float16,
            )
            for name in optimizers
        }
        self.splits = dict.fromkeys(optimizers, accumulate)
        self.skipped = {name: torch.zeros((), device=device) for name in optimizers}
        # a tensor, too: a step that is replayed as a graph counts as well
        self.calls = {name: torch.zeros((), device=device) for name in optimizers}
        self.one = torch.ones((), device=device, dtype=torch.float32)

    def __call__(self, phase, loss_fn, batch):
        size = len(next(iter(batch.values())))
        while True:
            try:
                if self.compiling is not None:
                    backward = functools.partial(self._backward, phase, loss_fn, batch, size)
                    self.compiling.check(phase, backward, self.parameters[phase])
                result = self._backward(phase, loss_fn, batch, size)
                break
            except Exception as error:
                if not memory.is_full(error):
                    raise
                self._take_less(phase, size)
                if graphs.is_recording():  # which is spoilt
                    raise
            # outside the except block, where the traceback no longer holds the graph
            memory.give_back()
        result = self._whole(phase, result)
        self._update(phase)
        return result

    def _take_less(self, phase, size):
        """Compute a phase in more parts from now on, or make room for it. Raises UserError at the end.

        It also does where other processes may be ahead, in an exchange that this one has not come to.
        """
        if not self.group.alone:
            raise UserError(
                f"out of memory in phase {phase!r}: start the same again with accumulate="
                f"{2 * self.splits[phase]} to go on from the newest checkpoint"
            )
        if self.splits[phase] < size:
            self.splits[phase] *= 2
            self.say(
                f"out of memory in phase {phase!r}: going on with the batch in {self.splits[phase]} parts"
            )
        elif graphs.is_recording():
            raise RuntimeError("out of memory") from None
        elif not self.make_room():
            raise UserError(
                f"out of memory in phase {phase!r} even with one sample at a time: make the model smaller"
            ) from None

    def _backward(self, phase, loss_fn, batch, size):
        """This process's share of the batch, part by part: gradients, and a `Loss` whose weight is a sum.

        All are sums over samples divided by the size of the whole batch, and where the loss has weights times
        these: see `_whole`.
        """
        parameters, scaler = self.parameters[phase], self.scalers[phase]
        self.optimizers[phase].zero_grad(set_to_none=True)
        parts = _parts(size, self.splits[phase])
        before, whole = self.group.rank * size, self.group.size * size
        total, weight = 0, None
        logs, carries = {}, []
        for first, last in parts:
            part = {name: value[first:last] for name, value in batch.items()}
            with computing(self.device, self.dtype), self.half_weights():
                loss = loss_fn(part | {"place": Place(before + first, whole)})
            _check(phase, loss)
            if last - first == whole:  # a kernel less for each sum
                loss.total.backward(scaler.scale(self.one), inputs=parameters)
                return _detached(loss)
            share = (last - first) / whole
            if loss.weight is not None:
                share = share * loss.weight.detach()
                weight = share if weight is None else weight + share
            scaler.scale(loss.total * share).backward(inputs=parameters)
            loss = _detached(loss)
            total = total + loss.total * share
            for name, value in loss.logs.items():
                logs[name] = logs.get(name, 0) + value * share
            carries.append(loss.carry)
        carry = carries[0]
        if len(parts) > 1:
            carry = {name: torch.cat([each[name] for each in carries]) for name in carry}
        return Loss(total, logs, carry, weight)

    def _whole(self, phase, loss):
        """From what `_backward` left to the whole batch's gradients and `Loss`."""
        gradients = _gradients(self.parameters[phase])
        weight = loss.weight
        counted = [] if weight is None else [weight]
        self.group.add_up([*gradients, loss.total, *loss.logs.values(), *counted])
        if weight is None:
            return loss
        # nothing counted in any part: then all of this is 0
        weight = weight.clamp(min=torch.finfo(weight.dtype).tiny)
        torch._foreach_div_(gradients, weight)
        logs = {name: value / weight for name, value in loss.logs.items()}
        return Loss(loss.total / weight, logs, loss.carry)

    def _update(self, phase):
        """Clip and step, unless a gradient is not finite.

        No kernel unscales and clips: the optimizer divides each gradient by one number as it reads it.
        """
        optimizer, scaler, parameters = self.optimizers[phase], self.scalers[phase], self.parameters[phase]
        norm = torch.nn.utils.get_total_norm(_gradients(parameters), foreach=True)
        divisor = scaler._scale if scaler.is_enabled() else None
        if self.clip_norm:
            least = self.one if divisor is None else divisor
            divisor = torch.maximum((norm / self.clip_norm).float(), least)
        bad = torch.isnan(norm - norm).float()  # infinity, too; isfinite takes twice as many kernels
        torch._foreach_add_([self.calls[phase], self.skipped[phase]], [self.one, bad])
        optimizer.grad_scale, optimizer.found_inf = divisor, bad
        self._step(phase, optimizer)
        if scaler.is_enabled():
            scaler._per_optimizer_states[id(optimizer)]["found_inf_per_device"] = {self.device: bad}
            scaler.update()

    def _step(self, phase, optimizer):
        """Let an optimizer step. The first time it makes its state, for which memory may lack."""
        try:
            return optimizer.step()
        except Exception as error:
            if not memory.is_full(error) or graphs.is_recording():
                raise
        self.make_room()
        memory.give_back()
        try:
            return optimizer.step()
        except Exception as error:
            if not memory.is_full(error):
                raise
            raise UserError(
                f"out of memory for the moments of phase {phase!r}: make the model smaller"
            ) from None

    def state(self):
        scalers = {name: scaler.state_dict() for name, scaler in self.scalers.items()}
        return {"scalers": scalers, "splits": dict(self.splits)}

    def load_state(self, state):
        for name, scaler in self.scalers.items():
            if saved := state["scalers"][name]:  # empty where the earlier session ran in fp32 or bf16
                scaler.load_state_dict(saved)
            self.splits[name] = max(self.splits[name], state["splits"][name])


def _parameters(optimizer):
    return [parameter for group in optimizer.param_groups for parameter in group["params"]]


def _gradients(parameters):
    return [parameter.grad for parameter in parameters if parameter.grad is not None]


def _check(phase, loss):
    """Refuse half precision: a mean in it loses small losses, and its scaled gradient would overflow."""
    for name, value in {"total": loss.total, **loss.logs}.items():
        if value.dtype not in (torch.float32, torch.float64):
            raise TypeError(
                f"phase {phase!r}: {name!r} of its Loss is {value.dtype}, wanted is float32: take what is "
                "averaged out of half precision before the mean (mtld_core.nn.precision.in_fp32 does)"
            )


def _detached(loss):
    logs = {name: value.detach() for name, value in loss.logs.items()}
    carry = {name: value.detach() for name, value in loss.carry.items()}
    return Loss(loss.total.detach(), logs, carry)


def _parts(size, splits):
    """(first, last) of at most `splits` nearly equal parts of `range(size)`, none of them empty."""
    splits = min(splits, size)
    edges = [size * i // splits for i in range(splits + 1)]
    return list(itertools.pairwise(edges))
