"""Opening a trained run, and the dataset that it learned from."""

import dataclasses
import os
from pathlib import Path

from mtld_core.config import HUB, UserError, check, find, from_dict, hub_folder
from mtld_core.data import open_dataset
from mtld_core.nn.conv import to_channels_last
from mtld_core.runs import checkpoint as checkpoints
from mtld_core.runs.folder import read_config
from mtld_core.runs.resume import in_full
from mtld_core.runtime import pick_device, pick_judged_precision, reaching
from mtld_core.systems import system_class


@dataclasses.dataclass(frozen=True)
class Run:
    """Where an opened system comes from. `open_run` gives it to the system as `run`."""

    dir: Path
    checkpoint: str  # name of the checkpoint, or of the file of weights
    step: int | None  # None for a file of weights, which does not say it
    preset: str
    dataset_path: str
    training: dict  # the training config


def open_run(path, checkpoint="", device="auto"):
    """Load the trained system of a run's folder, own or shared, in eval mode.

    path: also an id on the Hugging Face hub, hf://owner/name: fetched into runs/owner--name, once.
    checkpoint: "" for the newest good one, "best", a name such as "step_00001000", or a file of weights
    (.pth, .safetensors) for this run's model, here or in the run's folder. The weights are the averaged ones
    where the run keeps them. The system gets an attribute `run`, a `Run`. Raises UserError where there is no
    run, no good checkpoint, or weights that do not fit.
    """
    path = find(path)
    path = Path(_fetched(path) if path.startswith(HUB) else path)
    about = read_config(path)
    cls = system_class(about["system"])
    checkpoint = os.fspath(checkpoint)
    weights_file = _weights_file(path, Path(checkpoint))
    found = weights_file or checkpoints.find(path, checkpoint)
    system = cls(from_dict(cls.Config, in_full(cls.Config, about["config"])))
    checkpoints.load_state_dict(system, checkpoints.load_weights(found), found)
    if found.is_dir():
        step = checkpoints.read_manifest(found)["step"]
    else:
        step = None if weights_file else about.get("step")  # of a shared run
    dataset_path, trained = str(path / about["dataset"]["path"]), about["training"]
    system.run = Run(path, found.name, step, about["preset"], dataset_path, trained)
    system.to(pick_device(device)).eval().requires_grad_(False)
    system.precision = pick_judged_precision(system.device, trained.get("precision", "auto"))
    if trained.get("channels_last", True):
        to_channels_last(system)
    return system


def _fetched(name):
    """Fetch the run hf://owner/name from the hub -> its folder."""
    folder = hub_folder(name)
    print(f"fetching {name} into {folder}")
    with reaching("the Hugging Face hub", "huggingface_hub"):
        from huggingface_hub import snapshot_download

        kinds = ("*.json", "*.safetensors", "*.h5", "*.md", "*.png")
        parts = snapshot_download(name.removeprefix(HUB), local_dir=f"{folder}.part", allow_patterns=kinds)
        os.replace(parts, folder)
    return folder


def _weights_file(run_dir, checkpoint):
    """The file of weights that `checkpoint` names; None where it names a checkpoint of the run."""
    if checkpoint.suffix not in (".pth", ".safetensors"):
        return None
    for path in (checkpoint, run_dir / checkpoint):
        if path.is_file():
            return path
    raise UserError(f"checkpoint {checkpoint}: no such file, here or in {run_dir}")


def own_dataset(system, path="", progress=True, way="name an image file or a clip's folder as source"):
    """Open what an opened run learned from, in its frame size: a `Dataset`, or a translator's `DomainPair`.

    path: where it lies, "" where the run says it. Raises UserError where it is not there (any more); way:
    what to do then.
    """
    path = path or system.run.dataset_path
    check(os.path.exists(path), f"the dataset {path} is not there (any more): {way}")
    return open_as_learned(system, path, progress=progress)


def open_as_learned(system, path, **options):
    """Open the dataset at `path` in the frame size of an opened run, with controls paired as it learned them.

    options: of `open_dataset`.
    """
    # missing in runs that are older than recordings
    lead_to = system.run.training.get("controls_lead_to", "next")
    return open_dataset(path, system.config.height, system.config.width, controls_lead_to=lead_to, **options)
