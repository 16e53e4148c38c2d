"""A recording as a source: frames in a folder, and a log beside them with the controls and the time of each.

The log is JSONL, one object a line:

    {"frame_filename": "f/0.png", "controls": [0.0, 1.0], "timestamp": 0.0667, "episode": 0, "action": 1}

Where a line or a frame is missing, controls no longer lead from one frame to the next: there an arc ends and
another begins.
"""

import collections
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
from mtld_core.files import can_be_read

LOG = "recording_log.jsonl"
ABOUT = "recording.json"
CLOCKS = {"timestamp": 1, "server_timestamp_ns": 1e-9}  # field with the time -> its unit in seconds
EXAMPLE = '{"frame_filename": "frames/000000.png", "controls": [0.0, 1.0], "timestamp": 0.0}'
GAP = 5  # times the median step of an episode: a longer one is a gap
LATE = 8  # lines that may have been written late together, and then are sorted into their place
LARGEST = float(np.finfo(np.float32).max)  # number that a control may be, for they are kept in float32


class Entry(NamedTuple):
    """What one line of the log says."""

    line: int  # in the log, from 1
    name: str
    controls: list  # of floats
    action: int | None
    episode: int
    time: float  # seconds
    lost: int  # malformed lines before this one


class Recording(PictureFiles):
    """The frames of one log, by episode and time.

    Each episode is an arc "episode_<n>" whose frames count from 0. Where its clock starts again or is set
    back, a new episode begins, with the number after the highest there is. An episode with a gap (a malformed
    line, a frame that cannot be used, a long time between two frames) becomes the arcs "episode_<n>",
    "episode_<n>b", ...

    size: (height, width, fit), see `fit_frame`. controls_lead_to: "next" where an entry's controls lead from
    its frame to the next one, "this" where they led to its own. Raises UserError, which names the line, where
    the data would be wrong without it.
    """

    kind = "recording"
    _clock = None  # the field with the time, as in the first entry

    def __init__(self, path, log, size, controls_lead_to):
        super().__init__(path, size)
        self.base = log.parent
        self.log = log
        self._lead_to = controls_lead_to
        self._real = functools.cache(os.path.realpath)
        malformed, entries = self._read()
        self._check_controls(entries)
        self._split_clocks(entries)
        self._note_order(entries, malformed)
        entries.sort(key=lambda entry: (entry.episode, entry.time))
        self.names = [entry.name for entry in entries]
        self._episode = np.array([entry.episode for entry in entries])
        self._part = np.cumsum(self._breaks(entries))  # the same for entries between which nothing is missing
        if all(entry.action is not None for entry in entries):
            self._controls = np.array([entry.action for entry in entries], np.int64)
        else:
            self._controls = np.array([entry.controls for entry in entries], np.float32)
        about = self.base / ABOUT
        if about.is_file():
            self.about = read_about(about.read_bytes(), about, self.notes)
        self.about["controls_lead_to"] = controls_lead_to

    @property
    def actions(self):
        """Actions, int64 `[N]`, where every entry has one; else controls, float32 `[N, A]`.

        Row i leads from frame i to frame i + 1.
        """
        kept, starts = self._rows()
        if self._lead_to == "this":
            last = np.append(starts[1:], len(kept)) - 1  # rows that lead nowhere, and keep their own
            own = kept[last]
            kept = np.roll(kept, -1)
            kept[last] = own
        return torch.from_numpy(self._controls[kept])

    def digest(self, workers=0):
        """Hex digest of the log and of the names and the content of all files."""
        return blake2b(self.log.read_bytes() + super().digest(workers).encode(), digest_size=16).hexdigest()

    def arcs(self):
        """List each `Arc` that has frames, the bad files left out."""
        kept, starts = self._rows()
        arcs = []
        parts = collections.Counter()  # episode -> how many arcs of it there are so far
        for start, stop in itertools.pairwise([*starts.tolist(), len(kept)]):
            episode = int(self._episode[kept[start]])
            part = _letters(parts[episode]) if parts[episode] else ""
            parts[episode] += 1
            numbers = kept[start:stop] - np.searchsorted(self._episode, episode)
            arcs.append(Arc(f"episode_{episode}{part}", start, stop, numbers))
        return arcs

    def _rows(self):
        """(the entry of each row, rows where an arc starts): int64."""
        kept = self.kept()
        behind_a_bad_file = np.diff(kept, prepend=-2) != 1
        in_a_new_part = np.diff(self._part[kept], prepend=-1) != 0
        return kept, np.flatnonzero(behind_a_bad_file | in_a_new_part)

    # ---- reading the log

    def _read(self):
        """({line: why it is left out}, the entries in the order of the log)."""
        malformed = {}
        entries = []
        try:
            lines = self.log.read_bytes().split(b"\n")
        except OSError as error:
            raise UserError(f"{self.log} cannot be read ({error.strerror}); name another recording") from None
        for number, line in enumerate(lines, 1):
            try:
                if line.strip():
                    entries.append(self._entry(number, line, len(malformed)))
            except ValueError as error:
                malformed[number] = str(error)
        bad = [f"line {number} ({why})" for number, why in malformed.items()]
        refuse_many(self.log, "lines", bad, len(entries) + len(bad))
        if not entries:
            raise UserError(f"{self.log} holds no usable entry; wanted are lines such as {EXAMPLE}")
        self.notes += [f"{self.log.name}: line {number} left out, {why}" for number, why in malformed.items()]
        return malformed, entries

    def _entry(self, number, line, lost):
        """The `Entry` of a line.

        lost: malformed lines before it. Raises ValueError where the line may be left out, UserError where the
        data would be wrong without it.
        """
        try:
            fields = json.loads(line)
        except (ValueError, RecursionError):
            raise ValueError("not valid JSON") from None
        if not isinstance(fields, dict):
            raise ValueError("not a JSON object")
        name = self._inside(number, _field(fields, "frame_filename"))
        controls = _controls(_field(fields, "controls"))
        action, episode = fields.get("action"), fields.get("episode", 0)
        if action is not None and not (type(action) is int and 0 <= action < 2**31):
            raise ValueError(f"'action' is {action!r}, not a whole number from 0 on")
        if type(episode) is not int or abs(episode) >= 2**62:
            raise ValueError(f"'episode' is {episode!r}, not a whole number")
        clock = self._clock or next((name for name in CLOCKS if name in fields), "timestamp")
        time = _field(fields, clock)
        if not _is_number(time) or not np.isfinite(time):
            raise ValueError(f"{clock!r} is {time!r}, not a number")
        self._clock = clock
        return Entry(number, name, controls, action, episode, time * CLOCKS[clock], lost)

    def _inside(self, number, name):
        """`name` with forward slashes.

        Raises UserError where it leads out of the log's folder, ValueError where it is no file name.
        """
        if not isinstance(name, str) or not name:
            raise ValueError(f"'frame_filename' is {name!r}, not a file name")
        path = PurePosixPath(name.replace("\\", "/"))
        drive = re.match("[A-Za-z]:/", str(path))  # a colon elsewhere belongs to the name, "0:00:01.png"
        if not (path.is_absolute() or drive or ".." in path.parts):
            folder, file = os.path.split(os.path.join(self.base, path))
            place = os.path.join(self._real(folder), file)
            if os.path.islink(place):
                place = self._real(place)
            if Path(place).is_relative_to(self._real(self.base)):
                return path.as_posix()
        raise UserError(
            f"{self.log}: line {number}: frame_filename {name!r} leads out of the recording's folder; move "
            "the frames into it and name them relative to it"
        )

    def _check_controls(self, entries):
        """Raise UserError where controls are not finite, or not as many as in the first entry."""
        first = entries[0]
        for entry in entries:
            if len(entry.controls) != len(first.controls):
                raise UserError(
                    f"{self.log}: line {entry.line}: controls has {len(entry.controls)} numbers and line "
                    f"{first.line} has {len(first.controls)}; give every line the same"
                )
            if not all(abs(value) <= LARGEST for value in entry.controls):
                raise UserError(
                    f"{self.log}: line {entry.line}: controls {entry.controls} are not finite numbers; mend "
                    "or remove the line"
                )

    def _split_clocks(self, entries):
        """Begin a new episode, and note it, wherever the clock of one starts again or is set back."""
        places = {}  # episode -> places of its entries
        stretches = []  # (places of entries by one clock, the time before these)
        for place, entry in enumerate(entries):
            places.setdefault(entry.episode, []).append(place)
        for of_one in places.values():
            begins = _set_back([entries[place].time for place in of_one])
            for begin, end in itertools.pairwise([*begins, len(of_one)]):
                before = entries[of_one[begin - 1]].time
                stretches.append((of_one[begin:end], before))
        for episode, (stretch, before) in enumerate(sorted(stretches), max(places) + 1):
            first = entries[stretch[0]]
            self.notes.append(
                f"{self.log.name}: line {first.line}: the clock goes from {before:.12g} s back to "
                f"{first.time:.12g} s, it started again or was set: a new episode begins, episode_{episode}"
            )
            for place in stretch:
                entries[place] = entries[place]._replace(episode=episode)

    def _note_order(self, entries, malformed):
        """Note names and time stamps that come again, and those out of order.

        Raises UserError where a malformed line may belong anywhere.
        """
        again = []
        disorder = []
        equal = []
        names = set()
        moments = set()
        latest = {}  # episode -> its highest time so far
        for entry in entries:
            if entry.name in names:
                again.append(entry.line)
            if entry.time < latest.get(entry.episode, -np.inf):
                disorder.append(entry.line)
            else:
                latest[entry.episode] = entry.time
            if (entry.episode, entry.time) in moments:
                equal.append(entry.line)
            names.add(entry.name)
            moments.add((entry.episode, entry.time))
        if disorder and malformed:
            number, why = next(iter(malformed.items()))
            raise UserError(
                f"{self.log}: {_lines(disorder)} out of the order of time, so where line {number} ({why}) "
                "belongs is not known; mend that line, or sort the log"
            )
        for found, what in [
            (again, "the frame_filename of an earlier line again"),
            (disorder, "time stamps out of order, sorted by time"),
            (equal, "the time stamp of another line again, kept in the file's order"),
        ]:
            if found:
                self.notes.append(f"{self.log.name}: {_lines(found)}: {what}")

    def _breaks(self, entries):
        """A bool for each entry, in the order of the store: whether something is missing before it.

        Notes gaps in time.
        """
        breaks = []
        for episode, group in itertools.groupby(entries, key=lambda entry: entry.episode):
            group = list(group)
            steps = np.diff([entry.time for entry in group])
            usual = np.median(steps) if len(steps) else 0
            breaks.append(True)
            for before, entry, step in zip(group, group[1:], steps, strict=False):
                gap = 0 < GAP * usual < step
                breaks.append(gap or before.lost != entry.lost)
                if gap:
                    self.notes.append(
                        f"{self.log.name}: line {entry.line}: {step:.3g} s after the frame before, not "
                        f"{usual:.3g} s as elsewhere in episode {episode}: a new arc begins"
                    )
        return breaks


def _set_back(times):
    """Places in `times` (of one episode, in the file's order) where the clock starts again or is set back.

    A line that was only written late is no such place: see `_is_late`. There is none either where lines step
    back all the time, and no time comes twice: such a file is in no order of time, or in the reverse one.
    """
    steps = np.diff(times)
    back = int((steps < 0).sum())
    if not back or (3 * back >= len(times) and len(set(times)) == len(times)):
        return []
    usual = float(np.median(np.abs(steps[steps != 0])))
    found = []
    start = 0  # where the clock began
    latest = times[0]  # its highest time since then
    i = 1
    while i < len(times):
        late = []
        for time in times[i : i + LATE + 1]:
            if time >= latest:
                break
            late.append(time)
        if late and not _is_late(times[max(start, i - 4 * LATE) : i], late, usual):
            found.append(i)
            start = i
            latest = times[i]
            late = []
        i += max(1, len(late))
        latest = max(latest, times[i - 1])
    return found


def _is_late(before, late, usual):
    """Whether lines at the times `late` are only written late, behind those at the times `before`.

    usual: the clock's step. They are where they lie less than a step behind, or where the lines before left
    room for them: each is more than half a step from every other. A clock that runs again through times that
    it has been through finds no room there.
    """
    if max(before) - min(late) < 0.9 * usual:
        return True
    inside = np.diff(np.sort(late))
    apart = np.abs(np.subtract.outer(late, before))
    room = 0.5 * usual * (1 + 1e-6)
    near = room < apart.min() <= GAP * usual
    return len(late) <= LATE and near and (inside > room).all()


def find_log(path):
    """Find the log of the recording at `path`; None where that is no recording.

    The log is the file itself, or the folder's recording_log.jsonl, or its only .jsonl.
    """
    if path.suffix.lower() == ".jsonl":
        return path
    logs = list(filter(can_be_read, path.glob("*.jsonl")))
    if path / LOG in logs:
        return path / LOG
    return logs[0] if len(logs) == 1 else None


def read_about(text, where, warnings):
    """Read a dict from JSON text; where it is damaged, {}, with a line that names `where` in `warnings`."""
    try:
        about = json.loads(text)
    except (ValueError, TypeError, RecursionError):
        about = None
    if isinstance(about, dict):
        return about
    warnings.append(f"{where}: passed over, not a JSON object")
    return {}


def _field(entry, name):
    """The field `name` of a dict. Raises ValueError, with the nearest known name, where it is missing."""
    if name not in entry:
        raise ValueError(f"no field {name!r}{nearest(name, entry) if entry else ''}")
    return entry[name]


def _controls(value):
    """The floats in a list, or left x, left y, right x, right y of {"leftStick": ..., "rightStick": ...}.

    A stick is {"x": ..., "y": ...} or [x, y]. Raises ValueError for anything else.
    """
    if isinstance(value, dict):
        sticks = [_field(value, "leftStick"), _field(value, "rightStick")]
        value = []
        for stick in sticks:
            pair = [_field(stick, "x"), _field(stick, "y")] if isinstance(stick, dict) else stick
            if not isinstance(pair, list) or len(pair) != 2:
                raise ValueError("a stick in 'controls' is neither {x, y} nor [x, y]")
            value += pair
    if not isinstance(value, list) or not value or not all(_is_number(one) for one in value):
        raise ValueError("'controls' is no list of numbers, and no leftStick and rightStick")
    return [float(one) for one in value]


def _is_number(value):
    return isinstance(value, float) or (isinstance(value, int) and abs(value) < 2**63)


def _lines(numbers):
    more = f" and {len(numbers) - 1} more" if len(numbers) > 1 else ""
    return f"line {numbers[0]}{more}"


def _letters(part):
    """0 -> "a", 25 -> "z", 26 -> "aa"."""
    before = _letters(part // 26 - 1) if part > 25 else ""
    return before + chr(ord("a") + part % 26)
