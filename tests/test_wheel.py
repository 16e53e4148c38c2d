"""What `pip install .` brings: the whole of the two packages and nothing else, and every system trains from
it alone.
"""

import os
import shutil
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import h5py
import numpy as np
import pytest
from conftest import moving_square

from mtld_core import systems

ROOT = Path(__file__).parents[1]
PACKAGES = ("mtld_core", "data_prep")
COPIED = (*PACKAGES, "kaggle", "tests", "bench", "notebooks")
TRAIN_EACH = """
import sys

sys.modules["efficientnet_lite_pytorch"] = None  # no Frechet distance: hundreds of pictures through a large network

from data_prep import make_domains, sources
from mtld_core import systems
from mtld_core.train import train

game, shapes, runs = sys.argv[1:]
make_domains.shapes(shapes, clips=5, frames=8, size=32)
assert sources.SAMPLE.is_file()
below = {f"{stage}_run": f"{runs}/{stage}" for stage in ("tokenizer", "latent_actions")}  # they stand before dynamics
for name in systems.SYSTEMS:
    data = shapes if name == "rl_v2v" else game
    overrides = below if name == "dynamics" else {}
    report = train(name, "tiny", data, overrides, run_dir=f"{runs}/{name}", steps=1, eval_windows=2)
    print("trained", name, report["step"])
"""


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """The wheel of a copy of the checkout: setuptools leaves a build folder beside what it builds."""
    copy, out = tmp_path_factory.mktemp("copy"), tmp_path_factory.mktemp("wheel")
    for name in COPIED:
        shutil.copytree(ROOT / name, copy / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "requirements.txt", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, copy)
    pip = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-index", "--no-deps", "--no-build-isolation"]
    done = subprocess.run([*pip, "--wheel-dir", out, copy], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return next(out.glob("*.whl"))


def test_the_wheel_has_all_of_both_packages_and_nothing_else(wheel):
    there = {
        file.relative_to(ROOT).as_posix()
        for package in PACKAGES
        for file in (ROOT / package).rglob("*")
        if file.suffix == ".py" or file.parent.name == "sample"
    }
    brought = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    assert brought == there


@pytest.mark.versionless  # which files are there
def test_every_system_trains_from_the_wheel_alone(wheel, tmp_path):
    site, elsewhere = tmp_path / "site", tmp_path / "elsewhere"
    zipfile.ZipFile(wheel).extractall(site)
    elsewhere.mkdir()
    with h5py.File(tmp_path / "game.h5", "w") as file:
        file["frames"] = np.concatenate([moving_square(16, seed=i) for i in range(6)])
        file["episode"] = np.repeat(np.arange(6), 16)
        file["actions"] = np.arange(96) % 2
    libraries = [sysconfig.get_path("purelib"), sysconfig.get_path("platlib")]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(site), *libraries])}
    # without "site" (-S) no .pth file is read, so that an editable install of the checkout is out of reach
    command = [
        sys.executable,
        "-S",
        "-c",
        TRAIN_EACH,
        tmp_path / "game.h5",
        tmp_path / "shapes",
        tmp_path / "runs",
    ]
    done = subprocess.run(command, cwd=elsewhere, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    trained = [line for line in done.stdout.splitlines() if line.startswith("trained")]
    assert trained == [f"trained {name} 1" for name in systems.SYSTEMS]
