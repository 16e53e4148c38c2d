"""Checkpoints that are whole or not there, and are checked by sha256 before they are believed.

<run_dir>/latest.json   {"checkpoint", "step", "sha256"}: the digest of the manifest, which lists the others
<run_dir>/best.json     {"checkpoint", "step", "metric", "value"}
<run_dir>/checkpoints/step_00001000/  model.safetensors, ema.safetensors, train_state.pt, manifest.json

A manifest may also name files elsewhere in the run's folder that the checkpoint rests on, with the bytes that
it needs from their beginning: they only ever grow, so that what is large (a replay) is stored once and not
with every checkpoint.
"""

import contextlib
import hashlib
import json
import re
import shutil
from pathlib import Path

import safetensors.torch
import torch
from safetensors import SafetensorError

from mtld_core.config import UserError, check, reason_of
from mtld_core.files import atomic_folder, atomic_path, flush, read_json, sha256, write_json
from mtld_core.runs.folder import BEST, CHECKPOINTS, LATEST, WEIGHTS, checkpoint_name, read_pointer

SCHEMA = 1
AVERAGED = "ema.safetensors"
STATE = "train_state.pt"
MANIFEST = "manifest.json"


@contextlib.contextmanager
def disk_errors(run_dir):
    """Raise UserError, one line with the way out, where the disk refuses something (it is full, say)."""
    try:
        yield
    except (OSError, SafetensorError) as error:
        raise UserError(
            f"{run_dir}: {reason_of(error)}; its checkpoints are whole: make room on that disk, or mend "
            "what is said here, and start the same again to go on from the newest"
        ) from error


def save(run_dir, step, weights, train_state, config, ema=None, files=None):
    """Write `checkpoints/step_<step>` and point latest.json at it. Returns its name relative to run_dir.

    weights, ema: dicts of tensors. train_state: what `torch.load(weights_only=True)` may read: tensors,
    numbers, strings, lists and dicts. config: JSON values, kept in the manifest. files: {"<folder>/<name>" in
    run_dir: bytes of it that this checkpoint rests on}, already on disk. On any error (a full disk) the
    earlier checkpoints stay as they were.
    """
    run_dir, name = Path(run_dir), checkpoint_name(step)
    final = run_dir / name
    with atomic_folder(final) as temporary:  # the same step saved twice: the new one is as good
        _save_tensors(weights, temporary / WEIGHTS)
        if ema is not None:
            _save_tensors(ema, temporary / AVERAGED)
        _torch_save(train_state, temporary / STATE)
        digests = {file.name: sha256(file) for file in sorted(temporary.iterdir())}
        manifest = {"schema": SCHEMA, "step": step, "sha256": digests, "files": files or {}, "config": config}
        write_json(temporary / MANIFEST, manifest | {"self": _digest(manifest)})
        for file in temporary.iterdir():
            flush(file)
    flush(final.parent)
    write_json(run_dir / LATEST, {"checkpoint": name, "step": step, "sha256": sha256(final / MANIFEST)})
    return name


def mark_best(run_dir, name, figure, value):
    """Let best.json name this checkpoint, which `prune` then keeps."""
    step = read_manifest(Path(run_dir) / name)["step"]
    best = {"checkpoint": name, "step": step, "metric": figure, "value": value}
    write_json(Path(run_dir) / BEST, best)


# ---- what there is


def list_checkpoints(run_dir):
    """Paths of the checkpoints of a run, newest first; they may still turn out damaged."""
    found = (Path(run_dir) / CHECKPOINTS).glob("step_*")
    named = [path for path in found if re.fullmatch(r"step_\d{8,}", path.name)]
    return sorted(named, reverse=True)


def prune(run_dir, keep=2):
    """Delete all checkpoints but the newest `keep` and the best one, and what a killed process left behind.

    Of the `files` beside them (see `save`), and of others with the same suffix there, only those stay that a
    remaining checkpoint names.
    """
    run_dir = Path(run_dir)
    latest, best = read_pointer(run_dir / LATEST), read_pointer(run_dir / BEST)
    found, named_before = list_checkpoints(run_dir), _files(run_dir)
    believed = found
    if latest:  # newer ones were damaged, and training went on from before them
        believed = [path for path in found if path <= run_dir / latest["checkpoint"]]
    kept = believed[:keep]
    if best:
        kept.append(run_dir / best["checkpoint"])
    for path in [*found, *(run_dir / CHECKPOINTS).glob(".step_*")]:
        if path not in kept:
            shutil.rmtree(path, ignore_errors=True)
    named = _files(run_dir)
    for folder, suffix in {(path.parent, path.suffix) for path in named_before}:
        for path in set(folder.glob(f"*{suffix}")) - named:
            with contextlib.suppress(OSError):  # what cannot be deleted now can be the next time
                path.unlink()


def _files(run_dir):
    """Set of paths: the files that a run's manifests name, in folders right inside the run's own."""
    found = set()
    for checkpoint in list_checkpoints(run_dir):
        with contextlib.suppress(UserError):  # a damaged manifest names nothing
            names = read_manifest(checkpoint)["files"]
            found |= {run_dir / name for name in names if re.fullmatch(r"\w+/[\w-]+\.\w+", name)}
    return found


# ---- which one to use


def read_manifest(path):
    """What the checkpoint folder `path` is, a dict: "step", "config", "sha256" of each file, and "files".

    Raises UserError where its manifest is missing, damaged (its own sha256 tells), or of a newer schema.
    """
    try:
        manifest = read_json(path / MANIFEST)
        whole = manifest.pop("self") == _digest(manifest)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{type(error).__name__}: {error}") from None
    check(whole, f"{MANIFEST} does not match its own sha256")
    if manifest["schema"] > SCHEMA:
        raise UserError(f"it has schema {manifest['schema']}, newer than this program's {SCHEMA}")
    return {"files": {}} | manifest  # manifests named no files once


def problem(path, resuming=False, hashed=True):
    """Why the checkpoint at `path` cannot be believed, in words; None where nothing is wrong.

    hashed: every file has to have its sha256, which reads all of them; otherwise the manifest alone.
    resuming: also why training could not go on from it, though its weights are whole: a file elsewhere in the
    run's folder lacks bytes that it rests on.
    """
    try:
        manifest = read_manifest(path)
        for name, digest in manifest["sha256"].items():
            if hashed and sha256(path / name) != digest:
                return f"{name} does not match its sha256"
    except (UserError, OSError) as error:
        return str(error)
    for name, needed in manifest["files"].items():
        file = path.parent.parent / name
        found = file.stat().st_size if file.exists() else 0
        if resuming and found < needed:
            return f"it rests on {needed} bytes of {name}, of which {found} are there"
    return None


def find(run_dir, wanted="", say=print, **how):
    """Path of the checkpoint `wanted` ("step_00001000", "1000", a path, "best"), or of the newest good one.

    A damaged newest checkpoint is said and skipped; one that was asked for by name is an error. Of a shared
    run (share.py), which has no checkpoints, it is the file of weights. how: options of `problem`. Raises
    UserError.
    """
    run_dir = Path(run_dir)
    check(run_dir.is_dir(), f"{run_dir}: no such run folder")
    if wanted:
        return _find_named(run_dir, wanted, **how)
    if not (run_dir / CHECKPOINTS).exists() and (run_dir / WEIGHTS).is_file():
        return run_dir / WEIGHTS
    found = list_checkpoints(run_dir)
    check(found, f"{run_dir} holds no checkpoint yet: train it first (notebooks/02_train)")
    good = newest_good(found, say, **how)
    if good is None:
        raise UserError(
            f"every checkpoint of {run_dir} is damaged: train it anew in another run_dir, or restore a copy"
        )
    return good


def newest_good(paths, say=print, **how):
    """The first of these checkpoints that can be believed, or None; `say` is told of those before it."""
    for path in paths:
        reason = problem(path, **how)
        if reason is None:
            return path
        say(f"checkpoint {path} is damaged ({reason}); trying the one before")
    return None


def _find_named(run_dir, wanted, **how):
    if wanted == "best":
        best = read_pointer(run_dir / BEST)
        check(best, f"{run_dir} has no best checkpoint yet: nothing was evaluated")
        wanted = best["checkpoint"]
    names = [path.name for path in list_checkpoints(run_dir)]
    places = [run_dir / wanted, run_dir / CHECKPOINTS / wanted, Path(wanted)]
    if wanted.isdecimal():
        places.append(run_dir / checkpoint_name(int(wanted)))
    path = next((place for place in places if place.is_dir()), None)
    check(path, f"{run_dir} has no checkpoint {wanted!r}; there are: {', '.join(names) or 'none'}")
    if reason := problem(path, **how):
        raise UserError(f"checkpoint {path} is damaged: {reason}; use another one: {', '.join(names)}")
    return path


def load_weights(path, ema=True):
    """dict of tensors, from a checkpoint folder or from a .pth or .safetensors file.

    ema: of a folder take the moving average, where there is one. Raises UserError.
    """
    path = Path(path)
    if path.is_dir():
        averaged = path / AVERAGED
        path = averaged if ema and averaged.exists() else path / WEIGHTS
    try:
        if path.suffix == ".safetensors":
            return safetensors.torch.load_file(path)
        weights = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # damaged and foreign files fail in many ways
        raise UserError(f"{path} is no file of weights that can be read: {type(error).__name__}") from None
    if not isinstance(weights, dict) or not all(map(torch.is_tensor, weights.values())):
        raise UserError(f"{path} holds no plain state dict (names -> tensors)")
    return weights


def load_train_state(path):
    """The train_state that the checkpoint in folder `path` was saved with, its tensors on the CPU."""
    return torch.load(Path(path) / STATE, map_location="cpu", weights_only=True)


def export_pth(checkpoint, path):
    """Write the weights of a checkpoint folder as a plain torch state dict that `weights_only=True` reads."""
    with atomic_path(path) as temporary:
        _torch_save(load_weights(checkpoint), temporary)


def load_state_dict(system, weights, where, reason=""):
    """Give `weights` to the system.

    Raises UserError, which names the first tensors that are missing, unknown or of another shape. where:
    place that the weights come from. reason: said in place of the tensors, where it is known.
    """
    own = {name: tuple(value.shape) for name, value in system.state_dict().items()}
    given = {name: tuple(value.shape) for name, value in weights.items()}
    wrong = [
        f"{name}: {own.get(name, 'not in this model')} here, {given.get(name, 'missing')} there"
        for name in sorted(own.keys() | given.keys())
        if own.get(name) != given.get(name)
    ]
    if wrong:
        raise UserError(
            reason
            or f"{where} does not fit this {system.name} model ({len(wrong)} tensors differ): "
            f"{'; '.join(wrong[:3])}"
        )
    system.load_state_dict(weights)


def _digest(manifest):
    return hashlib.sha256(json.dumps(manifest, sort_keys=True).encode()).hexdigest()


def _save_tensors(tensors, path):
    """Write each tensor packed and on its own: safetensors refuses those that share memory or have gaps."""
    packed = {
        name: value.detach().to("cpu", copy=True, memory_format=torch.contiguous_format)
        for name, value in tensors.items()
    }
    safetensors.torch.save_file(packed, path)


def _torch_save(value, path):
    """torch.save with the system's own error for a full disk, of which torch says "unexpected pos 704"."""
    with open(path, "wb") as file:
        try:
            torch.save(value, file)
        except RuntimeError as error:
            if isinstance(error.__context__, OSError):
                raise error.__context__ from None
            raise
