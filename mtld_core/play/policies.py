"""Who plays when nobody does: policies that choose the next action of a `Play`."""

import torch

from mtld_core.frames import differs
from mtld_core.generate.rollouts import rollout
from mtld_core.play.parting import SHOWS, near

STICKY = 0.75  # chance that "sticky" repeats the last action
AHEAD = 2  # steps that "track" imagines


def hold(play):
    """The last action again; before the first one the first that a player is offered."""
    return play.actions[-1] if play.actions else play.choices[0][1]


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
    offered = [action for _, action in play.choices]
    ahead = [rollout(play.system, play.recent, AHEAD, [action] * AHEAD)[-1] for action in offered]
    ahead = torch.stack(ahead)
    shows = differs(ahead, play.median, SHOWS)  # [n, H, W]
    steered = differs(ahead.amax(0, True), ahead.amin(0, True), SHOWS)  # [1, H, W]
    by_itself = (shows & differs(ahead, play.frames[-1], SHOWS) & ~near(steered)).all(0)
    places = torch.stack([_place(part) for part in shows & steered])
    distances = (places - _place(by_itself)).norm(dim=1)
    if distances.isnan().all():
        return hold(play)
    return offered[distances.nan_to_num(torch.inf).argmin().item()]


def _place(pixels):
    """The mean place of bool pixels `[H, W]`: (row, column), NaN where there are none."""
    return pixels.nonzero().float().mean(0)


POLICIES = {"hold": hold, "sticky": sticky, "track": track}
