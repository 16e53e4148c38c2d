"""A folder of frames as a source: which files make which arc and in which order, and decoding them into a store.

A source (this, or hdf5.py) has `path`, `kind`, `warnings`, `actions`, `bad`, and the methods `digest`, `measure`,
`fill` and `arcs`; store.py decides where the frames go.
"""

import collections
import itertools
import os
import re
import warnings
from hashlib import blake2b

import numpy as np
from PIL import Image

from mtld_core.data.dataset import Arc
from mtld_core.data.pictures import read_picture
from mtld_core.data.threads import for_each
from mtld_core.frames import fit_frame
from mtld_core.runtime import UserError

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp")
VIDEO_SUFFIXES = (".mp4", ".m4v", ".mov", ".mkv", ".webm", ".avi", ".mpg", ".mpeg", ".ts", ".flv", ".ogv", ".wmv", ".gif")
LAYOUT = "<folder>/<arc>/frame_0000.png"
BAD_SHARE = 0.05  # of the files may be unreadable or of another size; with more, something is wrong with the folder
CONTACT_SHEET = "contact_sheet.png"  # data_prep puts it beside the arcs


class Folder:
    """Image files `<root>/<arc>/<name>`, or right inside `root`, which then is the only arc.

    names: "arc/file" in the order of the store. bad: {index in names: why that file is left out}, known after `fill` or
    taken over from the cache. Raises UserError where there is no image, or what there is has to be extracted first.
    """

    actions = None
    cached = True  # decoding is slow, so what was decoded is worth its room on disk

    def __init__(self, root, height=0, width=0, fit="crop"):
        self.path, self.fit, self.bad = str(root), (height, width, fit), {}
        self.names, self.notes, self.spans = [], [], []  # spans: (arc, first, last + 1 in names, numbers)
        images, others, folders = _listing(root)
        inner = {name: _listing(root / name) for name in sorted(folders, key=_natural)}
        arcs = {name: found for name, found in inner.items() if found[0]}
        if arcs:
            self.base = root
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

    @property
    def warnings(self):
        return self.notes + [f"{self.names[i]}: left out, {why}" for i, why in sorted(self.bad.items())]

    def digest(self, workers=0):
        """Hex key of the names and the content of all files: equal only where the decoded frames are."""
        parts = [b""] * len(self.names)

        def read(i):
            content, why = _attempt(_content, self._file(i))
            parts[i] = blake2b(why.encode() if why else content, digest_size=16).digest()

        for_each(read, len(parts), workers)
        return blake2b("\n".join(self.names).encode() + b"".join(parts), digest_size=16).hexdigest()

    def measure(self, workers=0):
        """(N, H, W, 3) of the frames to come; H, W are the commonest among some files, `fill` finds those that differ."""
        height, width, _ = self.fit
        if not (height and width):
            some = np.unique(np.linspace(0, len(self.names) - 1, 64).astype(int))
            sizes = collections.Counter(size for i in some if (size := _attempt(self._fitted, self._file(i))[0]))
            height, width = max(sizes, key=sizes.get, default=(1, 1))
        return len(self.names), height, width, 3

    def fill(self, store, workers=0, label=None):
        """Decode every file into `store` (uint8, as measured), bad ones left out. Returns how many rows hold frames.

        Raises UserError, which lists them, where more than 5 % of the files are bad.
        """
        size = store.shape[1:3]

        def read(i):
            frame, why = _attempt(read_picture, self._file(i))
            if not why and (fitted := fit_frame(frame, *self.fit)).shape[:2] != size:
                why = f"{_text(frame)} where most are {_text(store[0])} (set height and width to use both)"
            if why:
                self.bad[i] = why
            else:
                store[i] = fitted

        with warnings.catch_warnings():  # an image too large to be meant; below twice its limit Pillow would only warn
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            for_each(read, len(self.names), workers, label)
        self._check()
        kept = [i for i in range(len(self.names)) if i not in self.bad]
        for row, i in enumerate(kept):  # one by one: a whole slice onto itself would be copied first
            if row != i:
                store[row] = store[i]
        return len(kept)

    def arcs(self):
        """The arcs without their bad files."""
        arcs, row = [], 0
        for name, first, last, numbers in self.spans:
            good = np.array([i not in self.bad for i in range(first, last)])
            if good.any():
                arcs.append(Arc(name, row, row + int(good.sum()), numbers[good]))
                row = arcs[-1].stop
        return arcs

    def _fitted(self, path):
        """(H, W) that the picture at `path` will have."""
        with Image.open(path) as image:
            return fit_frame(np.zeros((image.height, image.width, 3), np.uint8), *self.fit).shape[:2]

    def _file(self, i):
        return os.path.join(self.base, self.names[i])

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

    def _check(self):
        if len(self.bad) > BAD_SHARE * len(self.names):
            lines = [f"{self.names[i]} ({why})" for i, why in sorted(self.bad.items())]
            more = f" and {len(lines) - 20} more" if len(lines) > 20 else ""
            raise UserError(
                f"{self.path}: {len(lines)} of {len(self.names)} image files cannot be used (more than 5 %); mend or "
                f"remove them: {'; '.join(lines[:20])}{more}"
            )


def _listing(folder):
    """(images, other files, folders) by name; hidden ones are passed over."""
    images, others, folders = [], [], []
    for entry in os.scandir(folder):
        if not entry.name.startswith(".") and entry.name != CONTACT_SHEET:
            kind = folders if entry.is_dir() else images if entry.name.lower().endswith(SUFFIXES) else others
            kind.append(entry.name)
    return images, sorted(others), folders


def _text(frame):
    return f"{frame.shape[1]}x{frame.shape[0]} pixels"


def _attempt(function, path):
    """(result, None), or (None, why) where the file cannot be read, is damaged, or is too large to be meant.

    Any exception counts: what comes in are bytes from anywhere, and Pillow's readers fail on them in many ways.
    """
    try:
        return function(path), None
    except Exception as error:
        return None, " ".join(str(error).split()) or type(error).__name__


def _content(path):
    with open(path, "rb") as file:
        return file.read()


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
