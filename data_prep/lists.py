"""Lists of videos: lines "url name [start] [duration]", the times in them, and names for files and arcs."""

import re
import unicodedata
from pathlib import Path
from typing import NamedTuple

from mtld_core.runtime import UserError


class Line(NamedTuple):
    """One line of a list: start and duration in seconds, None where the line says nothing."""

    url: str
    name: str
    start: float | None
    duration: float | None


def seconds(value):
    """Seconds as a float >= 0 from a number, "90.5", "1:30.5" or "1:01:30". Raises UserError for anything else."""
    match = re.fullmatch(r"(?:(?:(\d+):)?(\d+):)?(\d+(?:\.\d*)?)", str(value).strip())
    if not match:
        raise UserError(f"{value!r} is not a time: write seconds, m:ss or h:mm:ss")
    hours, minutes, rest = match.groups(default="0")
    return int(hours) * 3600 + int(minutes) * 60 + float(rest)


def read_list(path):
    """The `Line`s of a list file; blank lines and # comments are passed over. Raises UserError naming each bad line."""
    lines, bad = [], []
    try:
        text = Path(path).read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot be read as a text file ({error})") from None
    for number, raw in enumerate(text.splitlines(), 1):
        words = re.sub(r"(^|\s)#.*", "", raw).split()
        if not words:
            continue
        try:
            if not 2 <= len(words) <= 4:
                raise UserError(f"{len(words)} words")
            start, duration = (seconds(word) for word in words[2:] + ["0"] * (4 - len(words)))
            given = len(words) - 2
            lines.append(Line(*words[:2], start if given else None, duration if given == 2 else None))
        except UserError as error:
            bad.append(f"line {number} ({error})")
    if bad:
        raise UserError(f'{path}: {", ".join(bad)}: a line is "url name [start] [duration]"')
    if not lines:
        raise UserError(f'{path}: the list is empty; write lines "url name [start] [duration]"')
    return lines


def safe_name(text):
    """A file or folder name out of `text`: letters, digits, dots, dashes, underscores; never hidden, never empty."""
    text = re.sub(r"[^\w.-]+", "_", unicodedata.normalize("NFC", text)).strip("._")
    return text[:80] or "video"


def distinct(names):
    """The names in order; one that came before (in any case) gets _2, _3 ...: the same list gives the same names."""
    taken, result = set(), []
    for name in names:
        candidate, number = name, 1
        while candidate.casefold() in taken:
            number += 1
            candidate = f"{name}_{number}"
        taken.add(candidate.casefold())
        result.append(candidate)
    return result
