"""What the user can get wrong: errors with a way out, and settings that check themselves.

A class that can be configured has its dataclass, a `Settings`, beside it. A field's annotation is its type
and its range: `int`, `str`, `tuple[int, ...]`, `bool | str`, a `Literal`, or `Positive[int]`.
"""

import contextlib
import dataclasses
import difflib
import json
import math
import os
import re
import types
import typing
from pathlib import Path


class UserError(Exception):
    """Something the user can mend: one plain line that names the file or the field, and the way out."""


class ConfigError(UserError, ValueError):
    """A setting has an unknown name, a wrong type or a value out of range."""


class RunGivenUp(UserError):
    """A run that would only waste time: too much heat, or no finite update any more."""


def check(condition, message):
    """Raise ConfigError(message) unless `condition` holds."""
    if not condition:
        raise ConfigError(message)


@contextlib.contextmanager
def can_write(path, way):
    """Raise UserError with the reason and the way out where what happens inside cannot write to `path`."""
    try:
        yield
    except OSError as error:
        raise UserError(f"{path} cannot be written ({error.strerror or error}); {way}") from error


def reason_of(error):
    """What an error says, in one line; its kind where it says nothing."""
    return " ".join(str(error).split()) or type(error).__name__


# ---- where a name is looked for

ROOT = Path(__file__).parents[1]
# folders in which a relative path is looked for after the working folder: those of a clone
places = [ROOT / "notebooks", ROOT] if (ROOT / "notebooks").is_dir() else []
HUB = "hf://"  # what an id on the Hugging Face hub begins with: hf://owner/name


def find(path):
    """`path` as text, or where nothing of that name is here, where it lies in one of `places`.

    For an id on the hub it is the folder that was fetched, where there is one.
    """
    path = os.path.expanduser(path)
    if path.startswith(HUB):
        folder = hub_folder(path)
        return folder if os.path.isdir(folder) else path
    for place in ("", *places) if path else ():
        found = os.path.join(place, path)
        if os.path.exists(found):
            return found
    return path


def hub_folder(path):
    """The folder that hf://owner/name is fetched into, one for each id: the hub allows no "--" in a name."""
    return f"runs/{path.removeprefix(HUB).replace('/', '--')}"


def looked_in(path):
    """`" (looked in A, B)"`: where a relative path was looked for; "" for an absolute one."""
    if os.path.isabs(path):
        return ""
    folders = dict.fromkeys(map(os.path.abspath, (".", *places)))
    return f" (looked in {', '.join(folders)})"


# ---- ranges, told by a field's annotation


class Range(typing.NamedTuple):
    """What a field's value must be beside its type."""

    holds: typing.Callable  # value -> whether it is in the range
    words: str  # said behind the field's name; {} stands for the value


T = typing.TypeVar("T")
Positive = typing.Annotated[T, Range(lambda value: value > 0, "must be positive, not {}")]
NotNegative = typing.Annotated[T, Range(lambda value: value >= 0, "must not be negative, it is {}")]
AtLeastOne = typing.Annotated[T, Range(lambda value: value >= 1, "must be at least 1, not {}")]
AtLeastTwo = typing.Annotated[T, Range(lambda value: value >= 2, "must be at least 2, not {}")]
BelowOne = typing.Annotated[T, Range(lambda value: 0 <= value < 1, "must be in [0, 1), not {}")]
Share = typing.Annotated[T, Range(lambda value: 0 <= value <= 1, "must be in [0, 1], not {}")]
PositiveShare = typing.Annotated[T, Range(lambda value: 0 < value <= 1, "must be in (0, 1], not {}")]
WidthsOrNone = typing.Annotated[
    tuple[int, ...], Range(lambda widths: all(width > 0 for width in widths), "must list positive widths")
]
Widths = typing.Annotated[WidthsOrNone, Range(bool, "must list positive widths")]


@dataclasses.dataclass(frozen=True)
class Settings:
    """A configuration whose fields are checked against their ranges when it is built. Raises ConfigError."""

    def __post_init__(self):
        for name, hint in typing.get_type_hints(type(self), include_extras=True).items():
            value = getattr(self, name)
            for rule in getattr(hint, "__metadata__", ()):
                check(rule.holds(value), f"{name} {rule.words.format(value)}")


# ---- from and to plain values


def nearest(name, known):
    """`"; did you mean 'x'?"` for the known name closest to `name`, else the list of the known names."""
    known = sorted(known)
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.6)
    if close:
        return f"; did you mean {close[0]!r}?"
    return f"; known: {', '.join(known[:200])}{', ...' if len(known) > 200 else ''}"


def field_names(cls):
    """Names of the fields of a dataclass, in their order."""
    return [field.name for field in dataclasses.fields(cls)]


def with_new_names(cls, values):
    """Give the dict `values` the names that the fields of `cls` have today.

    A field that was renamed says its old name in its metadata, as "was".
    """
    renamed = {field.metadata.get("was"): field.name for field in dataclasses.fields(cls)}
    return {renamed.get(name, name): value for name, value in values.items()}


def from_dict(cls, values):
    """Build the dataclass `cls` from a dict of plain JSON values, under the fields' names of today or before.

    Raises ConfigError for an unknown name (with the nearest known one), for a value of the wrong type, and
    for whatever the dataclass itself refuses.
    """
    hints = typing.get_type_hints(cls)
    checked = {}
    for name, value in with_new_names(cls, values).items():
        if name not in hints:
            raise ConfigError(f"{cls.__name__} has no setting {name!r}{nearest(name, hints)}")
        checked[name] = _convert(f"{cls.__name__}.{name}", hints[name], value)
    return cls(**checked)


def to_dict(config):
    """The fields of a dataclass as a dict of plain JSON values: tuples become lists."""
    return {name: list(value) if isinstance(value, tuple) else value for name, value in vars(config).items()}


def parse_json(text, what):
    """Read a value from JSON text. Raises ConfigError, which names `what` and the place, where it is none."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{what} is not valid JSON ({error})") from None


def parse_object(text, what):
    """Read a dict from JSON text. Raises ConfigError, which names `what`, where it is none."""
    check(isinstance(text, str), f"{what} must be JSON text, not {text!r}")
    values = parse_json(text, what)
    check(
        isinstance(values, dict),
        f'{what} must be a JSON object like {{"name": value}}, not {type(values).__name__}',
    )
    return values


def seconds(value):
    """Seconds as a float >= 0 from a number, "90.5", "1:30.5" or "1:01:30". Raises UserError."""
    match = re.fullmatch(r"(?:(?:(\d{1,9}):)?(\d{1,9}):)?(\d{1,9}(?:\.\d*)?)", str(value).strip())
    check(match, f"{value!r} is not a time: write seconds, m:ss or h:mm:ss")
    hours, minutes, rest = match.groups(default="0")
    return int(hours) * 3600 + int(minutes) * 60 + float(rest)


def _convert(name, hint, value):
    """`value` as the type `hint`. JSON's 3 may stand for 3.0, and 3.0 for 3; nothing else is bent."""
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
        value = int(value)
    right = isinstance(value, hint) and (hint is bool or not isinstance(value, bool))
    check(right, f"{name} must be of type {hint.__name__}, not {value!r}")
    check(hint is not float or math.isfinite(value), f"{name} must be finite, not {value!r}")
    check(hint is not int or abs(value) < 2**63, f"{name} must fit into 64 bits, not {value!r}")
    return value
