"""All measurements that docs/performance.md quotes: made, kept in bench/results.json, and printed.

    python bench/tables.py           measures, or prints what was measured of this code on such a machine
    python bench/tables.py --again   measures in any case
    python bench/tables.py --page    writes what is kept into docs/performance.md

`make bench` is the first. What bench/gpu_check.py wrote on a card is shown, too, where it is kept in
bench/cards/. A table stands in the page between <!-- bench: NAME --> and <!-- end -->.
"""

import argparse
import datetime
import hashlib
import json
import re
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import data_path
import fakes
import gpu_page
import measure
import rollouts
import steps

from mtld_core.config import check
from mtld_core.runtime import command

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "bench" / "results.json"
PAGE = ROOT / "docs" / "performance.md"
TABLES = {
    "steps": steps.rows_of,
    "rollouts": rollouts.rows_of,
    "data": lambda about: data_path.rows_of(),
    "presets": lambda about: fakes.rows_of(),
}


def make():
    """Measure everything and keep it -> {"machine", "code", "date", "tables": {name: rows}}."""
    about = measure.machine()
    results = {"machine": about, "code": code(), "date": str(datetime.date.today()), "tables": {}}
    for name, rows_of in TABLES.items():
        results["tables"][name] = rows_of(about)
    RESULTS.write_text(json.dumps(results, indent=2) + "\n")
    return results


def code():
    """A name for the code that is measured: of what its files hold."""
    found = hashlib.sha256()
    for folder in ("mtld_core", "data_prep", "bench"):
        for path in sorted((ROOT / folder).rglob("*.py")):
            found.update(path.read_bytes())
    return found.hexdigest()[:12]


def of_here():
    """What was kept, where it is of this code and of a machine that is called as this one; else None."""
    if not RESULTS.is_file():
        return None
    results = json.loads(RESULTS.read_text())
    same = results["code"] == code() and measure.names().items() <= results["machine"].items()
    return results if same else None


def about(results):
    """A sentence on what results were measured on."""
    machine = results["machine"]
    of = "{processor}, {cores} cores, {threads} threads, torch {torch}, Python {python}".format(**machine)
    rates = "a matrix product {gflops:.0f} GFLOP/s, a copy {copied_gb_per_second:.1f} GB/s".format(**machine)
    return f"{of}, {results['date']}; {rates}"


def in_page(results, page):
    """The page with the kept tables in their places: <!-- bench: NAME --> ... <!-- end -->."""
    places = {"machine": [about(results)], **_tables(results), "gpu": gpu_page.lines()}
    for name, lines in places.items():
        place = re.compile(rf"(<!-- bench: {name} -->\n).*?(<!-- end -->)", re.DOTALL)
        page, found = place.subn(lambda at, lines=lines: at[1] + "\n".join(lines) + "\n" + at[2], page)
        check(found == 1, f"{PAGE} has no place for the table {name!r}")
    return page


def _tables(results):
    return {name: measure.table(rows) for name, rows in results["tables"].items()}


@command
def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--again", action="store_true", help="measure, whatever is kept")
    parser.add_argument("--page", action="store_true", help="write what is kept into docs/performance.md")
    given = parser.parse_args()
    if given.page:
        PAGE.write_text(in_page(json.loads(RESULTS.read_text()), PAGE.read_text()))
        return
    results = None if given.again else of_here()
    results = results or make()
    print(about(results))
    for rows in results["tables"].values():
        print()
        measure.print_table(rows)


if __name__ == "__main__":
    sys.exit(main())
