"""The systems by name, and opening a trained one. A new system is one file here and one line in `SYSTEMS`."""

import importlib
import json
import types
from pathlib import Path

from mtld_core import checkpoint as checkpoints
from mtld_core.config import UserError, field_names, from_dict, nearest
from mtld_core.runtime import pick_device

SYSTEMS = {  # name -> "module:class", imported when asked for
    "mtld": "mtld_core.systems.mtld.system:MTLD",
    "tinydreams": "mtld_core.systems.tinydreams.system:TinyDreams",
    "tokenizer": "mtld_core.systems.world_model.tokenizer:Tokenizer",
    "latent_actions": "mtld_core.systems.world_model.latent_actions:LatentActions",
    "dynamics": "mtld_core.systems.world_model.dynamics:Dynamics",
    "weight_rnn": "mtld_core.systems.weight_rnn.system:WeightRNN",
    "rl_v2v": "mtld_core.systems.rl_v2v.system:RLV2V",
}


def system_class(name):
    """The `System` subclass called `name`. Raises UserError with the nearest known name."""
    if name not in SYSTEMS:
        raise UserError(f"there is no system {name!r}{nearest(name, SYSTEMS)}")
    module, cls = SYSTEMS[name].split(":")
    return getattr(importlib.import_module(module), cls)


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
    before = {name: value for name, value in cls.split_fields.items() if name in field_names(cls.Config)}
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
