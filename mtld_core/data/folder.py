"""A folder of frames as a source: which image files make which arc, and in which order.

A source (this one, recording.py or hdf5.py) has `path`, `size`, `kind`, `warnings`, `actions`, `about` and
`bad`, and the methods `measure`, `fill` and `arcs`; store.py decides where the frames go. A source that is
`cached` has `digest` too, any other `lazy`.
"""

import collections
import itertools
import os
import posixpath
import re
import statistics
from pathlib import PurePosixPath
from typing import NamedTuple

import numpy as np

from mtld_core.config import UserError
from mtld_core.data.dataset import Arc
from mtld_core.data.pictures import PictureFiles
from mtld_core.files import can_be_read

# what torchvision reads
SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".ppm", ".pgm", ".tif", ".tiff")
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
FEW = 5  # numbers with several files that get a line of their own in the warnings


class Folder(PictureFiles):
    """Image files `<root>/<arc>/<name>`, or right inside `root`, which then is the only arc.

    Where no image in them has a number that orders it, this is torchvision's ImageFolder layout: an arc (a
    class) then has the images of all folders below it, too. size: (height, width, fit), see `fit_frame`.
    names: "arc/file" in the order of the store. Raises UserError where there is no image, or only videos,
    whose frames have to be extracted first.
    """

    def __init__(self, root, size):
        super().__init__(root, size)
        self._files = []  # an `Arc` for each, whose rows are places in `names`
        top = _listing(root)
        inner = {name: _listing(root / name) for name in sorted(top.folders, key=natural)}
        arcs = _with_images(inner)
        if top.images and not arcs:
            self.base, arcs = root.parent, {root.name: top}
        else:
            if not _ordered(arcs):
                arcs = _deeper(root, inner)
            self._note_left_out(top, inner, arcs)
        if not arcs:
            _refuse(root, [top, *inner.values()])
        for name, listing in arcs.items():
            self._add(name, listing)
        self.kind = "arcs" if _ordered(arcs) else "images"

    def arcs(self):
        """List each `Arc` that has files, the bad ones left out."""
        kept = self.kept()
        arcs = []
        for arc in self._files:
            start, stop = np.searchsorted(kept, [arc.start, arc.stop]).tolist()
            if start < stop:
                arcs.append(Arc(arc.name, start, stop, arc.numbers[kept[start:stop] - arc.start]))
        return arcs

    def _note_left_out(self, top, inner, arcs):
        """Note what lies in the root and belongs to no arc."""
        used = {path.split("/")[0] for path in arcs}
        self.notes += [f"{name}: lies beside the arcs, left out" for name in top.images + top.others]
        self.notes += [f"{name}: a folder without images, left out" for name in inner if name not in used]

    def _add(self, arc, listing):
        """Append the files of an arc, those with numbers first."""
        order = listing.order
        numbered = sorted(order, key=lambda name: (order[name], name))
        plain = sorted((name for name in listing.images if name not in order), key=natural)
        self.notes += [f"{arc}/{name}: a folder inside an arc, left out" for name in sorted(listing.folders)]
        self.notes += [
            f"{arc}/{name}: not an image ({', '.join(SUFFIXES)}), left out" for name in listing.others
        ]
        if plain:
            self.notes.append(
                f"{arc}: {len(plain)} files have no number in the name that orders them ({plain[0]}, ...), "
                "sorted by name"
            )
        self.notes += _irregular(arc, numbered, order)
        numbers = [order[name][0] for name in numbered]
        next_number = numbers[-1] + 1 if numbers else 0
        numbers += range(next_number, next_number + len(plain))
        first = len(self.names)
        self.names += [f"{arc}/{name}" for name in numbered + plain]
        self._files.append(Arc(arc, first, len(self.names), np.array(numbers, np.int64)))


def has_images(root):
    """Whether image files lie in the folder `root`, or in one of the folders in it."""
    found = _listing(root)
    return bool(found.images) or any(_listing(root / name).images for name in found.folders)


def natural(name):
    """A key that sorts names by the numbers in them: "a2" comes before "a10"."""
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in re.split(r"(\d+)", name)]


def _refuse(root, listings):
    """Raise UserError about a folder without images."""
    if any(name.lower().endswith(VIDEO_SUFFIXES) for listing in listings for name in listing.others):
        raise UserError(f"{root} holds videos, not frames: run notebooks/01_extract_frames on it first")
    raise UserError(f"{root} holds no images ({', '.join(SUFFIXES)}); wanted is {LAYOUT}")


# ---- what lies where


class Listing(NamedTuple):
    """What lies in a folder."""

    images: list  # names
    others: list  # names of what is neither an image nor a folder
    folders: list  # names
    order: dict  # name of an image -> the numbers that order it


def _listing(folder):
    """The `Listing` of a folder, without hidden files. Raises UserError where it cannot be read."""
    images = []
    others = []
    folders = []
    try:
        entries = list(os.scandir(folder))
    except OSError as error:
        raise UserError(
            f"{folder} cannot be read ({error.strerror}); make it readable, or move it elsewhere"
        ) from None
    for entry in entries:
        name = entry.name
        if name.startswith(".") or name == CONTACT_SHEET:
            continue
        if os.path.isdir(entry):  # of a link that leads to itself `entry.is_dir` raises an error
            folders.append(name)
        elif name.lower().endswith(SUFFIXES) and can_be_read(entry):
            images.append(name)
        else:
            others.append(name)
    return Listing(images, sorted(others), folders, _order(images))


def _with_images(listings):
    return {path: listing for path, listing in listings.items() if listing.images}


def _ordered(arcs):
    """Whether a number orders any image."""
    return any(listing.order for listing in arcs.values())


def _deeper(root, inner):
    """The arcs {path: `Listing`} where numbers order no image in the folders `inner` themselves.

    Each of them is a class of images, with all that lies below it; or, where none holds an image itself, and
    numbers order what lies below, the first folders with images on each way down are the arcs.
    """
    below = {}
    for name in inner:
        below |= _below(root, name, (root.resolve(),))
    if not _with_images(inner):
        first = _first_on_each_way(_with_images(below))
        if _ordered(first):
            return first
    classes = {name: Listing([], [], [], {}) for name in inner}
    for path, listing in below.items():
        name, _, inside = path.partition("/")
        classes[name].images.extend(posixpath.join(inside, image) for image in listing.images)
        classes[name].others.extend(posixpath.join(inside, other) for other in listing.others)
    return _with_images(classes)


def _first_on_each_way(listings):
    """Those of {path: `Listing`} that lie below no other one."""
    first = {}
    for path, listing in listings.items():
        parents = map(str, PurePosixPath(path).parents)
        if listings.keys().isdisjoint(parents):
            first[path] = listing
    return first


def _below(root, path, above):
    """{path: `Listing`} of a folder and of all below it; links back to the folders `above` are not followed.

    Paths are relative to `root`.
    """
    found = {path: _listing(root / path)}
    above = (*above, (root / path).resolve())
    for name in sorted(found[path].folders, key=natural):
        if (root / path / name).resolve() not in above:
            found |= _below(root, f"{path}/{name}", above)
    return found


# ---- the numbers in names


def _order(names):
    """{name: the numbers that order it}: those in the name, from the first one that differs among names on.

    That first one is the frame's number. Where most names have the same letters between their numbers, those
    names alone tell which number it is: a stray file ("mask_1" beside "v2_frame_1", "v2_frame_2", ...) does
    not. A name is missing here where it is such a stray, has no number that orders it, or one that int64 does
    not hold. Suffixes do not count.
    """
    found = {}  # name -> its numbers
    letters = {}  # name -> what stands between them
    for name in names:
        parts = re.split(r"(\d+)", name.rsplit(".", 1)[0])
        if len(parts) > 1:
            found[name] = [int(number) for number in parts[1::2]]
            letters[name] = tuple(parts[::2])
    if not found:
        return {}
    place = _first_that_differs(found)
    commonest = statistics.mode(letters.values())
    alike = {name: numbers for name, numbers in found.items() if letters[name] == commonest}
    if 2 * len(alike) > len(found):
        theirs = _first_that_differs(alike)
        if theirs not in (None, place):
            found, place = alike, theirs
    if place is None:
        return {}
    behind = {name: numbers[place:] for name, numbers in found.items()}
    return {name: numbers for name, numbers in behind.items() if numbers and numbers[0] < 2**62}


def _first_that_differs(found):
    """The place of the first number in which the names differ, 0 for a single name; None where none does.

    found: {name: list of its numbers}.
    """
    if len(found) < 2:
        return 0
    for place, column in enumerate(itertools.zip_longest(*found.values())):
        if len(set(column) - {None}) > 1:
            return place
    return None


def _irregular(arc, names, order):
    """Warnings about equal numbers, and about steps other than the arc's commonest. names: in their order."""
    files = {}  # the frame's number -> names of its files
    for name in names:
        files.setdefault(order[name][0], []).append(name)
    several = [number for number in files if len(files[number]) > 1]
    lines = []
    for number in several[:FEW]:
        first, second, *more = files[number]
        how = "sorted by name" if order[first] == order[second] else "in the order of the numbers that follow"
        lines.append(f"{arc}: {len(more) + 2} files have the number {number} ({first}, {second}), {how}")
    if len(several) > FEW:
        lines.append(f"{arc}: {len(several) - FEW} more numbers belong to several files")
    steps = collections.Counter(after - before for before, after in itertools.pairwise(files))
    usual = min(steps, key=lambda step: (-steps[step], step), default=0)
    for before, after in itertools.pairwise(files):
        name = files[before][-1]
        missing, rest = divmod(after - before, usual)
        if rest:
            lines.append(
                f"{arc}: after {name} the numbers step by {after - before}, not by {usual} as elsewhere"
            )
        elif missing > 1:
            lines.append(f"{arc}: {missing - 1} frames missing after {name}")
    return lines
