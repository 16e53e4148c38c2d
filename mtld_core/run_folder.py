"""The files of a run that are text: its log, and where it goes on."""

import json
import math
from pathlib import Path

from mtld_core import checkpoint as checkpoints
from mtld_core.runtime import UserError, atomic_path


def append_log(run_dir, line):
    """One more line of metrics.jsonl; a number that is not finite becomes null, which JSON can say."""
    finite = {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in line.items()}
    with open(run_dir / "metrics.jsonl", "a") as file:
        file.write(json.dumps(finite) + "\n")


def trim_log(run_dir, step):
    """Drop the lines of metrics.jsonl past `step`, which will be written again, and one that a kill cut short."""
    log = run_dir / "metrics.jsonl"
    if log.exists():
        lines = [line for line in log.read_text().splitlines() if _step_of(line) <= step]
        with atomic_path(log) as temporary:
            temporary.write_text("".join(line + "\n" for line in lines))


def _step_of(line):
    try:
        return json.loads(line)["step"]
    except (json.JSONDecodeError, KeyError):
        return math.inf


def checkpoint_to_resume(run_dir, resume):
    """(folder, its manifest) of the checkpoint to go on from, or (None, None) for a new run.

    resume: "auto" (what run_dir holds, if anything), "never", or another run's folder or one of its checkpoints.
    Raises UserError where run_dir holds a run and something else is to start there.
    """
    own = checkpoints.list_checkpoints(run_dir)
    if resume != "auto" and own:
        raise UserError(f"{run_dir} already holds a run: choose another run_dir, or go on with it by resume='auto'")
    if resume == "never" or (resume == "auto" and not own):
        return None, None
    path = Path(run_dir if resume == "auto" else resume)
    inside = path.parent.name == "checkpoints"
    folder = checkpoints.find(path.parent.parent, path.name) if inside else checkpoints.find(path)
    return folder, json.loads((folder / "manifest.json").read_text())


def check_origin(folder, then, now):
    """Refuse to go on from `folder` with another system, other data or another seed than the run began with.

    then, now: what a manifest keeps under "config", of the checkpoint and of this session.
    """
    if then["system"] != now["system"]:
        raise UserError(f"{folder} is a checkpoint of {then['system']!r}, not of {now['system']!r}")
    for where, names in (("dataset", ("frames", "arcs", "size")), ("training", ("seed",))):
        for name in names:
            if then[where][name] != now[where][name]:
                raise UserError(
                    f"{folder} was trained with {where} {name}={then[where][name]}, now it is {now[where][name]}; "
                    "give what it began with, or start in another run_dir"
                )
