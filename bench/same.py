"""Does this tree behave as another commit does? Every system's preset `tiny`, bit for bit, on one thread.

    python bench/same.py BASE [--systems mtld rl_v2v] [--overrides '{"ema_decay": 0.5}']

Each tree trains a run on the same data, generates from it and goes on with a copy of it; this tree does so
with BASE's run, too. All is compared but times and how a replay is stored: what is drawn from it shows in the
weights. Dynamics come after their stages. Takes some three minutes; exits with 1 where something differs.
"""

import argparse
import importlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import h5py
import numpy as np
import torch
from PIL import Image
from safetensors.torch import load_file

TREE = Path(__file__).resolve().parents[1]
SETTINGS = {"seed": 0, "threads": 1, "device": "cpu", "log_every_steps": 1, "eval_windows": 8}
CLOCK = ("seconds", "frames_per_second", "temperature")
STAGES = {"tokenizer_run": "tokenizer", "latent_actions_run": "latent_actions"}
CASES = {  # name -> (system, data, settings on top of the preset)
    "mtld": ("mtld", "arcs", {}),
    "weight_rnn": ("weight_rnn", "arcs", {}),
    "rl_v2v": ("rl_v2v", "domains", {}),
    "tinydreams": ("tinydreams", "recording.h5", {}),
    "tokenizer": ("tokenizer", "recording.h5", {}),
    "latent_actions": ("latent_actions", "recording.h5", {}),
    "dynamics": ("dynamics", "recording.h5", STAGES),
    "dynamics_latent": ("dynamics", "recording.h5", STAGES | {"actions": "latent"}),
}
DIRECTIONS = {"rl_v2v": ("x_to_y", "y_to_x"), "tokenizer": ()}  # others have one; a tokenizer makes no frames


def film(seed, moves):
    """Make a smooth picture that rolls to the right by `moves`: uint8 `[len(moves), 16, 24, 3]`."""
    row, column = np.arange(16)[:, None, None] / 16, np.arange(24)[:, None] / 24
    phases = np.random.default_rng(seed).uniform(size=3)
    picture = 128 + 80 * np.sin(2 * np.pi * (column + phases)) + 40 * np.cos(2 * np.pi * (row - phases))
    return np.stack([np.roll(picture, place, axis=1) for place in np.cumsum(moves)]).astype(np.uint8)


def write_arc(folder, frames):
    folder.mkdir(parents=True)
    for number, frame in enumerate(frames):
        Image.fromarray(frame).save(folder / f"frame_{number:04d}.png")


def make_data(root):
    """Write `arcs`, `recording.h5` (three actions) and `domains`, with truth: Y has the colours reversed."""
    for i in range(6):
        clip, other = film(i, [1] * 24), film(6 + i, [1] * 24)
        write_arc(root / f"arcs/arc_{i}", clip)
        write_arc(root / f"domains/X/arc_{i}", clip)
        write_arc(root / f"domains/truth/X_in_Y/arc_{i}", clip[..., ::-1])
        write_arc(root / f"domains/Y/arc_{i}", other[..., ::-1])
        write_arc(root / f"domains/truth/Y_in_X/arc_{i}", other)
    actions = np.random.default_rng(0).integers(3, size=(8, 24))
    moves = np.array([0, 1, -1])[actions]
    with h5py.File(root / "recording.h5", "w") as file:
        file["frames"] = np.concatenate([film(i, moves[i]) for i in range(8)])
        file["actions"] = actions.flatten()
        file["episode"] = np.repeat(np.arange(8), 24)


def live(runs, data, overrides):
    """Train each run unless it is there, generate from it, and let a copy of it go on."""
    mtld_core = importlib.import_module("mtld_core")  # of whichever tree comes first
    from mtld_core.generate import generate
    from mtld_core.train import train

    if not mtld_core.__file__.startswith(os.environ["PYTHONPATH"]):
        raise RuntimeError(f"another tree's {mtld_core.__file__} was imported")
    errors = {}
    for run in runs:
        system, kind, own = CASES[run.removesuffix("_of_base")]
        settings = SETTINGS | {"dataset_root": f"{data}/{kind}", "overrides": own | overrides}
        try:
            if not Path(run).exists():
                train(system, "tiny", **settings, steps=20, run_dir=run)
            mtld_core.open_run(run, device="cpu")
            for direction in DIRECTIONS.get(system, ("x_to_y",)):
                generate(run, num_frames=12, direction=direction, device="cpu")
            shutil.copytree(run, f"{run}_longer")
            train(system, "tiny", **settings, steps=40, run_dir=f"{run}_longer")
        except Exception as error:
            errors[run] = f"{type(error).__name__}: {error}"
    Path("errors.json").write_text(json.dumps(errors))


def start(tree, folder, **job):
    """Run `live` with the code of `tree` inside `folder`. Returns {path of a run: what went wrong}."""
    folder.mkdir(exist_ok=True)
    own = {"PYTHONPATH": str(tree), "MTLD_CACHE": str(folder / "cache"), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-P", __file__, "--live", json.dumps(job)]
    ended = subprocess.run(command, cwd=folder, env=os.environ | own, capture_output=True, text=True)
    if ended.returncode:
        sys.exit(f"{tree}: {ended.stderr}")
    errors = json.loads((folder / "errors.json").read_text())
    return {str(folder / run): error for run, error in errors.items()}


def leaves(value, *path):
    """Yield (path, tensor, number or text) for all in nested dicts and lists, but for times and a replay."""
    if isinstance(value, (dict, list, tuple)):
        for name, part in value.items() if isinstance(value, dict) else enumerate(value):
            if name != "replay" and not str(name).endswith(CLOCK):
                yield from leaves(part, *path, str(name))
    else:
        if torch.is_tensor(value):
            yield " ".join([*path, "form"]), f"{value.dtype} {list(value.shape)}"
        yield " ".join(path), value


def contents(run):
    """What a run logged, learned and drew, as nested dicts; {} where it saved nothing."""
    if not (run / "latest.json").exists():
        return {}
    checkpoint = run / json.loads((run / "latest.json").read_text())["checkpoint"]
    report = json.loads((run / "report.json").read_text())
    frames = sorted(run.glob("samples/*/frames/*.png"))
    return {
        "metrics.jsonl": [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()],
        "weights": {file.name: load_file(file) for file in sorted(checkpoint.glob("*.safetensors"))},
        "train_state.pt": torch.load(checkpoint / "train_state.pt", weights_only=True),
        "report.json": {"metrics": report["metrics"], "fields": sorted(report)},
        "generated": {file.relative_to(run): torch.tensor(np.array(Image.open(file))) for file in frames},
    }


def everything(run):
    """`leaves` of a run and of the copy that went on, by their path."""
    longer = run.with_name(f"{run.name}_longer")
    return dict(leaves({"trained": contents(run), "gone on": contents(longer)}))


def difference(base, here):
    """What differs first between `everything` of two runs, and by how much; "" where nothing does."""
    for path in base | here:
        a, b = base.get(path, "missing"), here.get(path, "missing")
        if torch.is_tensor(a):
            if not a.equal(b):
                return f"{path} differs by up to {(a.double() - b.double()).abs().max():.3g}"
        elif a != b:
            return f"{path} is {a!r} there, {b!r} here"
    return ""


def compare(names, tree, folder, overrides):
    """Run cases with BASE's `tree` and with this one. Prints a line each; returns {name: what is wrong}."""
    base, here, data = folder / "base", folder / "here", folder / "data"
    make_data(data)
    job = {"data": str(data), "overrides": overrides}
    errors = start(tree, base, runs=names, **job)
    for name in names:
        if (base / name).exists():
            shutil.copytree(base / name, here / f"{name}_of_base", ignore=shutil.ignore_patterns("samples"))
    errors |= start(TREE, here, runs=[*names, *(f"{name}_of_base" for name in names)], **job)
    wrong = {}
    for name in names:
        there = everything(base / name)
        for run in (base / name, here / name, here / f"{name}_of_base"):
            found, error = difference(there, everything(run)), errors.get(str(run), "")
            if found or error:
                wrong.setdefault(name, f"{run.relative_to(folder)}: {found} {error}".strip())
        print(f"{name}: {wrong.get(name, f'the same, {len(there)} values')}")
    return wrong


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("base", help="commit to compare this tree with")
    parser.add_argument("--systems", nargs="+", choices=CASES, default=list(CASES))
    parser.add_argument("--overrides", type=json.loads, default={}, help="JSON object with other settings")
    given = parser.parse_args()
    git = ["git", "-C", str(TREE), "worktree"]
    with tempfile.TemporaryDirectory() as folder:
        tree = Path(folder) / "tree"
        subprocess.run([*git, "add", "--quiet", "--detach", str(tree), given.base], check=True)
        try:
            wrong = compare(given.systems, tree, Path(folder), given.overrides)
        finally:
            subprocess.run([*git, "remove", "--force", str(tree)], check=True)
    print(f"not as in {given.base}: {', '.join(wrong)}" if wrong else f"all as in {given.base}")
    return 1 if wrong else 0


if __name__ == "__main__":
    if sys.argv[1:2] == ["--live"]:
        live(**json.loads(sys.argv[2]))
    else:
        sys.exit(main())
