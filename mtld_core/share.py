"""A run to give away: the three files that the Hugging Face hub knows, and a short recording to start from.

    python -m mtld_core.share RUN OUT [--frames 256] [--half]
    python -m mtld_core.share RUN weights.pth              the averaged weights alone, as a torch state dict
    python -m mtld_core.share RUN OUT --hub me/pong --kaggle me/pong     also says what would be uploaded
    python -m mtld_core.share RUN OUT --hub me/pong --send               and uploads it, private

OUT/README.md  config.json  model.safetensors (the averaged weights)  report.json  recording.h5 (a held-out
episode; of two domains X/recording.h5 and Y/recording.h5)
and, where the run has them, preview.png and judgement.png

`open_run(OUT)` opens it on any machine: nothing in it names a place on this one.
"""

import argparse
import importlib
import json
import os
import re
import shutil
import sys
from pathlib import Path

import h5py
import safetensors.torch
import torch

from mtld_core.config import UserError, can_write, check, find
from mtld_core.files import whole, write_json
from mtld_core.judge.task import summary
from mtld_core.judge.windows import windows_of
from mtld_core.runs import checkpoint as checkpoints
from mtld_core.runs.folder import (
    CONFIG,
    JUDGEMENT,
    PREVIEW,
    REPORT,
    WEIGHTS,
    newest_preview,
    read_config,
    read_report,
)
from mtld_core.runtime import command, reaching
from mtld_core.systems.base import Translates
from mtld_core.systems.opening import open_run, own_dataset

RECORDING = "recording.h5"
KAGGLES = "model-metadata.json", "model-instance-metadata.json"  # names that Kaggle's client reads
README = "README.md"
CARD = """---
library_name: mtld
---
# {name}

A `{system}` from MTLD, a workbench for small video models: {parameters:,} parameters,
{height}x{width} pixels, trained for {step:,} steps. On {judged}: {figures}.

To open it, put this folder beside your own runs and set `run_dir` to it in notebook 03, which
generates from it and, where it takes actions, lets you play; or, in Python,
`mtld_core.open_run("{name}")`. Where it was uploaded as OWNER/NAME on the Hugging Face hub, it opens as
`hf://OWNER/NAME` in both.

{pictures}

| figure | value |
|---|---|
{table}
"""


def share(run_dir, out, frames=256, half=False):
    """Write a run into the folder `out`: newest good weights, what it is, its figures, frames to start from.

    frames: how many are copied, at most, of the held-out episode, with their actions; 0 for none: then it
    starts from pictures only. half: weights in half precision, in half the space. Returns the path. Raises
    UserError where `out` is taken or cannot be written, the run has no report or cannot be opened, or its
    dataset is gone; then nothing half-written is left.
    """
    out, system = Path(out).expanduser(), open_run(run_dir, device="cpu")
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"{out} is there already: name another folder, or delete it")
    run_dir = system.run.dir
    about, report = read_config(run_dir), read_report(run_dir)
    lacks = ", ".join({"dataset", "parameters", "restitution", "step", "system"} - report.keys())
    check(not lacks, f"{run_dir / REPORT} lacks {lacks}: train on, which writes it anew")
    starts = _starts(system, frames) if frames else {}
    place = "." if isinstance(system, Translates) else RECORDING
    about["dataset"]["path"] = report["dataset"]["path"] = place
    about["step"], report["run_dir"] = system.run.step, "."
    report["metrics"].pop("lpips_reason", None)  # why this machine could not
    weights = (system.half() if half else system).state_dict()
    weights = {name: value.contiguous() for name, value in weights.items()}
    with can_write(out, "make room there or name another folder"), whole(out):
        write_json(out / REPORT, without_places(report))
        (out / WEIGHTS).write_bytes(safetensors.torch.save(weights, {"format": "pt"}))
        for name, start in starts.items():
            _write_recording(out / name, *start)
        for name, picture in {PREVIEW: newest_preview(run_dir), JUDGEMENT: run_dir / JUDGEMENT}.items():
            if picture.is_file():
                shutil.copyfile(picture, out / name)
        (out / README).write_text(_card(out, report, system.config))
        write_json(out / CONFIG, without_places(about))  # at last: what lacks it is not uploaded
    return out


def share_weights(run_dir, file):
    """Write the newest good weights of a run (averaged ones, if any) into the .pth file `file` -> its path.

    It is a plain state dict: `torch.load(file, weights_only=True)` reads it, and so does `open_run(run_dir,
    file)`. Raises UserError where `file` is taken or cannot be written, or the run has no good checkpoint.
    """
    file = Path(file).expanduser()
    check(not file.exists(), f"{file} is there already: name another file, or delete it")
    checkpoint = checkpoints.find(find(run_dir))
    with can_write(file, "make room there or name another file"):
        checkpoints.export_pth(checkpoint, file)
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
    way = "bring it back, or share with frames=0"
    dataset, window = own_dataset(system, progress=False, way=way), system.needs().window
    check(count >= window, f"frames must be 0, or at least {window}, a window of this run; not {count}")
    folders = ("X/", "Y/") if len(dataset.domains) == 2 else ("",)
    return {
        f"{folder}{RECORDING}": _start(system, domain, count)
        for folder, domain in zip(folders, dataset.domains, strict=True)
    }


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
    path.parent.mkdir(exist_ok=True)
    with h5py.File(path, "w") as file:
        file.create_dataset("frames", data=frames, chunks=chunks, compression="gzip")
        file["episode"] = torch.full_like(rows, episode).numpy()
        if dataset.actions is not None:
            file["actions"] = dataset.actions[rows].numpy()
        file.attrs["recording"] = json.dumps(without_places(about))


def _card(out, report, config):
    metrics = report["metrics"]
    figures = {key: value for key, value in metrics.items() if isinstance(value, float)}
    shown = [f"![{name}]({name})" for name in (PREVIEW, JUDGEMENT) if (out / name).is_file()]
    return CARD.format(
        name=out.name,
        pictures="\n\n".join(shown),
        system=report["system"],
        parameters=report["parameters"],
        step=report["step"],
        height=config.height,
        width=config.width,
        judged="what it was trained on" if report["restitution"] else "held-out windows",
        figures=summary(metrics),
        table="\n".join(f"| {key} | {value:.4g} |" for key, value in figures.items()),
    )


# ---- uploading it


def upload_to_hub(folder, name, send=False):
    """Yield in lines what uploading a packed run to the Hugging Face hub does, and do it if `send` is true.

    name: owner/name, a model that is made, private, where it is not there. Raises UserError.
    """
    with reaching("the Hugging Face hub", "huggingface_hub"):
        hub = importlib.import_module("huggingface_hub")
        api = hub.HfApi()
        yield f"Hugging Face hub, as {api.whoami()['name']}"
        try:
            there = {file.rfilename for file in api.model_info(name).siblings}
        except hub.errors.RepositoryNotFoundError:
            there = None
        yield from _plan(name, folder, there)
        if send:
            api.create_repo(name, private=True, exist_ok=True)
            options = {"ignore_patterns": list(KAGGLES), "commit_message": "A run of MTLD"}
            yield f"sent: {api.upload_folder(repo_id=name, folder_path=folder, **options).commit_url}"


def upload_to_kaggle(folder, name, send=False):
    """Yield in lines what uploading a packed run to Kaggle does, and do it if `send` is true.

    name: owner/name, a model of one variation, other/default, that is made, private, where it is not there.
    Its title, words and licence stand in two files in `folder`, which are written where they are missing.
    Raises UserError.
    """
    owner, _, slug = name.partition("/")
    card = (folder / README).read_text().partition("\n---\n")[2]
    model = {"ownerSlug": owner, "slug": slug, "title": slug, "isPrivate": True, "description": card}
    variation = {"ownerSlug": owner, "modelSlug": slug, "instanceSlug": "default", "framework": "other"}
    variation |= {"licenseName": "Apache 2.0", "overview": "A run of MTLD", "usage": card}
    for file, content in zip(KAGGLES, (model, variation), strict=True):
        if not (folder / file).exists():
            write_json(folder / file, content)
    with reaching("Kaggle", "'kaggle>=2.2'"):
        api = importlib.import_module("kaggle.api.kaggle_api_extended").KaggleApi()
        api.authenticate()
        yield f"Kaggle, as {api.config_values['username']}; its words and licence: {', '.join(KAGGLES)}"
        whole = f"{name}/other/default"
        known = _is_there(api.model_get, name)
        there = known and _is_there(api.model_instance_get, whole)
        yield from _plan(name, folder, set() if there else None)
        if not send:
            return
        if not known:
            api.model_create_new(str(folder))
        if there:
            answer = api.model_instance_version_create(whole, str(folder), dir_mode="zip", quiet=True)
        else:
            answer = api.model_instance_create(str(folder), dir_mode="zip", quiet=True)
        check(not answer.error, f"{name} was refused: {answer.error}")
        yield f"sent: {answer.url}"


def _is_there(get, name):
    try:
        get(name)
        return True
    except OSError as error:  # Kaggle answers 403 for what is not there, too
        if getattr(getattr(error, "response", None), "status_code", 0) not in (403, 404):
            raise
        return False


def _plan(name, folder, there):
    """Lines that say what would be uploaded. there: names of files that the model has; None: it is new."""
    yield f"{name} is " + ("new: it is made private" if there is None else "there: it gets another version")
    for file in sorted(folder.rglob("*")):
        where = file.relative_to(folder).as_posix()
        if file.is_file() and where not in KAGGLES:
            replaced = ", replaced" if there and where in there else ""
            yield f"  {where}  {file.stat().st_size / 1e6:.2f} MB{replaced}"


@command
def main(arguments=None):
    parser = argparse.ArgumentParser(
        prog="python -m mtld_core.share",
        description="Write a run's weights, figures and some frames into a folder to give away.",
    )
    add = parser.add_argument
    add("run")
    add("out", help="the folder to make, or a file (.pth) for the weights alone")
    add("--frames", type=int, default=256, help="held-out frames to copy, 0 for none")
    add("--half", action="store_true", help="weights in half precision: half the space")
    add("--hub", metavar="OWNER/NAME", help="say what an upload to this model there would do")
    add("--kaggle", metavar="OWNER/NAME", help="the same for a model on Kaggle")
    add("--send", action="store_true", help="and do it; an OUT that is there goes as it is")
    given = parser.parse_args(arguments)
    uploads = {upload_to_hub: given.hub, upload_to_kaggle: given.kaggle}
    uploads = {upload: name for upload, name in uploads.items() if name}
    for name in uploads.values():
        check(re.fullmatch(r"[\w.-]+/[\w.-]+", name), f"{name!r} must be OWNER/NAME")
    out = Path(given.out)
    alone = out.suffix == ".pth"
    check(not (alone and uploads), f"{given.out} is a file: what is uploaded is a folder")
    check(uploads or not given.send, "--send needs --hub or --kaggle, which say where to")
    if alone:
        share_weights(given.run, out)
    elif not (uploads and (out / CONFIG).is_file()):
        share(given.run, out, given.frames, given.half)
    files = [file for file in (out, *out.rglob("*")) if file.is_file()]
    print(f"{out}: {sum(file.stat().st_size for file in files) / 1e6:.2f} MB")
    for upload, name in uploads.items():
        for line in upload(out, name, given.send):
            print(line)
    if uploads and not given.send:
        print("nothing was sent: the same with --send does it")


if __name__ == "__main__":
    sys.exit(main())
