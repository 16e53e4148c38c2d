"""Settings as frozen dataclasses: checked when built, written to JSON and read back without loss.

Every class that can be configured has its dataclass beside it. A field's annotation is its rule: `int`,
`float`, `bool`, `str`, `tuple[int, ...]`, `bool | str` or a `Literal` of the words that are allowed. Ranges
are checked in its own `__post_init__`.
"""

import contextlib
import dataclasses
import difflib
import json
import math
import re
import types
import typing


class ConfigError(ValueError):
    """A setting has an unknown name, a wrong type or a value out of range. The message names it and the way
    out.
    """


def nearest(name, known):
    """`"; did you mean 'x'?"` for the known name closest to `name`, else the list of all known names."""
    known = sorted(known)
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.6)
    return f"; did you mean {close[0]!r}?" if close else f"; known: {', '.join(known)}"


def field_names(cls):
    return [field.name for field in dataclasses.fields(cls)]


def from_dict(cls, values):
    """Build `cls` from a dict of plain JSON values.

    Raises ConfigError for an unknown key (with the nearest known name), for a value of the wrong type, and
    for whatever the dataclass itself refuses.
    """
    hints = typing.get_type_hints(cls)
    checked = {}
    for name, value in values.items():
        if name not in hints:
            raise ConfigError(f"{cls.__name__} has no setting {name!r}{nearest(name, hints)}")
        checked[name] = _convert(f"{cls.__name__}.{name}", hints[name], value)
    return cls(**checked)


def from_json(cls, text):
    """`from_dict` on JSON text. Raises ConfigError where the text is not a JSON object."""
    return from_dict(cls, parse_object(text, cls.__name__))


def parse_object(text, what):
    """The dict in `text` (JSON). Raises ConfigError naming `what`, the line and the column where it is not
    one.
    """
    check(isinstance(text, str), f"{what} must be JSON text, not {text!r}")
    try:
        values = json.loads(text)
    except json.JSONDecodeError as error:
        raise ConfigError(
            f"{what} is not valid JSON (line {error.lineno}, column {error.colno}: {error.msg})"
        ) from None
    if not isinstance(values, dict):
        raise ConfigError(f'{what} must be a JSON object like {{"name": value}}, not {type(values).__name__}')
    return values


def to_dict(config):
    """The settings as plain JSON values (tuples become lists)."""
    return {name: list(value) if isinstance(value, tuple) else value for name, value in vars(config).items()}


def to_json(config):
    return json.dumps(to_dict(config), indent=2)


def check(condition, message):
    """Raise ConfigError(message) unless `condition`: one line per rule in a dataclass's `__post_init__`."""
    if not condition:
        raise ConfigError(message)


def _convert(name, hint, value):
    """`value` as the type that `hint` asks for. JSON's 3 may stand for 3.0, and 3.0 for 3; nothing else is
    bent.
    """
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin is typing.Literal:
        check(value in args, f"{name} must be one of {', '.join(map(repr, args))}, not {value!r}")
        return value
    if origin is tuple:
        check(isinstance(value, (list, tuple)), f"{name} must be a list, not {value!r}")
        return tuple(_convert(f"{name}[{i}]", args[0], item) for i, item in enumerate(value))
    if origin is types.UnionType:
        check(
            isinstance(value, args),
            f"{name} must be {' or '.join(arg.__name__ for arg in args)}, not {value!r}",
        )
        return value
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        with contextlib.suppress(OverflowError):
            return float(value)
    if hint is int and isinstance(value, float) and value.is_integer():
        return int(value)
    right = isinstance(value, hint) and (hint is bool or not isinstance(value, bool))
    check(right, f"{name} must be of type {hint.__name__}, not {value!r}")
    check(hint is not float or math.isfinite(value), f"{name} must be finite, not {value!r}")
    return value


class UserError(Exception):
    """Something the user can mend. The message is one plain line that names the file or field and the way
    out.
    """


class RunGivenUp(UserError):
    """A run that went wrong by itself, so that going on would waste time: too much heat, no finite update any
    more.
    """


def seconds(value):
    """Seconds as a float >= 0 from a number, "90.5", "1:30.5" or "1:01:30". Raises UserError for anything
    else.
    """
    match = re.fullmatch(r"(?:(?:(\d+):)?(\d+):)?(\d+(?:\.\d*)?)", str(value).strip())
    if not match:
        raise UserError(f"{value!r} is not a time: write seconds, m:ss or h:mm:ss")
    hours, minutes, rest = match.groups(default="0")
    return int(hours) * 3600 + int(minutes) * 60 + float(rest)
