"""The whole job of generating: from a run and a source to frames, videos and a generation.json.

It is written on the contract, so it serves every system. Frames: uint8 `[H, W, 3]`.
"""

import contextlib
import itertools
import json
import numbers
import os
import time
from pathlib import Path

import torch

from mtld_core.config import UserError, can_write, check, find, parse_json
from mtld_core.data.truth import DIRECTIONS
from mtld_core.files import read_json, whole, write_json
from mtld_core.frames import to_float
from mtld_core.generate.output import Continuation, Timed, Translation, write
from mtld_core.generate.rollouts import check_actions, check_makes_frames, stream, stream_translation
from mtld_core.generate.source import read_source
from mtld_core.runs.folder import samples_of
from mtld_core.runtime import name_of
from mtld_core.systems.base import Translates
from mtld_core.systems.opening import open_run

ABOUT = "generation.json"  # what makes a folder one of a generation


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
    progress=lambda: None,
    say=print,
):
    """Let a trained run continue `source` (see `read_source`) and write it all -> what generation.json holds.

    `<out_dir>/frames/frame_0000.png` is the last context frame as the model received it, the predictions
    follow; num_frames counts all of them. From noise it is the first sample. A translator makes of the
    source's clip one of the other domain; there num_frames is the most, no more than the clip has. Beside the
    frames: video.mp4, video.gif, strip.png, generation.json, and where there is something to compare with
    comparison.mp4, whose pictures "comparison" names from left to right.

    out_dir: "" is a new folder, `<run_dir>/samples/<source>_<step>` or, where that exists, with `-2`, `-3`,
    ... behind it (`samples/<its name>/` here, where that cannot be written to). checkpoint: see `open_run`.
    direction: "x_to_y" or "y_to_x". actions: JSON list, one for each predicted frame, where there is an
    action space; "" takes those of the source, recorded or, where the system invents its own, seen in the
    frames. seed: for systems that sample. progress: is called after each frame; what it raises ends the job.
    say: is told, in words, what had to be changed. "frames_per_second" counts the model alone, "seconds" the
    writing, too. Any length takes the same memory. Raises UserError for whatever the user can mend; then
    nothing half-written is left.
    """
    check_settings(num_frames, fps, seed)
    system = open_run(run_dir, checkpoint, device)
    _check_direction(system, direction)
    actions = _parse_actions(actions)
    given = read_source(system, source, direction, say)
    if isinstance(system, Translates):
        job = _translation(system, given, num_frames, direction, actions, say)
        name = f"{given.name}_{direction}"
    else:
        job = _continuation(system, given, num_frames, actions, seed)
        name = given.name
    size = [system.config.height, system.config.width]
    began = time.perf_counter()
    with _folder_for(system.run, given, name, out_dir) as folder:
        files, written = write(job, folder, fps, size, progress)
        result = _about(system, given) | {
            "num_frames": written,
            "fps": fps,
            "seed": seed,
            "size": size,
            "seconds": round(time.perf_counter() - began, 3),
            "frames_per_second": round(job.frames.per_second, 2),
            "out_dir": str(folder.absolute()),
            "files": files,
        }
        result |= job.facts()
        write_json(folder / ABOUT, result)
    return result


def generate_sequence(run_dir, image, num_frames, out_dir):
    """Let a run continue one image file, with every other setting of `generate` as it comes."""
    return generate(run_dir, image, num_frames, out_dir)


# ---- what was asked for


def check_settings(num_frames=1, fps=12, seed=0):
    """Raise UserError for what `generate` could not take."""
    check(
        isinstance(num_frames, numbers.Integral) and num_frames >= 1,
        f"num_frames must be a whole number from 1 on, not {num_frames!r}",
    )
    check(
        isinstance(fps, numbers.Real) and 0.01 <= fps <= 1000,
        f"fps must be a number from 0.01 to 1000, not {fps!r}",
    )
    check(
        isinstance(seed, numbers.Integral) and 0 <= seed < 2**63,
        f"seed must be a whole number from 0 to 2^63 - 1, not {seed!r}",
    )


def _check_direction(system, direction):
    check(direction in DIRECTIONS, f"direction must be 'x_to_y' or 'y_to_x', not {direction!r}")
    fits = isinstance(system, Translates) or direction == "x_to_y"
    check(fits, f"direction={direction!r} is for translators between two domains; use 'x_to_y'")


def _parse_actions(given):
    """A list from JSON text or an array; a list as it is; None where nothing is given."""
    if hasattr(given, "tolist"):
        given = given.tolist()
    if not given:
        return None
    actions = parse_json(given, "actions, a list like [0, 2, 1],") if isinstance(given, str) else given
    check(isinstance(actions, (list, tuple)), f"actions must be a JSON list like [0, 2, 1], not {given!r}")
    return list(actions)


# ---- what is made of it


def _continuation(system, given, num_frames, actions, seed):
    """The job that goes on from a source, or draws from noise."""
    check_makes_frames(system)
    count = num_frames if given.context is None else num_frames - 1  # frames that the model makes
    check(count, f"num_frames must be at least 2 (the first frame is the given one), not {num_frames}")
    truth = given.truth
    if actions is not None:  # the source's own go on to its truth, others somewhere else
        truth = truth[: _followed(actions, given.actions)]
    elif system.action_space is not None:
        actions = _actions_of(given, system, count)
    steering = check_actions(actions, system.action_space, count, system.device)
    frames = Timed(stream(system, given.context, count, steering, seed))
    return Continuation(frames, count, given.context, truth, actions)


def _translation(system, given, num_frames, direction, actions, say):
    """The job that brings a source's clip into the other domain."""
    check_actions(actions, system.action_space, num_frames, system.device)
    there = len(given.context)
    if there < num_frames:
        has = f"{there} frame{'s' if there > 1 else ''} from its start on"
        say(f"{given.text} has {has}: num_frames={num_frames} becomes {there}")
    clip, truth = given.context[:num_frames], given.truth[:num_frames]
    shots = [start for start in given.shots if start < len(clip)]
    frames = Timed(stream_translation(system, clip, direction, shots))
    return Translation(frames, clip, truth, shots, direction)


def _followed(actions, recorded):
    """How many of the first actions are the recorded ones."""
    count = 0
    for action, true in zip(actions, [] if recorded is None else recorded.tolist(), strict=False):
        if action != true:
            break
        count += 1
    return count


@torch.inference_mode()
def _actions_of(given, system, count):
    """The `count` actions that follow a source, a list: recorded, or what the system sees in its frames."""
    recorded = system.needs().actions
    known = len(given.truth)
    if recorded:
        known = 0 if given.actions is None else len(given.actions)
    if count > known:
        raise UserError(_too_few_actions(given, system, count, known))
    if recorded:
        return given.actions[:count].tolist()
    clip = torch.cat([given.context, given.truth[:count].cpu()])[None]
    with system.computing():
        return system.infer_actions(to_float(clip.to(system.device)))[0, -count:].tolist()


def _too_few_actions(given, system, count, known):
    space = system.action_space
    example = json.dumps([0, space - 1] if isinstance(space, int) else list(space))
    way = f"give one for each predicted frame, such as actions={example!r}"
    if not known:
        what = "recorded actions" if system.needs().actions else "frames"
        return f"no {what} follow {given.text}, so {way}"
    there = f"{known} are recorded after {given.text}"
    fewer = f"num_frames={known + 1} or fewer"
    return f"num_frames={count + 1} needs {count} actions and {there}: use {fewer}, or {way}"


# ---- where it goes


@contextlib.contextmanager
def _folder_for(run, given, name, out_dir):
    """`out_dir`, or a new folder among the run's samples, which goes again where the block raises.

    given: the `Source`. Raises UserError where it holds other frames, lies in the dataset or in the source,
    or cannot be written to.
    """
    step = Path(run.checkpoint).stem if run.step is None else run.step
    folder = Path(out_dir or samples_of(run.dir) / f"{name}_{step}").expanduser()
    source = "" if given.context is None else find(given.text)
    for data in filter(os.path.isdir, (run.dataset_path, source)):
        check(
            not (out_dir and folder.resolve().is_relative_to(Path(data).resolve())),
            f"out_dir={out_dir} lies in {data}, where its frames would be read as data; choose another one",
        )
    with can_write(folder, "make room there or choose another out_dir"):
        if not out_dir:
            folder = _new_folder(folder)
        elif (folder / "frames").exists() and not (folder / ABOUT).exists():
            raise UserError(
                f"{folder / 'frames'} was not written by a generation; choose another out_dir, or remove it"
            )
        with contextlib.nullcontext() if out_dir else whole(folder):
            yield folder


def _new_folder(wanted):
    """Make the folder `wanted`, or the first of `<wanted>-2`, `<wanted>-3`, ... that is new -> its path."""
    folder = wanted
    for number in itertools.count(2):
        with contextlib.suppress(FileExistsError):
            folder.mkdir(parents=True)
            return folder
        folder = wanted.with_name(f"{wanted.name}-{number}")


def _about(system, given):
    """What generation.json says of the run and the source."""
    return {
        "run": str(system.run.dir.absolute()),
        "system": system.name,
        "checkpoint": system.run.checkpoint,
        "step": system.run.step,
        "precision": name_of(system.precision),
        "source": given.text,
    }


# ---- what is kept


def kept(run_dir):
    """What was generated with a run and is still there, newest first: {folder: what generation.json says}."""
    found = {}
    for file in sorted(samples_of(run_dir).glob("*/video.gif"), key=os.path.getmtime, reverse=True):
        with contextlib.suppress(OSError, ValueError):
            found[file.parent] = read_json(file.parent / ABOUT)
    return found
