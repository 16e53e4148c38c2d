"""What a system learns from and what it is judged on: the training part of a dataset, judges of the rest."""

import copy
import dataclasses
import sys
import typing
from pathlib import Path

import torch

from mtld_core.config import AtLeastOne, NotNegative, Settings, check, field_names, from_dict
from mtld_core.frames import evenly, rows_of, to_uint8
from mtld_core.judge.frechet import Likeness
from mtld_core.judge.life import Life
from mtld_core.judge.rollouts import Judge
from mtld_core.judge.translations import TranslationJudge
from mtld_core.judge.windows import judged_horizon, reachable, split_of
from mtld_core.systems.base import Samples, Translates
from mtld_core.systems.opening import open_run

DRAWS = 256  # images from noise that are compared with held-out frames, and as many of those


@dataclasses.dataclass(frozen=True)
class JudgeConfig(Settings):
    """Which windows are held out, and how they are judged."""

    restitution: bool = False  # train and judge on all windows: learning one clip by heart
    holdout: float = 0.1  # share of arcs, or of each arc's tail, that is only judged on
    cross_cuts: bool = False  # whether a window may go across a hard cut
    # the frame that the controls in a recording's log lead to; see `open_dataset`
    controls_lead_to: typing.Literal["next", "this"] = "next"
    eval_horizon: NotNegative[int] = 0  # predicted frames that are judged; 0: all of a window
    # that the lists by horizon reach, where the held-out data has windows so long; 0: as eval_horizon
    long_horizon: NotNegative[int] = 0
    life_horizon: NotNegative[int] = 0  # steps that dreams are played for, to see how long they last; 0: none
    eval_windows: AtLeastOne[int] = 256
    eval_batches: NotNegative[int] = 0  # that many batches of windows are judged; 0: eval_windows
    batch_size: AtLeastOne[int] = 8

    def __post_init__(self):
        super().__post_init__()
        check(0 < self.holdout < 1, f"holdout must be between 0 and 1, not {self.holdout}")


def opened(run_dir, checkpoint="", device="auto"):
    """A run as it was judged in training -> (system, `JudgeConfig`). See `open_run`.

    Where the run names a file of LPIPS weights that is not here (any more), torch's cache is looked into,
    which a line says.
    """
    system = open_run(run_dir, checkpoint, device)
    training, known = system.run.training, field_names(JudgeConfig)
    config = from_dict(JudgeConfig, {name: training[name] for name in known if name in training})
    weights = getattr(system.config, "lpips_weights", "")
    if weights and not Path(weights).is_file():
        print(
            f"lpips_weights={weights!r} is not here (any more): LPIPS takes what torch's cache has",
            file=sys.stderr,
        )
        system.config = dataclasses.replace(system.config, lpips_weights="")
    return system, config


class Task:
    """The training part of a dataset, and judges of the rest.

    dataset: a `Dataset` or `DomainPair`. config: a `JudgeConfig`. say: told what is left out.
    learned: for each domain, the start rows of the windows to train on, int64.
    rows: for each domain, those of the frames in these windows. samples: uint8 `[n, H, W, 3]` of them.
    Raises ConfigError or UserError where dataset and system do not belong together, or nothing is left to
    judge on.
    """

    translations = likeness = life = None  # the judges that only some systems have
    draws = DRAWS

    def __init__(self, system, dataset, config, say=print):
        _check(system, dataset, config)
        needs = system.needs()
        splits = []
        for domain in dataset.domains:
            unused = [
                arc.name
                for arc in domain.arcs
                if not len(domain.arc_windows(arc, needs.window, config.cross_cuts))
            ]
            if unused:
                say(
                    f"{domain.path}: nothing is learnt from {len(unused)} of {len(domain.arcs)} arcs, which "
                    f"hold no window of {needs.window} frames without a cut: {', '.join(unused[:20])}"
                    f"{', ...' if len(unused) > 20 else ''}"
                )
            splits.append(split_of(system, domain, vars(config)))
        self.dataset = dataset
        self.learned, held = zip(*splits, strict=True)
        self.samples, self.rows = [], []
        for domain, starts in zip(dataset.domains, self.learned, strict=True):
            rows = torch.unique(rows_of(starts, needs.window))
            self.rows.append(rows)
            self.samples.append(domain.frames[evenly(rows, needs.sample)])

        # ---- who judges
        first, starts = dataset.domains[0], held[0]
        windows = config.eval_batches * config.batch_size or config.eval_windows
        horizon, reach = judged_horizon(system, config.eval_horizon), 0
        if horizon:
            starts, reach = reachable(
                first, starts, needs.context, horizon, config.long_horizon, config.cross_cuts
            )
            if reach < config.long_horizon:
                say(f"judged up to horizon {reach}: too few held-out windows are longer")
        weights = getattr(system.config, "lpips_weights", "")
        self.judge = Judge(
            first, starts, needs, horizon, self.samples[0], windows, lpips_weights=weights, reach=reach
        )
        if horizon and (steps := config.life_horizon):
            self.life = Life(first, held[0], self.rows[0], self.samples[0], needs, steps, config.cross_cuts)
        if isinstance(system, Translates):
            self.translations = TranslationJudge(dataset, held, needs.window, self.samples, windows)
        if isinstance(system, Samples):
            self.likeness = Likeness(first.frames[evenly(starts, DRAWS)])

    def few(self, share):
        """(a `Task` of about this share of the windows, which share that is): to see how long all take."""
        some = copy.copy(self)
        some.judge, share = self.judge.few(share)
        some.draws = max(2, round(share * DRAWS))
        for name in ("translations", "likeness", "life"):
            if part := getattr(self, name):
                setattr(some, name, part.few(share))
        return some, share

    @torch.inference_mode()
    def figures(self, system, tick=lambda: None):
        """All that report.json holds under "metrics".

        tick: called before each piece of the work; it may raise to give it up.
        """
        figures = self.judge(system, tick)
        if self.translations:
            figures |= self.translations(system, tick)
        if self.likeness:
            tick()
            chance = torch.Generator(system.device).manual_seed(0)
            with system.computing():
                drawn = system.sample(self.draws, chance)
            figures |= self.likeness(to_uint8(drawn), tick)
        if self.life:
            figures |= self.life(system, tick)
        return figures

    def preview(self, system):
        """(rows of uint8 frames, their labels, labels of the columns)."""
        return (self.translations or self.judge).preview(system)


def summary(metrics):
    """One line with the figures that matter most. metrics: as report.json has them."""
    if not metrics:
        return "not judged yet"
    psnr, skill = metrics["psnr"], metrics["skill_db"]
    if skill is None:
        return f"psnr {psnr:.2f} dB (reconstruction)"
    copied = metrics["baseline_copy_psnr"]
    return f"psnr {psnr:.2f} dB (copying the last frame: {copied:.2f}), skill {skill:+.2f} dB"


def best_by(metrics, restitution, step):
    """(name, value) of what the best checkpoint of a run has most of.

    Of translations whose truth is not known, it is the newest one.
    """
    if "flicker_x_to_y" in metrics:  # psnr is of recycled frames, which is highest before anything is learned
        if metrics["psnr_x_to_y"] is None:
            return "step", step
        return "psnr_translated", (metrics["psnr_x_to_y"] + metrics["psnr_y_to_x"]) / 2
    figure = "psnr" if restitution or metrics["skill_db"] is None else "skill_db"
    return figure, metrics[figure]


def _check(system, dataset, config):
    needs, size = system.needs(), (system.config.height, system.config.width)
    check(
        size == dataset.size,
        f"the system is built for frames of {size}, the dataset has {dataset.size}: see settings.build",
    )
    there = len(dataset.domains)
    way = f"name {dataset.path}/X or {dataset.path}/Y"
    if there == 1:
        way = (
            "lay two out as <folder>/X/<arc>/ and <folder>/Y/<arc>/ (data_prep/make_domains.py does) and "
            "name that folder"
        )
    check(
        there == needs.domains,
        f"{system.name} needs {needs.domains} domain(s); {dataset.path} holds {there}: {way}",
    )
    first = dataset.domains[0]
    check(
        not needs.actions or first.actions is not None,
        f"{system.name} needs actions and {dataset.path} has none: use an HDF5 file with a dataset 'actions'",
    )
    paired = first.about.get("controls_lead_to", config.controls_lead_to)
    check(
        paired == config.controls_lead_to,
        f"{dataset.path} was opened with controls_lead_to={paired!r}, the run has "
        f"{config.controls_lead_to!r}",
    )
