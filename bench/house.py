"""Measure the house: who imports whom, and how much code there is. Exits with 1 where a rule is broken.

    python bench/house.py            the rooms by storey, the largest and densest places, the broken rules
    python bench/house.py --table    the storeys, as docs/architecture.md quotes them

A room is a file or a folder directly in mtld_core/, or one of the folders beside it. A file imports from its
own room and from lower storeys: so no import leads up, and nothing goes round in circles.
"""

import argparse
import collections
import graphlib
import os
import re
import sys
from fnmatch import fnmatchcase
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from project_code import PACKAGES, SYSTEMS, House, members_of, reached, size_of

from mtld_core.config import UserError
from mtld_core.runtime import command

ROOT = Path(__file__).resolve().parents[1]

# The lowest storey first. Rooms on one storey do not import each other; a room that is not named is refused.
STOREYS = (
    "config.py files.py chance.py frames.py",
    "runtime.py machine/ media.py nn/ runs/ pages.py",
    "data/ metrics.py",
    "systems/ data_prep/",
    "judge/",
    "train/ generate/",
    "play/ share.py",
    "__init__.py notebooks/ kaggle/ bench/",  # the first is the face of mtld_core, which nobody here imports
)

# What few modules of mtld_core and data_prep may import, and which: the first line that fits says it.
RESERVED = {
    "data_prep.extract_frames": "data_prep.* mtld_core.train.settings",
    "data_prep.games": "data_prep.* mtld_core.play.real_game",
    "data_prep*": "data_prep.*",
    "ipywidgets*": "mtld_core.pages mtld_core.*.panel",
    "IPython*": "mtld_core.pages mtld_core.*.panel",
    "mtld_core.*.panel": "",
}

# seven touch machine/, which many rooms ask what they compute on; three are notebook 04's, which
# calls judge/, and that draws strips (media.py) and has a gallery (pages.py)
MOST_ROOMS, MOST_STOREYS, MOST_ARROWS = 24, 8, 115
MOST_FILES_AT_THE_TOP, MOST_FILES = 10, 13  # directly in mtld_core/, and in any folder inside it
# of mtld_core; the plan aimed at 70,000 for what there was before dreams were judged by their life; before
# graphs, few kernels and several processes for GPUs the cap was 111,500
MOST_TOKENS, MOST_TOKENS_A_LINE = 124_000, 10.4
LONGEST_FUNCTION, LONGEST_LINE = 60, 110  # lines, characters
MOST_MEMBERS = 21  # in the table of the contract's docstring


def violations(root):
    """Whatever under `root` breaks a rule, a line each."""
    house = House(root)
    rules = (
        everything_has_its_place,
        imports_lead_down,
        nothing_goes_in_circles,
        what_is_reserved_stays_so,
        systems_are_known_by_name,
        blocks_have_two_tenants,
        nothing_is_too_large,
    )
    return list(dict.fromkeys(line for rule in rules for line in rule(house)))


def storey_of(room):
    """Number of a room's storey; len(STOREYS) for a room that the table does not name."""
    for number, rooms in enumerate(STOREYS):
        if room in rooms.split():
            return number
    return len(STOREYS)


# ---- the rules: each yields a line for whatever breaks it


def everything_has_its_place(house):
    """The table names every room, and every module of the project that is imported exists."""
    for room in sorted(house.rooms):
        if storey_of(room) == len(STOREYS):
            yield f"{room} is on no storey of bench/house.py"
    for file, each in house.imports:
        if each.module.split(".")[0] in PACKAGES and each.module not in house.files:
            yield f"{file.where}:{each.line} imports {each.module}, which does not exist"


def imports_lead_down(house):
    """A file imports from its own room and from lower storeys."""
    for file, line, wanted in house.own:
        here, there = storey_of(file.room), storey_of(wanted.room)
        if there >= here and file.room != wanted.room:
            yield f"{file.where}:{line} on storey {here} imports {wanted.module} from storey {there}"


def nothing_goes_in_circles(house):
    """An import is an arrow between two neighbours, files or folders side by side. They form no circle.

    Yields one circle at most: the others show when it is gone.
    """
    graph = collections.defaultdict(set)
    for file, _, wanted in house.own:
        if (file.folder, wanted.folder) != ("mtld_core", "data_prep"):  # reserved for two places
            depth = len(Path(os.path.commonpath([file.where, wanted.where])).parts) + 1
            here, there = file.where.split("/"), wanted.where.split("/")
            graph["/".join(here[:depth])].add("/".join(there[:depth]))
    try:
        graphlib.TopologicalSorter(graph).prepare()
    except graphlib.CycleError as error:
        yield f"circle: {' -> '.join(reversed(error.args[1]))}"


def what_is_reserved_stays_so(house):
    """What RESERVED keeps for some modules is imported by them alone."""
    for file, each in house.imports:
        if file.folder in PACKAGES and not may_import(file.module, each.module):
            yield f"{file.where}:{each.line} imports {each.module}, which is reserved for others"


def may_import(module, wanted):
    for what, who in RESERVED.items():
        if fnmatchcase(wanted, what):
            return any(fnmatchcase(module, each) for each in who.split())
    return True


def systems_are_known_by_name(house):
    """Only a system's own files import it or name its modules; bench/ may look inside, to compare."""
    systems = "|".join({file.system for file in house.files.values()} - {""})
    for file, line, wanted in house.own:
        if wanted.system not in ("", file.system) and file.folder != "bench":
            yield f"{file.where}:{line} imports the system {wanted.module}; only its name may be used"
    for file in house.of(*PACKAGES, "notebooks", "kaggle"):
        if file.module != SYSTEMS and not file.system:
            for line, text in file.strings():
                if re.search(rf"{re.escape(SYSTEMS)}\.({systems})\b", text):
                    yield f"{file.where}:{line} names a system's module in {text!r}"


def blocks_have_two_tenants(house):
    """What nn/ defines serves two systems, or something outside systems/; else it moves to its tenant."""
    users = collections.defaultdict(set)  # "mtld_core.nn.gan.hinge" -> systems, "others", blocks that use it
    for file, each in house.imports:
        if file.folder in PACKAGES and file.room != "nn/":
            users[each.full].add(file.system or "others")
    for file in house.of_room("nn/"):
        for user, block in file.mentions(house.files):
            users[block].add(user)
    for file in house.of_room("nn/"):
        for block, line in file.public():
            tenants = {user for user in reached(block, users) if "." not in user}
            if len(tenants) < 2 and "others" not in tenants:
                served = f"{tenants.pop()} alone" if tenants else "nobody"
                yield f"{file.where}:{line} {block} serves {served}"


def nothing_is_too_large(house):
    """Every measure keeps its cap."""
    for what, value, most in [*measures(house), *measures_of_parts(house)]:
        if value > most:
            yield f"{value:g} {what}, at most {most:g} wanted"


# ---- what is measured, and shown


def measures(house):
    """Yield (what, value, cap) for the house as a whole."""
    lines, tokens = size_of(house.of("mtld_core"))
    yield "rooms", len(house.rooms), MOST_ROOMS
    yield "storeys", len(STOREYS), MOST_STOREYS
    yield "arrows between rooms", len(house.arrows), MOST_ARROWS
    yield "tokens in mtld_core", tokens, MOST_TOKENS
    yield "tokens a line of code in mtld_core", tokens / max(lines, 1), MOST_TOKENS_A_LINE
    yield "members of the contract", len(members_of(house.files.get(f"{SYSTEMS}.base"))), MOST_MEMBERS


def measures_of_parts(house):
    """Yield (what, value, cap) for every folder, function and line."""
    folders = collections.Counter(os.path.dirname(file.where) for file in house.of("mtld_core"))
    for folder, files in folders.items():
        yield f"files in {folder}/", files, MOST_FILES_AT_THE_TOP if folder == "mtld_core" else MOST_FILES
    for file in house.of(*PACKAGES):
        for lines, where in file.functions():
            yield f"lines in {where}", lines, LONGEST_FUNCTION
        for number, line in enumerate(file.text.splitlines(), 1):
            yield f"characters in {file.where}:{number}", len(line), LONGEST_LINE


def table():
    """The storeys, the highest first."""
    rows = [f"storey {number}  {'  '.join(rooms.split())}" for number, rooms in enumerate(STOREYS)]
    return "\n".join(reversed(rows))


def report(house):
    """Yield the lines that describe the house."""
    yield "storey  room          files   lines  tokens  a line"
    for room in sorted(sorted(house.rooms), key=storey_of, reverse=True):
        yield row(storey_of(room), room, house.of_room(room))
    yield row("", "mtld_core", house.of("mtld_core"))
    yield ""
    for what, value, most in measures(house):
        yield f"{value:7.6g} {what}, of {most:g}"
    yield f"{len(list(imports_lead_down(house))):7d} imports that do not lead down"
    yield f"{len(list(nothing_goes_in_circles(house))):7d} circles"
    functions, lines = [], []
    for file in house.of("mtld_core"):
        functions += file.functions()
        lines += [(tokens, f"{file.where}:{line}") for line, tokens in file.tokens.items()]
    yield "\nlongest functions, in lines"
    yield from largest(functions)
    yield "\ndensest lines, in tokens"
    yield from largest(lines)


def largest(places):
    for size, where in sorted(places, reverse=True)[:10]:
        yield f"{size:7d} {where}"


def row(storey, room, files):
    lines, tokens = size_of(files)
    return f"{storey!s:6s}  {room:12s} {len(files):6d} {lines:7d} {tokens:7d} {tokens / max(lines, 1):7.2f}"


@command
def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--table", action="store_true", help="only the storeys")
    if parser.parse_args().table:
        print(table())
        return
    print(*report(House(ROOT)), sep="\n")
    if broken := violations(ROOT):
        print("\nbroken rules", *broken, sep="\n", flush=True)
        raise UserError(f"rules of the house are broken in places: {len(broken)}")


if __name__ == "__main__":
    sys.exit(main())
