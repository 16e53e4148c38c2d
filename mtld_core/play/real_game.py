"""The recorded game, brought to the frame that a dream starts from."""

import re

import numpy as np
import torch

from mtld_core.config import UserError, check
from mtld_core.frames import fit_frame

GAME_FACTS = {"env", "env_options", "size"}  # what a recording must say of itself to be played again


class RealGame:
    """The recorded game, reset as it was and led by the recorded actions to frame `number` of `arc`.

    over: it has ended. Raises UserError, in a few words, where it cannot be brought there, or shows another
    picture than the recording.
    """

    def __init__(self, dataset, arc, number):
        about, row = dataset.about, dataset.row(arc, number)
        first = row - number
        episode = re.fullmatch(r"episode_(\d+)([a-z]*)", arc)
        seeds = about.get("episode_seeds", [])
        check(about.keys() >= GAME_FACTS, "the recording names no game that can be stepped")
        # one of several files, or made of a clock that was set back
        if not episode or int(episode[1]) >= len(seeds):
            raise UserError("the recording does not say how this episode was seeded")
        if episode[2] or dataset.row(arc, 0) != first:
            raise UserError("the recording has a gap before this frame")
        from data_prep.games import frame_of, make_env

        self._env, self.over = make_env(about["env"], about["env_options"]), False
        self._see = lambda seen: fit_frame(frame_of(self._env, seen, about["size"]), *dataset.size)
        observation, _ = self._env.reset(seed=seeds[int(episode[1])])
        for action in dataset.actions[first:row]:
            observation = self._step(action)
        if not np.array_equal(self._see(observation), dataset.frames[row].cpu()):
            self.close()
            raise UserError("the game shows another picture here than the recording")

    def step(self, action):
        """Take one step under a tensor, whole number or float `[A]` -> the frame. Not once it is `over`."""
        return torch.from_numpy(self._see(self._step(action)))

    def close(self):
        self._env.close()

    def _step(self, action):
        dtype = self._env.action_space.dtype
        action = action.cpu().numpy().astype(dtype) if action.dim() else int(action)
        observation, _, terminated, truncated, _ = self._env.step(action)
        self.over = terminated or truncated
        return observation
