"""Which checkpoint a run goes on from, and what it keeps of how it began."""

import contextlib
from pathlib import Path

from mtld_core.config import UserError, field_names
from mtld_core.runs import checkpoint as checkpoints
from mtld_core.runs.folder import CHECKPOINTS

# training settings that a run keeps: chance, pairs of frames and controls, and which frames are held out
KEPT = ("seed", "controls_lead_to", "holdout", "cross_cuts", "restitution", "eval_horizon")
# fields of a system's config, where it has them, that decide which frames are held out, so that a run keeps
# them, too; with what they are in a run of before there were such
WINDOW_FIELDS = {"sequence_length": 0, "context_frames": 0, "rollout_frames": 0, "split": [0, 0]}


def in_full(config_class, values):
    """The config that a run kept, a dict, with those WINDOW_FIELDS that came to its class later."""
    names = field_names(config_class)
    return {name: value for name, value in WINDOW_FIELDS.items() if name in names} | values


def config_to_resume(run_dir, resume):
    """What the run that training goes on from keeps under "config" in its manifests; None for a new run.

    It comes from the newest manifest that is whole: whether the weights are, too, is not looked at here.
    resume and errors: see `checkpoint_to_resume`.
    """
    path = _place_to_resume(run_dir, resume)
    if path is None:
        return None
    return _newest_config([path] if _is_checkpoint(path) else checkpoints.list_checkpoints(path))


def checkpoint_to_resume(run_dir, resume, say=print):
    """(folder, its manifest) of the checkpoint to go on from, checked, or (None, None) for a new run.

    resume: "auto" (what run_dir holds, if anything), "never", or another run's folder or one of its
    checkpoints; given again to the run that began so, it means "auto". say: told which ones are damaged.
    Raises UserError where run_dir holds a run and another is to start there, or nothing can be gone on from.
    """
    path = _place_to_resume(run_dir, resume)
    if path is None:
        return None, None
    run, name = (path.parent.parent, path.name) if _is_checkpoint(path) else (path, "")
    folder = checkpoints.find(run, name, say, resuming=True)
    if folder.is_file():
        raise UserError(
            f"{path} is a shared run: it can be opened, but holds nothing that training could go on from"
        )
    return folder, checkpoints.read_manifest(folder)


def _place_to_resume(run_dir, resume):
    """Path of the run, or of the checkpoint, to go on from; None for a new run. Raises UserError."""
    own = checkpoints.list_checkpoints(run_dir)
    if own and resume not in ("auto", "never"):
        began = _newest_config(own)
        if began and began["training"]["resume"] == resume:
            resume = "auto"
    if own and resume != "auto":
        raise UserError(
            f"{run_dir} already holds a run: choose another run_dir, or go on with it by resume='auto'"
        )
    if resume == "auto":
        return Path(run_dir) if own else None
    if resume == "never":
        return None
    path = Path(resume)
    if not path.exists():
        raise UserError(f"resume={resume}: no such run folder")
    return path


def _is_checkpoint(path):
    return path.parent.name == CHECKPOINTS


def _newest_config(paths):
    for path in paths:
        with contextlib.suppress(UserError):
            return checkpoints.read_manifest(path)["config"]
    return None


def check_origin(folder, then, now, run_dir):
    """Refuse to go on from the checkpoint `folder` with what the run did not begin with.

    That is another system, other data, another seed or another split. then, now: what a manifest keeps under
    "config", of the checkpoint and of this session. run_dir: this session's. Raises UserError.
    """
    if then["system"] != now["system"]:
        raise UserError(f"{folder} is a checkpoint of {then['system']!r}, not of {now['system']!r}")
    run = folder.parent.parent
    way = "start in another run_dir"
    if run != run_dir:
        way = f"leave resume={str(run)!r} out, and begin anew"
    parts = {"dataset": ("frames", "arcs", "size"), "training": KEPT, "config": WINDOW_FIELDS}
    for part, names in parts.items():
        for name in names:
            given = now[part].get(name)
            began = then[part].get(name, WINDOW_FIELDS.get(name, given))
            if name in now[part] and began != given:
                raise UserError(
                    f"{folder} was trained with {part} {name}={began}, now it is {given}; "
                    f"give what it began with, or {way}"
                )
