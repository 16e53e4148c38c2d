"""Which checkpoint a run goes on from, and what it keeps of how it began."""

from pathlib import Path

from mtld_core.config import UserError, check, field_names
from mtld_core.runs import checkpoint as checkpoints
from mtld_core.runs.folder import CHECKPOINTS

# training settings that a run keeps: chance, pairs of frames and controls, and which frames are held out
KEPT = ("seed", "controls_lead_to", "holdout", "cross_cuts", "restitution", "eval_horizon")
MOST_NAMED = 6  # of the settings that differ, where weights do not fit
# fields of a system's config, where it has them, that decide which frames are held out, so that a run keeps
# them, too; with what they are in a run of before there were such
WINDOW_FIELDS = {
    "sequence_length": 0,
    "context_frames": 0,
    "older_frames": [],
    "rollout_frames": 0,
    "split": [0, 0],
}


def in_full(config_class, values):
    """The config that a run kept, a dict, with those WINDOW_FIELDS that came to its class later."""
    names = field_names(config_class)
    return {name: value for name, value in WINDOW_FIELDS.items() if name in names} | values


def checkpoint_to_resume(run_dir, resume, say=print, hashed=True):
    """(folder, its manifest) of the checkpoint to go on from, or (None, None) for a new run.

    resume: "auto" (what run_dir holds, if anything), "never", or another run's folder or one of its
    checkpoints; given again to the run that began so, it means "auto". say: told which ones are damaged.
    hashed: see `checkpoint.problem`. Raises UserError where run_dir holds a run and another is to start
    there, or there is nothing to go on from.
    """
    own = checkpoints.list_checkpoints(run_dir)
    if own and resume not in ("auto", "never"):
        newest = checkpoints.find(run_dir, say=lambda line: None, hashed=False)
        if checkpoints.read_manifest(newest)["config"]["training"]["resume"] == resume:
            resume = "auto"
    if own and resume != "auto":
        raise UserError(
            f"{run_dir} already holds a run: choose another run_dir, or go on with it by resume='auto'"
        )
    if resume == "never" or (resume == "auto" and not own):
        return None, None
    path, name = Path(run_dir if resume == "auto" else resume), ""
    check(path.exists(), f"resume={resume}: no such run folder")
    if path.parent.name == CHECKPOINTS:
        path, name = path.parent.parent, path.name
    folder = checkpoints.find(path, name, say, resuming=True, hashed=hashed)
    if folder.is_file():
        raise UserError(
            f"{path} is a shared run: it can be opened, but holds nothing that training could go on from"
        )
    return folder, checkpoints.read_manifest(folder)


def check_origin(folder, then, now, run_dir):
    """Refuse to go on from the checkpoint `folder` with what the run did not begin with.

    That is another system, other data, another seed or another split. then, now: what a manifest keeps under
    "config", of the checkpoint and of this session. run_dir: this session's. Raises UserError.
    """
    check(
        then["system"] == now["system"],
        f"{folder} is a checkpoint of {then['system']!r}, not of {now['system']!r}",
    )
    parts = {"dataset": ("frames", "arcs", "size"), "training": KEPT, "config": WINDOW_FIELDS}
    for part, names in parts.items():
        for name in names:
            given = now[part].get(name)
            began = then[part].get(name, WINDOW_FIELDS.get(name, given))
            if name in now[part] and began != given:
                raise UserError(
                    f"{folder} was trained with {part} {name}={began}, now it is {given}; "
                    f"give what it began with, or {_way_out(folder, run_dir)}"
                )


def other_settings(folder, then, now, run_dir):
    """What to say where weights do not fit: the settings that differ, and not the tensors; "": none does.

    folder, then, now, run_dir: as for `check_origin`.
    """
    began, given = ({"preset": each["preset"], **each["config"]} for each in (then, now))
    changed = [
        f"{name}={began[name]} (now {value})"
        for name, value in given.items()
        if began.get(name, value) != value
    ]
    if not changed:
        return ""
    return (
        f"{folder} was trained with {', '.join(changed[:MOST_NAMED])}, so its weights do not fit; "
        f"give what it began with, or {_way_out(folder, run_dir)}"
    )


def _way_out(folder, run_dir):
    run = folder.parent.parent
    if run == run_dir:
        return "start in another run_dir"
    return f"leave resume={str(run)!r} out, and begin anew"
