"""Who plays when nobody does: policies that choose the next action of a `Play`."""

STICKY = 0.75  # chance that "sticky" repeats the last action


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


POLICIES = {"hold": hold, "sticky": sticky}
