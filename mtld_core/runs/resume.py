"""Which checkpoint a run goes on from, and what it keeps of how it began."""

import json
from pathlib import Path

from mtld_core.config import UserError
from mtld_core.runs import checkpoint as checkpoints

# training settings that a run keeps: chance, pairs of frames and controls, and which frames are held out
KEPT = ("seed", "controls_lead_to", "holdout", "cross_cuts", "restitution", "eval_horizon")
# fields of a system's config, where it has them, that decide which frames are held out, so that a run keeps
# them, too; with what they are in a run of before there were such
WINDOW_FIELDS = {"sequence_length": 0, "context_frames": 0, "rollout_frames": 0, "split": [0, 0]}


def checkpoint_to_resume(run_dir, resume, say=print):
    """(folder, its manifest) of the checkpoint to go on from, or (None, None) for a new run.

    resume: "auto" (what run_dir holds, if anything), "never", or another run's folder or one of its
    checkpoints; given again to the run that began so, it means "auto". Raises UserError where run_dir holds a
    run and another is to start there.
    """
    own = checkpoints.list_checkpoints(run_dir)
    if own and resume not in ("auto", "never"):
        newest = checkpoints.find(run_dir, say=say, resuming=True)
        if json.loads((newest / "manifest.json").read_text())["config"]["training"]["resume"] == resume:
            resume = "auto"
    if resume != "auto" and own:
        raise UserError(
            f"{run_dir} already holds a run: choose another run_dir, or go on with it by resume='auto'"
        )
    if resume == "never" or (resume == "auto" and not own):
        return None, None
    path = Path(run_dir if resume == "auto" else resume)
    if not path.exists():
        raise UserError(f"resume={resume}: no such run folder")
    inside = path.parent.name == "checkpoints"
    run, name = (path.parent.parent, path.name) if inside else (path, "")
    folder = checkpoints.find(run, name, say, resuming=True)
    if folder.is_file():
        raise UserError(
            f"{path} is a shared run: it can be opened, but holds nothing that training could go on from"
        )
    return folder, json.loads((folder / "manifest.json").read_text())


def check_origin(folder, then, now, run_dir):
    """Refuse to go on from `folder` with another system, other data, another seed or another split than the
    run began with.

    then, now: what a manifest keeps under "config", of the checkpoint and of this session. run_dir: this
    session's.
    """
    if then["system"] != now["system"]:
        raise UserError(f"{folder} is a checkpoint of {then['system']!r}, not of {now['system']!r}")
    parts = (("dataset", ("frames", "arcs", "size")), ("training", KEPT), ("config", WINDOW_FIELDS))
    for where, names in parts:
        for name in names:
            given = now[where].get(name)
            began = then[where].get(name, WINDOW_FIELDS.get(name, given))
            if name in now[where] and began != given:
                own = folder.parent.parent == run_dir
                way = (
                    "start in another run_dir"
                    if own
                    else f"leave resume={str(folder.parent.parent)!r} out, and begin anew"
                )
                raise UserError(
                    f"{folder} was trained with {where} {name}={began}, now it is {given}; give what it "
                    f"began with, or {way}"
                )
