"""What docs/performance.md says of cards: of each file that bench/gpu_check.py wrote and that was kept."""

import json
from pathlib import Path

from gpu_cases import side_of
from gpu_fast import DRAWN, STEPPED
from measure import table

KEPT = Path(__file__).resolve().parent / "cards"  # a file for each card
NOT = "not measured"


def lines():
    """The page's lines: two tables for each card; where there is none, tables that say so."""
    files = sorted(KEPT.glob("*.json"))
    if not files:
        return of_card({"card": "A card", "torch": "", "date": NOT, "sections": {}})
    return [line for file in files for line in [*of_card(json.loads(file.read_text())), ""]][:-1]


def of_card(results):
    """What was measured on a card, and that the rest was not. results: as bench/gpu_check.py keeps them."""
    said = ", ".join(part for part in (results["card"], results["torch"], results["date"]) if part)
    eager, replayed, frames = (_rows(results, name) for name in ("speed", "graphs", "rollouts"))
    steps = []
    for name, preset in STEPPED:
        row = eager.get(f"{name} `{preset}`", {})
        steps.append(
            {
                "step of": f"{name} `{preset}`",
                "pixels a side": side_of(name, preset),
                "batch": row.get("batch", ""),
                "precision": row.get("precision", ""),
                "ms": row.get("ms", NOT),
                "as a graph, ms": replayed.get(f"{name} `{preset}`", {}).get("graph, ms", NOT if row else ""),
                "share of the data sheet": row.get("share of the data sheet", ""),
                "GB": row.get("GB", ""),
            }
        )
    drawn = [
        {
            "frames of": f"{name} `{preset}`",
            "frames/s": frames.get(f"{name} `{preset}`", {}).get("frames/s", NOT),
            "generated": frames.get(f"{name} `{preset}`", {}).get("generated, frames/s", ""),
        }
        for name, preset in DRAWN
    ]
    return [f"{said}:", "", *table(steps), "", *table(drawn)]


def _rows(results, section):
    """Rows of a section by what they are of, the cell in their first column; none where it has no rows."""
    rows = results["sections"].get(section, {}).get("rows", ())
    return {next(iter(row.values())): row for row in rows}
