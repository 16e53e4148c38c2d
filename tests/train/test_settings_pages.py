"""Every setting stands on a page: the training's on docs/training.md with its default, a system's on the
system's own.
"""

import json
import re
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
