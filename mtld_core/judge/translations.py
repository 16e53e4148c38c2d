"""Judging a translator between two domains: clips of each in the other, against the truth where that is
known.

Unpaired clips cannot be compared pixel by pixel. Where `<root>/truth/X_in_Y/<arc>/` and `truth/Y_in_X/` lie
beside the data (as data_prep/make_domains.py writes them), they hold what the arcs of X look like in Y, and
the other way round; they are read for judging alone. Baselines: the source as it is (identity), the target
domain's mean image, and the unpaired colour transfer that matches mean and covariance. All held-out windows
are whole clips of T frames.
"""

import copy

import torch

from mtld_core import metrics
from mtld_core.data.truth import DIRECTIONS, open_truth, true_frames
from mtld_core.frames import evenly, to_float, to_uint8
from mtld_core.judge.frechet import Likeness
from mtld_core.metrics import colour_transfer

LIKED = 4  # frames of each window that the Frechet distance to the target domain's own is taken of


class TranslationJudge:
    """`judge(system)` -> figures of both directions; where the truth is not known, those that need it are
    None.

    pair: `DomainPair`. starts: (rows of X, rows of Y) where held-out windows begin. window: T. samples: uint8
    `[n, H, W, 3]` of X's training part and of Y's, which the baselines are made from.
    """

    def __init__(self, pair, starts, window, samples, max_windows=64, batch_size=4):
        self.window, self.batch_size = window, batch_size
        self.sources = dict(zip(DIRECTIONS, (pair.x, pair.y), strict=True))
        self.starts = {d: evenly(rows, max_windows) for d, rows in zip(DIRECTIONS, starts, strict=True)}
        self.liked = evenly(torch.arange(window), LIKED)
        self.likeness = {}
        for d, other in zip(DIRECTIONS, DIRECTIONS[::-1], strict=True):
            rows = self.starts[other][:, None] + self.liked
            self.likeness[d] = Likeness(self.sources[other].frames[rows.flatten()])
        self.truths = {d: self._truth(pair.path, d) for d in DIRECTIONS}
        self.baselines = {d: self._baselines(d, *samples[:: 1 if d == "x_to_y" else -1]) for d in DIRECTIONS}

    def few(self, share):
        """A copy that looks at about this share of the windows of each domain: to see how long all of them
        take.
        """
        some = copy.copy(self)
        rows = {
            d: evenly(torch.arange(len(starts)), max(1, round(share * len(starts))))
            for d, starts in self.starts.items()
        }
        some.starts = {d: self.starts[d][rows[d]] for d in DIRECTIONS}
        some.truths = {d: None if truth is None else truth[rows[d]] for d, truth in self.truths.items()}
        some.likeness = {d: likeness.few(share) for d, likeness in self.likeness.items()}
        return some

    @torch.inference_mode()
    def __call__(self, system, between=lambda: None):
        """dict of floats and Nones; between: see `Judge`."""
        figures = {}
        for d in DIRECTIONS:
            errors, flicker, flicker_source, shown = [], [], [], []
            for i, part in enumerate(self.starts[d].split(self.batch_size)):
                between()
                source = self._frames(d, part)
                made, _ = translated(system, source, d)
                flicker.append(metrics.flicker(made))
                flicker_source.append(metrics.flicker(source))
                shown.append(made[:, self.liked].flatten(0, 1))
                if self.truths[d] is not None:
                    errors.append(metrics.mse(made, self._truth_of(d, i, len(part)).to(made.device)))
            known = bool(errors)
            figures[f"psnr_{d}"] = metrics.psnr(torch.cat(errors)).mean().item() if known else None
            figures[f"baseline_psnr_{d}"] = max(self.baselines[d].values()) if known else None
            figures |= {f"baseline_{name}_psnr_{d}": value for name, value in self.baselines[d].items()}
            figures[f"flicker_{d}"] = torch.cat(flicker).mean().item()
            figures[f"flicker_source_{d}"] = torch.cat(flicker_source).mean().item()
            figures |= self.likeness[d](torch.cat(shown), between, f"_{d}")
        return figures

    def preview(self, system, columns=8):
        """(rows of uint8 frames, their labels, labels of the columns): a clip of each domain, its
        translation, its truth.
        """
        rows, labels = [], []
        shown = evenly(torch.arange(self.window), columns)
        for d, (source, target) in zip(DIRECTIONS, ("xy", "yx"), strict=True):
            clip = self._frames(d, self.starts[d][:1])
            with torch.inference_mode():
                made, _ = translated(system, clip, d)
            rows += [clip[0, shown].cpu(), made[0, shown].cpu()]
            labels += [f"{source}", f"{source} in {target}"]
            if self.truths[d] is not None:
                rows.append(self._truth_of(d, 0, 1)[0, shown])
                labels.append("truth")
        return rows, labels, [str(int(t)) for t in shown]

    def _frames(self, direction, starts):
        """uint8 `[B, T, H, W, 3]`: the clips to be translated."""
        return self.sources[direction].frames[starts[:, None] + torch.arange(self.window)]

    def _truth(self, root, direction):
        """uint8 `[windows, T, H, W, 3]`: the clips at `starts` in the other domain; None where that is not
        known.
        """
        dataset = self.sources[direction]
        truth = open_truth(root, direction, dataset.size)
        if truth is None:
            return None
        return torch.stack(
            [
                true_frames(truth, dataset, start, start + self.window)
                for start in self.starts[direction].tolist()
            ]
        )

    def _truth_of(self, direction, part, count):
        return self.truths[direction][part * self.batch_size :][:count]

    def _baselines(self, direction, source, target):
        """name -> PSNR in dB of what needs no learning; {} where the truth is not known."""
        if self.truths[direction] is None:
            return {}
        mean = target.double().mean(0).round().to(torch.uint8)
        matrix, shift = colour_transfer(source, target)
        errors = {"identity": [], "mean_image": [], "colour_transfer": []}
        for i, part in enumerate(self.starts[direction].split(self.batch_size)):
            clips = self._frames(direction, part)
            truth = self._truth_of(direction, i, len(part)).to(clips.device)
            recoloured = (clips.double() @ matrix.T + shift).round().clamp(0, 255).to(torch.uint8)
            for name, made in (("identity", clips), ("mean_image", mean), ("colour_transfer", recoloured)):
                errors[name].append(metrics.mse(made, truth))
        return {name: metrics.psnr(torch.cat(parts)).mean().item() for name, parts in errors.items()}


def translated(system, clips, direction, state=None):
    """uint8 `[B, T, H, W, 3]` -> (the same in the other domain, state to go on with); see
    `System.translate`.
    """
    made, state = system.translate(to_float(clips.to(system.device)), direction, state)
    return to_uint8(made).to(clips.device), state
