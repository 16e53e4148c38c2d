"""Judging a system on held-out windows: rollouts against the truth, with what costs nothing beside them.

Baselines: the last context frame repeated, and the training part's median frame. k context frames, h
horizons. A system that `reconstructs` is shown whole windows instead, and has no baselines: k = 0 and h = T.
Where there is an action space, it is also measured whether actions matter: those of other windows must do
harm, and two that are held must lead apart.
"""

import copy
import itertools

import numpy as np
import torch

from mtld_core import metrics
from mtld_core.frames import evenly, to_float, to_uint8

# SSIM and LPIPS are averages over this many frames: on a CPU, VGG on all of them would outlast the training
PICTURE_PAIRS = 64
STEERED, HELD = 32, 4  # windows, and actions held from each, that controllability is measured on


class Judge:
    """Fixed windows, their truth and the baselines' errors, computed once; `judge(system)` -> dict of
    figures.

    starts: rows of the dataset where held-out windows begin (at most `max_windows` of them are used, evenly
    spaced). needs: the system's. horizon: frames to predict, 0 for reconstruction. training_frames: uint8
    `[n, H, W, 3]` sample of the training part, for its median frame. lpips_weights: a file with VGG's
    weights; "": torch's cache. reach: the horizon that the lists by horizon go to, where that is further;
    averages are over 1..horizon.
    """

    def __init__(
        self,
        dataset,
        starts,
        needs,
        horizon,
        training_frames,
        max_windows=256,
        lpips_weights="",
        batch_size=16,
        reach=0,
    ):
        self.dataset, self.needs, self.batch_size = dataset, needs, batch_size
        self.context, self.horizon = (needs.context, horizon) if horizon else (0, needs.window)
        self.reach = max(self.horizon, reach)
        self.starts, self.lpips_weights = evenly(starts, max_windows), lpips_weights
        metrics.lpips_metric("cpu", lpips_weights)  # a damaged file is said now, not after the training
        self.baselines = {}  # name -> MSE [windows, reach]
        self.pictures, self.steered_windows = PICTURE_PAIRS, STEERED
        self.steerable = None  # the window [1] that the held actions led furthest apart
        if horizon:
            median = torch.from_numpy(np.median(training_frames.cpu().numpy(), axis=0).astype(np.uint8)).to(
                dataset.frames.device
            )
            parts = self.starts.split(batch_size)
            copies = [_errors(self.truth(part), self._frames(part, self.context - 1, 1)) for part in parts]
            medians = [_errors(self.truth(part), median) for part in parts]
            self.baselines = {"copy": torch.cat(copies), "median": torch.cat(medians)}

    def few(self, share):
        """(a copy that looks at about this share of the windows, which share that is): to see how long all of
        them take.
        """
        count = len(self.starts)
        rows = evenly(torch.arange(count), max(2, round(share * count)))
        share = len(rows) / count
        some = copy.copy(self)
        some.starts = self.starts[rows]
        some.baselines = {name: errors[rows] for name, errors in self.baselines.items()}
        some.pictures = max(1, round(share * self.pictures))
        some.steered_windows = max(1, round(share * self.steered_windows))
        return some, share

    @torch.inference_mode()
    def __call__(self, system, between=lambda: None):
        """Figures as report.json lists them under "metrics"; the system's own come last.

        between: called before each piece of the work; it may raise to give it up.
        """
        h, errors, predicted, true = self.horizon, [], [], []
        rows = evenly(torch.arange(len(self.starts) * h), self.pictures)  # the pairs that SSIM and LPIPS see
        for i, part in enumerate(self.starts.split(self.batch_size)):
            between()
            truth, fake = self.truth(part), self.made_by(system, part, self.reach)
            errors.append(_errors(fake, truth))
            first = i * self.batch_size * h
            inside = rows[(rows >= first) & (rows < first + len(part) * h)] - first
            predicted.append(fake[:, :h].flatten(0, 1)[inside])
            true.append(truth[:, :h].flatten(0, 1)[inside])
        errors, predicted, true = torch.cat(errors), torch.cat(predicted), torch.cat(true)

        def average(figure):
            pairs = zip(predicted.split(metrics.PIECE), true.split(metrics.PIECE), strict=True)
            return torch.cat([figure(*pair) for pair in pairs if between() is None]).mean().item()

        lpips, reason = metrics.lpips_metric(system.device, self.lpips_weights)
        psnr = metrics.psnr(errors)
        figures = {
            "psnr": psnr[:, :h].mean().item(),
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
            for name, baseline in self.baselines.items():
                figures[f"baseline_{name}_psnr"] = metrics.psnr(baseline[:, :h]).mean().item()
                figures[f"baseline_{name}_psnr_by_horizon"] = metrics.psnr(baseline).mean(0).tolist()
            figures["skill_db"] = metrics.skill_db([b[:, :h] for b in best], errors[:, :h])
            skills = [metrics.skill_db([b[:, t] for b in best], errors[:, t]) for t in range(self.reach)]
            figures["skill_db_by_horizon"] = skills
        if self.context and system.action_space is not None:
            figures |= self._steering(system, errors[:, :h], between)
        return figures | system.evaluate(self.dataset, self.starts)

    def _steering(self, system, errors, between):
        """Whether actions matter: figures in dB, 0 where those of other windows do as well, and where held
        ones part as far as the truth moves away from the last context frame.

        errors: MSE `[windows, h]` under the true actions.
        """
        h, figures = self.horizon, {}
        if len(self.starts) > 1:
            others, shuffled = (
                self.starts.roll(len(self.starts) // 2),
                [],
            )  # each window gets the actions of another
            for part, other in zip(
                self.starts.split(self.batch_size), others.split(self.batch_size), strict=True
            ):
                between()
                fake = self.made_by(system, part, h, self._actions(system, other, h))
                shuffled.append(_errors(fake, self.truth(part)[:, :h]))
            figures["action_shuffle_gap_db"] = metrics.skill_db([torch.cat(shuffled)], errors)
        actions = held_actions(system.action_space)
        if len(actions) == 1:
            return figures
        apart, rows = [], evenly(torch.arange(len(self.starts)), self.steered_windows)
        for part in self.starts[rows].split(self.batch_size):
            held = [self._held(system, part, action) for action in actions if between() is None]
            pairs = [_errors(*pair) for pair in itertools.combinations(held, 2)]
            apart.append(torch.stack(pairs).mean(0))
        apart, moved = torch.cat(apart), self.baselines["copy"][rows, :h]
        self.steerable = self.starts[rows[apart.sum(1).argmax().item()]][None]
        figures["controllability_db"] = metrics.skill_db([apart], moved)
        figures["controllability_db_by_horizon"] = [
            metrics.skill_db([apart[:, t]], moved[:, t]) for t in range(h)
        ]
        return figures

    @torch.inference_mode()
    def made_by(self, system, starts, horizon, actions=None):
        """The system's frames uint8 `[B, horizon, H, W, 3]` for the windows at `starts` `[B]`: predictions or
        reconstructions.

        actions: `[B, horizon]` or `[B, horizon, A]`, None for the windows' own.
        """
        if not self.context:
            return to_uint8(system.reconstruct(to_float(self.truth(starts).to(system.device)))).to(
                self.dataset.frames.device
            )
        context = to_float(self._frames(starts, 0, self.context).to(system.device))
        if actions is None:
            actions = self._actions(system, starts, horizon)
        steps = None if actions is None else actions.to(system.device).unbind(1)
        chance = torch.Generator(system.device).manual_seed(0)  # the same under every action
        pieces = system.rollout(context, horizon, steps, chance)
        return torch.cat([to_uint8(piece).to(self.dataset.frames.device) for piece in pieces], 1)

    def _actions(self, system, starts, horizon):
        """`[B, horizon]` or `[B, horizon, A]`: what leads to each predicted frame, recorded or inferred; or
        None.
        """
        first = self.context - 1  # the action that leads to the first predicted frame
        if self.needs.actions:
            return self.dataset.actions[starts[:, None] + torch.arange(first, first + horizon)]
        if system.action_space is None:
            return None
        clips = to_float(self._frames(starts, 0, self.context + horizon).to(system.device))
        return system.infer_actions(clips)[:, first:]

    def _held(self, system, starts, action):
        """uint8 `[B, h, H, W, 3]`: rollouts under one action all along."""
        return self.made_by(
            system, starts, self.horizon, action.expand(len(starts), self.horizon, *action.shape)
        )

    def preview(self, system, windows=3, columns=8):
        """(rows of uint8 frames, their labels, labels of the columns): truth, the system's and error, for a
        few windows.
        """
        starts = evenly(self.starts, windows)
        truth, fake = self.truth(starts), self.made_by(system, starts, self.horizon)
        shown = evenly(torch.arange(self.horizon), columns)
        name = "rollout" if self.context else "rebuilt"
        rows, labels = [], []
        for t, f in zip(truth[:, shown].cpu(), fake[:, shown].cpu(), strict=True):
            rows += [t, f, ((t.int() - f.int()).abs() * 4).clamp(max=255).to(torch.uint8)]
            labels += ["truth", name, "error x4"]
        return rows, labels, [f"+{int(h) + 1}" for h in shown]

    def steered(self, system):
        """The same for held actions: what each makes of the most steerable window, at horizons 1, 2, 4,
        ...
        """
        columns = [2**i for i in range(self.horizon.bit_length())]
        held = held_actions(system.action_space)
        rows = [
            self._held(system, self.steerable, action)[0, [h - 1 for h in columns]].cpu() for action in held
        ]
        if not isinstance(system.action_space, int):
            return rows, ["all low", "middle", "all high"], [f"+{h}" for h in columns]
        names = (
            self.dataset.about.get("action_names", []) if self.needs.actions else []
        )  # invented actions have none
        labels = [names[a] if a < len(names) else f"action {a}" for a in map(int, held)]
        return rows, labels, [f"+{h}" for h in columns]

    def truth(self, starts):
        """uint8 `[B, reach, H, W, 3]`: what really came."""
        return self._frames(starts, self.context, self.reach)

    def _frames(self, starts, first, length):
        """uint8 `[B, length, H, W, 3]`: frames first .. first + length - 1 of each window."""
        return self.dataset.frames[starts[:, None] + torch.arange(first, first + length)]


def held_actions(space):
    """The actions that controllability compares: int64 `[n]`, n <= 4, or float `[3, A]`: all low, middle and
    all high.
    """
    if isinstance(space, int):
        return evenly(torch.arange(space), HELD)
    low, high = map(torch.tensor, space)
    return torch.stack([low, (low + high) / 2, high])


def _errors(a, b):
    """MSE `[B, h]`, a horizon at a time: as integers, frames take four times their room."""
    pairs = zip(*(frames.unbind(1) for frames in torch.broadcast_tensors(a, b)), strict=True)
    return torch.stack(list(itertools.starmap(metrics.mse, pairs)), 1)
