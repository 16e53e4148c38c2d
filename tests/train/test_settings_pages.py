"""Every setting stands on a page with its default: the training's on docs/training.md, a system's on the
system's own.
"""

import json
import re
from fractions import Fraction
from pathlib import Path

import pytest

from mtld_core.config import field_names, to_dict
from mtld_core.systems import SYSTEMS, system_class
from mtld_core.train.settings import TrainConfig

pytestmark = pytest.mark.versionless  # it reads our own pages
DOCS = Path(__file__).parents[2] / "docs"
WORLD_MODEL = ("tokenizer", "latent_actions", "dynamics")  # three systems on one page
FILLED_IN = {"dynamics": {"tokenizer", "latent_actions"}}  # fields that nobody gives


def settings_on(page):
    """The rows of all tables with a column "setting", each a dict: column -> cell."""
    head = None
    for line in page.read_text().splitlines():
        cells = [cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]]
        if not cells:
            head = None
        elif head is None:
            head = cells
        elif "setting" in head and not cells[0].startswith("---"):
            yield dict(zip(head, cells, strict=True))


def names_in(row):
    return re.findall(r"`(\w+)`", row["setting"])


def test_every_training_setting_has_a_row_with_its_default():
    found = {}
    for row in settings_on(DOCS / "training.md"):
        [name] = names_in(row)
        assert name not in found, f"{name} has two rows"
        assert all(row.values()), f"the row of {name} has an empty cell"
        found[name] = json.loads(row["default"])
    defaults = to_dict(TrainConfig())
    missing, unknown = defaults.keys() - found.keys(), found.keys() - defaults.keys()
    assert not missing, f"docs/training.md lacks a row for {', '.join(sorted(missing))}"
    assert not unknown, (
        f"docs/training.md has a row for {', '.join(sorted(unknown))}, which TrainConfig lacks"
    )
    wrong = {name: (value, defaults[name]) for name, value in found.items() if value != defaults[name]}
    assert not wrong, f"docs/training.md: (the default there, the true one) {wrong}"


@pytest.mark.parametrize("system", SYSTEMS)
def test_every_setting_of_a_system_has_a_row_on_its_page(system):
    page = DOCS / "systems" / f"{'world_model' if system in WORLD_MODEL else system}.md"
    rows = [row for row in settings_on(page) if row.get("stage") in (None, "all", system.replace("_", " "))]
    named = {name for row in rows for name in names_in(row)}
    fields = set(field_names(system_class(system).Config)) - FILLED_IN.get(system, set())
    assert not fields - named, f"{page.name} lacks a row for {', '.join(sorted(fields - named))}"
    assert not named - fields, (
        f"{page.name} has a row for {', '.join(sorted(named - fields))}, which {system} lacks"
    )


SAID_OTHERWISE = {"": [], "none": [], "the data's": None, "the decoder's": None, "[8, 20]": None}


def values_of(cell, count):
    """The values that a cell with defaults lists, `count` of them; None where it says in words who fills them in.

    "1e-3 each, 0.5" and "1, 0 ..." repeat a value, as one alone does; "0; in `codes` 20" and "0 (all)" say more.
    """
    if cell in SAID_OTHERWISE:
        return SAID_OTHERWISE[cell]
    parts = [
        re.sub(r" \(.*\)$", "", part) for part in re.split(r"[,;] ", cell) if not part.startswith("in `")
    ]
    values = []
    for part in parts:
        text = re.sub(r" (each|\.\.\.)$", "", part)
        times = count - len(parts) + 1 if text != part or len(parts) == 1 else 1
        values += [float(Fraction(text.replace(",", ""))) if re.match(r"[\d.]", text) else text] * times
    return values


def flat(value):
    if isinstance(value, list):
        return [float(one) for one in value]
    if isinstance(value, bool):
        return [str(value).lower()]
    return [value or "none"] if isinstance(value, str) else [float(value)]


@pytest.mark.parametrize("system", SYSTEMS)
def test_defaults_of_a_system_are_those_on_its_page(system):
    page = DOCS / "systems" / f"{'world_model' if system in WORLD_MODEL else system}.md"
    defaults = to_dict(system_class(system).Config())
    compared = 0
    for row in settings_on(page):
        if row.get("stage") not in (None, "all", system.replace("_", " ")):
            continue
        wanted = [value for name in names_in(row) for value in flat(defaults[name])]
        if row["default"] in ("", "none"):
            wanted = [value for value in wanted if value != "none"]
        found = values_of(row["default"], len(wanted))
        if found is not None:
            assert found == wanted, (
                f"{page.name}: {row['setting']}: {row['default']} there, {wanted} in the code"
            )
            compared += len(found)
    assert compared > 15
