"""Frames from a system: `rollout` gives them all, `stream` one after another.

Written on the contract (`start`, `step`, `rollout`), so it serves every system. Frames: uint8 `[H, W, 3]`.
"""

import contextlib

import numpy as np
import torch

from mtld_core.config import UserError, check
from mtld_core.frames import to_uint8
from mtld_core.judge.translations import translated
from mtld_core.machine import graphs, memory
from mtld_core.systems.base import Reconstructs, Samples, System, Translates, computed


def rollout(system, context, num_frames, actions=None, seed=0):
    """The `num_frames` frames that follow `context`: uint8 tensor `[num_frames, H, W, 3]` on the CPU.

    context: uint8 `[H, W, 3]` or `[k, H, W, 3]`, tensor or array; None for a draw from noise, where the
    system `Samples`. actions: one a frame, where there is an action space. The same weights, context, length
    and seed give the same frames, bit for bit on one device. Raises UserError for a context or actions that
    do not fit.
    """
    return torch.stack(list(stream(system, context, num_frames, actions, seed)))


@torch.inference_mode()  # as a decorator it is on only while a frame is made, not while the caller uses it
def stream(system, context, num_frames, actions=None, seed=0):
    """Yield what `rollout` gives, frame after frame, and keep none.

    The system is in eval mode until the last frame is out.
    """
    if context is not None:
        if isinstance(context, np.ndarray):
            context = np.ascontiguousarray(context)
        context = torch.as_tensor(context)
        if context.dtype != torch.uint8 or context.dim() not in (3, 4) or context.shape[-1] != 3:
            found = f"{str(context.dtype).removeprefix('torch.')} {list(context.shape)}"
            raise UserError(f"a context is uint8 [H, W, 3] or [k, H, W, 3], not {found}")
    check(num_frames >= 1, f"num_frames must be at least 1, not {num_frames}")
    check_makes_frames(system)
    actions = check_actions(actions, system.action_space, num_frames, system.device)
    generator = torch.Generator(system.device).manual_seed(seed)
    with _eval_mode(system):
        pieces = _pieces(system, context, num_frames, actions, generator)
        if graphs.can_record(system.device):
            pieces = one_behind(pieces)
        for piece in pieces:
            yield from piece


def _pieces(system, context, num_frames, actions, generator):
    """Yield the frames of a rollout in pieces uint8 `[t, H, W, 3]` on the system's device."""
    if not graphs.can_record(system.device) or type(system).rollout is not System.rollout:
        for piece in computed(system, system.rollout(context, num_frames, actions, generator)):
            yield to_uint8(piece[0])
        return
    step = stepping(system)
    with system.computing():
        state = system.start(context, generator)
    for t in range(num_frames):
        state, piece = step(state, None if actions is None else actions[t])
        yield piece


def stepping(system):
    """The function (state, action) -> (state, frame uint8 `[1, H, W, 3]`) of a system, for one rollout.

    On a GPU its steps are replayed as a graph as soon as their shapes repeat: then the state and the frame
    that it returned last are overwritten by the next call. Call it without gradient, in eval mode.
    """

    def step(inputs):
        with system.computing():
            state, frame = system.step(*inputs)
        return state, to_uint8(frame)

    if graphs.can_record(system.device):
        step = graphs.Recorded(step, system.device, f"a step of {system.name}")
    return lambda state, action: step((state, action))


def one_behind(pieces):
    """Yield tensors that are made on a GPU as they arrive on the host: each while the next one is made."""
    before = None
    for piece in pieces:
        piece = memory.on_its_way(piece)
        if before is not None:
            yield before()
        before = piece
    yield before()


def check_makes_frames(system):
    """Raise UserError, with what to do instead, for a system that makes no frames of its own."""
    if isinstance(system, Translates):
        way = "generate(run_dir, source, direction=...) does, or system.translate"
        raise UserError(f"{system.name} translates clips: {way}")
    if isinstance(system, Reconstructs) and not isinstance(system, Samples):
        way = "generate with a run that is built on it"
        raise UserError(f"{system.name} rebuilds frames and makes none of its own: {way}")


def check_actions(actions, space, count, device):
    """Check actions against a system's `action_space` -> `count` tensors `[1]` or `[1, A]`; None without one.

    Raises UserError.
    """
    if space is None:
        check(actions is None, "this run takes no actions: leave actions empty")
        return None
    if actions is None or len(actions) != count:
        given = "none were given" if actions is None else f"{len(actions)} were given"
        raise UserError(f"this run needs one action for each predicted frame: {count}; {given}")
    discrete = isinstance(space, int)
    if discrete:
        low, high = torch.tensor([0]), torch.tensor([space - 1])
        wanted = f"an integer from 0 to {space - 1}"
    else:
        low, high = map(torch.tensor, space)
        wanted = f"{len(low)} numbers from {space[0]} to {space[1]}"
    checked = []
    for i, action in enumerate(actions):
        try:
            value = torch.as_tensor(action, dtype=torch.float64).reshape(-1).cpu()
        except (TypeError, ValueError, RuntimeError):
            value = torch.empty(0)
        inside = len(value) == len(low) and ((value >= low) & (value <= high)).all()
        if not inside or (discrete and value.frac().any()):
            raise UserError(f"action {i} is {action!r}; each must be {wanted}")
        value = value.to(torch.int64) if discrete else value.to(torch.float32)[None]
        checked.append(value.to(device))
    return checked


@contextlib.contextmanager
def _eval_mode(system):
    """Eval mode inside; after it every module is in the mode that it was in."""
    training = [module for module in system.modules() if module.training]
    system.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True


@torch.inference_mode()
def stream_translation(system, clip, direction, shots=()):
    """Yield the frames of a clip uint8 `[n, H, W, 3]` in the other domain: uint8 `[H, W, 3]` on the CPU.

    They are made in pieces of a training window, so any length takes the same memory. shots: where in the
    clip a new shot begins; there the system forgets what came before.
    """
    for shot in clip.tensor_split(shots):
        state = None
        for piece in shot.split(system.needs().window):
            made, state = translated(system, piece[None], direction, state)
            yield from made[0].cpu()
