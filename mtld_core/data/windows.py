"""Which windows train and which judge."""

import torch

from mtld_core.config import UserError
from mtld_core.frames import rows_of

ARCS_TO_SPARE = 5  # so many arcs or more, and whole ones are held out


def split_windows(dataset, length, holdout=0.1, cross_cuts=False, restitution=False, judged=0):
    """Divide windows of `length` frames: (training, held-out) start rows, int64, which depend on no seed.

    Five arcs or more: about `holdout` of them, evenly spaced, are held out whole.
    Fewer: the tail of each arc, about `holdout` of its frames, with `length` frames or more unused between
        the last training frame and the first held-out one; an arc too short for that trains only.
    Images in no order (`kind` "images"): about `holdout` of each arc, which is a class, evenly spaced; of one
        arc in an HDF5 file, where they are mixed, the tail.
    cross_cuts: windows may cross hard cuts. restitution: all windows train and judge. judged: frames of a
    held-out window, where they are more than `length`. Raises UserError where no window fits, or none can be
    held out.
    """
    judged = max(length, judged)
    starts = dataset.windows(length, cross_cuts)
    if restitution:
        return starts, dataset.windows(judged, cross_cuts)
    arcs = []  # (arc, its training windows, those that could be held out)
    for arc in dataset.arcs:
        windows = dataset.arc_windows(arc, length, cross_cuts)
        if len(windows):
            arcs.append((arc, windows, dataset.arc_windows(arc, judged, cross_cuts)))
    # the tail of mixed images is as good, and what old runs began with
    mixed = dataset.about.get("unordered") and len(dataset.arcs) == 1
    if dataset.kind == "images" and not mixed:
        parts = [_split_evenly(*part, length, judged, holdout) for part in arcs]
    elif len(arcs) >= ARCS_TO_SPARE and any(len(candidates) for _, _, candidates in arcs):
        parts = _split_whole(arcs, holdout)
    else:
        parts = [_split_tail(*part, length, judged, holdout) for part in arcs]
    train, held = map(torch.cat, zip(*parts, strict=True))
    if not len(held):
        raise UserError(f"{dataset.path}: nothing can be held out: {_too_little(dataset, length, judged)}")
    return train, held


def with_ends(starts, length):
    """Sorted starts of windows of `length` frames -> these, and a shot's first and last one length / 4 times.

    What is in the middle of a shot is in `length` windows, its first and its last frame are in one: where
    film is learned by heart, and mostly gone on with from its first frame, these were drawn 10 dB worse.
    """
    edge = torch.ones(len(starts), dtype=torch.bool)
    apart = starts.diff() != 1
    edge[1:-1] = apart[:-1] | apart[1:]
    more = 0 if edge.all() else max(0, length // 4 - 1)
    return torch.cat([starts, starts[edge].repeat(more)])


def _too_little(dataset, length, judged):
    """Why no window of a dataset can be held out, and the ways out."""
    longest = max(len(arc) for arc in dataset.arcs)
    if dataset.kind == "images":
        need = f"the largest class has {longest} images, and {length + judged} are needed"
    else:
        need = (
            f"the longest arc has {longest} frames, and {2 * length + judged} in one shot are needed "
            f"({length} to train, {length} for a gap, {judged} to judge), or five arcs"
        )
    return (
        f"{need}; add frames, use a shorter window or eval_horizon, or set restitution=true, which trains "
        "and judges on all windows"
    )


def _split_evenly(arc, windows, candidates, length, judged, holdout):
    """Hold out evenly spaced images of a class; no training window shares a frame with them."""
    held = candidates
    if len(candidates):
        count = max(1, round(holdout * len(arc) / judged))
        held = candidates[((torch.arange(count) + 0.5) * len(candidates) / count).long()]
    free = ~covered(len(arc), held - arc.start, judged)
    kept = windows[_inside(free, windows - arc.start, length)]
    if not len(kept):
        return windows, held[:0]
    return kept, held


def _split_whole(arcs, holdout):
    """Hold out evenly spaced arcs, of those that have a window to judge."""
    long = [arc for arc, _, candidates in arcs if len(candidates)]
    count = min(len(long), len(arcs) - 1, max(1, round(holdout * len(arcs))))
    held = {long[int((i + 0.5) * len(long) / count)].start for i in range(count)}
    parts = []
    for arc, windows, candidates in arcs:
        if arc.start in held:
            parts.append((windows[:0], candidates))
        else:
            parts.append((windows, candidates[:0]))
    return parts


def _split_tail(arc, windows, candidates, length, judged, holdout):
    """Hold out the tail of an arc; a cut inside it moves its start back to a whole window."""
    if not len(candidates):
        return windows, candidates
    tail = min(arc.stop - max(judged, round(holdout * len(arc))), int(candidates[-1]))
    kept = windows[windows + length <= tail - length]
    if not len(kept):
        return windows, candidates[:0]
    return kept, candidates[candidates >= tail]


def split_alike(dataset, like, length, judged, holdout, cross_cuts):
    """Divide windows so that systems with windows of different lengths hold out the same frames.

    like: (frames of a training window, of a judged one) by which `split_windows` divides the frames. Returns
    (start rows of windows of `length` frames to learn, of `judged` frames to judge), int64. Raises UserError
    where no window lies wholly inside a part.
    """
    train, held = split_windows(dataset, like[0], holdout, cross_cuts, judged=like[1])
    learned = covered(len(dataset.frames), train, like[0])
    unseen = covered(len(dataset.frames), held, max(like))
    for arc in dataset.arcs:
        rows = slice(arc.start, arc.stop)
        learned[rows] |= not unseen[rows].any()  # too short to be divided, so that all of it is learned
    parts = []
    for mask, frames, what in ((learned, length, "learned"), (unseen, judged, "held out")):
        starts = dataset.windows(frames, cross_cuts)
        parts.append(starts[_inside(mask, starts, frames)])
        if not len(parts[-1]):
            enough = [max(like[0], length), max(like[1], judged)]
            raise UserError(
                f"{dataset.path}: no part that is {what} has a window of {frames} frames (all stages divide "
                f"these frames alike, by split={list(like)}); use shorter windows or a smaller eval_horizon, "
                f"or train each stage anew with split={enough} or more frames"
            )
    return tuple(parts)


def _inside(mask, starts, length):
    """bool `[n]`: which of the windows that begin at `starts` `[n]` lie wholly in `mask`, bool `[rows]`."""
    before = torch.cat([torch.zeros(1, dtype=torch.int64), mask.cumsum(0)])  # True ones before each row
    return before[starts + length] - before[starts] == length


def covered(count, starts, length):
    """bool `[count]`: which rows of a store lie in the windows of `length` frames that begin at `starts`."""
    mask = torch.zeros(count, dtype=torch.bool)
    mask[rows_of(starts, length)] = True
    return mask
