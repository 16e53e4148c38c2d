"""Judging a system on held-out windows: rollouts against the truth, with what costs nothing beside them.

Baselines: the last context frame repeated, and the training part's median frame. k context frames, h horizons. A system that
`reconstructs` is shown whole windows instead, and has no baselines: k = 0 and h = T.
"""

import numpy as np
import torch

from mtld_core import metrics
from mtld_core.frames import to_float, to_uint8

PICTURE_PAIRS = 64  # SSIM and LPIPS are averages over this many frames: on a CPU, VGG on all of them would outlast the training


class Judge:
    """Fixed windows, their truth and the baselines' errors, computed once; `judge(system)` -> dict of figures.

    starts: rows of the dataset where held-out windows begin (at most `max_windows` of them are used, evenly spaced). needs: the
    system's. horizon: frames to predict, 0 for reconstruction. training_frames: uint8 `[n, H, W, 3]` sample of the training
    part, for its median frame. lpips_weights: a file with VGG's weights, where torch's cache has none.
    """

    def __init__(self, dataset, starts, needs, horizon, training_frames, max_windows=256, lpips_weights="", batch_size=16):
        self.dataset, self.needs, self.batch_size = dataset, needs, batch_size
        self.context, self.horizon = (needs.context, horizon) if horizon else (0, needs.window)
        self.starts, self.lpips_weights = evenly(starts, max_windows), lpips_weights
        metrics.lpips_metric("cpu", lpips_weights)  # a damaged file is said now, not after the training
        self.baselines = {}  # name -> MSE [windows, h]
        if horizon:
            median = torch.from_numpy(np.median(training_frames.cpu().numpy(), axis=0).astype(np.uint8)).to(
                dataset.frames.device
            )
            parts = self.starts.split(batch_size)
            copies = [metrics.mse(self._truth(part), self._frames(part, self.context - 1, 1)) for part in parts]
            medians = [metrics.mse(self._truth(part), median) for part in parts]
            self.baselines = {"copy_last": torch.cat(copies), "median": torch.cat(medians)}

    @torch.inference_mode()
    def __call__(self, system, between=lambda: None):
        """Figures as report.json lists them under "metrics"; the system's own come last.

        between: called before each piece of the work; it may raise to give it up.
        """
        errors, predicted, true = [], [], []
        rows = evenly(torch.arange(len(self.starts) * self.horizon), PICTURE_PAIRS)  # the pairs that SSIM and LPIPS see
        for i, part in enumerate(self.starts.split(self.batch_size)):
            between()
            truth, fake = self._truth(part), self.made_by(system, part)
            errors.append(metrics.mse(fake, truth))
            first = i * self.batch_size * self.horizon
            inside = rows[(rows >= first) & (rows < first + truth.shape[0] * self.horizon)] - first
            predicted.append(fake.flatten(0, 1)[inside])
            true.append(truth.flatten(0, 1)[inside])
        errors, predicted, true = torch.cat(errors), torch.cat(predicted), torch.cat(true)

        def average(figure):
            pairs = zip(predicted.split(metrics.PIECE), true.split(metrics.PIECE), strict=True)
            return torch.cat([figure(*pair) for pair in pairs if between() is None]).mean().item()

        lpips, reason = metrics.lpips_metric(system.device, self.lpips_weights)
        psnr = metrics.psnr(errors)
        figures = {
            "psnr": psnr.mean().item(),
            "ssim": average(metrics.ssim),
            "lpips": average(lpips) if lpips else None,
            "psnr_by_horizon": psnr.mean(0).tolist(),
            "skill_db": None,
            "windows": len(self.starts),
        }
        if reason:
            figures["lpips_reason"] = reason
        if self.baselines:
            best = list(self.baselines.values())
            figures |= {
                "baseline_copy_psnr": metrics.psnr(self.baselines["copy_last"]).mean().item(),
                "baseline_median_psnr": metrics.psnr(self.baselines["median"]).mean().item(),
                "skill_db": metrics.skill_db(best, errors),
                "skill_db_by_horizon": [metrics.skill_db([b[:, h] for b in best], errors[:, h]) for h in range(self.horizon)],
            }
        return figures | system.evaluate(self.dataset, self.starts)

    @torch.inference_mode()
    def made_by(self, system, starts):
        """The system's frames uint8 `[B, h, H, W, 3]` for the windows at `starts` `[B]`: predictions or reconstructions."""
        if not self.context:
            return to_uint8(system.reconstruct(to_float(self._truth(starts).to(system.device)))).to(self.dataset.frames.device)
        context = to_float(self._frames(starts, 0, self.context).to(system.device))
        actions = None
        if self.needs.actions:
            first = self.context - 1  # the action that leads to the first predicted frame
            actions = [self.dataset.actions[starts + first + t].to(system.device) for t in range(self.horizon)]
        pieces = [to_uint8(piece).to(self.dataset.frames.device) for piece in system.rollout(context, self.horizon, actions)]
        return torch.cat(pieces, 1)

    def preview(self, system, windows=3, columns=8):
        """(rows of uint8 frames, their labels, labels of the columns): truth, the system's and error, for a few windows."""
        starts = evenly(self.starts, windows)
        truth, fake = self._truth(starts), self.made_by(system, starts)
        shown = evenly(torch.arange(self.horizon), columns)
        name = "rollout" if self.context else "rebuilt"
        rows, labels = [], []
        for t, f in zip(truth[:, shown].cpu(), fake[:, shown].cpu(), strict=True):
            rows += [t, f, ((t.int() - f.int()).abs() * 4).clamp(max=255).to(torch.uint8)]
            labels += ["truth", name, "error x4"]
        return rows, labels, [f"+{int(h) + 1}" for h in shown]

    def _truth(self, starts):
        return self._frames(starts, self.context, self.horizon)

    def _frames(self, starts, first, length):
        """uint8 `[B, length, H, W, 3]`: frames first .. first + length - 1 of each window."""
        return self.dataset.frames[starts[:, None] + torch.arange(first, first + length)]


def evenly(rows, most):
    """At most `most` elements of a tensor, evenly spaced from the first to the last."""
    if len(rows) <= most:
        return rows
    return rows[torch.linspace(0, len(rows) - 1, most).round().long()]
