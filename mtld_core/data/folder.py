"""A folder of frames as a source: which files make which arc and in which order, and decoding them into a store.

A source (this, recording.py or hdf5.py) has `path`, `kind`, `warnings`, `actions`, `about`, `bad`, and the methods
`measure`, `fill` and `arcs`; store.py decides where the frames go. Where it is `cached` it has `digest`, else `lazy`.
"""

import collections
import itertools
import os
import re

import numpy as np

from mtld_core.data.dataset import Arc
from mtld_core.data.pictures import PictureFiles
from mtld_core.runtime import UserError

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp")
VIDEO_SUFFIXES = (".mp4", ".m4v", ".mov", ".mkv", ".webm", ".avi", ".mpg", ".mpeg", ".ts", ".flv", ".ogv", ".wmv", ".gif")
LAYOUT = "<folder>/<arc>/frame_0000.png"
CONTACT_SHEET = "contact_sheet.png"  # data_prep puts it beside the arcs


class Folder(PictureFiles):
    """Image files `<root>/<arc>/<name>`, or right inside `root`, which then is the only arc.

    names: "arc/file" in the order of the store. Raises UserError where there is no image, or what there is has to be
    extracted first.
    """

    def __init__(self, root, height=0, width=0, fit="crop"):
        super().__init__(root, height, width, fit)
        self.spans = []  # (arc, first, last + 1 in names, numbers)
        images, others, folders = _listing(root)
        inner = {name: _listing(root / name) for name in sorted(folders, key=_natural)}
        arcs = {name: found for name, found in inner.items() if found[0]}
        if arcs:
            self.notes += [f"{name}: lies beside the arcs, left out" for name in images + others]
            self.notes += [f"{name}: a folder without images, left out" for name in inner if name not in arcs]
        elif images:
            self.base, arcs = root.parent, {root.name: (images, others, folders)}
        else:
            files = others + [name for found in inner.values() for name in found[1]]
            if any(name.lower().endswith(VIDEO_SUFFIXES) for name in files):
                raise UserError(f"{root} holds videos, not frames: run notebooks/01_extract_frames on it first")
            raise UserError(f"{root} holds no images ({', '.join(SUFFIXES)}); wanted is {LAYOUT}")
        numbered = [self._add(name, *found) for name, found in arcs.items()]
        self.kind = "arcs" if any(numbered) else "images"

    def arcs(self):
        """The arcs without their bad files."""
        arcs, row = [], 0
        for name, first, last, numbers in self.spans:
            good = np.array([i not in self.bad for i in range(first, last)])
            if good.any():
                arcs.append(Arc(name, row, row + int(good.sum()), numbers[good]))
                row = arcs[-1].stop
        return arcs

    def _add(self, arc, images, others, folders):
        """Append an arc's files in their order. True where one has a number."""
        self.notes += [f"{arc}/{name}: a folder inside an arc, left out" for name in sorted(folders)]
        self.notes += [f"{arc}/{name}: not an image ({', '.join(SUFFIXES)}), left out" for name in others]
        numbered = sorted((number, name) for name in images if (number := _number(name)) is not None)
        plain = sorted((name for name in images if _number(name) is None), key=_natural)
        numbers = [number for number, _ in numbered]
        if plain:
            self.notes.append(f"{arc}: {len(plain)} files have no number in the name ({plain[0]}, ...), sorted by name")
        self.notes += _irregular(arc, numbered)
        after = numbers[-1] + 1 if numbers else 0
        numbers += range(after, after + len(plain))
        first = len(self.names)
        self.names += [f"{arc}/{name}" for name in [name for _, name in numbered] + plain]
        self.spans.append((arc, first, len(self.names), np.array(numbers, np.int64)))
        return bool(numbered)


def _listing(folder):
    """(images, other files, folders) by name; hidden ones are passed over."""
    images, others, folders = [], [], []
    for entry in os.scandir(folder):
        if not entry.name.startswith(".") and entry.name != CONTACT_SHEET:
            kind = folders if entry.is_dir() else images if entry.name.lower().endswith(SUFFIXES) else others
            kind.append(entry.name)
    return images, sorted(others), folders


def _natural(name):
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in re.split(r"(\d+)", name)]


def _number(name):
    """The first number in a file name, without its suffix; None where there is none (or none that int64 holds)."""
    found = re.search(r"(\d+)", name.rsplit(".", 1)[0])
    return int(found[1]) if found and int(found[1]) < 2**62 else None


def _irregular(arc, numbered):
    """Warnings about equal numbers and about gaps: steps other than the arc's commonest."""
    lines, last = [], []  # last: (number, its last file's name) of each number, in order
    for number, group in itertools.groupby(numbered, key=lambda one: one[0]):
        first, *more = [name for _, name in group]
        last.append((number, more[-1] if more else first))
        if more:
            lines.append(f"{arc}: {len(more) + 1} files have the number {number} ({first}, {more[0]}), sorted by name")
    steps = collections.Counter(b - a for (a, _), (b, _) in itertools.pairwise(last))
    step = min(steps, key=lambda one: (-steps[one], one), default=0)
    for (a, name), (b, _) in itertools.pairwise(last):
        missing, rest = divmod(b - a, step)
        if rest:
            lines.append(f"{arc}: after {name} the numbers step by {b - a}, not by {step} as elsewhere")
        elif missing > 1:
            lines.append(f"{arc}: {missing - 1} frames missing after {name}")
    return lines
