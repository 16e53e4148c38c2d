"""Judging a system on held-out windows: rollouts against the truth, with what costs nothing beside them.

Baselines: the last context frame repeated, and the training part's median frame. k context frames, h
horizons. Beside the skill over all pixels stands that over those that move, which are few: where the truth,
the prediction or the last context frame differs from the median frame. A system that `Reconstructs` is shown
whole windows instead, and has no baselines: k = 0 and h = T. Where there is an action space, it is also
measured whether actions matter: those of other windows must do harm, and two that are held must lead apart.
"""

import collections
import copy
import itertools

import torch

from mtld_core import metrics
from mtld_core.frames import differs, evenly, rows_of, to_float, to_uint8
from mtld_core.judge.windows import borders
from mtld_core.systems.baselines import median_frame

# SSIM and LPIPS are averages over this many frames: on a CPU, VGG on all of them would outlast the training
PICTURE_PAIRS = 64
TOGETHER = 16  # windows that go through a system at once
STEERED = 32  # windows that controllability is measured on
HELD = 4  # actions held from each of them, at most


class Judge:
    """Fixed windows and their truth; `judge(system)` -> dict of figures.

    starts: rows of the dataset where held-out windows begin; `max_windows` of them at most, evenly spaced.
    needs: the system's. horizon: frames to predict, 0 for reconstruction.
    training_frames: uint8 `[n, H, W, 3]` sample of the training part, for its median frame.
    lpips_weights: a file with VGG's weights; "": torch's cache.
    reach: the horizon that lists by horizon go to, where that is further; averages are over 1..horizon.
    """

    pictures, steered_windows = PICTURE_PAIRS, STEERED
    steerable = None  # the window [1] that the held actions led furthest apart
    across = True  # whether a context may go across cuts

    def __init__(
        self,
        dataset,
        starts,
        needs,
        horizon,
        training_frames,
        max_windows=256,
        lpips_weights="",
        reach=0,
    ):
        self.dataset = dataset
        # is shown what a system makes and what really came, uint8 [B, h, H, W, 3], some windows at a time
        self.look = lambda made, truth: None
        self.held = starts
        self.starts = evenly(starts, max_windows)
        self.needs = needs
        self.context = needs.context if horizon else 0
        self.horizon = horizon or needs.window
        self.reach = max(self.horizon, reach)
        self.lpips_weights = lpips_weights
        metrics.lpips_metric("cpu", lpips_weights)  # a damaged file is said now, not after the training
        if horizon:
            self.median = median_frame(training_frames).to(dataset.frames.device)

    def few(self, share):
        """(a `Judge` of about this share of the windows, which share that is): to see how long all take."""
        count = len(self.starts)
        some = copy.copy(self)
        some.starts = evenly(self.starts, max(2, round(share * count)))
        share = len(some.starts) / count
        some.pictures = max(1, round(share * self.pictures))
        some.steered_windows = max(1, round(share * self.steered_windows))
        return some, share

    def on(self, targets, horizon, needs=None):
        """A `Judge` of the windows whose prediction begins at these rows, as far as `horizon`.

        needs: of a system that may ask for more context than a shot has: then its first frame is repeated.
        """
        some = copy.copy(self)
        if needs:
            some.needs, some.context, some.across = needs, needs.context, False
        some.starts = targets - some.context
        some.horizon = some.reach = horizon
        return some

    @torch.inference_mode()
    def __call__(self, system, tick=lambda: None):
        """Figures as report.json lists them under "metrics"; the system's own come last.

        tick: called before each piece of the work; it may raise to give it up.
        """
        errors, moving, made, true = self._compare(system, tick)
        model = errors.pop("model")
        lpips, reason = metrics.lpips_metric(system.device, self.lpips_weights)
        h = self.horizon
        psnr = metrics.psnr(model)
        figures = {
            "psnr": psnr[:, :h].mean().item(),
            "ssim": _average(metrics.ssim, made, true, tick),
            "lpips": _average(lpips, made, true, tick) if lpips else None,
            "psnr_by_horizon": psnr.mean(0).tolist(),
            "skill_db": None,
            "windows": len(self.starts),
        }
        if reason:
            figures["lpips_reason"] = reason
        for name, baseline in errors.items():
            figures[f"baseline_{name}_psnr"] = metrics.mean_psnr(baseline[:, :h])
            figures[f"baseline_{name}_psnr_by_horizon"] = metrics.psnr(baseline).mean(0).tolist()
        if errors:
            near = [baseline[:, :h] for baseline in errors.values()]
            figures["skill_db"] = metrics.skill_db(near, model[:, :h])
            figures["skill_db_by_horizon"] = _skill_by_horizon(list(errors.values()), model)
            figures["moving_skill_db"] = _moving_skill(moving, slice(h))
            figures["moving_skill_db_by_horizon"] = [_moving_skill(moving, t) for t in range(self.reach)]
        if self.context and system.action_space is not None:
            figures |= self._steering(system, model, errors["copy"], tick)
        with system.computing():
            return figures | system.evaluate(self.dataset, self.starts)

    def _compare(self, system, tick):
        """(errors, moving, made, true): what the figures are made of.

        errors: "model" and the baselines' names -> MSE `[windows, reach]`. moving: the same where something
        moves, 0 elsewhere. made, true: uint8 `[n, H, W, 3]`, pairs for SSIM and LPIPS, evenly spaced over all
        windows and horizons.
        """
        errors, moving = collections.defaultdict(list), collections.defaultdict(list)
        pairs = []  # (made, true) of some windows
        seen = torch.zeros(len(self.starts) * self.horizon, dtype=torch.bool)
        seen[evenly(len(seen), self.pictures)] = True
        seen = seen.view(-1, self.horizon)
        parts = zip(self.starts.split(TOGETHER), seen.split(TOGETHER), strict=True)
        for part, chosen in parts:
            tick()
            truth = self.truth(part)
            compared = {"model": self.made_by(system, part, self.reach)}
            if self.context:
                compared |= {"copy": self._frames(part, self.context - 1, 1), "median": self.median}
                moves = _moving(self.median, truth, compared["model"], compared["copy"])
            for name, frames in compared.items():
                errors[name].append(errors_of(frames, truth))
                if self.context:
                    moving[name].append(errors_of(frames * moves, truth * moves))
            near = compared["model"][:, : self.horizon], truth[:, : self.horizon]
            self.look(*near)
            pairs.append([frames[chosen] for frames in near])
        errors, moving = (
            {name: torch.cat(parts) for name, parts in each.items()} for each in (errors, moving)
        )
        made, true = map(torch.cat, zip(*pairs, strict=True))
        return errors, moving, made, true

    # ---- actions

    def _steering(self, system, model, still, tick):
        """Whether actions matter, in dB.

        0: where those of other windows do as well, and where held ones part as far as the truth moves away
        from the last context frame. model, still: MSE `[windows, reach]` under the true actions, and of that
        frame repeated.
        """
        figures = {}
        starts, h = self.starts, self.horizon

        def misled(part, others):
            fake = self.made_by(system, part, h, self._actions(system, others, h))
            return errors_of(fake, self.truth(part)[:, :h])

        if len(starts) > 1:
            others = starts.roll(len(starts) // 2)  # each window gets the actions of another
            errors = metrics.in_pieces(misled, TOGETHER, tick, starts, others)
            figures["action_shuffle_gap_db"] = metrics.skill_db([errors], model[:, :h])
        actions = held_actions(system.action_space)
        if len(actions) == 1:
            return figures
        rows = evenly(len(starts), self.steered_windows)
        apart = self._apart(system, starts[rows], actions, tick)
        moved = still[rows, :h]
        self.steerable = starts[rows[apart.sum(1).argmax().item()]][None]
        figures["controllability_db"] = metrics.skill_db([apart], moved)
        figures["controllability_db_by_horizon"] = _skill_by_horizon([apart], moved)
        return figures

    def _apart(self, system, starts, actions, tick):
        """MSE `[windows, h]` between rollouts under two held actions, averaged over all pairs of them."""
        apart = []
        for part in starts.split(TOGETHER):
            held = []
            for action in actions:
                tick()
                held.append(self._held(system, part, action))
            errors = [errors_of(one, other) for one, other in itertools.combinations(held, 2)]
            apart.append(torch.stack(errors).mean(0))
        return torch.cat(apart)

    def _held(self, system, starts, action):
        """Rollouts under one action all along, uint8 `[B, h, H, W, 3]`."""
        actions = action.expand(len(starts), self.horizon, *action.shape)
        return self.made_by(system, starts, self.horizon, actions)

    def _actions(self, system, starts, horizon):
        """What leads to each predicted frame, recorded or inferred: `[B, h]`, `[B, h, A]`, or None."""
        first = self.context - 1  # the action that leads to the first predicted frame
        if self.needs.actions:
            return self.dataset.actions[rows_of(starts, horizon, first)]
        if system.action_space is None:
            return None
        clips = to_float(self._frames(starts, 0, self.context + horizon).to(system.device))
        with system.computing():
            return system.infer_actions(clips)[:, first:]

    # ---- frames

    @torch.inference_mode()
    def made_by(self, system, starts, horizon, actions=None):
        """What the system makes of the windows at `starts`, predicted or rebuilt: uint8 `[B, h, H, W, 3]`.

        actions: `[B, horizon]` or `[B, horizon, A]`, None for the windows' own.
        """
        device = self.dataset.frames.device
        if not self.context:
            with system.computing():
                rebuilt = system.reconstruct(to_float(self.truth(starts).to(system.device)))
            return to_uint8(rebuilt).to(device)
        context = to_float(self._context(starts).to(system.device))
        if actions is None:
            actions = self._actions(system, starts, horizon)
        steps = None if actions is None else actions.to(system.device).unbind(1)
        chance = torch.Generator(system.device).manual_seed(0)  # the same under every action
        with system.computing():
            pieces = system.rollout(context, horizon, steps, chance)
            return torch.cat([to_uint8(piece).to(device) for piece in pieces], 1)

    def truth(self, starts):
        """What really came, uint8 `[B, reach, H, W, 3]`."""
        return self._frames(starts, self.context, self.reach)

    def _context(self, starts):
        rows = rows_of(starts, self.context)
        edges = borders(self.dataset, self.across)
        shot = torch.searchsorted(edges, starts + self.context - 1, right=True) - 1
        return self.dataset.frames[rows.maximum(edges[shot][:, None])]

    def _frames(self, starts, first, length):
        """Frames first .. first + length - 1 of each window, uint8 `[B, length, H, W, 3]`."""
        return self.dataset.frames[rows_of(starts, length, first)]

    # ---- pictures

    def preview(self, system):
        """(rows of uint8 frames, their labels, labels of the columns): truth, the system's and the error."""
        starts = evenly(self.starts, 2)
        shown = evenly(self.horizon, 6)
        truth = self.truth(starts)[:, shown].cpu()
        made = self.made_by(system, starts, self.horizon)[:, shown].cpu()
        rows = []
        for true, fake in zip(truth, made, strict=True):
            rows += [true, fake, metrics.error_picture(fake, true)]
        labels = ["truth", "rollout" if self.context else "rebuilt", "error x4"]
        return rows, labels * len(starts), [f"+{int(t) + 1}" for t in shown]

    def steered(self, system):
        """(rows, labels, columns): what held actions make of the most steerable window, at 1, 2, 4, ..."""
        horizons = [2**i for i in range(self.horizon.bit_length())]
        shown = torch.tensor(horizons) - 1
        held = held_actions(system.action_space)
        rows = [self._held(system, self.steerable, action)[0, shown].cpu() for action in held]
        columns = [f"+{h}" for h in horizons]
        if not isinstance(system.action_space, int):
            return rows, ["all low", "middle", "all high"], columns
        names = self.dataset.about.get("action_names", []) if self.needs.actions else []  # invented: none
        labels = [names[a] if a < len(names) else f"action {a}" for a in held.tolist()]
        return rows, labels, columns


def held_actions(space):
    """The actions that controllability compares: int64 `[n]`, n <= 4, or all low, middle, high: `[3, A]`."""
    if isinstance(space, int):
        return evenly(space, HELD)
    low, high = map(torch.tensor, space)
    return torch.stack([low, (low + high) / 2, high])


def errors_of(a, b):
    """MSE `[B, h]` of clips `[B, h, H, W, 3]`, either of which may have one frame that stands for all."""
    return torch.stack([metrics.mse(*pair) for pair in _by_horizon(a, b)], 1)


def _by_horizon(*clips):
    """Yield what clips show at each horizon, a tuple: as integers, frames take four times their room."""
    return zip(*(frames.unbind(1) for frames in torch.broadcast_tensors(*clips)), strict=True)


def _moving(still, *clips):
    """Where any of the clips, uint8 `[B, h or 1, H, W, 3]`, differs from `still`: uint8 `[B, h, H, W, 1]`."""
    masks = []
    for each in _by_horizon(*clips):
        masks.append(torch.stack([differs(frames, still) for frames in each]).any(0))
    return torch.stack(masks, 1)[..., None].byte()


def _moving_skill(moving, horizons):
    """Skill over what moves at some horizons, in dB, a float; None where nothing does."""
    errors = {name: each[:, horizons] for name, each in moving.items()}
    if not any(each.any() for each in errors.values()):
        return None
    return metrics.skill_db([errors["copy"], errors["median"]], errors["model"])


def _average(figure, made, true, tick):
    return metrics.in_pieces(figure, metrics.PIECE, tick, made, true).mean().item()


def _skill_by_horizon(baselines, model):
    skills = []
    for t in range(model.shape[1]):
        skills.append(metrics.skill_db([baseline[:, t] for baseline in baselines], model[:, t]))
    return skills
