"""A recording as a source: frames in a folder, and beside them a log, JSONL, with the controls and the time
of each.

    {"frame_filename": "frames/000000.png", "controls": [0.0, 1.0], "timestamp": 0.0667, "episode": 0,
    "action": 1}

Where a line or a frame is missing, controls no longer lead from one frame to the next: there an arc ends and
another begins.
"""

import functools
import itertools
import json
import os
import re
from hashlib import blake2b
from pathlib import Path, PurePosixPath
from typing import NamedTuple

import numpy as np
import torch

from mtld_core.config import UserError, nearest
from mtld_core.data.dataset import Arc
from mtld_core.data.pictures import PictureFiles, refuse_many

LOG = "recording_log.jsonl"
ABOUT = "recording.json"
CLOCKS = {"timestamp": 1, "server_timestamp_ns": 1e-9}  # in seconds
EXAMPLE = '{"frame_filename": "frames/000000.png", "controls": [0.0, 1.0], "timestamp": 0.0}'
GAP = 5  # times the median step of an episode: a longer one is a gap
LATE = 8  # lines that may have been written late together, and then are sorted into their place
LARGEST = float(np.finfo(np.float32).max)  # of what the controls are kept as


class Entry(NamedTuple):
    line: int  # in the log, from 1
    name: str
    controls: list  # of floats
    action: int | None
    episode: int  # as the line says, or a new one where the clock of that one starts again
    time: float  # seconds
    lost: int  # malformed lines before this one


class Recording(PictureFiles):
    """The frames of one log, by episode and time; each episode is an arc "episode_<n>" whose frames count
    from 0.

    Where the clock of an episode starts again or is set back, a new episode begins, with the number after the
    highest there is. An episode with a gap (a malformed line, a frame that cannot be used, a long time
    between two frames) becomes the arcs "episode_<n>", "episode_<n>b", ... actions: int64 `[N]` where every
    entry has an integer `action`, else the controls, float32 `[N, A]`. controls_lead_to: "next" where an
    entry's controls lead from its frame to the next one, "this" where they led to its own. Raises UserError
    naming the line.
    """

    kind = "recording"

    def __init__(self, path, log, controls_lead_to, height=0, width=0, fit="crop"):
        super().__init__(path, height, width, fit)
        self.base, self.log, self._lead_to = log.parent, log, controls_lead_to
        self._clock, self._count = (
            None,
            None,
        )  # as in the first entry: the field with the time, (controls, line)
        self._real = functools.cache(os.path.realpath)
        entries = self._read()
        entries = [entries[i] for i in np.lexsort(([e.time for e in entries], [e.episode for e in entries]))]
        self.names = [entry.name for entry in entries]
        self._episode = np.array([entry.episode for entry in entries])
        self._part = np.cumsum(self._breaks(entries))  # the same for entries between which nothing is missing
        whole = all(entry.action is not None for entry in entries)
        self._controls = np.array(
            [e.action if whole else e.controls for e in entries], np.int64 if whole else np.float32
        )
        if (about := self.base / ABOUT).is_file():
            self.about = read_about(about.read_bytes(), about, self.notes)

    @property
    def actions(self):
        kept, starts = self._kept()
        if self._lead_to == "this":
            ends = np.append(starts[1:], len(kept)) - 1
            last = kept[ends]
            kept = np.roll(kept, -1)
            kept[ends] = last  # leads nowhere
        return torch.from_numpy(self._controls[kept])

    def digest(self, workers=0):
        """Hex key of the log and the content of all files."""
        return blake2b(self.log.read_bytes() + super().digest(workers).encode(), digest_size=16).hexdigest()

    def arcs(self):
        """The arcs without their bad files."""
        kept, starts = self._kept()
        arcs, parts = [], {}
        for start, stop in itertools.pairwise([*starts.tolist(), len(kept)]):
            episode = int(self._episode[kept[start]])
            parts[episode] = parts.get(episode, -1) + 1
            name = f"episode_{episode}{_letters(parts[episode]) if parts[episode] else ''}"
            arcs.append(Arc(name, start, stop, kept[start:stop] - np.searchsorted(self._episode, episode)))
        return arcs

    def _kept(self):
        """(entries that have a row, rows where an arc starts): int64."""
        kept = np.array([i for i in range(len(self.names)) if i not in self.bad])
        new = (np.diff(kept, prepend=-2) != 1) | (np.diff(self._part[kept], prepend=-1) != 0)
        return kept, np.flatnonzero(new)

    # ---- reading the log

    def _read(self):
        """The entries in the order of the log."""
        entries, malformed = [], {}
        try:
            with open(self.log, "rb") as file:
                for number, line in enumerate(file, 1):
                    if line.strip():
                        try:
                            entries.append(self._entry(number, line, len(malformed)))
                        except ValueError as error:
                            malformed[number] = str(error)
        except OSError as error:
            raise UserError(f"{self.log} cannot be read ({error.strerror}); name another recording") from None
        bad = [f"line {number} ({why})" for number, why in malformed.items()]
        refuse_many(self.log, "lines", bad, len(entries) + len(bad))
        if not entries:
            raise UserError(f"{self.log} holds no usable entry; wanted are lines such as {EXAMPLE}")
        self.notes += [f"{self.log.name}: line {number} left out, {why}" for number, why in malformed.items()]
        entries = self._started_again(entries)
        self._note_order(entries, bad)
        return entries

    def _started_again(self, entries):
        """The entries, with a new episode wherever the clock of one starts again or is set back, each of
        which is noted.
        """
        lines = {}  # episode -> the places of its entries
        for i, entry in enumerate(entries):
            lines.setdefault(entry.episode, []).append(i)
        begins = {
            places[i]
            for places in lines.values()
            for i in _set_back([entries[place].time for place in places])
        }
        last, now, renamed = max(lines), {}, []
        before = {}  # episode -> the time of its last line
        for i, entry in enumerate(entries):
            if i in begins:
                last += 1
                now[entry.episode] = last
                self.notes.append(
                    f"{self.log.name}: line {entry.line}: the clock goes from {before[entry.episode]:.12g} s "
                    "back to "
                    f"{entry.time:.12g} s, it started again or was set: a new episode begins, episode_{last}"
                )
            before[entry.episode] = entry.time
            renamed.append(entry._replace(episode=now.get(entry.episode, entry.episode)))
        return renamed

    def _entry(self, number, line, lost):
        """The `Entry` of a line. Raises ValueError where it may be left out, UserError where the data would
        be wrong.
        """
        try:
            entry = json.loads(line)
        except (ValueError, RecursionError):
            raise ValueError("not valid JSON") from None
        if not isinstance(entry, dict):
            raise ValueError("not a JSON object")
        name = self._inside(number, _field(entry, "frame_filename"))
        controls = self._checked(number, _controls(_field(entry, "controls")))
        action, episode = entry.get("action"), entry.get("episode", 0)
        if action is not None and not (type(action) is int and 0 <= action < 2**31):
            raise ValueError(f"'action' is {action!r}, not a whole number from 0 on")
        if type(episode) is not int or abs(episode) >= 2**62:
            raise ValueError(f"'episode' is {episode!r}, not a whole number")
        clock = self._clock or next((name for name in CLOCKS if name in entry), "timestamp")
        time = _field(entry, clock)
        if not _is_number(time) or not np.isfinite(time):
            raise ValueError(f"{clock!r} is {time!r}, not a number")
        self._clock, self._count = clock, self._count or (len(controls), number)
        return Entry(number, name, controls, action, episode, time * CLOCKS[clock], lost)

    def _inside(self, number, name):
        """`name` with forward slashes. Raises UserError where it leads out of the log's folder."""
        if not isinstance(name, str) or not name:
            raise ValueError(f"'frame_filename' is {name!r}, not a file name")
        path = PurePosixPath(name.replace("\\", "/"))
        drive = re.match("[A-Za-z]:/", str(path))  # a colon elsewhere belongs to the name, "0:00:01.png"
        if not path.is_absolute() and not drive and ".." not in path.parts:
            folder, name = os.path.split(os.path.join(self.base, path.as_posix()))
            file = os.path.join(self._real(folder), name)
            if Path(self._real(file) if os.path.islink(file) else file).is_relative_to(self._real(self.base)):
                return path.as_posix()
        raise UserError(
            f"{self.log}: line {number}: frame_filename {name!r} leads out of the recording's folder; move "
            "the frames into "
            f"it and name them relative to it"
        )

    def _checked(self, number, controls):
        """`controls` if there are as many of them as in the first entry, all finite. Raises UserError
        else.
        """
        count, first = self._count or (len(controls), number)
        where = f"{self.log}: line {number}: controls"
        if len(controls) != count:
            raise UserError(
                f"{where} has {len(controls)} numbers and line {first} has {count}; give every line the same"
            )
        if not all(abs(value) <= LARGEST for value in controls):
            raise UserError(f"{where} {controls} are not finite numbers; mend or remove the line")
        return controls

    def _note_order(self, entries, malformed):
        """Note names that come again and time stamps out of order. Raises UserError where the order cannot be
        mended.
        """
        log, times, names = self.log.name, {}, {}
        again, disorder, equal = [], [], []
        for entry in entries:
            if names.setdefault(entry.name, entry.line) != entry.line:
                again.append(entry.line)
            before = times.get(entry.episode, -np.inf)
            times[entry.episode] = max(entry.time, before)
            if entry.time < before:
                disorder.append(entry.line)
        for a, b in itertools.pairwise(sorted(entries, key=lambda entry: (entry.episode, entry.time))):
            if (a.episode, a.time) == (b.episode, b.time):
                equal.append(b.line)
        if disorder and malformed:
            raise UserError(
                f"{self.log}: {_lines(disorder)} out of the order of time, so where {malformed[0]} belongs "
                "is not known; "
                f"mend that line, or sort the log"
            )
        for found, what in [
            (again, "the frame_filename of an earlier line again"),
            (disorder, "time stamps out of order, sorted by time"),
            (equal, "the time stamp of another line again, kept in the file's order"),
        ]:
            self.notes += [f"{log}: {_lines(found)}: {what}"] if found else []

    def _breaks(self, entries):
        """bool `[n]`: the entries (in the order of the store) before which something is missing. Notes gaps
        in time.
        """
        time, lost = np.array([entry.time for entry in entries]), np.array([entry.lost for entry in entries])
        new = np.diff(self._episode, prepend=self._episode[0] - 1) != 0
        steps = np.diff(time, prepend=time[0])
        breaks = new | (np.diff(lost, prepend=0) != 0)
        starts = np.flatnonzero(new).tolist()
        for start, stop in itertools.pairwise([*starts, len(entries)]):
            inner = steps[start + 1 : stop]
            usual = np.median(inner) if len(inner) else 0
            for i in start + 1 + np.flatnonzero(inner > GAP * usual) if usual else []:
                self.notes.append(
                    f"{self.log.name}: line {entries[i].line}: {steps[i]:.3g} s after the frame before, not "
                    f"{usual:.3g} s as "
                    f"elsewhere in episode {entries[i].episode}: a new arc begins"
                )
                breaks[i] = True
        return breaks


def _set_back(times):
    """Places in `times` (of one episode, in the file's order) where the clock starts again or is set back.

    A line that was only written late is none: see `_is_late`. Nor are they where lines step back all the
    time, and no time comes twice: such a file is in no order of time, or in the reverse one.
    """
    steps = np.diff(times)
    back = int((steps < 0).sum())
    if not back or (3 * back >= len(times) and len(set(times)) == len(times)):
        return []
    usual, found = float(np.median(np.abs(steps[steps != 0]))), []
    start, latest, i = 0, times[0], 1
    while i < len(times):
        late = []
        for time in times[i : i + LATE + 1]:
            if time >= latest:
                break
            late.append(time)
        if late and not _is_late(times[max(start, i - 4 * LATE) : i], late, usual):
            found.append(i)
            start, latest, late = i, times[i], []
        i += max(1, len(late))
        latest = max(latest, times[i - 1])
    return found


def _is_late(before, late, usual):
    """Whether lines at the times `late` only come late after those at the times `before`, whose clock takes
    `usual` steps.

    So it is where they are less than a step behind, or where the lines before left room for them, so that
    each is more than half a step from every other. A clock that runs again through times that it has been
    through finds no room there.
    """
    if max(before) - min(late) < 0.9 * usual:
        return True
    inside = np.diff(np.sort(late))
    apart = np.abs(np.subtract.outer(late, before))
    room = 0.5 * usual * (1 + 1e-6)
    return len(late) <= LATE and apart.min() > room and apart.min() <= GAP * usual and (inside > room).all()


def find_log(path):
    """The log of the recording at `path`: the file itself, the folder's recording_log.jsonl or only .jsonl;
    else None.
    """
    if path.suffix.lower() == ".jsonl":
        return path
    logs = list(path.glob("*.jsonl")) if path.is_dir() else []
    return path / LOG if path / LOG in logs else logs[0] if len(logs) == 1 else None


def read_about(text, where, warnings):
    """The JSON object in `text`; {} and a line more in `warnings` where it is damaged."""
    try:
        about = json.loads(text)
    except (ValueError, TypeError, RecursionError):
        about = None
    if isinstance(about, dict):
        return about
    warnings.append(f"{where}: passed over, not a JSON object")
    return {}


def _field(entry, name):
    if name not in entry:
        raise ValueError(f"no field {name!r}{nearest(name, entry) if entry else ''}")
    return entry[name]


def _controls(value):
    """A list of floats from a list, or from {"leftStick": {x, y} or [x, y], "rightStick": ...}: left x, y,
    right x, y.
    """
    if isinstance(value, dict):
        sticks = [_field(value, "leftStick"), _field(value, "rightStick")]
        pairs = [[_field(one, "x"), _field(one, "y")] if isinstance(one, dict) else one for one in sticks]
        if not all(isinstance(pair, list) and len(pair) == 2 for pair in pairs):
            raise ValueError("a stick in 'controls' is neither {x, y} nor [x, y]")
        value = pairs[0] + pairs[1]
    if not isinstance(value, list) or not value or not all(_is_number(one) for one in value):
        raise ValueError("'controls' is no list of numbers, and no leftStick and rightStick")
    return [float(one) for one in value]


def _is_number(value):
    return isinstance(value, float) or (isinstance(value, int) and abs(value) < 2**63)


def _lines(numbers):
    return f"line {numbers[0]}" + (f" and {len(numbers) - 1} more" if len(numbers) > 1 else "")


def _letters(part):
    """0 -> "a", 25 -> "z", 26 -> "aa"."""
    return (_letters(part // 26 - 1) if part > 25 else "") + chr(97 + part % 26)
