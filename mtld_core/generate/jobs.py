"""From one picture to a sequence: `rollout` and `stream` give frames, `generate` writes them as PNGs, mp4 and
GIF.

It is written on the contract (`start`, `step`, `rollout`, `translate`), so it serves every system. Frames:
uint8 `[H, W, 3]`.
"""

import itertools
import json
import numbers
import time
from pathlib import Path

import torch

from mtld_core.config import UserError
from mtld_core.data.truth import DIRECTIONS
from mtld_core.files import write_json
from mtld_core.frames import to_float
from mtld_core.generate.output import Continuation, Timed, Translation, write
from mtld_core.generate.rollouts import _check_makes_frames, check_actions, stream, stream_translation
from mtld_core.generate.source import read_source
from mtld_core.runs.folder import SAMPLES
from mtld_core.systems.base import Translates
from mtld_core.systems.opening import open_run

# ---- frames from a system


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
    """Let a trained run continue `source` (see `read_source`) and write the result; returns what
    generation.json holds.

    `<out_dir>/frames/frame_0000.png` is the last context frame as the model received it, the predictions
    follow; num_frames counts all of them. From noise it is the first sample. A translator makes of the
    source's clip one of the other domain, frame by frame; direction: "x_to_y" or "y_to_x". There num_frames
    is the most: no more than the clip has.

    Beside the frames: video.mp4, video.gif, strip.png, generation.json, and where there is something to
    compare with comparison.mp4, whose pictures "comparison" names: "truth | generated", or "source |
    translated" and, where the truth is known, "| truth". out_dir: "" is `<run_dir>/samples/<source>_<step>`.
    checkpoint: see `open_run`. actions: JSON list, one for each predicted frame, where there is an action
    space; "" takes those of the source, recorded or, where the system invents its own, seen in the frames.
    seed: for systems that sample.

    "frames_per_second" counts the model alone, "seconds" the writing, too. Any length takes the same memory.
    Raises UserError for whatever the user can mend; then nothing half-written is left.
    """
    _check_settings(num_frames, fps, seed)
    system = open_run(run_dir, checkpoint, device)
    if direction not in DIRECTIONS:
        raise UserError(f"direction must be 'x_to_y' or 'y_to_x', not {direction!r}")
    if not isinstance(system, Translates) and direction != "x_to_y":
        raise UserError(f"direction={direction!r} is for translators between two domains; use 'x_to_y'")
    actions, given = _parse_actions(actions), read_source(system, source, direction)
    begin = _translation if isinstance(system, Translates) else _continuation
    job, name, facts = begin(system, given, num_frames, direction, actions, seed)
    run = system.run
    step = Path(run.checkpoint).stem if run.step is None else run.step
    out_dir = Path(out_dir or Path(run.dir) / SAMPLES / f"{name}_{step}")
    if (out_dir / "frames").exists() and not (out_dir / "generation.json").exists():
        raise UserError(
            f"{out_dir / 'frames'} was not written by a generation; choose another out_dir, or remove it"
        )
    size, began = [system.config.height, system.config.width], time.perf_counter()
    try:
        files, written = write(job, out_dir, fps, size)
    except OSError as error:
        reason = error.strerror or error
        raise UserError(
            f"{out_dir} cannot be written ({reason}); make room there or choose another out_dir"
        ) from error
    result = {
        "run": str(Path(run.dir).absolute()),
        "system": system.name,
        "checkpoint": run.checkpoint,
        "step": run.step,
        "source": given.text,
        "num_frames": written,
        "fps": fps,
        "seed": seed,
        "size": size,
        "seconds": round(time.perf_counter() - began, 3),
        "frames_per_second": round(job.frames.per_second, 2),
        "out_dir": str(out_dir.absolute()),
        "files": files,
    }
    if job.compared:
        result["comparison"] = " | ".join(job.compared)
    result |= facts | job.figures()
    write_json(out_dir / "generation.json", result)
    return result


def _check_settings(num_frames, fps, seed):
    for name, value in {"num_frames": num_frames, "fps": fps, "seed": seed}.items():
        if not isinstance(value, numbers.Real if name == "fps" else numbers.Integral):
            raise UserError(f"{name} must be a {'' if name == 'fps' else 'whole '}number, not {value!r}")
    if num_frames < 1:
        raise UserError(f"num_frames must be at least 1, not {num_frames}")
    if not 0.01 <= fps <= 1000:
        raise UserError(f"fps must be from 0.01 to 1000, not {fps}")
    if not 0 <= seed < 2**63:
        raise UserError(f"seed must be from 0 to 2^63 - 1, not {seed}")


def _continuation(system, given, num_frames, direction, actions, seed):
    """(job, name for its folder, what generation.json says of it): what follows a source, or comes from
    noise.
    """
    _check_makes_frames(system)
    count = num_frames if given.context is None else num_frames - 1  # frames that the model makes
    if not count:
        raise UserError(f"num_frames must be at least 2 (the first frame is the given one), not {num_frames}")
    if actions is not None:  # the source's own go on to its truth, others somewhere else
        given = given._replace(truth=given.truth[: _followed(actions, given)])
    elif system.action_space is not None:
        actions = _actions_of(given, system, count)
    steering = check_actions(actions, system.action_space, count, system.device)
    frames = Timed(stream(system, given.context, count, steering, seed))
    return (
        Continuation(frames, count, given.context, given.truth),
        given.name,
        {} if actions is None else {"actions": actions},
    )


def _translation(system, given, num_frames, direction, actions, seed):
    """The same of a clip in the other domain."""
    check_actions(actions, system.action_space, num_frames, system.device)
    there = len(given.context)
    if there < num_frames:
        print(
            f"{given.text} has {there} frame{'s' * (there > 1)} from its start on: num_frames={num_frames} "
            f"becomes {there}"
        )
    clip, truth = given.context[:num_frames], given.truth[:num_frames]
    shots = [start for start in given.shots if start < len(clip)]
    frames = Timed(stream_translation(system, clip, direction, shots))
    return Translation(frames, clip, truth, shots), f"{given.name}_{direction}", {"direction": direction}


def generate_sequence(run_dir, image, num_frames, out_dir):
    """`generate` from one image file, with everything else as it comes."""
    return generate(run_dir, str(image), num_frames, out_dir)


def _parse_actions(text):
    if not text:
        return None
    if isinstance(text, (list, tuple)):
        return list(text)
    if not isinstance(text, str):
        raise UserError(f"actions must be a JSON list like [0, 2, 1], not {text!r}")
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
    return len(
        list(itertools.takewhile(lambda pair: pair[0] == pair[1], zip(actions, recorded, strict=False)))
    )


@torch.inference_mode()
def _actions_of(given, system, count):
    """A list of the `count` actions that follow a source: recorded, or seen in its frames by a system that
    invents its own.
    """
    space, recorded = system.action_space, system.needs().actions
    known = len(given.truth) if not recorded else 0 if given.actions is None else len(given.actions)
    if count > known:
        example = json.dumps([0, space - 1] if isinstance(space, int) else list(space))
        way = f"give one for each predicted frame, such as actions={example!r}"
        if not known:
            raise UserError(
                f"no {'recorded actions' if recorded else 'frames'} follow {given.text}, so {way}"
            )
        raise UserError(
            f"num_frames={count + 1} needs {count} actions and {known} are recorded after {given.text}: use "
            "num_frames="
            f"{known + 1} or fewer, or {way}"
        )
    if recorded:
        return given.actions[:count].tolist()
    clip = torch.cat([given.context, given.truth[:count].cpu()])[None]
    return system.infer_actions(to_float(clip.to(system.device)))[0, -count:].tolist()
