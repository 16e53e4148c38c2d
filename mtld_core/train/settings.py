"""From names and numbers to what a training job needs: configs, the dataset, the system."""

import contextlib
import dataclasses
import typing
from pathlib import Path

import torch

from mtld_core.chance import seed_of
from mtld_core.config import UserError, check, field_names, from_dict, nearest, parse_object
from mtld_core.data import open_dataset
from mtld_core.judge.windows import STAGES_SHARE
from mtld_core.runs.folder import read_config
from mtld_core.runs.resume import KEPT, WINDOW_FIELDS, config_to_resume, in_full
from mtld_core.systems import system_class
from mtld_core.systems.base import BuiltOn

LENGTHS = ("steps", "epochs", "time_budget_minutes")
LEFT_ALONE = (
    *LENGTHS,
    "batch_size",
    "run_dir",
)  # settings that notebooks always give, 0 or "" where nobody chose one
MINUTES_A_DAY = 24 * 60
SAMPLE_SIZE = 64  # pixels along a side of the bundled clip where no setting asks for another size


@dataclasses.dataclass(frozen=True)
class TrainConfig:
    """How to train, whatever the system."""

    preset: str = ""  # a label for the report
    run_dir: str = ""  # "": runs/<system>_<time stamp>
    steps: int = 0  # in total over all resumes; 0: epochs or the time budget decide
    epochs: int = 0  # in total; 0: steps or the time budget decide
    steps_per_epoch: int = 0  # 0: as many as show every window once
    time_budget_minutes: float = 0.0  # of this session, wall clock; 0: none
    batch_size: int = 8
    seed: int = 0
    resume: str = (
        "auto"  # "auto": go on where run_dir stopped; "never"; or another run's folder to start from
    )
    device: str = "auto"
    devices: int = 1
    threads: int | str = (
        "auto"  # of the processor, for a step; "auto": the fastest number, tried now and then
    )
    interactive: bool | str = "auto"
    precision: typing.Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    compile: bool = False
    channels_last: bool = True
    accumulate: int = 1  # parts that a batch is computed in
    clip_norm: float = 1.0  # of each phase's gradient; 0: none
    ema_decay: float = 0.999  # moving average of the weights, used for judging and generating; 0: none
    lr_schedule: typing.Literal["constant", "cosine"] = "constant"
    warmup_steps: int = 50
    restitution: bool = False  # train and judge on all windows: learning one clip by heart
    holdout: float = 0.1  # share of arcs, or of each arc's tail, that is only judged on
    cross_cuts: bool = False
    controls_lead_to: typing.Literal["next", "this"] = (
        "next"  # frame, in a recording's log; see `open_dataset`
    )
    eval_horizon: int = 0  # predicted frames that are judged; 0: all of a window
    long_horizon: int = (
        0  # that the lists by horizon reach, where the held-out data has windows so long; 0: as eval_horizon
    )
    eval_windows: int = 256
    eval_batches: int = 0  # that many batches of windows are judged; 0: eval_windows
    log_every_steps: int = 10
    save_every_steps: int = 1000  # 0: by the clock alone
    save_every_minutes: float = 10.0  # 0: by steps alone
    eval_every_steps: int = 1000  # 0: at the end alone
    preview_every_steps: int = 500  # 0: at the end alone
    keep_checkpoints: int = 2
    max_temperature: float = (
        85.0  # °C: above it, or where the GPU slows down because of heat, training rests; 0: no guard
    )
    resume_temperature: float = 75.0  # °C below which it goes on
    max_power_percent: float = (
        0.0  # of the GPU's power limit: above it training rests for one poll; 0: power does not matter
    )
    heat_poll_seconds: float = 2.0  # between two looks at the sensors
    heat_rest_minutes: float = 1.0  # a rest from heat takes at least this long
    heat_patience_minutes: float = 15.0  # after a rest as long as this, the run is saved and stopped
    heat_alerts: int = (
        5  # so many rests from heat begun within heat_window_minutes: the run is saved and stopped
    )
    heat_window_minutes: float = 5.0

    def __post_init__(self):
        for name in (
            "steps",
            "epochs",
            "steps_per_epoch",
            "time_budget_minutes",
            "clip_norm",
            "warmup_steps",
            "eval_horizon",
            "long_horizon",
            "eval_batches",
            "save_every_steps",
            "save_every_minutes",
            "eval_every_steps",
            "preview_every_steps",
            "max_temperature",
            "heat_rest_minutes",
        ):
            check(getattr(self, name) >= 0, f"{name} must not be negative, it is {getattr(self, name)}")
        for name in (
            "batch_size",
            "accumulate",
            "log_every_steps",
            "keep_checkpoints",
            "eval_windows",
            "heat_alerts",
        ):
            check(getattr(self, name) >= 1, f"{name} must be at least 1, not {getattr(self, name)}")
        counted = isinstance(self.threads, int) and not isinstance(self.threads, bool) and self.threads >= 1
        check(
            self.threads == "auto" or counted,
            f"threads must be 'auto' or a number from 1, not {self.threads!r}",
        )
        check(0 <= self.ema_decay < 1, f"ema_decay must be in [0, 1), not {self.ema_decay}")
        check(0 < self.holdout < 1, f"holdout must be between 0 and 1, not {self.holdout}")
        low, high = self.resume_temperature, self.max_temperature
        check(
            not high or 0 < low < high,
            f"resume_temperature must be above 0 and below max_temperature={high}, not {low}",
        )
        check(
            0 <= self.max_power_percent < 100,
            f"max_power_percent must be in [0, 100), not {self.max_power_percent}",
        )
        check(
            high or not self.max_power_percent,
            "max_power_percent needs the heat guard: give max_temperature, too",
        )
        check(
            0 < self.heat_poll_seconds <= 60,
            f"heat_poll_seconds must be in (0, 60], not {self.heat_poll_seconds}",
        )
        check(
            self.heat_rest_minutes < self.heat_patience_minutes <= MINUTES_A_DAY,
            f"heat_patience_minutes must be above heat_rest_minutes={self.heat_rest_minutes} and at most "
            f"{MINUTES_A_DAY}, "
            f"not {self.heat_patience_minutes}",
        )
        check(
            self.heat_window_minutes > 0,
            f"heat_window_minutes must be above 0, not {self.heat_window_minutes}",
        )
        check(
            self.devices == 1, f"devices={self.devices}: several processes are not built yet; use devices=1"
        )
        check(
            self.interactive in (True, False, "auto"),
            f"interactive must be 'auto', true or false, not {self.interactive!r}",
        )


def plan(system, preset="small", overrides="{}", **settings):
    """(system's class, its config, TrainConfig) from a preset, then settings, then overrides (JSON text or a
    dict).

    Steps, time budget, batch size and run folder of 0 or "" leave the preset's. What decides which frames are
    held out is taken from the run that goes on, or from the stages below, unless settings or overrides say
    it. Raises ConfigError for unknown names, offering the nearest one.
    """
    cls = system_class(system)
    if preset not in cls.PRESETS:
        raise UserError(f"{system} has no preset {preset!r}{nearest(preset, cls.PRESETS)}")
    given = {k: v for k, v in settings.items() if k not in LEFT_ALONE or v not in (0, "")}
    extra = overrides if isinstance(overrides, dict) else parse_object(overrides, "overrides")
    own, general = field_names(cls.Config), field_names(TrainConfig)
    for name in extra:
        check(
            name in own or name in general, f"overrides: no setting {name!r}{nearest(name, [*own, *general])}"
        )
    merged = cls.PRESETS[preset] | {"preset": preset} | given | extra
    if any(
        (given | extra).get(name) for name in LENGTHS
    ):  # what the caller says replaces the preset's own length
        merged |= {name: (given | extra).get(name, 0) for name in LENGTHS}
    for name in ("run_dir", "resume"):
        check(isinstance(merged.get(name, ""), str), f"{name} must be a text, not {merged.get(name)!r}")
    merged |= _inherited(cls, merged, given | extra)
    config = from_dict(cls.Config, {name: value for name, value in merged.items() if name in own})
    return (
        cls,
        config,
        from_dict(TrainConfig, {name: value for name, value in merged.items() if name not in own}),
    )


def _inherited(cls, merged, said):
    """What a run takes from the one that it goes on from, or, where it begins anew, from the stage that it is
    built on.

    merged: all settings so far; said: those that the caller chose, which stay (where they do not fit,
    training refuses them).
    """
    run_dir, resume, began = merged.get("run_dir") or "", merged.get("resume", "auto"), None
    if resume != "never" and (run_dir or resume != "auto"):
        began = config_to_resume(run_dir, resume)
    if began is None:
        return {name: value for name, value in _of_stage(cls, merged).items() if name not in said}
    if began["system"] != cls.name:  # which training refuses
        return {}
    own, training = in_full(cls.Config, began["config"]), began["training"]
    kept = {name: training[name] for name in KEPT if name in training}
    kept |= {name: own[name] for name in WINDOW_FIELDS if name in own}
    kept = {name: value for name, value in kept.items() if name not in said}
    carried = {name: value for name, value in own.items() if isinstance(value, dict)}  # stages inside it
    return kept | carried


def _of_stage(cls, merged):
    """The settings that a run shares with the first of the runs that it is built on; {} where none can be
    read yet.
    """
    if not issubclass(cls, BuiltOn):
        return {}
    for field in cls.built_on:
        with contextlib.suppress(UserError, KeyError, TypeError):  # building the system says why
            training = read_config(merged[field])["training"]
            return {name: training[name] for name in STAGES_SHARE}
    return {}


def open_data(dataset_root, config, controls_lead_to="next"):
    """The dataset at `dataset_root` in the size that the system's config asks for; "sample" is the bundled
    clip.
    """
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
