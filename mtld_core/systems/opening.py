"""Opening a trained run, and the dataset that it learned from."""

import json
import os
import types
from pathlib import Path

from mtld_core.config import UserError, field_names, from_dict
from mtld_core.data import open_dataset
from mtld_core.runs import checkpoint as checkpoints
from mtld_core.runs.resume import WINDOW_FIELDS
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
    try:
        about = json.loads((path / "config.json").read_text())
        cls, config = system_class(about["system"]), about["config"]
        facts = {name: about[name] for name in ("preset", "training")} | {
            "dataset_path": str(path / about["dataset"]["path"])
        }
    except (FileNotFoundError, NotADirectoryError):
        raise UserError(
            f"{path} is not a run folder: it has no config.json; train one with notebooks/02_train"
        ) from None
    except (ValueError, TypeError, KeyError) as error:
        raise UserError(
            f"{path / 'config.json'} is damaged ({type(error).__name__}: {error}); training writes it anew"
        ) from None
    weights_file = _weights_file(path, Path(checkpoint))
    folder = weights_file or checkpoints.find(path, checkpoint)
    fields = field_names(cls.Config)
    before = {name: value for name, value in WINDOW_FIELDS.items() if name in fields}
    system = cls(from_dict(cls.Config, before | config))
    checkpoints.load_state_dict(system, checkpoints.load_weights(folder), folder)
    step = None if weights_file else about.get("step")  # of a shared run
    if folder.is_dir():
        step = json.loads((folder / "manifest.json").read_text())["step"]
    system.run = types.SimpleNamespace(
        dir=path,
        checkpoint=folder.name,
        step=step,
        **facts,
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
