"""Which windows train and which judge."""

import torch

from mtld_core.config import UserError


def split_windows(dataset, length, holdout=0.1, cross_cuts=False, restitution=False, judged=0):
    """(training, held-out) start rows of windows of `length` frames, int64 tensors; never dependent on a
    seed.

    Five arcs or more: about `holdout` of them, evenly spaced, are held out whole. Fewer: the tail of each
    arc, about `holdout` of its frames, with `length` frames or more unused between the last training frame
    and the first held-out one; an arc too short for that trains only. Images in no order (`kind` "images"):
    about `holdout` of each arc, which is a class, evenly spaced; of one arc in an HDF5 file, where they are
    mixed, the tail. restitution: all windows train and judge. judged: frames of a held-out window, where they
    are more than `length`. Raises UserError where no window fits or none can be held out.
    """
    judged = max(length, judged)
    starts = dataset.windows(length, cross_cuts)
    if restitution:
        return starts, dataset.windows(judged, cross_cuts)
    arcs = [
        (arc, *(dataset.arc_windows(arc, frames, cross_cuts) for frames in (length, judged)))
        for arc in dataset.arcs
    ]
    arcs = [(arc, train, judge) for arc, train, judge in arcs if len(train)]
    long = [arc for arc, _, judge in arcs if len(judge)]
    mixed = (
        dataset.about.get("unordered") and len(dataset.arcs) == 1
    )  # its tail is as good, and what old runs began with
    if dataset.kind == "images" and not mixed:
        parts = [_split_evenly(*part, length, judged, holdout) for part in arcs]
    elif len(arcs) >= 5 and long:
        count = min(len(long), len(arcs) - 1, max(1, round(holdout * len(arcs))))
        held = {long[int((i + 0.5) * len(long) / count)].start for i in range(count)}
        parts = [
            (train[:0], judge) if arc.start in held else (train, judge[:0]) for arc, train, judge in arcs
        ]
    else:
        parts = [_split_tail(*part, length, judged, holdout) for part in arcs]
    train, judge = (torch.cat(part) for part in zip(*parts, strict=True))
    if not len(judge):
        raise UserError(f"{dataset.path}: nothing can be held out: {_too_little(dataset, length, judged)}")
    return train, judge


def _too_little(dataset, length, judged):
    """Why no window of a dataset can be held out, and the ways out."""
    longest = max(len(arc) for arc in dataset.arcs)
    if dataset.kind == "images":
        need = f"the largest class has {longest} images, and {length + judged} are needed"
    else:
        need = (
            f"the longest arc has {longest} frames, and {2 * length + judged} in one shot are needed "
            f"({length} to train, "
            f"{length} for a gap, {judged} to judge), or five arcs"
        )
    return (
        f"{need}; add frames, use a shorter window or eval_horizon, or set restitution=true, which trains "
        "and judges on all "
        f"windows"
    )


def _split_evenly(arc, train, judge, length, judged, holdout):
    """(training, held-out) windows of one class of images: evenly spaced ones are held out, and none in
    training meets them.
    """
    count = max(1, round(holdout * (arc.stop - arc.start) / judged))
    held = judge[((torch.arange(count) + 0.5) * len(judge) / count).long()] if len(judge) else judge
    taken = torch.zeros(
        arc.stop - arc.start + 1, dtype=torch.long
    )  # [i + 1]: how many of the images up to i are held out
    taken[1 + (held[:, None] - arc.start + torch.arange(judged)).unique()] = 1
    taken = taken.cumsum(0)
    first = train - arc.start
    kept = train[taken[first + length] == taken[first]]
    return (kept, held) if len(kept) else (train, held[:0])


def _split_tail(arc, train, judge, length, judged, holdout):
    """(training, held-out) windows of one arc; a cut inside the tail moves its start back to a whole
    window.
    """
    if not len(judge):
        return train, judge
    tail = min(arc.stop - max(judged, round(holdout * (arc.stop - arc.start))), int(judge[-1]))
    kept = train[train + length <= tail - length]
    return (kept, judge[judge >= tail]) if len(kept) else (train, judge[:0])


def split_alike(dataset, like, length, judged, holdout=0.1, cross_cuts=False):
    """`split_windows` into windows of `length` frames to learn and of `judged` to judge, where others divide
    the frames, too.

    like: (frames of a training window, of a judged one) by which the frames are divided, so that systems with
    windows of different lengths hold out the same ones. Raises UserError where no window lies wholly inside a
    part.
    """
    train, judge = split_windows(dataset, like[0], holdout, cross_cuts, judged=like[1])
    learned, held = covered(dataset, train, like[0]), covered(dataset, judge, max(like))
    for arc in dataset.arcs:
        rows = slice(arc.start, arc.stop)
        learned[rows] |= not held[rows].any()  # too short to be divided, so that all of it is learned
    parts = []
    for mask, frames, what in ((learned, length, "learned"), (held, judged, "held out")):
        starts = dataset.windows(frames, cross_cuts)
        before = torch.cat(
            [torch.zeros(1, dtype=torch.int64), mask.cumsum(0)]
        )  # frames of that part before each row
        parts.append(starts[before[starts + frames] - before[starts] == frames])
        if not len(parts[-1]):
            raise UserError(
                f"{dataset.path}: no part that is {what} has a window of {frames} frames (all stages divide "
                "these frames "
                f"alike, by split={list(like)}); use shorter windows or a smaller eval_horizon, or train "
                "each stage anew "
                f"with split={[max(like[0], length), max(like[1], judged)]} or more frames"
            )
    return tuple(parts)


def covered(dataset, starts, length):
    """bool `[N]`: which rows of the dataset lie in the windows of `length` frames that begin at `starts`."""
    mask = torch.zeros(len(dataset.frames), dtype=torch.bool)
    mask[(starts[:, None] + torch.arange(length)).flatten()] = True
    return mask
