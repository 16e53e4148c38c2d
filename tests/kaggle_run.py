"""For the tests of kaggle/: a Python without the project, no network but loopback, and kernels run in it by
papermill.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
HIDDEN = ("mtld", "__editable__", "lpips", "nvidia_ml_py", "pynvml", "av", "jupytext", "mdit_py_plugins")
ONLY_LOOPBACK = """
import fcntl, os, socket, struct, sys
with socket.socket() as any_socket:
    fcntl.ioctl(any_socket, 0x8914, struct.pack("16sh22x", b"lo", 1))  # SIOCSIFFLAGS, IFF_UP
assert [name for _, name in socket.if_nameindex()] == ["lo"]
os.execv(sys.executable, [sys.executable, *sys.argv[1:]])
"""
# sitecustomize.py of a Python whose Kaggle is $FAKE_KAGGLE, and that reaches no other machine
SITE = """
import os, sys

def only_this_machine(event, arguments):
    if event in ("socket.connect", "socket.getaddrinfo"):
        host = arguments[1][0] if event == "socket.connect" else arguments[0]
        assert host in ("localhost", "127.0.0.1"), f"a connection to {host}"

sys.addaudithook(only_this_machine)
from kagglesdk import kaggle_env
kaggle_env._env_to_endpoint[kaggle_env.KaggleEnv.LOCAL] = os.environ["FAKE_KAGGLE"]
"""
ASKS = """
import av, jupytext, lpips, pynvml, data_prep, mtld_core
for module in (mtld_core, data_prep, av, jupytext, lpips, pynvml):
    print(module.__file__)
"""


def bare_python(folder):
    """The interpreter of a fresh environment with what Kaggle's image has: neither the project nor what the
    wheels bring.
    """
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(folder)], check=True)
    [here] = folder.glob("lib/python*/site-packages")
    import torch

    for entry in Path(torch.__file__).parents[1].iterdir():
        if entry.name.split("-")[0].split(".")[0] not in HIDDEN and not entry.name.startswith("__editable__"):
            (here / entry.name).symlink_to(entry)
    return folder / "bin" / "python"


def without_network():
    """The beginning of a command that runs with a network of its own, in which there is nobody."""
    command = ["unshare", "--net"] if os.geteuid() == 0 else ["unshare", "--map-root-user", "--net"]
    try:
        subprocess.run([*command, "true"], check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError) as error:
        if os.environ.get("CI"):
            raise
        pytest.skip(f"this system gives no network namespace ({error})")
    return command


class Kaggle:
    """A fake /kaggle tree, and the kernels that run in it."""

    def __init__(self, python, folder):
        self.python, self.root, self.home = python, folder / "kaggle", folder / "home"
        for path in (self.root / "input", self.root / "working", self.home, folder / "empty"):
            path.mkdir(parents=True)
        self.empty = folder / "empty"

    def mount(self, source, place):
        """Show a folder as an input, at a place such as "datasets/me/film"."""
        path = self.root / "input" / place
        path.parent.mkdir(parents=True, exist_ok=True)
        path.symlink_to(source)

    def run(self, kernel):
        """Run a built kernel as Kaggle does, in a folder with nothing else: (exit code, what it said, files
        of its modules).
        """
        page = json.loads(kernel.text)
        page["cells"].append({**page["cells"][0], "id": "asks", "source": ASKS})
        file = self.empty / "kernel.ipynb"
        file.write_text(json.dumps(page))
        out = self.home / "out.ipynb"
        environment = {"PATH": os.environ["PATH"], "HOME": str(self.home), "MTLD_KAGGLE_ROOT": str(self.root)}
        environment |= {
            "KAGGLE_KERNEL_RUN_TYPE": "Batch",
            "OMP_NUM_THREADS": "2",
            "IPYTHONDIR": str(self.home),
        }
        command = [
            *without_network(),
            str(self.python),
            "-c",
            ONLY_LOOPBACK,
            "-m",
            "papermill",
            str(file),
            str(out),
        ]
        done = subprocess.run(
            [*command, "--no-progress-bar"], cwd=self.empty, env=environment, capture_output=True, text=True
        )
        cells = [cell for cell in json.loads(out.read_text())["cells"] if cell["cell_type"] == "code"]
        said = "".join("".join(part.get("text", "")) for cell in cells for part in cell["outputs"])
        *_, last = cells
        modules = "".join("".join(part.get("text", "")) for part in last["outputs"]).split()
        return done.returncode, said + done.stderr, modules
