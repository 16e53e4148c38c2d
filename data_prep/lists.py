"""Lists of videos: lines "url name [start] [duration]", the times in them, and names for files and arcs."""

import itertools
import os
import re
import unicodedata
from pathlib import Path
from typing import NamedTuple

from mtld_core.config import UserError, seconds
from mtld_core.data.folder import VIDEO_SUFFIXES

LONGEST = 200  # bytes of a name; file systems take 255, and we put something before it and behind
FORM = 'a line is "url name [start] [duration]", with quotes around what has spaces in it'


class Line(NamedTuple):
    """One line of a list: start and duration in seconds, None where the line says nothing."""

    url: str
    name: str
    start: float | None
    duration: float | None


def read_list(path):
    """The `Line`s of a list file; blank lines and # comments are passed over.

    Raises UserError, which names each bad line.
    """
    path, lines, bad = Path(path), [], []
    try:
        text = text_of(path.read_bytes())
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from None
    if text is None:
        raise UserError(f"{path}: cannot be read as a text file; save it as UTF-8")
    for number, raw in enumerate(text.splitlines(), 1):
        words = _words(raw)
        if not words:
            continue
        try:
            lines.append(_line(words, path.parent))
        except UserError as error:
            bad.append(f"line {number} ({error})")
    if bad:
        raise UserError(f"{path}: {', '.join(bad)}: {FORM}")
    if not lines:
        raise UserError(f"{path}: the list is empty; {FORM}")
    return lines


def text_of(data):
    """The text that `data` (bytes) is, None where it is none.

    UTF-8, or UTF-16 as Windows writes it, with a byte order mark or without.
    """
    if data.startswith((b"\xff\xfe", b"\xfe\xff")):
        encoding = "utf-16"
    elif b"\0" not in data:
        encoding = "utf-8-sig"
    else:  # of plain letters the upper byte is 0
        encoding = "utf-16-le" if data[1::2].count(0) > data[::2].count(0) else "utf-16-be"
    try:
        text = data.decode(encoding)
    except UnicodeDecodeError:
        return None
    return None if "\0" in text else text


def _words(raw):
    """The words of a line without its comment: (text, whether it was quoted)."""
    found = []
    for quoted, plain in re.findall(r'"([^"]*)"|(\S+)', raw):
        if plain.startswith("#"):
            break
        found.append((plain or quoted, not plain))
    return found


def _line(words, folder):
    """A `Line`. Spaces without quotes are understood where only one reading makes sense. Raises UserError."""
    parts = _words_of_url(words, folder)
    url, rest = " ".join(word for word, _ in words[:parts]), words[parts:]
    times = []
    while len(rest) > 1 and _is_time_like(*rest[-1]):
        times.insert(0, rest.pop()[0])
    if not rest or len(times) > 2:
        raise UserError(f"{len(words)} words")
    name = " ".join(word for word, _ in rest)
    start, duration, *_ = [*map(seconds, times), None, None]
    return Line(url, name, start, duration)


def _words_of_url(words, folder):
    """How many words the url has: up to a file's name beside the list, or up to what ends like a video."""
    plain = [word for word, _ in itertools.takewhile(lambda word: not word[1], words)]
    most = min(len(plain), len(words) - 1)  # a name must remain
    for count in range(most, 1, -1):
        if os.path.isfile(folder / " ".join(plain[:count])):  # Path.is_file raises where a name is too long
            return count
    if most < 2 or _is_whole(plain[0]) or os.path.isfile(folder / plain[0]):
        return 1
    for count, (word, after) in enumerate(zip(plain[:most], words[1:], strict=False), 1):
        if _ends_a_url(word) and not _is_time_like(*after):
            return count
    return 1


def _is_whole(word):
    """Whether a first word is a whole url: it ends like a video, or it has a query."""
    return _ends_a_url(word) or ("://" in word and "?" in word)


def _ends_a_url(word):
    """Whether a word ends like a video, as it is or without its query."""
    return any(text.lower().endswith(VIDEO_SUFFIXES) for text in (word, re.split(r"[?#]", word)[0]))


def _is_time_like(word, quoted):
    """Whether a word is a time, or what somebody wrote for one: 1:3x, 1,5 and 90s are, 4K and 2nd are not."""
    return not quoted and re.fullmatch(r"-?\d\S*:\S*|-?\d(?:[\d.,hms]|min|sec)*", word) is not None


def safe_name(text):
    """A file or folder name out of `text`: letters, digits, dots, dashes and underscores.

    It is never hidden, empty or too long.
    """
    text = re.sub(r"[^\w.-]+", "_", unicodedata.normalize("NFC", text)).strip("._")
    return text[:80].encode()[:LONGEST].decode(errors="ignore") or "video"  # no half letter


def distinct(names):
    """The names in order; one that came before, in upper or lower case, gets _2, _3 ...

    The same list gives the same names.
    """
    taken, result = set(), []
    for name in names:
        candidate, number = name, 1
        while candidate.casefold() in taken:
            number += 1
            candidate = f"{name}_{number}"
        taken.add(candidate.casefold())
        result.append(candidate)
    return result
