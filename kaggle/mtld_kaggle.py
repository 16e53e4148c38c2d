"""What a kernel does on Kaggle before the notebook proper; `kernel_build` packs this file beside mtld_core.

Kaggle mounts inputs, read-only, as /kaggle/input/<slug>, .../datasets/<owner>/<slug> or
.../notebooks/<owner>/<slug>, and keeps what lies in /kaggle/working. MTLD_KAGGLE_ROOT names another tree for
tests.
"""

import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from mtld_core.config import UserError
from mtld_core.runs.folder import CHECKPOINTS, CONFIG, LOCK

ROOT = Path(os.environ.get("MTLD_KAGGLE_ROOT", "/kaggle"))
PACKAGES = {  # what Kaggle's image lacks, or may lack: its module by the package's name
    "lpips": "lpips",
    "nvidia-ml-py": "pynvml",
    "av": "av",
    "jupytext": "jupytext",
    "mdit-py-plugins": "mdit_py_plugins",  # jupytext's
}
OWNED = r"([\w-]+)/([\w-]+)((?:/[^/]+)*)/?"  # owner/slug, and perhaps a path in it
MARKER = "lpips_vgg16.pth"  # the file by which the attached dataset is known


def prepare(code):
    """Work in /kaggle/working, with packages, LPIPS weights and the sample clip from the attached dataset.

    code: the folder that mtld_core was unpacked into.
    """
    if (ROOT / "working").is_dir():
        os.chdir(ROOT / "working")
    inputs = next((mount for mount in mounts() if (mount / MARKER).is_file()), None)
    packages = _install(
        [name for name, module in PACKAGES.items() if importlib.util.find_spec(module) is None], inputs
    )
    sys.path += packages
    importlib.invalidate_caches()
    os.environ["PYTHONPATH"] = os.pathsep.join([code, *packages])  # for processes that the notebook starts
    if inputs:
        import torch

        _link(Path(torch.hub.get_dir()) / "checkpoints" / MARKER, inputs / MARKER)
        _link(Path(code) / "data_prep" / "sample", inputs)


def _link(path, target):
    path.parent.mkdir(parents=True, exist_ok=True)
    if not path.exists():
        path.unlink(missing_ok=True)  # a link to what is gone
        path.symlink_to(target)


def _install(missing, wheels):
    """Folders with the missing packages, installed from files alone; torch and all else stays as it is."""
    if not missing:
        return []
    if wheels is None:
        raise UserError(
            f"this image lacks {', '.join(missing)}: attach the dataset mtld-inputs, which holds them (see "
            "kaggle/README.md)"
        )
    folder = tempfile.mkdtemp(prefix="mtld_packages_")
    command = [
        sys.executable,
        "-m",
        "pip",
        "install",
        "--quiet",
        "--no-index",
        "--no-deps",
        "--find-links",
        str(wheels),
    ]
    done = subprocess.run([*command, "--target", folder, *missing], capture_output=True, text=True)
    if done.returncode:
        raise UserError(
            f"installing {', '.join(missing)} from {wheels} failed: {done.stderr.strip().splitlines()[-1]}"
        )
    return [folder]


# ---- inputs


def mounts():
    """Folders of the attached inputs, in a fixed order."""
    found = []
    for entry in sorted((ROOT / "input").glob("*")):
        found += sorted(entry.glob("*/*")) if entry.name in ("datasets", "notebooks") else [entry]
    return [entry for entry in found if entry.is_dir()]


def find_input(name):
    """The path of "owner/slug" or of something in it; any other text comes back as it is."""
    given = re.fullmatch(OWNED, name)
    if not given or Path(name).exists():
        return name
    path = _mounted(*given.groups())
    if path is None:
        raise UserError(
            f"{name!r} is in no input of this kernel; there are: {', '.join(map(str, mounts())) or 'none'}"
        )
    return str(path)


def _mounted(owner, slug, rest):
    """The path of what lies at `rest` in the input owner/slug, wherever Kaggle has put that, or None."""
    for place in (f"datasets/{owner}/{slug}", f"notebooks/{owner}/{slug}", slug):
        path = ROOT / "input" / f"{place}{rest}"
        if path.exists():
            return path
    return None


# ---- runs


def find_run(run_dir):
    """The path of a trained run, here or in the input with the newest good checkpoint of that name."""
    if _is_run(run_dir):
        return run_dir
    checkpoint = _newest(run_dir)
    if checkpoint is None:
        raise UserError(
            f"run_dir={run_dir!r} is in no input of this kernel: attach the training kernel, and name its "
            "run_dir"
        )
    return str(checkpoint.parents[1])


def _is_run(path):
    return (Path(path) / CONFIG).is_file()


def bring_stages(system, overrides, run_dir):
    """`overrides` (JSON text) with the runs that `system` is built on, brought to where it can read them.

    A run named "owner/slug/<path>" is read in that input. Raises UserError where one is in no input, unless
    the run `run_dir` goes on, which carries its stages inside itself.
    """
    from mtld_core.runs.checkpoint import list_checkpoints
    from mtld_core.systems import system_class

    fields = getattr(system_class(system), "built_on", {})
    try:
        values = json.loads(overrides)
        stages = {
            field: values[field] for field in fields if isinstance(values.get(field), str) and values[field]
        }
    except (ValueError, TypeError, AttributeError):  # which training refuses in words
        return overrides
    for field, name in stages.items():
        given = re.fullmatch(OWNED, name)
        path = given and _mounted(*given.groups())
        if path and _is_run(path):
            values[field] = str(path)
        elif not _is_run(name):
            try:
                _bring_stage(field, name)
            except UserError as error:
                if not list_checkpoints(run_dir):
                    raise
                print(f"{error}; {run_dir} goes on without it", flush=True)
    return json.dumps(values)


def _bring_stage(field, name):
    """Copy the run `name`, a setting `field`, from the inputs; raises UserError where it is in none."""
    if _is_kept(name):
        bring_run(name, saying=f"{field}:")
    if not _is_run(name):
        raise UserError(
            f"{field}={name!r} is in no input of this kernel: attach the kernel or the dataset that holds "
            f"that run; there are: {', '.join(map(str, mounts())) or 'none'}"
        )


def _is_kept(folder):
    """Whether Kaggle keeps what is written to `folder`; anywhere else but on Kaggle all is kept."""
    working = ROOT / "working"
    return not working.is_dir() or Path(folder).resolve().is_relative_to(working.resolve())


def bring_run(run_dir, resume="auto", saying="going on with"):
    """Copy a run of that name from the inputs to /kaggle/working, where training goes on with it. Returns
    run_dir.

    Of several inputs the one with the newest good checkpoint counts. Where the run is here already, or
    `resume` is not "auto", nothing is copied.
    """
    from mtld_core.runs.checkpoint import list_checkpoints, problem

    folder = Path(run_dir).absolute()
    if not _is_kept(folder):
        raise UserError(
            f"run_dir={run_dir!r} lies outside {ROOT / 'working'}, where alone Kaggle keeps what is written"
        )
    if not run_dir or resume != "auto" or list_checkpoints(folder):
        return run_dir
    checkpoint = _newest(run_dir)
    if checkpoint is None:
        return run_dir
    if any(path.name != LOCK for path in folder.glob("*")):
        raise UserError(
            f"{folder} is in the way of the run that the inputs hold: choose another run_dir, or remove it"
        )
    source, temporary = checkpoint.parents[1], folder.with_name(f".{folder.name}.copy")
    print(f"{saying} {source}, {checkpoint.name}", flush=True)
    shutil.rmtree(temporary, ignore_errors=True)
    for file in source.rglob("*"):
        if file.is_file() and file.name != LOCK:
            copy = temporary / file.relative_to(source)
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(file, copy)  # without the mount's read-only mode
    if reason := problem(temporary / CHECKPOINTS / checkpoint.name):
        raise UserError(f"copying {source} to {folder} went wrong ({reason}): is the disk full?")
    shutil.rmtree(folder, ignore_errors=True)
    os.replace(temporary, folder)
    return run_dir


def _newest(run_dir):
    """The good checkpoint with the most steps among the inputs' runs of that name, or None."""
    from mtld_core.runs.checkpoint import list_checkpoints, newest_good

    path, working = Path(run_dir), ROOT / "working"
    if path.is_absolute():
        path = path.relative_to(working) if path.is_relative_to(working) else Path(path.name)
    runs = set()
    for mount in mounts():
        runs |= {mount / path, mount / path.name, *mount.glob(f"*/{path.name}")}
        if mount.name == path.name:
            runs.add(mount)
    found = [checkpoint for run in runs for checkpoint in list_checkpoints(run)]
    found.sort(key=lambda checkpoint: (checkpoint.name, str(checkpoint)), reverse=True)
    good = newest_good(found)
    if found and not good:
        raise UserError(
            f"every checkpoint of {path.name} in the inputs is damaged: train anew with another run_dir"
        )
    return good
