"""The house keeps its rules (bench/house.py), the pages show it as it is, and an import costs little."""

import re
import statistics
import subprocess
import sys
from pathlib import Path

import house
import pytest
from project_code import House, PythonFile, members_of, size_of

pytestmark = pytest.mark.versionless  # it reads our own source
ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def rooms():
    return House(ROOT).rooms


def test_the_project_keeps_the_rules_of_the_house():
    assert house.violations(ROOT) == []


def test_the_table_names_nothing_that_is_gone(rooms):
    assert set(" ".join(house.STOREYS).split()) == rooms
    for what, who in house.RESERVED.items():
        for module in [what, *who.split()]:
            file = ROOT / Path(*module.split(".")).with_suffix(".py")
            assert "*" in module or file.exists(), f"bench/house.py names {module}, which does not exist"


def test_architecture_md_quotes_the_storeys():
    assert house.table() in (ROOT / "docs" / "architecture.md").read_text()


def test_the_tree_names_every_room_and_nothing_that_is_gone(rooms):
    _, _, tree = (ROOT / "docs" / "architecture.md").read_text().partition("## The tree\n\n```\n")
    named = re.findall(r"^(?:  )?(\S+)", tree.partition("\n```")[0], re.MULTILINE)
    assert sorted(rooms - {*named, "__init__.py"}) == []
    for name in named:
        if name.endswith((".py", "/")):
            assert (ROOT / name).exists() or (ROOT / "mtld_core" / name).exists(), f"{name} is gone"


# ---- the checker itself, on small trees


GOOD = {
    "mtld_core/__init__.py": "def __getattr__(name):\n    from mtld_core.systems.opening import open_run\n    return open_run\n",
    "mtld_core/config.py": "import json\n",
    "mtld_core/runtime.py": "from mtld_core.config import UserError\n",
    "mtld_core/media.py": "import mtld_core.frames as frames\n",
    "mtld_core/frames.py": "",
    "mtld_core/pages.py": "import ipywidgets as widgets\nfrom IPython.display import HTML\n",
    "mtld_core/metrics.py": "def lpips():\n    from mtld_core.nn.perceptual import LPIPS\n    return LPIPS\n",
    "mtld_core/nn/__init__.py": "",
    "mtld_core/nn/perceptual.py": "class LPIPS:\n    pass\n",
    "mtld_core/nn/conv.py": "def norm():\n    pass\n\n\ndef _pad():\n    norm()\n\n\nclass Block:\n    pad = _pad\n",
    "mtld_core/data/__init__.py": "from .store import load\nfrom .cuts import find_cuts\n",
    "mtld_core/data/store.py": "from ..runtime import UserError\nfrom . import cuts\n",
    "mtld_core/data/cuts.py": "import mtld_core.config\n",
    "mtld_core/systems/__init__.py": 'from mtld_core import media\nSYSTEMS = {"a": "mtld_core.systems.a.system:A"}\n',
    "mtld_core/systems/base.py": "from mtld_core.config import check\n",
    "mtld_core/systems/opening.py": "from mtld_core.systems import system_class\n",
    "mtld_core/systems/a/__init__.py": "",
    "mtld_core/systems/a/system.py": "from ..base import System\nfrom .nets import Net\n",
    "mtld_core/systems/a/nets.py": "from mtld_core.nn.conv import Block\n",
    "mtld_core/systems/w/__init__.py": "from .inner import W\n",
    "mtld_core/systems/w/inner.py": "from mtld_core.systems.base import System\nfrom mtld_core.systems.opening import open_run\n",
    "mtld_core/systems/w/nets.py": "from ...nn import conv\nfrom ...nn.conv import Block as B\n",
    "mtld_core/judge/task.py": "from mtld_core.systems import system_class\n",
    "mtld_core/train/__init__.py": '"""Prose may say mtld_core.systems.a."""\nfrom mtld_core.train.loop import fit\n',
    "mtld_core/train/loop.py": "from mtld_core.train.settings import plan\n",
    "mtld_core/train/settings.py": "def sample():\n    from data_prep.extract_frames import extract\n    return extract\n",
    "mtld_core/train/panel.py": "import ipywidgets\nfrom mtld_core.train import fit\n",
    "mtld_core/play/real_game.py": "from data_prep.games import make_env\n",
    "data_prep/__init__.py": "",
    "data_prep/extract_frames.py": "from mtld_core.data import load\nfrom data_prep import games\n",
    "data_prep/games.py": "",
    "notebooks/02_train.py": "from mtld_core.train.panel import TrainPanel\nfrom IPython.display import HTML\n",
    "kaggle/push.py": "import kaggle.api\nimport build\n",
    "kaggle/build.py": "from mtld_core.train import fit\n",
    "bench/steps.py": "from mtld_core.systems.a.nets import Net\n",
    "bench/more.py": "from steps import Steps\n",
}


def tree(root, changes=()):
    for name, text in (GOOD | dict(changes)).items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root


def found_in(root, file, text):
    return house.violations(tree(root, {file: text}))


def test_a_good_tree_has_nothing_to_say(tmp_path):
    assert house.violations(tree(tmp_path)) == []


@pytest.mark.parametrize(
    ("file", "text", "said"),
    [
        # up, or across
        ("mtld_core/runtime.py", "from M.data import load\n", ["runtime.py:1 on storey 1 imports M.data from storey 2", "circle"]),
        ("mtld_core/config.py", "from . import media\n", ["storey 0 imports M.media from storey 1"]),
        ("mtld_core/config.py", "from . import frames\n", ["storey 0 imports M.frames from storey 0"]),
        ("mtld_core/media.py", "def f():\n    import M.train\n", ["media.py:2 on storey 1 imports M.train"]),
        ("mtld_core/data/cuts.py", "from ..systems.base import System\n", ["imports M.systems.base from storey 3"]),
        ("mtld_core/data/cuts.py", "class A:\n  def f(s):\n    from ..train import x\n", ["cuts.py:3 on storey 2"]),
        ("mtld_core/systems/base.py", "from M.train.settings import plan\n", ["storey 3 imports M.train.settings"]),
        ("mtld_core/systems/base.py", "from mtld_core import open_run\n", ["imports mtld_core from storey 7", "circle"]),
        ("mtld_core/judge/task.py", "from M.train import fit\n", ["storey 4 imports M.train from storey 5"]),
        ("mtld_core/train/loop.py", "from M.generate import jobs\n", ["imports M.generate, which does not exist"]),
        ("mtld_core/play/real_game.py", "import mtld_core\n", ["storey 6 imports mtld_core from storey 7"]),
        ("data_prep/games.py", "try:\n    from M.train import x\nexcept OSError:\n    pass\n", ["games.py:2 on storey 3 imports M.train"]),
        ("data_prep/games.py", "from M.systems import base\n", ["storey 3 imports M.systems.base from storey 3"]),
        ("notebooks/02_train.py", "import mtld_core\n", ["storey 7 imports mtld_core from storey 7"]),
        # circles
        ("mtld_core/train/settings.py", "def f():\n    from . import loop\n", ["circle: M/train/loop.py -> M/train/settings.py -> M/train/loop.py"]),
        ("mtld_core/data/cuts.py", "from M.data import load\n", ["circle: M/data/"]),
        ("mtld_core/data/cuts.py", "from .store import load\n", ["circle: M/data/"]),
        ("mtld_core/data/cuts.py", "from . import cuts\n", ["circle: M/data/cuts.py -> M/data/cuts.py"]),
        ("mtld_core/systems/opening.py", "from .w import W\n", ["circle: M/systems/", "imports the system M.systems.w;"]),
        ("bench/steps.py", "import more\n", ["circle: bench/"]),
        # systems
        ("mtld_core/train/loop.py", "from M.systems.a.system import A\n", ["imports the system M.systems.a.system"]),
        ("mtld_core/train/loop.py", "from ..systems import a\n", ["imports the system M.systems.a;"]),
        ("mtld_core/train/loop.py", "import M.systems.w.inner as i\n", ["imports the system M.systems.w.inner"]),
        ("mtld_core/systems/__init__.py", "from .a import A\n", ["imports the system M.systems.a;"]),
        ("mtld_core/systems/a/system.py", "from .. import w\n", ["imports the system M.systems.w;"]),
        ("mtld_core/systems/w/inner.py", "def f():\n    from ..a import A\n", ["imports the system M.systems.a;"]),
        ("mtld_core/train/loop.py", 'x = __import__("M.systems.a")\n', ["names a system's module in 'M.systems.a'"]),
        ("mtld_core/systems/base.py", 'x = f"M.systems.w:{1}"\n', ["names a system's module in 'M.systems.w:'"]),
        ("kaggle/build.py", 'x = "M.systems.w"\n', ["names a system's module in 'M.systems.w'"]),
        # what is reserved
        ("mtld_core/train/loop.py", "from data_prep.extract_frames import extract\n", ["imports data_prep.extract_frames, which is reserved"]),
        ("mtld_core/train/settings.py", "from data_prep import games\n", ["imports data_prep.games, which is reserved"]),
        ("mtld_core/play/real_game.py", "import data_prep\n", ["imports data_prep, which is reserved"]),
        ("mtld_core/train/loop.py", "from IPython.display import HTML\n", ["imports IPython.display, which is reserved"]),
        ("data_prep/games.py", "import ipywidgets\n", ["imports ipywidgets, which is reserved"]),
        ("mtld_core/play/real_game.py", "from M.train.panel import x\n", ["imports M.train.panel, which is reserved"]),
        # blocks
        ("mtld_core/systems/w/nets.py", "", ["nn/conv.py:1 M.nn.conv.norm serves a alone", "nn/conv.py:9 M.nn.conv.Block serves a alone"]),
        ("mtld_core/metrics.py", "", ["nn/perceptual.py:1 M.nn.perceptual.LPIPS serves nobody"]),
        ("mtld_core/nn/conv.py", "class Block:\n    pass\n\n\ndef _f():\n    pass\n\n\ndef g():\n    _f()\n", ["conv.py:9 M.nn.conv.g serves nobody"]),
    ],
)  # fmt: skip
def test_a_planted_violation_is_found(tmp_path, file, text, said):
    assert file in GOOD
    found = found_in(tmp_path, file, re.sub(r"\bM\.", "mtld_core.", text))  # M keeps the table narrow
    assert len(found) == len(said), found
    for line, part in zip(found, said, strict=True):
        assert re.sub(r"\bM\b", "mtld_core", part) in line


@pytest.mark.parametrize(
    ("file", "said"),
    [
        ("mtld_core/helpers.py", "helpers.py is on no storey of bench/house.py"),
        ("mtld_core/tools/one.py", "tools/ is on no storey of bench/house.py"),
    ],
)
def test_a_file_that_the_table_does_not_name_is_found(tmp_path, file, said):
    assert found_in(tmp_path, file, "import json\n") == [said]


def test_an_import_of_a_module_that_is_not_there_is_found(tmp_path):
    (line,) = found_in(tmp_path, "mtld_core/train/loop.py", "import os\nfrom mtld_core.nowhere import x\n")
    assert line == "mtld_core/train/loop.py:2 imports mtld_core.nowhere, which does not exist"


def test_folders_in_a_circle_are_found_though_their_files_are_in_none(tmp_path):
    files = {
        "mtld_core/data/store.py": "from mtld_core.data.formats import one\n",
        "mtld_core/data/formats/one.py": "",
        "mtld_core/data/formats/two.py": "from mtld_core.data import store\n",
    }
    (line,) = house.violations(tree(tmp_path, files))
    assert "mtld_core/data/store.py -> mtld_core/data/formats" in line


def test_a_block_that_another_block_of_two_systems_needs_has_its_place(tmp_path):
    text = "def hinge():\n    pass\n\n\nLOSSES = {1: hinge}\n"
    assert found_in(tmp_path, "mtld_core/nn/gan.py", text) == [
        "mtld_core/nn/gan.py:1 mtld_core.nn.gan.hinge serves nobody"
    ]
    users = {
        f"mtld_core/systems/{name}/losses.py": "from mtld_core.nn.gan import LOSSES\n" for name in ("a", "w")
    }
    assert house.violations(tree(tmp_path, users)) == []


MEMBERS = '"""The contract.\n\n    needs()       what a batch holds,\n                  all of it\n    loss(a, b)    the loss\n    start / step / rollout   a dream\n    training_step or extra_state(), extra_files()  more\n\nAxis letters: B batch.\n"""\n'  # fmt: skip


@pytest.mark.parametrize(
    ("cap", "most", "file", "text", "said"),
    [
        ("MOST_ROOMS", 17, "mtld_core/share.py", "", "18 rooms, at most 17 wanted"),
        ("MOST_STOREYS", 7, "mtld_core/share.py", "", "8 storeys, at most 7 wanted"),
        ("MOST_ARROWS", 3, "mtld_core/share.py", "", " arrows between rooms, at most 3 wanted"),
        ("MOST_FILES_AT_THE_TOP", 5, "mtld_core/share.py", "", "8 files in mtld_core/, at most 5 wanted"),
        ("MOST_FILES", 3, "mtld_core/data/more.py", "", "4 files in mtld_core/data/, at most 3 wanted"),
        ("MOST_TOKENS", 10, "mtld_core/share.py", "", " tokens in mtld_core, at most 10 wanted"),
        ("MOST_TOKENS_A_LINE", 10.4, "mtld_core/share.py", "x = [" + "1, " * 2000 + "]", " tokens a line of code in mtld_core, at most 10.4"),
        ("LONGEST_FUNCTION", 60, "data_prep/games.py", "class A:\n    def f(self):\n" + "        a = 1\n" * 60, "61 lines in data_prep/games.py:2 f(), at most 60"),
        ("LONGEST_LINE", 110, "mtld_core/share.py", f"\n# {'x' * 109}\n", "111 characters in mtld_core/share.py:2, at most 110"),
        ("MOST_MEMBERS", 7, "mtld_core/systems/base.py", MEMBERS, "8 members of the contract, at most 7 wanted"),
    ],
)  # fmt: skip
def test_what_is_too_large_is_found(tmp_path, monkeypatch, cap, most, file, text, said):
    monkeypatch.setattr(house, cap, most)
    found = found_in(tmp_path, file, text)
    assert any(said in line for line in found), found


def test_tokens_are_counted_without_comments_docstrings_and_layout(tmp_path):
    file = tmp_path / "a.py"
    file.write_text('''"""Docstring."""
# comment
def f(x):
    """Docstring
    of two lines."""
    return f"{x} and {x:.{x}f}" + """
    text"""  # comment


"no docstring"
''')
    read = PythonFile(file, tmp_path)
    assert dict(read.tokens) == {3: 6, 6: 4, 10: 1}
    assert size_of([read, read]) == (6, 22)


def test_members_of_the_contract_are_the_names_in_its_table(tmp_path):
    (tmp_path / "base.py").write_text(MEMBERS)
    names = ["needs", "loss", "start", "step", "rollout", "training_step", "extra_state", "extra_files"]
    assert members_of(PythonFile(tmp_path / "base.py", tmp_path)) == names
    assert members_of(None) == []


def test_the_command_shows_the_house(monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(house, "ROOT", tree(tmp_path))
    monkeypatch.setattr(sys, "argv", ["house.py"])
    assert house.main() == 0
    shown = capsys.readouterr().out
    assert "0       config.py         1       1       2    2.00\n" in shown
    assert "longest functions, in lines\n      3 mtld_core/train/settings.py:1 sample()\n" in shown
    (tmp_path / "mtld_core" / "helpers.py").touch()
    assert house.main() == 1
    shown = capsys.readouterr()
    assert "\nbroken rules\nhelpers.py is on no storey of bench/house.py\n" in shown.out
    assert shown.err == "error: rules of the house are broken in places: 1\n"


# ---- what an import costs


@pytest.mark.clocked
def test_importing_the_package_is_instant_and_brings_no_torch():
    code = (
        "import sys, time; began = time.perf_counter(); import mtld_core; took = time.perf_counter() - "
        "began; "
        "heavy = {'torch', 'numpy', 'cv2', 'mtld_core.systems'} & set(sys.modules); print(took, "
        "*sorted(heavy))"
    )
    runs = [
        subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
        for _ in range(3)
    ]
    seconds, heavy = zip(*(run.stdout.strip().partition(" ")[::2] for run in runs), strict=True)
    assert heavy == ("", "", "")
    assert statistics.median(map(float, seconds)) < 0.3


def test_the_lowest_rooms_bring_no_torch():
    lowest = "mtld_core.config, mtld_core.files, mtld_core.chance, mtld_core.frames, mtld_core.runtime"
    code = f"import sys, {lowest}; print('torch' in sys.modules)"
    run = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert run.stdout == "False\n"


def test_open_run_is_there_when_asked_for_and_other_names_are_not():
    import mtld_core
    from mtld_core.systems.opening import open_run

    assert mtld_core.open_run is open_run and mtld_core.__all__ == ["open_run"]
    with pytest.raises(AttributeError, match="'mtld_core' has no attribute 'open_rnu'"):
        _ = mtld_core.open_rnu
