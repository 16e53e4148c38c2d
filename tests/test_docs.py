"""The pages: every link of a page or a notebook to one of our own files leads there, anchors included."""

import json
import re
from pathlib import Path

import pytest

pytestmark = pytest.mark.versionless  # it reads our own pages
ROOT = Path(__file__).parents[1]


def is_ours(path):
    """Whether a file is none of an environment's (.venv, .venv-lowest) or a tool's (.pytest_cache)."""
    return not any(part.startswith(".") for part in path.relative_to(ROOT).parts)


def pages():
    """Every page and notebook of the project: its path and the text in it that a reader sees as Markdown."""
    for path in sorted(ROOT.rglob("*.md")):
        if is_ours(path):
            yield path, path.read_text()
    for path in sorted(ROOT.glob("notebooks/*.ipynb")):
        cells = json.loads(path.read_text())["cells"]
        yield path, "\n\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "markdown")


def prose(text):
    return re.sub(r"^```.*?^```", "", text, flags=re.DOTALL | re.MULTILINE)


def anchors(text):
    """The anchors of a page's headings, as GitHub makes them."""
    for heading in re.findall(r"^#+ (.*)$", prose(text), flags=re.MULTILINE):
        shown = re.sub(r"\[(.*?)\]\(.*?\)", r"\1", heading)
        yield re.sub(r"[^\w\- ]", "", shown.strip().lower()).replace(" ", "-")


def test_links_between_our_pages_hold():
    broken, followed = [], 0
    for page, text in pages():
        for link in re.findall(r"\]\(([^)\s]+)\)|src=\"([^\"]+)\"", prose(text)):
            target, _, anchor = "".join(link).partition("#")
            if re.match(r"\w+:", target):
                continue
            there = (page.parent / target).resolve() if target else page
            whole = there.exists() and (not anchor or anchor in set(anchors(there.read_text())))
            followed += 1
            if not whole:
                broken.append(f"{page.relative_to(ROOT)}: {''.join(link)}")
    assert not broken, "links that lead nowhere:\n" + "\n".join(broken)
    assert followed > 60


def test_pages_that_the_code_names_exist():
    names = {
        (path.name, name)
        for path in ROOT.rglob("*.py")
        if is_ours(path)
        for name in re.findall(r"\bdocs/[\w/]+\.md\b", path.read_text())
    }
    gone = sorted(f"{name} in {path}" for path, name in names if not (ROOT / name).exists())
    assert names and not gone, "\n".join(gone)
