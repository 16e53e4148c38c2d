"""A folder of frames as a source: which files make which arc and in which order, and decoding them into a
store.

A source (this, recording.py or hdf5.py) has `path`, `kind`, `warnings`, `actions`, `about`, `bad`, and the
methods `measure`, `fill` and `arcs`; store.py decides where the frames go. Where it is `cached` it has
`digest`, else `lazy`.
"""

import collections
import itertools
import os
import re
from pathlib import PurePosixPath
from typing import NamedTuple

import numpy as np

from mtld_core.config import UserError
from mtld_core.data.dataset import Arc
from mtld_core.data.pictures import PictureFiles

SUFFIXES = (
    ".png",
    ".jpg",
    ".jpeg",
    ".webp",
    ".bmp",
    ".ppm",
    ".pgm",
    ".tif",
    ".tiff",
)  # what torchvision reads
VIDEO_SUFFIXES = (
    ".mp4",
    ".m4v",
    ".mov",
    ".mkv",
    ".webm",
    ".avi",
    ".mpg",
    ".mpeg",
    ".ts",
    ".flv",
    ".ogv",
    ".wmv",
    ".gif",
)
LAYOUT = "<folder>/<arc>/frame_0000.png"
CONTACT_SHEET = "contact_sheet.png"  # data_prep puts it beside the arcs
FEW = 5  # numbers with several files that are named, each with a line of its own


class Folder(PictureFiles):
    """Image files `<root>/<arc>/<name>`, or right inside `root`, which then is the only arc.

    Where no image in them has a number that orders it, this is torchvision's ImageFolder layout: an arc (a
    class) then has the images of all folders below it, too. names: "arc/file" in the order of the store.
    Raises UserError where there is no image, or what there is has to be extracted first.
    """

    def __init__(self, root, height=0, width=0, fit="crop"):
        super().__init__(root, height, width, fit)
        self.spans = []  # (arc, first, last + 1 in names, numbers)
        found = _listing(root)
        inner = {name: _listing(root / name) for name in sorted(found.folders, key=natural)}
        arcs = {name: listing for name, listing in inner.items() if listing.images}
        if not arcs and found.images:
            self.base, arcs = root.parent, {root.name: found}
        orders = {name: _order(listing.images) for name, listing in arcs.items()}
        if self.base == root:
            if not any(orders.values()):
                arcs, orders = _deeper(root, inner)
            if arcs:
                self.notes += [
                    f"{name}: lies beside the arcs, left out" for name in found.images + found.others
                ]
                used = {name.split("/")[0] for name in arcs}
                self.notes += [
                    f"{name}: a folder without images, left out" for name in inner if name not in used
                ]
        if not arcs:
            files = found.others + [name for listing in inner.values() for name in listing.others]
            if any(name.lower().endswith(VIDEO_SUFFIXES) for name in files):
                raise UserError(
                    f"{root} holds videos, not frames: run notebooks/01_extract_frames on it first"
                )
            raise UserError(f"{root} holds no images ({', '.join(SUFFIXES)}); wanted is {LAYOUT}")
        for name, listing in arcs.items():
            self._add(name, listing, orders[name])
        self.kind = "arcs" if any(orders.values()) else "images"

    def arcs(self):
        """The arcs without their bad files."""
        arcs, row = [], 0
        for name, first, last, numbers in self.spans:
            good = np.array([i not in self.bad for i in range(first, last)])
            if good.any():
                arcs.append(Arc(name, row, row + int(good.sum()), numbers[good]))
                row = arcs[-1].stop
        return arcs

    def _add(self, arc, listing, order):
        """Append an arc's files, as `order` (see `_order`) has them."""
        self.notes += [f"{arc}/{name}: a folder inside an arc, left out" for name in sorted(listing.folders)]
        self.notes += [
            f"{arc}/{name}: not an image ({', '.join(SUFFIXES)}), left out" for name in listing.others
        ]
        numbered = sorted((numbers, name) for name, numbers in order.items())
        plain = sorted((name for name in listing.images if name not in order), key=natural)
        numbers = [first for (first, *_), _ in numbered]
        if plain:
            self.notes.append(
                f"{arc}: {len(plain)} files have no number in the name that orders them ({plain[0]}, ...), "
                "sorted by name"
            )
        self.notes += _irregular(arc, numbered)
        after = numbers[-1] + 1 if numbers else 0
        numbers += range(after, after + len(plain))
        first = len(self.names)
        self.names += [f"{arc}/{name}" for name in [name for _, name in numbered] + plain]
        self.spans.append((arc, first, len(self.names), np.array(numbers, np.int64)))


class Listing(NamedTuple):
    images: list  # names
    others: list
    folders: list


def _listing(folder):
    """What lies in a folder; hidden files are passed over."""
    images, others, folders = [], [], []
    try:
        entries = list(os.scandir(folder))
    except OSError as error:
        raise UserError(
            f"{folder} cannot be read ({error.strerror}); make it readable, or move it elsewhere"
        ) from None
    for entry in entries:
        if not entry.name.startswith(".") and entry.name != CONTACT_SHEET:
            kind = folders if entry.is_dir() else images if entry.name.lower().endswith(SUFFIXES) else others
            kind.append(entry.name)
    return Listing(images, sorted(others), folders)


def _deeper(root, inner):
    """(arcs, their orders) where numbers order no image that lies in one of the folders `inner` itself.

    Each of them is a class of images, with all that lies below it; or, where none holds an image itself, and
    numbers order what lies below, the first folders with images on each way down are the arcs.
    """
    below = {name: _below(root / name, (root.resolve(),)) for name in inner}
    arcs = {}
    for name, found in below.items():
        for place, listing in found:
            if listing.images and not any(
                str(above) in arcs for above in PurePosixPath(name + place).parents
            ):
                arcs[name + place] = listing
    orders = {name: _order(listing.images) for name, listing in arcs.items()}
    if any(listing.images for listing in inner.values()) or not any(orders.values()):
        arcs = {name: listing for name, found in below.items() if (listing := _joined(found)).images}
        orders = {name: {} for name in arcs}
    return arcs, orders


def _below(folder, above):
    """[(where, its `Listing`)] of a folder ("") and all below it ("/a", "/a/b", ...); links to `above` are
    not followed.
    """
    listing, above = _listing(folder), (*above, folder.resolve())
    found = [("", listing)]
    for name in sorted(listing.folders, key=natural):
        if (folder / name).resolve() not in above:
            found += [(f"/{name}{place}", one) for place, one in _below(folder / name, above)]
    return found


def _joined(found):
    """One `Listing` of all files in `found` (see `_below`), by their paths."""
    images = [f"{place}/{name}"[1:] for place, listing in found for name in listing.images]
    others = [f"{place}/{name}"[1:] for place, listing in found for name in listing.others]
    return Listing(images, others, [])


def has_images(root):
    """Whether image files lie in a folder, or in one of its folders."""
    found = _listing(root)
    return bool(found.images) or any(_listing(root / name).images for name in found.folders)


def natural(name):
    """A key that sorts names by the numbers in them."""
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in re.split(r"(\d+)", name)]


def _order(names):
    """{name: the numbers that order it}: those in the name (without its suffix) from the first that not all
    names share on.

    That first one is the frame's number. Where most names have the same letters between their numbers, those
    tell which number it is: a stray file ("mask_1" beside "v2_frame_1", "v2_frame_2", ...) that would have
    another one count has no say. A name is missing here where it is such a stray, or has no number that
    orders it, or none that int64 holds.
    """
    stems = {name: name.rsplit(".", 1)[0] for name in names}
    found = {name: [int(part) for part in re.findall(r"\d+", stem)] for name, stem in stems.items()}
    found = {name: numbers for name, numbers in found.items() if numbers}
    if not found:
        return {}
    place = _first_that_changes(found)
    letters = {name: re.sub(r"\d+", "#", stems[name]) for name in found}
    [(commonest, count)] = collections.Counter(letters.values()).most_common(1)
    if 2 * count > len(found):
        alike = {name: numbers for name, numbers in found.items() if letters[name] == commonest}
        theirs = _first_that_changes(alike)
        if theirs not in (None, place):
            found, place = alike, theirs
    if place is None:
        return {}
    return {
        name: numbers[place:]
        for name, numbers in found.items()
        if len(numbers) > place and numbers[place] < 2**62
    }


def _first_that_changes(found):
    """The place of the first number that not all in `found` (name -> numbers) share, 0 of a single one; None
    where all do.
    """
    if len(found) < 2:
        return 0
    columns = itertools.zip_longest(*found.values())
    return next((place for place, column in enumerate(columns) if len(set(column) - {None}) > 1), None)


def _irregular(arc, numbered):
    """Warnings about equal numbers and about gaps: steps other than the arc's commonest. numbered: [(numbers,
    name)].
    """
    lines, last, again = [], [], 0  # last: (number, its last file's name) of each number, in order
    for number, group in itertools.groupby(numbered, key=lambda one: one[0][0]):
        files = list(group)
        last.append((number, files[-1][1]))
        again += len(files) > 1
        if len(files) > 1 and again <= FEW:
            (numbers, first), (more, second) = files[:2]
            how = "sorted by name" if numbers == more else "in the order of the numbers that follow"
            lines.append(f"{arc}: {len(files)} files have the number {number} ({first}, {second}), {how}")
    if again > FEW:
        lines.append(f"{arc}: {again - FEW} more numbers belong to several files")
    steps = collections.Counter(b - a for (a, _), (b, _) in itertools.pairwise(last))
    step = min(steps, key=lambda one: (-steps[one], one), default=0)
    for (a, name), (b, _) in itertools.pairwise(last):
        missing, rest = divmod(b - a, step)
        if rest:
            lines.append(f"{arc}: after {name} the numbers step by {b - a}, not by {step} as elsewhere")
        elif missing > 1:
            lines.append(f"{arc}: {missing - 1} frames missing after {name}")
    return lines
