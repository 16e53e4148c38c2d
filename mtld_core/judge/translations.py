"""Judging a translator: clips of each domain in the other, against the truth where that is known.

Unpaired clips cannot be compared pixel by pixel. Where `<root>/truth/X_in_Y/<arc>/` and `truth/Y_in_X/` lie
beside the data (as data_prep/make_domains.py writes them), they hold what the arcs of X look like in Y, and
the other way round; they are read for judging alone. Baselines: the source as it is (identity), the target
domain's mean image, and the unpaired colour transfer that matches mean and covariance. All held-out windows
are whole clips of T frames.
"""

import collections
import copy

import torch

from mtld_core import metrics
from mtld_core.data.truth import DIRECTIONS, open_truth, true_frames
from mtld_core.frames import evenly, rows_of, to_float, to_uint8
from mtld_core.judge.frechet import Likeness
from mtld_core.metrics import colour_transfer

BASELINES = ("baseline_identity_psnr", "baseline_mean_image_psnr", "baseline_colour_transfer_psnr")
CLIPS = 4  # that are translated at once
LIKED = 4  # frames of each window that the Frechet distance to the target domain's own is taken of


class TranslationJudge:
    """`judge(system)` -> figures of both directions; without a truth, those that need it are None.

    pair: `DomainPair`. starts: (rows of X, rows of Y) where held-out windows begin. window: T. samples: uint8
    `[n, H, W, 3]` of X's training part and of Y's, which the baselines are made from.
    """

    def __init__(self, pair, starts, window, samples, max_windows=64):
        some = [evenly(rows, max_windows) for rows in starts]
        self.ways = [_Way(source, pair, some, window, samples) for source in (0, 1)]

    def few(self, share):
        """A judge of about this share of the windows of each domain: to see how long all of them take."""
        some = copy.copy(self)
        some.ways = [way.few(share) for way in self.ways]
        return some

    @torch.inference_mode()
    def __call__(self, system, tick=lambda: None):
        """Floats and Nones. tick: called before each piece of the work; it may raise to give it up."""
        return self.ways[0].figures(system, tick) | self.ways[1].figures(system, tick)

    def preview(self, system):
        """(rows of uint8 frames, their labels, labels of the columns): a clip of each domain, translated."""
        rows, labels = [], []
        for way in self.ways:
            shown = evenly(way.window, 6)
            source, target = way.direction.split("_to_")
            names = [source, f"{source} in {target}", "truth"]
            clips = way.example(system)
            rows += [clip[shown].cpu() for clip in clips]
            labels += names[: len(clips)]
        return rows, labels, [str(int(t)) for t in shown]


class _Way:
    """One direction: clips of the source domain, and their truth in the target domain or None.

    source: the number of the source domain, 0 for X and 1 for Y.
    """

    truth = None  # uint8 [windows, T, H, W, 3]

    def __init__(self, source, pair, starts, window, samples):
        target = 1 - source
        self.direction = DIRECTIONS[source]
        self.dataset, self.starts = pair.domains[source], starts[source]
        self.window = window
        self.liked = evenly(window, LIKED)
        rows = starts[target][:, None] + self.liked
        self.likeness = Likeness(pair.domains[target].frames[rows.flatten()])
        found = open_truth(pair.path, self.direction, self.dataset.size)
        if found is not None:
            clips = [true_frames(found, self.dataset, row, row + window) for row in self.starts.tolist()]
            self.truth = torch.stack(clips)
            self.mean = samples[target].double().mean(0).round().to(torch.uint8)
            self.matrix, self.shift = colour_transfer(samples[source], samples[target])

    def few(self, share):
        some = copy.copy(self)
        count = max(1, round(share * len(self.starts)))
        some.starts = evenly(self.starts, count)
        if self.truth is not None:
            some.truth = evenly(self.truth, count)
        some.likeness = self.likeness.few(share)
        return some

    def figures(self, system, tick):
        errors = collections.defaultdict(list)  # figure -> MSE of the clips' frames
        flicker, shown = collections.defaultdict(list), []
        for clips, truth in self._clips():
            tick()
            made, _ = translated(system, clips, self.direction)
            watched = {"flicker": made, "flicker_source": clips, "flicker_truth": truth}
            for name, frames in watched.items():
                if frames is not None:
                    flicker[name].append(metrics.flicker(frames))
            shown.append(made[:, self.liked].flatten(0, 1))
            if truth is not None:
                compared = {"psnr": made} | self._baselines(clips)
                for name, frames in compared.items():
                    errors[name].append(metrics.mse(frames, truth))
        figures = {"psnr": None, "baseline_psnr": None, "flicker_truth": None}
        for name, parts in errors.items():
            figures[name] = metrics.mean_psnr(torch.cat(parts))
        if self.truth is not None:
            figures["baseline_psnr"] = max(figures[name] for name in BASELINES)
        figures |= {name: torch.cat(parts).mean().item() for name, parts in flicker.items()}
        named = {f"{name}_{self.direction}": value for name, value in figures.items()}
        return named | self.likeness(torch.cat(shown), tick, f"_{self.direction}")

    def _baselines(self, clips):
        recoloured = (clips.double() @ self.matrix.T + self.shift).round().clamp(0, 255).to(torch.uint8)
        return dict(zip(BASELINES, (clips, self.mean, recoloured), strict=True))

    def example(self, system):
        """[a clip, its translation, its truth where that is known], each uint8 `[T, H, W, 3]`."""
        clips, truth = next(self._clips())
        with torch.inference_mode():
            made, _ = translated(system, clips[:1], self.direction)
        if truth is None:
            return [clips[0], made[0]]
        return [clips[0], made[0], truth[0]]

    def _clips(self):
        """Yield (clips to be translated, their truth or None), uint8 `[B, T, H, W, 3]`."""
        for rows in torch.arange(len(self.starts)).split(CLIPS):
            clips = self.dataset.frames[rows_of(self.starts[rows], self.window)]
            truth = None if self.truth is None else self.truth[rows].to(clips.device)
            yield clips, truth


def translated(system, clips, direction, state=None):
    """Clips uint8 `[B, T, H, W, 3]` -> (the same in the other domain, state to go on with).

    See `Translates.translate`.
    """
    with system.computing():
        made, state = system.translate(to_float(clips.to(system.device)), direction, state)
    return to_uint8(made).to(clips.device), state
