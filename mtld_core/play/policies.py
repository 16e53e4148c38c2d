"""Who plays when nobody does: policies that choose the next action of a `Play`."""

import torch

from mtld_core.frames import differs, evenly
from mtld_core.generate.rollouts import rollout
from mtld_core.play.parting import SHOWS, near

STICKY = 0.75  # chance that "sticky" repeats the last action
AHEAD = 2  # steps that are imagined to see what actions move
STARTS = 5  # from which they are, for `ways`
LEAST = 0.5  # pixels that something has to move
STILL = ("NOOP", "FIRE")  # actions that move nothing by their name, whatever flies off then


def rest(play):
    """The first action that a player is offered: NOOP, or all controls at rest."""
    return play.choices[0][1]


def hold(play):
    """The last action again; before the first one the first that a player is offered."""
    return play.actions[-1] if play.actions else rest(play)


def sticky(play):
    """The last action again with a chance of 0.75, else any, all alike likely (controls: in their range)."""
    if play.actions and play.chance.random() < STICKY:
        return play.actions[-1]
    space = play.system.action_space
    if isinstance(space, int):
        return play.chance.randrange(space)
    return [play.chance.uniform(low, high) for low, high in zip(*space, strict=True)]


def track(play):
    """The action that brings what actions move nearest to what moves by itself, two steps ahead.

    The model is asked: from the newest frames it imagines each action that a player is offered, held. Where
    these pictures differ from each other, actions move something; what is new in all of them alike, and not
    close to that, moves by itself. Pixels count that differ from the recording's median frame; of each part
    the mean place is taken. Where one is missing it is `hold`. No reward is known or learned: this follows a
    ball, and an enemy just as well.
    """
    ahead, shows, steered = _imagined(play, play.recent)
    by_itself = (shows & differs(ahead, play.frames[-1], SHOWS) & ~near(steered)).all(0)
    distances = (_places(shows & steered) - _place(by_itself)).norm(dim=1)
    if distances.isnan().all():
        return hold(play)
    return play.choices[distances.nan_to_num(torch.inf).argmin().item()][1]


def ways(play):
    """Which way each offered action moves what it moves: {its number: "UP", "DOWN", "LEFT" or "RIGHT"}.

    The model is asked: from the start and four places of the recording after it, it imagines each action,
    held for two steps. An action's way is that in which, beside the first action, the mean place of what
    actions move goes furthest. Actions that move nothing, or by their name do not steer, are left out.
    """
    k = play.system.needs().context
    frames = torch.cat([play.source.context, play.source.truth.cpu()])
    moved = []
    for i in evenly(len(frames) - k + 1, STARTS).tolist():
        _, shows, steered = _imagined(play, frames[i : i + k])
        places = _places(shows & steered)
        moved.append((places - places[0]).nan_to_num(0))
    found = {}
    for number, (down, right) in enumerate(torch.stack(moved).mean(0).tolist()):
        if max(abs(down), abs(right)) >= LEAST and play.labels[number] not in STILL:
            vertical = "DOWN" if down > 0 else "UP"
            sideways = "RIGHT" if right > 0 else "LEFT"
            found[number] = vertical if abs(down) > abs(right) else sideways
    return found


def _imagined(play, context):
    """For each offered action, held, the frame that comes: (uint8 `[n, H, W, 3]`, bool, bool).

    The others: where it shows something `[n, H, W]`, and where actions make a difference `[1, H, W]`.
    """
    offered = [action for _, action in play.choices]
    ahead = torch.stack([rollout(play.system, context, AHEAD, [action] * AHEAD)[-1] for action in offered])
    steered = differs(ahead.amax(0, True), ahead.amin(0, True), SHOWS)
    return ahead, differs(ahead, play.median, SHOWS), steered


def _places(parts):
    return torch.stack([_place(part) for part in parts])


def _place(pixels):
    """The mean place of bool pixels `[H, W]`: (row, column), NaN where there are none."""
    return pixels.nonzero().float().mean(0)


POLICIES = {"rest": rest, "hold": hold, "sticky": sticky, "track": track}
