"""Which windows a system learns from and which it is judged on."""

import torch

from mtld_core.config import check
from mtld_core.data import covered, split_alike, split_windows
from mtld_core.runs.folder import read_config
from mtld_core.systems.base import BuiltOn, Reconstructs

FEWEST = 8  # windows, if there are as many, that a long horizon leaves: the averages are over them, too


def judged_horizon(system, eval_horizon):
    """Frames that a system is judged on predicting; 0 where it reconstructs."""
    needs = system.needs()
    return 0 if isinstance(system, Reconstructs) else eval_horizon or needs.window - needs.context


def split_of(system, dataset, training):
    """(start rows of the windows that a system learns from, of those that it is judged on) in one domain.

    training: a dict with holdout, cross_cuts, restitution and eval_horizon.
    """
    needs = system.needs()
    judged = max(needs.window, needs.context + judged_horizon(system, training["eval_horizon"]))
    holdout, cross_cuts, restitution = (training[name] for name in ("holdout", "cross_cuts", "restitution"))
    # frames of a training window and of a judged one by which stages divide the data alike; none: its own do
    lengths = getattr(system.config, "split", ())
    if restitution or not any(lengths):
        return split_windows(dataset, needs.window, holdout, cross_cuts, restitution, judged)
    return split_alike(dataset, lengths, needs.window, judged, holdout, cross_cuts)


def reachable(dataset, starts, context, horizon, long_horizon, cross_cuts=False):
    """(starts of the held-out windows that go on for `reach` predicted frames, reach): the most up to
    `long_horizon`.

    What is held out for `horizon` stays as it is, so that a long horizon takes nothing from the training.
    """
    cuts = [] if cross_cuts else dataset.cuts.tolist()
    ends = torch.tensor(sorted([*cuts, *(arc.stop for arc in dataset.arcs)]))
    room = (
        ends[torch.searchsorted(ends, starts, right=True)] - starts - context
    )  # frames to predict until the shot ends
    fewest = min(FEWEST, len(starts))
    reach = max(horizon, min(long_horizon, int(room.sort(descending=True).values[fewest - 1])))
    return starts[room >= reach], reach


def windows_of(system, dataset):
    """(those that the run learned from, those that it was judged on): int64 tensors of the rows where they
    start.

    Of a translator's two domains `dataset` is one.
    """
    together = system.run.training["restitution"] or bool(
        dataset.about.get("held_out")
    )  # a shared run's recording, as a whole
    return split_of(system, dataset, system.run.training | {"restitution": together})


STAGES_SHARE = (
    "holdout",
    "cross_cuts",
    "restitution",
)  # training settings that a run takes from the stages below it


def check_stages(system, dataset, config):
    """Raise ConfigError where a stage that `system` is built on learned frames that it holds out, or the
    reverse.
    """
    here = vars(config)
    stages = system.built_on if isinstance(system, BuiltOn) else {}
    for field, attribute in stages.items():
        stage, run = getattr(system, attribute), getattr(system.config, field)
        if stage is None:
            continue
        there = read_config(run, field)["training"]
        for name in STAGES_SHARE:
            check(
                there[name] == here[name],
                f"{field}={run!r} was trained with {name}={there[name]}, now it is {here[name]}, so that one "
                "would learn what "
                f"the other holds out; leave {name} out, and it is taken from that run, or train both with "
                "the same",
            )
        if config.restitution:
            continue
        (learned, held), (below_learned, below_held) = (
            _rows(system, dataset, here),
            _rows(stage, dataset, there),
        )
        check(
            not (learned & below_held).any() and not (held & below_learned).any(),
            f"{field}={run!r} learned frames that would be held out here, or the reverse: it divides them by "
            "windows of other "
            "lengths; train that stage anew",
        )


def _rows(system, dataset, training):
    """(bool [N] of what a system learns from, of what it is judged on)."""
    needs = system.needs()
    learned, held = split_of(system, dataset, training)
    judged = max(needs.window, needs.context + judged_horizon(system, training["eval_horizon"]))
    return covered(dataset, learned, needs.window), covered(dataset, held, judged)
