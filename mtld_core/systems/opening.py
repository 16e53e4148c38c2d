"""Opening a trained run, and the dataset that it learned from."""

import os
import types
from pathlib import Path

from mtld_core.config import UserError, from_dict
from mtld_core.data import open_dataset
from mtld_core.runs import checkpoint as checkpoints
from mtld_core.runs.folder import read_config
from mtld_core.runs.resume import in_full
from mtld_core.runtime import pick_device
from mtld_core.systems import system_class


def open_run(path, checkpoint="", device="auto"):
    """The trained system of a run's folder (or a shared one), in eval mode, with the averaged weights where
    the run keeps them.

    checkpoint: "" = the newest good one, "best", a name such as "step_00001000", or a file of weights (.pth,
    .safetensors) for this run's model, here or in the run's folder. The system has `config`, and `run` with
    dir, checkpoint, step, preset, dataset_path and training (the training config as a dict).
    Raises UserError where there is no run, no good checkpoint, or weights that do not fit.
    """
    path = Path(path)
    about = read_config(path)
    cls = system_class(about["system"])
    weights_file = _weights_file(path, Path(checkpoint))
    folder = weights_file or checkpoints.find(path, checkpoint)
    system = cls(from_dict(cls.Config, in_full(cls.Config, about["config"])))
    checkpoints.load_state_dict(system, checkpoints.load_weights(folder), folder)
    step = None if weights_file else about.get("step")  # of a shared run
    if folder.is_dir():
        step = checkpoints.read_manifest(folder)["step"]
    system.run = types.SimpleNamespace(
        dir=path,
        checkpoint=folder.name,
        step=step,
        preset=about["preset"],
        dataset_path=str(path / about["dataset"]["path"]),
        training=about["training"],
    )
    return system.to(pick_device(device)).eval().requires_grad_(False)


def _weights_file(run_dir, checkpoint):
    """The file of weights that `checkpoint` names, None where it names a checkpoint of the run. Raises
    UserError.
    """
    if checkpoint.suffix not in (".pth", ".safetensors"):
        return None
    places = checkpoint, run_dir / checkpoint
    found = next((place for place in places if place.is_file()), None)
    if found is None:
        raise UserError(f"checkpoint {checkpoint}: no such file, here or in {run_dir}")
    return found


def own_dataset(system, progress=True):
    """What an opened run learned from, in its frame size: a `Dataset`, or a translator's `DomainPair`.

    Raises UserError where it is gone.
    """
    path = system.run.dataset_path
    if not os.path.exists(path):
        raise UserError(
            f"the run's dataset {path} is not there (any more): name an image file or a clip's folder as "
            "source"
        )
    return _open(system, path, progress=progress)


def _open(system, path, **options):
    """A dataset in a run's frame size, with the controls paired as it learned them."""
    lead_to = system.run.training.get(
        "controls_lead_to", "next"
    )  # not there in runs of before recordings were read
    return open_dataset(path, system.config.height, system.config.width, controls_lead_to=lead_to, **options)
