"""Every path that a GPU takes, once, in five minutes: is it right, and how fast is it?

    python bench/gpu_check.py [--seconds 270] [--only a,b] [--device cuda] [--out gpu_check.json]

The sections are those of gpu_right.py and gpu_fast.py. Nothing is downloaded, and data is drawn here. The
file is written anew after each section. A section that fails is kept with its error, and the rest goes on, in
a process of its own where the card answers no more; one that the time left is too short for is left out, and
one that this machine cannot run says why. On a CPU those that do not need a card run.
"""

import argparse
import datetime
import json
import subprocess
import sys
import tempfile
import time
import traceback
import typing
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import gpu_fast
import gpu_right
from gpu_cases import Bench, NotHere
from measure import table

from mtld_core.config import UserError, check, nearest
from mtld_core.files import write_json
from mtld_core.runtime import command, pick_device, warm_memory


class Section(typing.NamedTuple):
    """A part of the check."""

    rows_of: typing.Callable  # of a `Bench`
    seconds: float  # that it takes on a card, about
    needs_cuda: bool = False


SECTIONS = {
    "environment": Section(gpu_right.environment, 5),
    "precisions": Section(gpu_right.precisions, 30),
    "waits": Section(gpu_right.waits, 15, True),
    "profile": Section(gpu_fast.profile, 12, True),
    "recovery": Section(gpu_right.recovery, 5, True),
    "graphs": Section(gpu_fast.graphs, 40, True),
    "speed": Section(gpu_fast.speed, 60, True),
    "rollouts": Section(gpu_fast.rollouts, 20),
    "against_cpu": Section(gpu_right.against_cpu, 20),
    "memory": Section(gpu_right.memory, 8, True),
    "again": Section(gpu_right.again, 15),
    "data_path": Section(gpu_fast.data_path, 8),
    "processes": Section(gpu_fast.processes, 40, True),
    "whole_runs": Section(gpu_right.whole_runs, 30),
    "compiled": Section(gpu_right.compiled, 60, True),
}


def run(sections, device, until, out, say=print):
    """Run these sections until the monotonic clock says `until`; returns what the file `out` then holds.

    It is {"card", "torch", "date", "sections": {name: {"seconds", and "rows", "error" or "left out"}}}.
    """
    results = json.loads(out.read_text()) if out.exists() else about(device)
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder, warm_memory():
        bench = Bench(device, Path(folder), say, until=until)
        for number, name in enumerate(sections):
            results["sections"][name] = found = result_of(SECTIONS[name], bench, until)
            write_json(out, results)
            say(f"== {name} ({found['seconds']:.0f} s)")
            show(found, say)
            if failed(found) and not answers(device):
                return go_on(sections[number + 1 :], device, until, out, say)
    return results


def about(device):
    """What figures belong to: card, torch, date."""
    card = torch.cuda.get_device_name(device) if device.type == "cuda" else "no card"
    return {"card": card, "torch": torch.__version__, "date": str(datetime.date.today()), "sections": {}}


def result_of(section, bench, until):
    """A section's entry in the file."""
    began = time.monotonic()
    left = until - began
    found = {}
    if section.needs_cuda and bench.device.type != "cuda":
        found["left out"] = "it needs a CUDA device"
    elif left < section.seconds:
        found["left out"] = f"no time: {max(0, left):.0f} s are left, it takes about {section.seconds} s"
    else:
        try:
            found["rows"] = section.rows_of(bench)
        except NotHere as reason:
            found["left out"] = str(reason)
        except Exception as error:  # the check is to say what fails
            found["error"] = f"{type(error).__name__}: {error}"[:600]
            found["trace"] = traceback.format_exc()[-2000:]
    return {"seconds": time.monotonic() - began} | found


def show(found, say):
    """Say what came of a section: a table, whose columns are those of all rows."""
    if "rows" in found:
        columns = list(dict.fromkeys(name for row in found["rows"] for name in row))
        say("\n".join(table([{name: row.get(name, "") for name in columns} for row in found["rows"]])))
    else:
        say(found.get("error") or f"left out: {found['left out']}")


def failed(found):
    """Whether a section, or a row of it, ended with an error."""
    return "error" in found or any("error" in row for row in found.get("rows", ()))


def answers(device):
    """Whether the device still computes: after some errors a process never reaches its card again."""
    try:
        return torch.ones(1, device=device).item() == 1
    except RuntimeError:
        return False


def go_on(sections, device, until, out, say):
    """Run what is left in another process, which may find the card well; returns what `out` then holds."""
    if sections:
        say(f"the card answers no more: going on in another process with {', '.join(sections)}")
        seconds = until - time.monotonic()
        options = ["--seconds", str(seconds), "--only", ",".join(sections), "--device", str(device)]
        subprocess.run([sys.executable, __file__, *options, "--out", str(out), "--more"])
    return json.loads(out.read_text())


def troubles(results):
    """Lines on what failed or is not as it must be."""
    for name, found in results["sections"].items():
        if "error" in found:
            yield f"{name} failed: {found['error']}"
        for row in found.get("rows", ()):
            if not row.get("right", True):
                yield f"{name}: {row}"


@command
def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=270, help="that the whole check may take")
    parser.add_argument("--only", default="", help="these sections, with commas between them")
    parser.add_argument("--device", default="cuda", help="cpu tries the check itself")
    parser.add_argument("--out", default="gpu_check.json", help="the file to write")
    parser.add_argument("--more", action="store_true", help="add to that file")
    given = parser.parse_args()
    until = time.monotonic() + given.seconds
    chosen = [name for name in given.only.split(",") if name] or list(SECTIONS)
    for name in chosen:
        check(name in SECTIONS, f"--only: there is no section {name!r}{nearest(name, SECTIONS)}")
    out = Path(given.out)
    if not given.more:
        out.unlink(missing_ok=True)
    results = run(chosen, pick_device(given.device), until, out)
    wrong = list(troubles(results))
    print(f"all figures are in {out}", *wrong, sep="\n", flush=True)
    if wrong:
        raise UserError(f"not as it must be, in places: {len(wrong)}")


if __name__ == "__main__":
    sys.exit(main())
