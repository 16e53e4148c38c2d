"""From names and numbers to what a training job needs: configs, the dataset, the system."""

import contextlib
import dataclasses
import os
from pathlib import Path

import torch

from mtld_core.chance import seed_of
from mtld_core.config import UserError, check, field_names, from_dict, nearest, parse_object, with_new_names
from mtld_core.data import open_dataset
from mtld_core.judge.task import JudgeConfig
from mtld_core.judge.windows import STAGES_SHARE
from mtld_core.machine.heat import HeatConfig
from mtld_core.runs.folder import read_config
from mtld_core.runs.mirror import bring_back
from mtld_core.runs.resume import KEPT, WINDOW_FIELDS, checkpoint_to_resume, in_full
from mtld_core.systems import system_class
from mtld_core.systems.base import BuiltOn
from mtld_core.train.loop import LoopConfig
from mtld_core.train.schedule import ScheduleConfig

LENGTHS = ("steps", "epochs", "time_budget_minutes")
# settings that notebooks always give, 0 or "" where nobody chose one
LEFT_ALONE = (*LENGTHS, "batch_size", "run_dir")
SAMPLE_SIZE = 64  # pixels along a side of the bundled clip where no setting asks for another size


@dataclasses.dataclass(frozen=True)
class TrainConfig(HeatConfig, JudgeConfig, ScheduleConfig, LoopConfig):
    """How to train, whatever the system."""


def plan(system, preset="small", overrides="{}", **settings):
    """(system's class, its config, TrainConfig) from a preset, then settings, then overrides.

    overrides: JSON text or a dict. Steps, time budget, batch size and run folder of 0 or "" leave the
    preset's. What the caller leaves unsaid is taken from the run that goes on, or from a stage below: see
    `_unsaid`. Raises ConfigError for unknown names, offering the nearest one.
    """
    cls = system_class(system)
    check(preset in cls.PRESETS, f"{system} has no preset {preset!r}{nearest(preset, cls.PRESETS)}")
    said = {name: value for name, value in settings.items() if name not in LEFT_ALONE or value not in (0, "")}
    extra = overrides if isinstance(overrides, dict) else parse_object(overrides, "overrides")
    extra = with_new_names(cls.Config, extra)
    own, general = field_names(cls.Config), field_names(TrainConfig)
    for name in extra:
        known = name in own or name in general
        check(known, f"overrides: no setting {name!r}{nearest(name, [*own, *general])}")
    said |= extra
    chosen = cls.PRESETS[preset] | {"preset": preset} | said
    if any(said.get(name) for name in LENGTHS):  # it replaces the preset's own length
        chosen |= {name: said.get(name, 0) for name in LENGTHS}
    for name in {"run_dir", "resume", "mirror_dir"} & chosen.keys():
        value = chosen[name]
        check(isinstance(value, str), f"{name} must be a text, not {value!r}")
        chosen[name] = os.path.expanduser(value)
    bring_back(chosen.get("run_dir"), chosen.get("mirror_dir"), chosen.get("resume", "auto"))
    chosen |= {name: value for name, value in _unsaid(cls, chosen).items() if name not in said}
    config = {name: value for name, value in chosen.items() if name in own}
    training = {name: value for name, value in chosen.items() if name not in own}
    return cls, from_dict(cls.Config, config), from_dict(TrainConfig, training)


def _unsaid(cls, chosen):
    """Settings for whatever a caller does not say (where what they say does not fit, training refuses it).

    A run that goes on keeps the chance and the split that it began with (`KEPT`, and `WINDOW_FIELDS` where
    the system has them), its batch and the rates that belong to it, and the stages inside it. A new one
    divides the data as the first stage below it.
    """
    run_dir, resume = chosen.get("run_dir", ""), chosen.get("resume", "auto")
    folder = None
    if run_dir or resume not in ("auto", "never"):
        # training, which holds the lock, checks every file and says what is damaged
        folder, manifest = checkpoint_to_resume(run_dir, resume, say=lambda line: None, hashed=False)
    if folder is None:
        return _split_of_stage(cls, chosen)
    began = manifest["config"]
    if began["system"] != cls.name:  # which training refuses
        return {}
    config, training = in_full(cls.Config, began["config"]), began["training"]
    kept = {name: training[name] for name in (*KEPT, "batch_size", "lr_scale") if name in training}
    kept["fit_batch"] = False
    for name, value in config.items():
        if name in WINDOW_FIELDS or isinstance(value, dict):  # a dict is the config of a stage inside it
            kept[name] = value
    return kept


def _split_of_stage(cls, chosen):
    """How the first of the runs that a system is built on divides the data; {} where none can be read yet."""
    if not issubclass(cls, BuiltOn):
        return {}
    for field in cls.built_on:
        with contextlib.suppress(UserError, KeyError, TypeError):  # building the system says why
            training = read_config(chosen[field])["training"]
            return {name: training[name] for name in STAGES_SHARE}
    return {}


def open_data(dataset_root, config, controls_lead_to="next"):
    """The dataset at `dataset_root`, or "sample", the bundled clip, in the size that config asks for.

    "auto" is the folder that notebook 01 writes by default, where there is one, else "sample".
    config: of a system. controls_lead_to: see `open_dataset`, whose warnings are printed.
    """
    if dataset_root == "auto":
        dataset_root = "dataset" if Path("dataset").is_dir() else "sample"
        print(f"dataset_root = {dataset_root!r}")
    if dataset_root == "sample":
        from data_prep.extract_frames import extract

        height, width = config.height or SAMPLE_SIZE, config.width or SAMPLE_SIZE
        dataset_root = Path("dataset_sample") / f"{height}x{width}"
        extract("sample", dataset_root, height=height, width=width)
    dataset = open_dataset(
        dataset_root, height=config.height, width=config.width, controls_lead_to=controls_lead_to
    )
    for line in dataset.warnings:
        print(line)
    return dataset


def build(cls, config, dataset, seed=0):
    """A new system for this dataset; the same seed gives the same initial weights."""
    torch.manual_seed(seed_of(seed, "init"))
    return cls(cls.fit_config(config, dataset))
