"""A run's folder: its name, its log, and where it goes on."""

import contextlib
import json
import math
import time
from pathlib import Path

from mtld_core.files import atomic_path


def folder_of(run_dir, system):
    """Absolute path of a run's folder; "" stands for `runs/<system's name>_<time stamp>`."""
    return Path(run_dir or f"runs/{system}_{time.strftime('%Y%m%d_%H%M%S')}").absolute()


def append_log(run_dir, line):
    """One more line of metrics.jsonl; a number that is not finite becomes null, which JSON can say."""
    finite = {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in line.items()}
    with open(run_dir / "metrics.jsonl", "a") as file:
        file.write(json.dumps(finite) + "\n")


def rewind(run_dir, step):
    """Forget what lies past `step`, where the run goes on: lines of metrics.jsonl, and a best.json that names
    a later one.

    A line that a kill cut short goes, too.
    """
    log = run_dir / "metrics.jsonl"
    if log.exists():
        lines = [line for line in log.read_text(errors="replace").splitlines() if _step_of(line) <= step]
        with atomic_path(log) as temporary:
            temporary.write_text("".join(line + "\n" for line in lines))
    best = read_pointer(run_dir / "best.json")
    if best and not (best.keys() >= {"step", "metric", "value"} and best["step"] <= step):
        (run_dir / "best.json").unlink()


def _step_of(line):
    try:
        return float(json.loads(line)["step"])
    except (ValueError, KeyError, TypeError):
        return math.inf


def read_pointer(path):
    """What latest.json or best.json says, or None where the file is missing or damaged."""
    with contextlib.suppress(OSError, ValueError):
        pointer = json.loads(Path(path).read_text())
        return pointer if isinstance(pointer, dict) and isinstance(pointer.get("checkpoint"), str) else None
