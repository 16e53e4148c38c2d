"""Gymnasium environments for recording and playing: made by name and options, one small picture a step."""

import importlib

import numpy as np

from mtld_core.config import UserError, reason_of
from mtld_core.frames import fit_frame


def game_options(env, frameskip=4, repeat_probability=0.0):
    """The keywords with which `make_env` makes `env`.

    Atari shows its screen as the observation; other games render it.
    """
    if _is_atari(env):
        return {"frameskip": frameskip, "repeat_action_probability": repeat_probability, "obs_type": "rgb"}
    if repeat_probability:
        raise UserError(
            f"repeat_probability={repeat_probability} is for Atari (ALE/...); {env} knows no such thing"
        )
    return {"render_mode": "rgb_array"}


def make_env(env, options):
    """The Gymnasium environment of that id. Raises UserError where it cannot be made."""
    gymnasium = _gymnasium(env)
    try:
        return gymnasium.make(env, disable_env_checker=True, **options)
    except (gymnasium.error.Error, ImportError, TypeError) as error:
        raise UserError(f"env={env!r} cannot be made: {reason_of(error)}") from None


def frame_of(env, observation, size):
    """What the player sees now: uint8 `[size, size, 3]`, areas averaged."""
    picture = observation
    if env.render_mode == "rgb_array":
        from gymnasium.error import Error

        try:
            picture = env.render()
        except (Error, ImportError) as error:
            raise UserError(f"env={env.spec.id!r} cannot be shown: {reason_of(error)}") from None
    what = type(picture).__name__
    if isinstance(picture, np.ndarray):
        if picture.dtype == np.uint8 and picture.shape[2:] == (3,):
            return fit_frame(picture, size, size, "stretch")
        what = f"{picture.dtype} {list(picture.shape)}"
    raise UserError(f"env={env.spec.id!r} shows {what}; wanted are pictures, uint8 [H, W, 3]")


def action_facts(env):
    """{"action_names": [str]} and, where actions are A floats, "bounds": [A lowest, A highest].

    Raises UserError for actions of other kinds.
    """
    space = env.action_space
    kind = type(space).__name__
    if kind == "Discrete" and space.start == 0:
        names = getattr(env.unwrapped, "get_action_meanings", lambda: map(str, range(space.n)))
        return {"action_names": list(names())}
    if kind == "Box" and len(space.shape) == 1 and space.dtype.kind == "f" and space.is_bounded():
        names = [str(i) for i in range(space.shape[0])]
        return {"action_names": names, "bounds": [space.low.tolist(), space.high.tolist()]}
    raise UserError(
        f"env={env.spec.id!r} has actions {space}; wanted is Discrete from 0 on, or a bounded Box of floats "
        "[A]"
    )


def _is_atari(env):
    gymnasium = _gymnasium(env)
    module, _, name = env.rpartition(":")  # "module:Game-v0", which `spec` alone would not import
    try:
        if module:
            importlib.import_module(module)
        return "ale_py" in str(gymnasium.spec(name).entry_point)
    except (gymnasium.error.Error, ImportError) as error:
        raise UserError(f"env={env!r} is not known to Gymnasium: {reason_of(error)}") from None


def _gymnasium(env):
    """The module, with the Atari games registered where ale-py is there.

    Raises UserError where `env` needs what is not installed.
    """
    try:
        import gymnasium
    except ImportError:
        raise UserError("games are played through Gymnasium: pip install gymnasium ale-py") from None
    try:
        import ale_py
    except ImportError:
        if env.startswith("ALE/"):
            raise UserError(f"env={env!r}: Atari games need ale-py: pip install gymnasium ale-py") from None
        return gymnasium
    ale_py.ALEInterface.setLoggerMode(ale_py.LoggerMode.Error)  # no banner at every start
    gymnasium.register_envs(ale_py)
    return gymnasium
