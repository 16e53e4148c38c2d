"""Who plays while a game is recorded: chance, chance that looks ahead, or a function of the user's own."""

import importlib
import itertools

from mtld_core.config import UserError

HOLD = 8  # steps that a sticky action lasts at most
AHEAD = 24  # steps that "lookahead" tries out
FUTURES = 4  # that it chooses from
TRUSTED = 4  # steps that it plays of one before it looks again
SOONER = 0.98  # of what a point is worth a step earlier


def player(policy, game, rng):
    """Return f(observation, info, rng) -> action, which plays `game`, a Gymnasium environment.

    policy: "random" (another action each step), "sticky" (each is held for 1 to 8 steps), "lookahead" (of
        four such futures, each tried out in the game itself, the one that keeps the most lives and then
        scores most; Atari only), or "MODULE:FUNCTION".
    """
    space = game.action_space

    def draw(*_):
        return rng.integers(space.n) if hasattr(space, "n") else rng.uniform(space.low, space.high)

    def held():
        while True:
            action = draw()
            for _ in range(rng.integers(HOLD) + 1):
                yield action

    if policy == "random":
        return draw
    if policy == "sticky":
        actions = held()
        return lambda *_: next(actions)
    if policy == "lookahead":
        if not hasattr(game.unwrapped, "clone_state"):
            raise UserError(
                f"policy='lookahead' tries futures out, and {game.spec.id} cannot be set back: it is for "
                "Atari (ALE/...); use 'sticky'"
            )
        return Lookahead(game.unwrapped, held)
    module, colon, name = policy.partition(":")
    if not colon:
        raise UserError(f"policy={policy!r} is not 'random', 'sticky', 'lookahead' or 'MODULE:FUNCTION'")
    try:
        return getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise UserError(
            f"policy={policy!r} cannot be loaded ({error}): run this beside MODULE.py, or set PYTHONPATH"
        ) from None


class Lookahead:
    """The best of a few random futures, looked for again every few steps."""

    def __init__(self, game, held):
        self.game = game
        self.held = held
        self.plan = []

    def __call__(self, observation, info, rng):
        if len(self.plan) <= AHEAD - TRUSTED:
            self.plan = self._best_plan()
        return self.plan.pop(0)

    def _best_plan(self):
        """What is left of the plan, or a fresh one that is better."""
        begun = [self.plan] + [[]] * (FUTURES - 1)
        plans = [[*plan, *itertools.islice(self.held(), AHEAD - len(plan))] for plan in begun]
        now = self.game.clone_state(include_rng=True)
        worths = []
        for plan in plans:
            worths.append(self._worth(plan))
            self.game.restore_state(now)
        return plans[worths.index(max(worths))]

    def _worth(self, plan):
        """(lives that are left, score) after a plan; a point counts a little more the sooner it comes."""
        score = 0.0
        for step, action in enumerate(plan):
            _, reward, terminated, _, info = self.game.step(action)
            score += float(reward) * SOONER**step
            if terminated:
                break
        return info["lives"], score
