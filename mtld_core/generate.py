"""From one picture to a sequence: `rollout` and `stream` give frames, `generate` writes them as PNGs, mp4 and GIF.

It is written on the contract (`start`, `step`, `rollout`), so it serves every system. Frames are uint8 `[H, W, 3]`.
"""

import contextlib
import itertools
import json
import numbers
import time
from pathlib import Path

import numpy as np
import torch

from mtld_core import media, metrics
from mtld_core.frames import to_float, to_uint8
from mtld_core.runtime import UserError, write_json
from mtld_core.source import read_source
from mtld_core.systems import open_run

STRIP_COLUMNS = 8

# ---- frames from a system


def rollout(system, context, num_frames, actions=None, seed=0):
    """The `num_frames` frames that follow `context`: uint8 tensor `[num_frames, H, W, 3]` on the CPU, predictions only.

    context: uint8 `[H, W, 3]` or `[k, H, W, 3]`, tensor or array. actions: one a frame, where there is an action space.
    The same weights, context, length and seed give the same frames, bit for bit on one device.
    Raises UserError, or the system's ConfigError, for a context or actions that do not fit.
    """
    return torch.stack(list(stream(system, context, num_frames, actions, seed)))


@torch.inference_mode()  # as a decorator it is on only while a frame is made, not while the caller uses it
def stream(system, context, num_frames, actions=None, seed=0):
    """Like `rollout`, but yields frame after frame and keeps none. The system is in eval mode until the last is out."""
    context = torch.as_tensor(np.ascontiguousarray(context) if isinstance(context, np.ndarray) else context)
    if context.dtype != torch.uint8 or context.dim() not in (3, 4) or context.shape[-1] != 3:
        found = f"{str(context.dtype).removeprefix('torch.')} {list(context.shape)}"
        raise UserError(f"a context is uint8 [H, W, 3] or [k, H, W, 3], not {found}")
    if num_frames < 1:
        raise UserError(f"num_frames must be at least 1, not {num_frames}")
    actions = check_actions(actions, system.action_space, num_frames, system.device)
    generator = torch.Generator(system.device).manual_seed(seed)
    with _eval_mode(system):
        for piece in system.rollout(context, num_frames, actions, generator):
            yield from to_uint8(piece[0]).cpu()


def check_actions(actions, space, count, device):
    """`count` tensors `[1]` or `[1, A]` for a system's `action_space`, None where it has none. Raises UserError."""
    if space is None:
        if actions is not None:
            raise UserError("this run takes no actions: leave actions empty")
        return None
    if actions is None or len(actions) != count:
        given = "none were given" if actions is None else f"{len(actions)} were given"
        raise UserError(f"this run needs one action for each predicted frame: {count}; {given}")
    discrete = isinstance(space, int)
    low, high = map(torch.tensor, ([0], [space - 1]) if discrete else space)
    wanted = f"an integer from 0 to {space - 1}" if discrete else f"{len(low)} numbers from {space[0]} to {space[1]}"
    checked = []
    for i, action in enumerate(actions):
        try:
            value = torch.as_tensor(action, dtype=torch.float64).reshape(-1).cpu()
        except (TypeError, ValueError, RuntimeError):
            value = torch.empty(0)
        inside = len(value) == len(low) and ((value >= low) & (value <= high)).all()
        if not inside or (discrete and value.frac().any()):
            raise UserError(f"action {i} is {action!r}; each must be {wanted}")
        checked.append(value.to(device, torch.int64) if discrete else value[None].to(device, torch.float32))
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


# ---- the whole job


def generate(
    run_dir,
    source="",
    num_frames=48,
    out_dir="",
    checkpoint="",
    direction="x_to_y",
    actions="",
    fps=12,
    seed=0,
    device="auto",
):
    """Let a trained run continue `source` (see `read_source`) and write the result; returns what generation.json holds.

    `<out_dir>/frames/frame_0000.png` is the last context frame as the model received it, the predictions follow;
    num_frames counts all of them. Beside it: video.mp4, video.gif, strip.png, generation.json, and where the truth is
    known comparison.mp4 (truth left). out_dir: "" is `<run_dir>/samples/<source>_<step>`. checkpoint: see `open_run`.
    actions: JSON list, one for each predicted frame, where there is an action space; "" takes those of the source, recorded or,
    where the system invents its own, seen in the frames. seed: for systems that sample.

    "frames_per_second" counts the model alone, "seconds" the writing, too. Any length takes the same memory.
    Raises UserError for whatever the user can mend; then nothing half-written is left.
    """
    for name, value in {"num_frames": num_frames, "fps": fps, "seed": seed}.items():
        if not isinstance(value, numbers.Real if name == "fps" else numbers.Integral):
            raise UserError(f"{name} must be a {'' if name == 'fps' else 'whole '}number, not {value!r}")
    if num_frames < 2:
        raise UserError(f"num_frames must be at least 2 (the first frame is the given one), not {num_frames}")
    if not 0.01 <= fps <= 1000:
        raise UserError(f"fps must be from 0.01 to 1000, not {fps}")
    if not 0 <= seed < 2**63:
        raise UserError(f"seed must be from 0 to 2^63 - 1, not {seed}")
    if direction != "x_to_y":
        raise UserError(f"direction={direction!r} is for translators between two domains; use 'x_to_y'")
    system = open_run(run_dir, checkpoint, device)
    actions, given = _parse_actions(actions), read_source(system, source)
    if actions is not None:  # the source's own go on to its truth, others somewhere else
        given = given._replace(truth=given.truth[: _followed(actions, given)])
    elif system.action_space is not None:
        actions = _actions_of(given, system, num_frames - 1)
    steering = check_actions(actions, system.action_space, num_frames - 1, system.device)
    run = system.run
    step = Path(run.checkpoint).stem if run.step is None else run.step
    out_dir = Path(out_dir or Path(run.dir) / "samples" / f"{given.name}_{step}")
    if (out_dir / "frames").exists() and not (out_dir / "generation.json").exists():
        raise UserError(f"{out_dir / 'frames'} was not written by a generation; choose another out_dir, or remove it")
    try:
        files, seconds, model_seconds, errors = _write(system, given, num_frames, steering, fps, seed, out_dir)
    except OSError as error:
        reason = error.strerror or error
        raise UserError(f"{out_dir} cannot be written ({reason}); make room there or choose another out_dir") from error
    result = {
        "run": str(Path(run.dir).absolute()),
        "system": system.name,
        "checkpoint": run.checkpoint,
        "step": run.step,
        "source": given.text,
        "num_frames": num_frames,
        "fps": fps,
        "seed": seed,
        "size": [system.config.height, system.config.width],
        "seconds": round(seconds, 3),
        "frames_per_second": round((num_frames - 1) / model_seconds, 2),
        "out_dir": str(out_dir.absolute()),
        "files": files,
    }
    if actions is not None:
        result["actions"] = actions
    if errors:
        model, copy = (metrics.psnr(torch.tensor(column, dtype=torch.float64)) for column in zip(*errors, strict=True))
        result |= {
            "psnr": model.mean().item(),
            "baseline_copy_psnr": copy.mean().item(),
            "psnr_by_horizon": model.tolist(),
        }
    write_json(out_dir / "generation.json", result)
    return result


def generate_sequence(run_dir, image, num_frames, out_dir):
    """`generate` from one image file, with everything else as it comes."""
    return generate(run_dir, str(image), num_frames, out_dir)


def _parse_actions(text):
    if not text:
        return None
    try:
        actions = json.loads(text)
    except json.JSONDecodeError as error:
        reason = f"column {error.colno}: {error.msg}"
        raise UserError(f"actions is not valid JSON ({reason}); wanted is a list like [0, 2, 1]") from None
    if not isinstance(actions, list):
        raise UserError(f"actions must be a JSON list like [0, 2, 1], not {text!r}")
    return actions


def _followed(actions, given):
    """How many of the first actions are the recorded ones."""
    recorded = [] if given.actions is None else given.actions.tolist()
    return len(list(itertools.takewhile(lambda pair: pair[0] == pair[1], zip(actions, recorded, strict=False))))


@torch.inference_mode()
def _actions_of(given, system, count):
    """A list of the `count` actions that follow a source: recorded, or seen in its frames by a system that invents its own."""
    space, recorded = system.action_space, system.needs().actions
    known = len(given.truth) if not recorded else 0 if given.actions is None else len(given.actions)
    if count > known:
        example = json.dumps([0, space - 1] if isinstance(space, int) else list(space))
        way = f"give one for each predicted frame, such as actions={example!r}"
        if not known:
            raise UserError(f"no {'recorded actions' if recorded else 'frames'} follow {given.text}, so {way}")
        raise UserError(
            f"num_frames={count + 1} needs {count} actions and {known} are recorded after {given.text}: use num_frames="
            f"{known + 1} or fewer, or {way}"
        )
    if recorded:
        return given.actions[:count].tolist()
    clip = torch.cat([given.context, given.truth[:count].cpu()])[None]
    return system.infer_actions(to_float(clip.to(system.device)))[0, -count:].tolist()


def _write(system, given, num_frames, actions, fps, seed, out_dir):
    """Run the model into all writers -> (files, seconds, seconds in the model, [(MSE of it, of a copy), ...])."""
    height, width = size = system.config.height, system.config.width
    first, truth = given.context[-1], given.truth[: num_frames - 1]
    horizon = len(truth) or num_frames - 1
    shown = set(np.linspace(1, horizon, min(STRIP_COLUMNS, horizon)).round().astype(int).tolist())
    columns, errors, model_seconds, started = [], [], 0.0, time.perf_counter()
    files = ["frames", "video.mp4", "video.gif", "strip.png"]
    with contextlib.ExitStack() as stack:
        write = stack.enter_context(media.open_writers(out_dir, fps, *size))
        write(first)
        if len(truth):
            compare = stack.enter_context(media.video_writer(out_dir / "comparison.mp4", fps, height, 2 * width + 2))
            compare(media.side_by_side(first, first))
            files.append("comparison.mp4")
        else:
            (out_dir / "comparison.mp4").unlink(missing_ok=True)  # of an earlier generation
        frames = stream(system, given.context, num_frames - 1, actions, seed)
        for t in range(1, num_frames):
            before = time.perf_counter()
            frame = next(frames)
            model_seconds += time.perf_counter() - before
            write(frame)
            cells = [frame]
            if t <= len(truth):
                real = truth[t - 1].cpu()
                compare(media.side_by_side(real, frame))
                errors.append((metrics.mse(frame, real).item(), metrics.mse(first, real).item()))
                cells = [real, frame, ((frame.int() - real.int()).abs() * 4).clamp_(max=255).to(torch.uint8)]
            if t in shown:
                columns.append(cells)
        labels = ["truth", "generated", "error x4"] if len(truth) else ["generated"]
        picture = media.strip(list(zip(*columns, strict=True)), labels, [f"+{t}" for t in sorted(shown)])
        media.save_picture(out_dir / "strip.png", picture)
    return files, time.perf_counter() - started, model_seconds, errors
