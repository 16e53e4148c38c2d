"""A run's folder: what its files are called, its log, and what it says about itself."""

import contextlib
import json
import math
import os
import time
from pathlib import Path

from mtld_core.config import ROOT, UserError, find, looked_in
from mtld_core.files import atomic_path, read_json, write_json

CONFIG = "config.json"  # what the run is, whatever happens in it
REPORT = "report.json"  # what has happened in it, and its newest figures
LOG = "metrics.jsonl"  # a line for every few steps
LATEST, BEST = "latest.json", "best.json"  # each points at a checkpoint
LOCK = ".lock"  # of the process that trains here
STOP = ".stop"  # there, it asks that process to stop
CHECKPOINTS = "checkpoints"  # folders, one a checkpoint
REPLAY = "replay"  # of a system that keeps one: what the checkpoints rest on
SAMPLES = "samples"  # what was generated or played
PREVIEWS = "previews"  # pictures made while it trained: <what>_<step>.png
PREVIEW = "preview.png"  # the newest of them, in a run that was given away
LOSSES = "losses.png"  # curves of the log
JUDGEMENT = "judgement.png"  # curves over the horizon, of the newest figures
JUDGEMENTS = "judgements"  # figures of checkpoints that were judged once more
WEIGHTS = "model.safetensors"  # in a checkpoint, and in a run that was given away

EXAMPLES = ROOT / "examples"  # of the project: shared runs to begin with

# what config.json has to hold, and "config" in a manifest holds, too
PARTS = {"system": str, "preset": str, "config": dict, "training": dict, "dataset": dict}


def folder_of(path, name):
    """Absolute path of a run's folder, or a comparison's; "" stands for `runs/<name>_<time stamp>`."""
    path = path or f"runs/{name}_{time.strftime('%Y%m%d_%H%M%S')}"
    return Path(os.path.expanduser(path)).absolute()


def samples_of(run_dir):
    """Where what a run makes is kept: `<run_dir>/samples`; of a read-only run `samples/<its name>` here."""
    run_dir = Path(run_dir)
    read_only = run_dir.is_dir() and not os.access(run_dir, os.W_OK)
    return Path(SAMPLES, run_dir.name) if read_only else run_dir / SAMPLES


def runs_in(*folders):
    """Paths of the runs that lie in these folders, as text, sorted folder by folder; each run once.

    A folder with a damaged config.json, or one of another program, is passed over.
    """
    found = {}
    for folder in folders:
        for path in sorted(Path(find(folder)).glob(f"*/{CONFIG}")):
            with contextlib.suppress(UserError):
                read_config(path.parent)
                found.setdefault(path.resolve(), path.parent.as_posix())
    return list(found.values())


def newest_preview(run_dir):
    """Path of the newest picture of truth, rollout and error that a run has; where it has none: no file."""
    return max(Path(run_dir, PREVIEWS).glob("step_*.png"), default=Path(run_dir, PREVIEW))


def checkpoint_name(step):
    """The folder of the checkpoint at `step`, relative to its run's: `checkpoints/step_00001000`."""
    return f"{CHECKPOINTS}/step_{step:08d}"


# ---- what it says about itself


def write_part(run_dir, name, content):
    """Write one of a run's files, whole or not at all: bytes as they are, any other value as JSON."""
    path = Path(run_dir) / name
    if not isinstance(content, bytes):
        write_json(path, content)
        return
    with atomic_path(path) as temporary:
        temporary.write_bytes(content)


def read_config(run_dir, setting=""):
    """What config.json says of a run, a dict: "system", "preset", "config", "training", "dataset".

    setting: the field that names the run, for the error. Raises UserError where `run_dir` is no run.
    """
    path = Path(run_dir) / CONFIG
    named = f"{setting}={str(run_dir)!r}" if setting else run_dir
    try:
        about = read_json(path)
        for name, kind in PARTS.items():
            if not isinstance(about[name], kind):
                raise TypeError(f"{name!r} is no {kind.__name__}")
        os.fspath(about["dataset"]["path"])  # which raises where that is none
        return about
    except (FileNotFoundError, NotADirectoryError):
        raise UserError(
            f"{named} is not a run folder: it has no {CONFIG}{looked_in(run_dir)}; train one with "
            "notebooks/02_train"
        ) from None
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise UserError(
            f"{path} is damaged ({type(error).__name__}: {error}); training writes it anew"
        ) from None


def read_report(run_dir):
    """What report.json says of a run, a dict with "metrics". Raises UserError: missing, or damaged."""
    path = Path(run_dir) / REPORT
    try:
        return {"metrics": {}} | read_json(path)
    except (OSError, ValueError, TypeError):
        raise UserError(f"{path} is missing or damaged; training writes it when it judges the run") from None


def read_pointer(path):
    """What latest.json or best.json says, a dict, or None where the file is missing or damaged."""
    with contextlib.suppress(OSError, ValueError):
        pointer = read_json(path)
        if isinstance(pointer, dict) and isinstance(pointer.get("checkpoint"), str):
            return pointer
    return None


def age_of(path):
    """How long ago a file was written: "2 hours ago"."""
    seconds = time.time() - Path(path).stat().st_mtime
    for unit, length in (("day", 86400), ("hour", 3600), ("minute", 60)):
        if seconds >= 2 * length:
            return f"{seconds // length:.0f} {unit}s ago"
    return "just now"


def age_of_run(run):
    """How old a run is, in words: "example" for one that the project ships, else how long ago it began."""
    return "example" if Path(run).parent == EXAMPLES else age_of(f"{run}/{CONFIG}")


# ---- its log


def append_log(run_dir, line):
    """Add the dict `line` to metrics.jsonl; a number that is not finite becomes null, which JSON can say."""
    finite = {}
    for name, value in line.items():
        lost = isinstance(value, float) and not math.isfinite(value)
        finite[name] = None if lost else value
    with open(run_dir / LOG, "a") as file:
        file.write(json.dumps(finite) + "\n")


def rewind(run_dir, step):
    """Forget what lies past `step`, where the run goes on: lines of the log, previews, best.json, a report.

    A line of the log that a kill cut short goes, too.
    """
    log = run_dir / LOG
    if log.exists():
        lines = log.read_text(errors="replace").splitlines()
        kept = [f"{line}\n" for line in lines if _step_of(line) <= step]
        with atomic_path(log) as temporary:
            temporary.write_text("".join(kept))
    best = read_pointer(run_dir / BEST)
    if best and not (best.keys() >= {"step", "metric", "value"} and best["step"] <= step):
        (run_dir / BEST).unlink()
    for picture in (run_dir / PREVIEWS).glob("*_*.png"):
        made_at = picture.stem.rpartition("_")[2]
        if made_at.isdecimal() and int(made_at) > step:
            picture.unlink()
    with contextlib.suppress(UserError, OSError, TypeError, LookupError):  # none, or a damaged one
        if (read_report(run_dir)["judged_at_step"] or 0) > step:
            for name in (REPORT, JUDGEMENT):
                (run_dir / name).unlink(missing_ok=True)


def _step_of(line):
    try:
        return float(json.loads(line)["step"])
    except (ValueError, KeyError, TypeError):
        return math.inf
