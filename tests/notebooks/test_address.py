"""Badges and clone lines, once the project has an address."""

import re
import subprocess
import sys
from pathlib import Path

import address
import jupytext
import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture
def project(tmp_path):
    """README and the notebooks as they are before anybody told them an address, or after that."""
    (tmp_path / "notebooks").mkdir()
    for page in (ROOT / "README.md", *ROOT.glob("notebooks/0*.py")):
        text = re.sub(r"git clone https://\S+", "git clone <this repository>", page.read_text())
        text = re.sub(r'(?m)^address = ".*"$', 'address = "<its address>"', text)
        text = re.sub(r"(?m)^# \[!\[\w+\]\(.*\n", "", text)
        (tmp_path / page.relative_to(ROOT)).write_text(text)
    return tmp_path


def test_every_notebook_gets_badges_and_the_line_that_brings_the_project(project):
    address.tell(project, "me/mtld")
    pages = sorted(project.glob("notebooks/0*.py"))
    assert len(pages) == 4
    for page in pages:
        first, *cells = jupytext.read(page).cells
        opens = re.findall(r"\)\]\((\S+)\)", first.source)
        path = f"me/mtld/blob/main/notebooks/{page.stem}.ipynb"
        assert opens == [
            f"https://colab.research.google.com/github/{path}",
            f"https://kaggle.com/kernels/welcome?src=https://github.com/{path}",
        ]
        assert first.source.startswith("# ") and first.cell_type == "markdown"
        assert sum('address = "https://github.com/me/mtld"' in cell.source for cell in cells) == 1
    assert (project / "README.md").read_text().count("git clone https://github.com/me/mtld ") == 2
    width = [sys.executable, "-m", "ruff", "check", "--select", "E501", "--line-length", "110", str(project)]
    assert subprocess.run(width).returncode == 0

    before = [page.read_text() for page in pages]
    with pytest.raises(ValueError, match=r"README.md, 01_\S+, .*: there is an address already"):
        address.tell(project, "you/mtld")
    assert [page.read_text() for page in pages] == before


@pytest.mark.parametrize("name", ["mtld", "https://github.com/me/mtld", "me/mtld/x", ""])
def test_what_is_no_repository_is_refused(project, name):
    before = (project / "README.md").read_text()
    with pytest.raises(ValueError, match="is not the OWNER/NAME"):
        address.tell(project, name)
    assert (project / "README.md").read_text() == before
