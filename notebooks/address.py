"""Tell README and the notebooks where the project can be fetched, and give each notebook its badges.

    python notebooks/address.py OWNER/NAME    # of the repository on GitHub
    make notebooks                            # then the .ipynb files say it, too

For whoever publishes the project, or a fork: Colab and Kaggle open a notebook by its address on GitHub.
"""

import argparse
import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
from mtld_core.runtime import command

UNKNOWN = re.compile("<this repository>|<its address>")
TITLE = re.compile("^# # .+$", re.MULTILINE)
# of each place: its badge, and what opens a notebook there; a badge is one word, so that no line is too long
BADGES = {
    "Colab": (
        "https://colab.research.google.com/assets/colab-badge.svg",
        "https://colab.research.google.com/github/",
    ),
    "Kaggle": (
        "https://kaggle.com/static/images/open-in-kaggle.svg",
        "https://kaggle.com/kernels/welcome?src=https://github.com/",
    ),
}


def badges(repository, page):
    """Lines of a markdown cell: a badge for each place, which opens the notebook there."""
    path = f"{repository}/blob/main/notebooks/{page}.ipynb"
    return [f"# [![{name}]({picture})]({opens}{path})" for name, (picture, opens) in BADGES.items()]


def tell(root, repository):
    """Write the address of `repository`, "owner/name", into README.md and notebooks/0*.py under `root`.

    Raises ValueError, and changes nothing, where that is no such name or a page tells an address already.
    """
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", repository):
        raise ValueError(f"{repository!r} is not the OWNER/NAME of a repository on GitHub, such as me/mtld")
    pages = sorted(Path(root, "notebooks").glob("0*.py"))
    texts = {path: path.read_text() for path in (Path(root, "README.md"), *pages)}
    told = [path.name for path, text in texts.items() if not UNKNOWN.search(text)]
    if told:
        raise ValueError(f"{', '.join(told)}: there is an address already; change it by hand")
    for path, text in texts.items():
        text = UNKNOWN.sub(f"https://github.com/{repository}", text)
        if path in pages:
            lines = ["#", *badges(repository, path.stem)]
            text = TITLE.sub(lambda title, lines=lines: "\n".join([title[0], *lines]), text, count=1)
        path.write_text(text)


@command
def main():
    parser = argparse.ArgumentParser(description="Tell the pages where the project can be fetched.")
    parser.add_argument("repository", help="OWNER/NAME on GitHub")
    try:
        tell(ROOT, parser.parse_args().repository)
    except ValueError as error:
        parser.error(error)
    print("README.md and notebooks/*.py say it; `make notebooks` writes it into the .ipynb files")


if __name__ == "__main__":
    sys.exit(main())
