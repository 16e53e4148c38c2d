"""A run to give away: the three files that the Hugging Face hub knows, and a short recording to start from.

    python -m mtld_core.share RUN OUT [--frames 256] [--half]
    python -m mtld_core.share RUN weights.pth              the averaged weights alone, as a torch state dict

OUT/README.md  config.json  model.safetensors (the averaged weights)  report.json  recording.h5 (a held-out
episode; of two domains X/recording.h5 and Y/recording.h5)

`open_run(OUT)` opens it on any machine: nothing in it names a place on this one.
"""

import argparse
import json
import os
import re
import sys
from pathlib import Path

import h5py
import safetensors.torch
import torch

from mtld_core.config import UserError, can_write, check
from mtld_core.files import atomic_path, write_json
from mtld_core.judge.task import summary
from mtld_core.judge.windows import windows_of
from mtld_core.runs.checkpoint import export_pth, find
from mtld_core.runs.folder import CONFIG, REPORT, WEIGHTS, read_config, read_report
from mtld_core.runtime import command
from mtld_core.systems.base import Translates
from mtld_core.systems.opening import open_run, own_dataset

RECORDING = "recording.h5"
README = """---
library_name: mtld
---
# {name}

A `{system}` from MTLD, a workbench for small video models: {parameters:.2f} M parameters,
{height}x{width} pixels, trained for {step} steps. On {judged}: {figures}.

To open it, put this folder beside your own runs and set `run_dir` to it in notebook 03, which
generates from it and, where it takes actions, lets you play; or, in Python,
`mtld_core.open_run("{name}")`.

| figure | value |
|---|---|
{table}
"""


def share(run_dir, out, frames=256, half=False):
    """Write a run into the folder `out`: newest good weights, what it is, its figures, frames to start from.

    frames: how many are copied, at most, of the held-out episode, with their actions; 0 for none: then it
    starts from pictures only. half: weights in half precision, in half the space. Returns the path. Raises
    UserError where `out` is taken, the run has no report or cannot be opened, or its dataset is gone.
    """
    out, system = Path(out), open_run(run_dir, device="cpu")
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"{out} is there already: name another folder, or delete it")
    about, report = read_config(run_dir), read_report(run_dir)
    starts = _starts(system, frames) if frames else {}
    place = "." if isinstance(system, Translates) else RECORDING
    about["dataset"]["path"] = report["dataset"]["path"] = place
    about["step"], report["run_dir"] = system.run.step, "."
    report["metrics"].pop("lpips_reason", None)  # why this machine could not
    write_json(out / CONFIG, without_places(about))
    write_json(out / REPORT, without_places(report))
    with atomic_path(out / WEIGHTS) as file:
        weights = (system.half() if half else system).state_dict()
        weights = {name: value.contiguous() for name, value in weights.items()}
        safetensors.torch.save_file(weights, file, {"format": "pt"})
    for name, start in starts.items():
        _write_recording(out / name, *start)
    (out / "README.md").write_text(_readme(out.name, report))
    return out


def share_weights(run_dir, file):
    """Write the newest good weights of a run (averaged ones, if any) into the .pth file `file` -> its path.

    It is a plain state dict: `torch.load(file, weights_only=True)` reads it, and so does `open_run(run_dir,
    file)`. Raises UserError where `file` is taken or cannot be written, or the run has no good checkpoint.
    """
    file = Path(file)
    if file.exists():
        raise UserError(f"{file} is there already: name another file, or delete it")
    checkpoint = find(run_dir)
    with can_write(file, "make room there or name another file"):
        export_pth(checkpoint, file)
    return file


def without_places(value):
    """JSON values in which an absolute path is its last name alone."""
    if isinstance(value, dict):
        return {name: without_places(inner) for name, inner in value.items()}
    if isinstance(value, list):
        return [without_places(inner) for inner in value]
    if isinstance(value, str) and os.path.isabs(value):
        return Path(value).name
    return value


def _starts(system, count):
    """{name of a file: what `_write_recording` puts into it}, one for each domain."""
    dataset, window = own_dataset(system, progress=False), system.needs().window
    check(count >= window, f"frames must be 0, or at least {window}, a window of this run; not {count}")
    folders = ("X/", "Y/") if len(dataset.domains) == 2 else ("",)
    starts = {}
    for folder, domain in zip(folders, dataset.domains, strict=True):
        starts[f"{folder}{RECORDING}"] = _start(system, domain, count)
    return starts


def _start(system, dataset, count):
    """(dataset, rows of it to copy, the episode's number, what to say about them)."""
    together = system.run.training["restitution"]
    learned, judged = windows_of(system, dataset)
    arc = max(dataset.arcs, key=lambda arc: len(_inside(judged, arc)))
    first, about = arc.start, dataset.about | {"held_out": not together}
    if not together and len(_inside(learned, arc)):
        first = int(_inside(judged, arc)[0])
        about.pop("episode_seeds", None)  # which lead to the beginning of a game
    rows = torch.arange(first, min(arc.stop, first + count))
    episode = re.fullmatch(r"episode_(\d+)", arc.name)
    return dataset, rows, int(episode[1]) if episode else 0, about


def _inside(rows, arc):
    return rows[(rows >= arc.start) & (rows < arc.stop)]


def _write_recording(path, dataset, rows, episode, about):
    frames = dataset.frames[rows].numpy()
    chunks = (min(16, len(rows)), *frames.shape[1:])
    with atomic_path(path) as temporary, h5py.File(temporary, "w") as file:
        file.create_dataset("frames", data=frames, chunks=chunks, compression="gzip")
        file["episode"] = torch.full_like(rows, episode).numpy()
        if dataset.actions is not None:
            file["actions"] = dataset.actions[rows].numpy()
        file.attrs["recording"] = json.dumps(without_places(about))


def _readme(name, report):
    metrics, (height, width) = report["metrics"], report["dataset"]["size"]
    figures = {key: value for key, value in metrics.items() if isinstance(value, float)}
    return README.format(
        name=name,
        system=report["system"],
        parameters=report["parameters"] / 1e6,
        step=report["step"],
        height=height,
        width=width,
        judged="what it was trained on" if report["restitution"] else "held-out windows",
        figures=summary(metrics),
        table="\n".join(f"| {key} | {value:.4g} |" for key, value in figures.items()),
    )


@command
def main(arguments=None):
    parser = argparse.ArgumentParser(
        prog="python -m mtld_core.share",
        description="Write a run's weights, figures and some frames into a folder to give away.",
    )
    parser.add_argument("run")
    parser.add_argument("out", help="the folder to make, or a file (.pth) for the weights alone")
    parser.add_argument("--frames", type=int, default=256, help="held-out frames to copy, 0 for none")
    parser.add_argument("--half", action="store_true", help="weights in half precision: half the space")
    given = parser.parse_args(arguments)
    alone = Path(given.out).suffix == ".pth"
    if alone:
        out = share_weights(given.run, given.out)
    else:
        out = share(given.run, given.out, given.frames, given.half)
    files = [file for file in (out, *out.rglob("*")) if file.is_file()]
    print(f"{out}: {sum(file.stat().st_size for file in files) / 1e6:.2f} MB")


if __name__ == "__main__":
    sys.exit(main())
