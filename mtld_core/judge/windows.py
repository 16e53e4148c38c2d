"""Which windows a system learns from and which it is judged on."""

import torch

from mtld_core.config import check
from mtld_core.data import covered, split_alike, split_windows
from mtld_core.runs.folder import read_config
from mtld_core.systems.base import BuiltOn, Reconstructs

FEWEST = 8  # windows, if there are as many, that a long horizon leaves: the averages are over them, too
STAGES_SHARE = ("holdout", "cross_cuts", "restitution")  # settings that a run takes from the stages below it


def judged_horizon(system, eval_horizon):
    """Frames that a system is judged on predicting; 0 where it reconstructs."""
    needs = system.needs()
    if isinstance(system, Reconstructs):
        return 0
    return eval_horizon or needs.window - needs.context


def _judged_frames(system, eval_horizon):
    """Frames of a held-out window."""
    needs = system.needs()
    return max(needs.window, needs.context + judged_horizon(system, eval_horizon))


def split_of(system, dataset, training):
    """(start rows of the windows that a system learns from, of those that it is judged on) in one domain.

    training: a dict with the fields of `JudgeConfig`.
    """
    needs, together = system.needs(), _together(dataset, training)
    holdout, cross_cuts = training["holdout"], training["cross_cuts"]
    judged = _judged_frames(system, training["eval_horizon"])
    # frames of a training window and of a judged one by which stages divide the data alike; none: its own do
    lengths = getattr(system.config, "split", ())
    if together or not any(lengths):
        return split_windows(dataset, needs.window, holdout, cross_cuts, together, judged)
    return split_alike(dataset, lengths, needs.window, judged, holdout, cross_cuts)


def _together(dataset, training):
    """Whether all windows train and judge; those of a shared run's recording do, for they were held out."""
    return training["restitution"] or bool(dataset.about.get("held_out"))


def windows_of(system, dataset):
    """(start rows of the windows that a run learned from, of those that it was judged on) in one domain."""
    return split_of(system, dataset, system.run.training)


def reachable(dataset, starts, context, horizon, long_horizon, cross_cuts=False):
    """(starts of the held-out windows that go on for `reach` predicted frames, reach).

    reach: the most up to `long_horizon` that leaves a few windows; at least `horizon`. What is held out stays
    as it is, so that a long horizon takes nothing from the training.
    """
    ends = borders(dataset, cross_cuts)
    shot_ends = ends[torch.searchsorted(ends, starts, right=True)]
    room = shot_ends - starts - context  # frames to predict until the shot ends
    fewest = min(FEWEST, len(starts))
    most = int(room.sort(descending=True).values[fewest - 1])
    reach = max(horizon, min(long_horizon, most))
    return starts[room >= reach], reach


def borders(dataset, cross_cuts):
    """Rows at which shots begin and end, sorted, int64; across cuts there is no new shot."""
    edges = {0, *(arc.stop for arc in dataset.arcs)}
    return torch.tensor(sorted(edges if cross_cuts else {*edges, *dataset.cuts.tolist()}))


def check_stages(system, dataset, config):
    """Raise ConfigError where a stage below `system` learned frames that it holds out, or the reverse."""
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
                f"would learn what the other holds out; leave {name} out, and it is taken from that run, or "
                "train both with the same",
            )
        if _together(dataset, here):
            continue
        learned, held = _rows(system, dataset, here)
        below_learned, below_held = _rows(stage, dataset, there)
        check(
            not (learned & below_held).any() and not (held & below_learned).any(),
            f"{field}={run!r} learned frames that would be held out here, or the reverse: it divides them by "
            "windows of other lengths; train that stage anew",
        )


def _rows(system, dataset, training):
    """(bool `[N]` of what a system learns from, of what it is judged on)."""
    learned, held = split_of(system, dataset, training)
    count, judged = len(dataset.frames), _judged_frames(system, training["eval_horizon"])
    return covered(count, learned, system.needs().window), covered(count, held, judged)
