"""Notebooks without a browser: one, or several trainings of one YAML file with a table of what came out.

    python notebooks/batch.py 02_train out.ipynb -p preset demo -p run_dir runs/demo
    python notebooks/batch.py sweep.yaml

The first is papermill, and what can be mended is one line. sweep.yaml says what to train:

    out: runs/sizes            # gets a folder for each run, its executed page, and table.md
    all:                       # parameters of notebook 02 that every run has
      preset: demo
      steps: 500
    runs:                      # and those of each run, by its name
      narrow: {overrides: {latent_dim: 16}}
      wide: {overrides: {latent_dim: 64}}
    each:                      # every run with every combination of these (may be left out)
      seed: [0, 1]

A run that fails does not stop the others: the table says it at its top. What has finished is not done again.
"""

import argparse
import collections
import contextlib
import itertools
import json
import logging
import sys
from pathlib import Path

import papermill
import yaml
from papermill.exceptions import PapermillExecutionError

PAGES = Path(__file__).resolve().parent
sys.path.insert(0, str(PAGES.parent))
from mtld_core.runtime import MENDABLE, command

PARTS = {"out": str, "all": dict, "runs": dict, "each": dict}
LONGEST = 200  # bytes of a run's name, which with a few letters more names its files
FIGURES = ("psnr", "skill_db", "moving_skill_db", "ssim", "lpips")
MENDED_BY_READING = ("UserError", "ConfigError", "RunGivenUp", "SystemExit")


class Refused(Exception):
    """What cannot be run, in one line."""


def run_page(page, out, parameters):
    """Execute a notebook into `out`. Raises Refused with one line; of a fault the page shows where it is."""
    Path(out).parent.mkdir(parents=True, exist_ok=True)
    saving = {"progress_bar": False, "log_output": True, "request_save_on_cell_execute": True}
    try:
        papermill.execute_notebook(str(page), str(out), parameters, **saving)
    except PapermillExecutionError as error:
        said = " ".join(str(error.evalue).split())
        if error.ename not in MENDED_BY_READING:
            said = f"{error.ename}: {said} (cell {error.exec_count} of {out} shows where)"
        raise Refused(said) from None


# ---- several runs


class Sweep(yaml.SafeLoader):
    """Reads YAML in which a name that comes twice is an error: else the last one would win unnoticed."""

    def construct_mapping(self, node, deep=False):
        names = [key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode) and key.value != "<<"]
        for name, count in collections.Counter(names).items():
            if count > 1:
                raise yaml.constructor.ConstructorError(None, None, f"{name!r} comes twice", node.start_mark)
        return super().construct_mapping(node, deep)


def read_sweep(path):
    """(folder for what comes out, {run: its parameters}) of a YAML file. Raises Refused."""
    try:
        sweep = yaml.load(Path(path).read_text(), Sweep)
    except (OSError, ValueError, RecursionError, yaml.YAMLError) as error:
        raise Refused(f"{path}: {' '.join(str(error).split())}") from None
    if isinstance(sweep, dict):  # what is empty in the file is as if left out
        sweep = {name: value for name, value in sweep.items() if value is not None}
    if not isinstance(sweep, dict) or not sweep.get("runs"):
        raise Refused(f"{path}: wanted is a mapping with `out` and `runs` (python {__file__} --help)")
    for name, value in sweep.items():
        if not isinstance(value, PARTS.get(name, ())):
            kinds = ", ".join(f"{name} ({kind.__name__})" for name, kind in PARTS.items())
            raise Refused(f"{path}: {name} is none of {kinds}, or of another kind")
    if not sweep.get("out"):
        raise Refused(f"{path}: `out` is missing, the folder for what comes out")
    each = sweep.get("each", {})
    combinations = list(itertools.product(*map(_list, each.values())))
    runs = {}
    for (run, own), values in itertools.product(sweep["runs"].items(), combinations):
        chosen = dict(zip(each, values, strict=True))
        name = "_".join([str(run), *(f"{key}_{value}" for key, value in chosen.items())]).replace("/", "_")
        if name in runs:
            raise Refused(f"{path}: two runs are called {name!r}")
        if not name.strip(".") or len(name.encode()) > LONGEST:
            raise Refused(f"{path}: a folder cannot be called {name!r}; rename the run, or shorten `each`")
        if not isinstance(own or {}, dict):
            raise Refused(f"{path}: runs: {run} must be a mapping of parameters, not {own!r}")
        try:
            runs[name] = _joined(sweep.get("all", {}), own or {}, chosen)
        except (ValueError, TypeError):
            raise Refused(f"{path}: runs: {run}: overrides must be a mapping, or JSON text of one") from None
        if "run_dir" in runs[name]:
            raise Refused(f"{path}: runs: {run}: run_dir is {sweep['out']}/<the run's name>; leave it out")
    if not runs:
        raise Refused(f"{path}: each: a list without values leaves nothing to train")
    return Path(sweep["out"]), runs


def _list(values):
    return values if isinstance(values, list) else [values]


def _joined(*parts):
    """One dict of several, of which the later ones win; overrides, which may be JSON text, are joined, too.

    Its values are those of JSON: a date becomes a text. Raises ValueError or TypeError where overrides are no
    mapping.
    """
    joined, overrides = {}, {}
    for part in parts:
        joined |= part
        own = part.get("overrides") or {}
        overrides |= json.loads(own) if isinstance(own, str) else own
    if overrides:
        joined["overrides"] = overrides
    return json.loads(json.dumps(joined, default=str))


def sweep(path):
    """Train what a YAML file names, one run after another -> how many failed. Raises Refused."""
    out, runs = read_sweep(path)
    rows = {name: {"status": "waiting"} for name in runs}
    for name, parameters in runs.items():
        print(f"{name}: {parameters}", flush=True)
        rows[name] = train(out, name, parameters)
        write_table(out, rows)
    print((out / "table.md").read_text())
    return sum("failed" in row for row in rows.values())


def train(out, name, parameters):
    """Train one run of a sweep -> its row of the table, a dict; "failed" says why."""
    folder, asked = out / name, out / f"{name}.json"
    before = _read(folder / "report.json")
    if before.get("status") == "finished" and _read(asked) == parameters:
        return _row(before)
    try:
        run_page(PAGES / "02_train.ipynb", out / f"{name}.ipynb", parameters | {"run_dir": str(folder)})
    except Refused as error:
        return {"status": "failed", "failed": str(error)}
    asked.write_text(json.dumps(parameters))
    return _row(_read(folder / "report.json"))


def _read(path):
    """What a JSON file holds; {} where it is missing or damaged."""
    with contextlib.suppress(OSError, ValueError):
        return json.loads(path.read_text())
    return {}


def _row(report):
    row = {"status": report["status"], "step": report["step"], "minutes": report["train_seconds"] / 60}
    row |= {name: report["metrics"].get(name) for name in FIGURES}
    return row | ({"failed": report["reason"]} if report.get("given_up") else {})


def write_table(out, rows):
    """Write table.md: what failed, and why, then a row for each run."""
    failed = {name: row["failed"] for name, row in rows.items() if "failed" in row}
    lines = [f"# {out}: {len(failed)} of {len(rows)} failed" if failed else f"# {out}", ""]
    lines += [f"- **{name}** failed: {why}" for name, why in failed.items()]
    columns = ("status", "step", "minutes", *FIGURES)
    lines += ["", f"| run | {' | '.join(columns)} |", "|---" * (1 + len(columns)) + "|"]
    for name, row in rows.items():
        lines.append(f"| {name} | {' | '.join(_shown(row.get(column)) for column in columns)} |")
    (out / "table.md").write_text("\n".join(lines) + "\n")


def _shown(value):
    return f"{value:.4g}" if isinstance(value, float) else "" if value is None else str(value)


# ---- the command


def page_of(what):
    """Path of the notebook that is meant: a file, or by its name one of the project's; None: neither."""
    name = f"{what.removesuffix('.ipynb').removesuffix('.py')}.ipynb"
    found = [place / name for place in (PAGES, PAGES.parent)]
    if what.endswith(".ipynb"):
        found.insert(0, Path(what))
    return next((page for page in found if page.is_file()), None)


def value_of(text):
    """A number or true or false where the text is one, else the text itself."""
    try:
        value = json.loads(text.lower() if text in ("True", "False") else text)
    except ValueError:
        return text
    return value if isinstance(value, (bool, int, float)) else text


@command
def main(arguments=None):
    form = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=form)
    parser.add_argument("what", help="a notebook (02_train, or its path), or a .yaml file of several runs")
    parser.add_argument("out", nargs="?", default="out.ipynb", help="the executed notebook")
    pair = {"nargs": 2, "action": "append", "default": [], "metavar": ("NAME", "VALUE")}
    parser.add_argument("-p", **pair, dest="parameters", help="a parameter of the notebook")
    given = parser.parse_args(arguments)
    logging.basicConfig(level="INFO", format="%(message)s")
    try:
        if given.what.endswith((".yaml", ".yml")):
            return MENDABLE if sweep(given.what) else None
        page = page_of(given.what)
        if page is None:
            names = ", ".join(path.stem for path in sorted(PAGES.glob("*.ipynb")))
            raise Refused(f"there is no notebook {given.what!r}; there are: {names}")
        run_page(page, given.out, {name: value_of(text) for name, text in given.parameters})
    except Refused as error:
        print(f"error: {error}", file=sys.stderr)
        return MENDABLE


if __name__ == "__main__":
    sys.exit(main())
