"""A file imports from lower floors, or from its own as long as nothing goes round in circles; systems are
known by name alone.

floor 0  config, frames, runtime
floor 1  data/, media, metrics, frechet, checkpoint, thermal, nn/
floor 2  systems/, data_prep/
floor 3  every other module directly in mtld_core: train, settings, stepper, ...
"""

import ast
import re
import statistics
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = ("mtld_core", "data_prep")
FLOORS = {
    "config": 0,
    "frames": 0,
    "runtime": 0,
    "files": 0,
    "chance": 0,
    "media": 1,
    "metrics": 1,
    "colours": 1,
    "frechet": 1,
    "checkpoint": 1,
    "lock": 1,
    "thermal": 1,
}
FOLDERS = {"data": 1, "nn": 1, "systems": 2}
SYSTEMS = "mtld_core.systems"
SHARED = ("", "base")  # what in systems/ is no system: the package itself and the contract


def floor(module):
    top, _, rest = module.partition(".")
    if top == "data_prep":
        return 2
    name = rest.split(".")[0]
    return FOLDERS.get(name, FLOORS.get(name, 3))


def system_of(module):
    """ "mtld" for mtld_core.systems.mtld.system and for all modules in a package of that name; "" for what is shared
    or elsewhere.
    """
    name = module.removeprefix(f"{SYSTEMS}.").split(".")[0] if module.startswith(f"{SYSTEMS}.") else ""
    return "" if name in SHARED else name


def modules_in(root):
    """dict module name -> file, for all of the project's packages under `root`."""
    found = {}
    for package in PACKAGES:
        for file in sorted((root / package).rglob("*.py")):
            parts = file.relative_to(root).with_suffix("").parts
            found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = file
    return found


def imports_of(module, file, modules):
    """(line, module of the project) for every import in a file, also inside functions. A name that is a
    module stands for it.

    Otherwise the package is what is imported: `from mtld_core.data import Arc` is an import of
    mtld_core.data's `__init__`.
    """
    package = module.split(".") if file.name == "__init__.py" else module.split(".")[:-1]
    for node in ast.walk(ast.parse(file.read_text(), str(file))):
        if isinstance(node, ast.Import):
            named = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) - node.level + 1] if node.level else []
            base = ".".join([*above, *filter(None, [node.module])])
            named = [
                f"{base}.{alias.name}" if f"{base}.{alias.name}" in modules else base for alias in node.names
            ]
        else:
            continue
        for name in named:
            if name.split(".")[0] in PACKAGES:
                assert name in modules, f"{file}:{node.lineno} imports {name}, which does not exist"
                yield node.lineno, name


def strings_of(file):
    """(line, text) of all string constants that are no docstrings."""
    tree = ast.parse(file.read_text())
    heads = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    prose = {id(node.body[0].value) for node in ast.walk(tree)
             if isinstance(node, heads) and node.body and isinstance(node.body[0], ast.Expr)}  # fmt: skip
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in prose:
            yield node.lineno, node.value


def violations(root):
    """All that breaks the rules under `root`, one line each."""
    modules, found, graph = modules_in(root), [], {}
    concrete = {system_of(module) for module in modules} - {""}
    for module, file in modules.items():
        where = file.relative_to(root)
        graph[module] = set()
        for line, wanted in imports_of(module, file, modules):
            graph[module].add(wanted)
            if floor(wanted) > floor(module):
                found.append(
                    f"{where}:{line} on floor {floor(module)} imports {wanted} from floor {floor(wanted)}"
                )
            if system_of(wanted) and system_of(wanted) != system_of(module):
                found.append(f"{where}:{line} imports the system {wanted}; only its name may be used")
        if module != SYSTEMS and not system_of(module):
            for line, text in strings_of(file):
                if any(re.search(rf"{re.escape(SYSTEMS)}\.{name}\b", text) for name in concrete):
                    found.append(f"{where}:{line} names a system's module in {text!r}")
    return found + [f"circle: {' -> '.join(circle)}" for circle in circles(graph)]


def circles(graph):
    """One circle for each module that is part of one which no earlier module is part of."""
    done, found = set(), []

    def visit(module, path):
        if module in path:
            found.append([*path[path.index(module) :], module])
        elif module not in done:
            for wanted in sorted(graph.get(module, ())):
                visit(wanted, [*path, module])
            done.add(module)

    for module in sorted(graph):
        visit(module, [])
    return found


def test_the_project_keeps_its_floors():
    assert len(modules_in(ROOT)) > 25
    assert violations(ROOT) == []


def test_the_project_has_modules_on_every_floor():
    floors = {module: floor(module) for module in modules_in(ROOT)}
    assert set(floors.values()) == {0, 1, 2, 3}
    wanted = {"mtld_core.runtime": 0, "mtld_core.data.batches": 1, "mtld_core.nn": 1, "mtld_core.systems.base": 2,
              "data_prep.video": 2, "mtld_core.train.loop": 3, "mtld_core": 3}  # fmt: skip
    assert {module: floors[module] for module in wanted} == wanted


# ---- the checker itself, on small trees


GOOD = {
    "mtld_core/__init__.py": "def __getattr__(name):\n    from mtld_core.systems.opening import open_run\n    return open_run\n",
    "mtld_core/config.py": "import json\n",
    "mtld_core/runtime.py": "import os\n",
    "mtld_core/media.py": "from mtld_core.config import UserError\n",
    "mtld_core/data/__init__.py": "from .store import load\nfrom .cuts import find_cuts\n",
    "mtld_core/data/store.py": "from ..runtime import UserError\nfrom . import cuts\n",
    "mtld_core/data/cuts.py": "import mtld_core.config\n",
    "mtld_core/systems/__init__.py": 'from mtld_core import media\nSYSTEMS = {"a": "mtld_core.systems.a:A"}\n',
    "mtld_core/systems/base.py": "from mtld_core.config import check\n",
    "mtld_core/systems/a.py": "from .base import System\n",
    "mtld_core/systems/w/__init__.py": "from .inner import W\n",
    "mtld_core/systems/w/inner.py": "from mtld_core.systems.base import System\n",
    "mtld_core/train/settings.py": "from mtld_core.systems import system_class\n",
    "mtld_core/train/loop.py": '"""Prose may say mtld_core.systems.a."""\nfrom mtld_core.train.loop.settings import plan\n',
    "data_prep/__init__.py": "",
    "data_prep/video.py": "from mtld_core.data import load\n",
}


def tree(root, **changes):
    for name, text in (GOOD | {key: value for key, value in changes.items() if "/" in key}).items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root


def test_a_good_tree_has_nothing_to_say(tmp_path):
    assert violations(tree(tmp_path)) == []


@pytest.mark.parametrize(
    ("file", "text", "said"),
    [
        ("mtld_core/runtime.py", "from M import data\n", ["floor 0 imports M.data from floor 1", "circle"]),
        ("mtld_core/config.py", "from . import media\n", ["floor 0 imports M.media from floor 1"]),
        ("mtld_core/media.py", "def f():\n    import M.train\n", ["media.py:2 on floor 1 imports M.train", "circle"]),
        ("mtld_core/data/cuts.py", "from ..systems.base import System\n", ["imports M.systems.base from floor 2"]),
        ("mtld_core/data/cuts.py", "class A:\n  def f(s):\n    from ..train import x\n", ["cuts.py:3 on floor 1"]),
        ("mtld_core/systems/base.py", "from M.settings import plan\n", ["floor 2 imports M.settings"]),
        ("mtld_core/systems/base.py", "from M import open_run\n", ["floor 2 imports mtld_core from floor 3"]),
        ("data_prep/video.py", "try:\n    from M import train\nexcept OSError:\n    pass\n", ["floor 2 imports M.train"]),
        ("mtld_core/train/loop.py", "from M.systems.a import A\n", ["imports the system M.systems.a"]),
        ("mtld_core/train/loop.py", "from .systems import a\n", ["imports the system M.systems.a"]),
        ("mtld_core/train/loop.py", "import M.systems.w.inner as i\n", ["imports the system M.systems.w.inner"]),
        ("mtld_core/train/loop.py", 'x = __import__("M.systems.a")\n', ["module in 'M.systems.a'"]),
        ("mtld_core/systems/base.py", 'x = f"M.systems.w:{1}"\n', ["module in 'M.systems.w:'"]),
        ("mtld_core/systems/__init__.py", "from .a import A\n", ["imports the system M.systems.a"]),
        ("mtld_core/systems/a.py", "from . import w\n", ["imports the system M.systems.w"]),
        ("mtld_core/systems/w/inner.py", "def f():\n    from ..a import A\n", ["imports the system M.systems.a"]),
        ("mtld_core/train/settings.py", "def f():\n    from . import train\n", ["circle: M.settings -> M.train -> M.settings"]),
        ("mtld_core/data/cuts.py", "from M.data import load\n", ["circle: M.data -> M.data.cuts -> M.data"]),
        ("mtld_core/data/cuts.py", "from .store import load\n", ["circle: M.data.cuts -> M.data.store -> M.data.cuts"]),
        ("mtld_core/data/cuts.py", "from . import cuts\n", ["circle: M.data.cuts -> M.data.cuts"]),
    ],
)  # fmt: skip
def test_a_planted_violation_is_found(tmp_path, file, text, said):
    assert file in GOOD
    text, said = (
        text.replace("M", "mtld_core"),
        [line.replace("M", "mtld_core") for line in said],
    )  # M keeps the table narrow
    found = violations(tree(tmp_path, **{file: text}))
    assert len(found) == len(said), found
    assert all(part in line for part, line in zip(said, found, strict=True)), found


def test_an_import_of_a_module_that_is_not_there_is_found(tmp_path):
    with pytest.raises(AssertionError, match=r"train\.py:1 imports mtld_core\.nowhere"):
        violations(tree(tmp_path, **{"mtld_core/train/loop.py": "from mtld_core.nowhere import x\n"}))


# ---- what an import costs


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


def test_floor_zero_brings_no_torch():
    code = "import sys, mtld_core.config, mtld_core.runtime, mtld_core.frames; print('torch' in sys.modules)"
    run = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert run.stdout == "False\n"


def test_open_run_is_there_when_asked_for_and_other_names_are_not():
    import mtld_core
    from mtld_core.systems.opening import open_run

    assert mtld_core.open_run is open_run and mtld_core.__all__ == ["open_run"]
    with pytest.raises(AttributeError, match="'mtld_core' has no attribute 'open_rnu'"):
        _ = mtld_core.open_rnu
