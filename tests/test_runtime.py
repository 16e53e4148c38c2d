"""Files that are whole or not there, device and precision by rule, who is watching, and chance that depends
on names alone.
"""

import contextlib
import json
import os
import platform
import re
import subprocess
import sys
import textwrap
import types
from importlib import metadata
from pathlib import Path

import psutil
import pytest
import torch

from mtld_core import runtime
from mtld_core.chance import keyed_normal, keyed_uniform, seed_of
from mtld_core.config import UserError
from mtld_core.files import atomic_folder, atomic_path, sha256, write_json
from mtld_core.runtime import free_memory, is_interactive, pick_device, pick_precision

ROOT = Path(__file__).parents[1]


def names(folder):
    return sorted(path.name for path in folder.iterdir())


# ---- files


def test_atomic_path_gives_the_name_only_at_the_end(tmp_path):
    path = tmp_path / "new" / "picture.png"
    with atomic_path(path) as temporary:
        assert (
            temporary.parent == path.parent and temporary.suffix == ".png" and temporary.name.startswith(".")
        )
        temporary.write_text("half")
        assert not path.exists()
        temporary.write_text("whole")
    assert path.read_text() == "whole" and names(path.parent) == ["picture.png"]
    with atomic_path(path) as temporary:
        temporary.write_text("newer")
        assert path.read_text() == "whole"
    assert path.read_text() == "newer" and names(path.parent) == ["picture.png"]


def test_atomic_path_flushes_before_it_renames(tmp_path, monkeypatch):
    calls, fsync, replace = [], os.fsync, os.replace
    monkeypatch.setattr(runtime.os, "fsync", lambda handle: (calls.append("fsync"), fsync(handle))[1])
    monkeypatch.setattr(runtime.os, "replace", lambda *names: (calls.append("replace"), replace(*names))[1])
    with atomic_path(tmp_path / "a") as temporary:
        temporary.write_text("a")
    assert calls[:2] == ["fsync", "replace"]


@pytest.mark.parametrize("problem", [RuntimeError, KeyboardInterrupt])
def test_an_exception_leaves_the_old_file_and_nothing_else(tmp_path, problem):
    path = tmp_path / "a.json"
    write_json(path, "old")
    with pytest.raises(problem), atomic_path(path) as temporary:
        temporary.write_text("half of the n")
        raise problem
    assert json.loads(path.read_text()) == "old" and names(tmp_path) == ["a.json"]


@pytest.mark.parametrize("refused", ["the block", "the new one's place", ""])
def test_a_folder_takes_the_place_of_an_old_one_or_leaves_it(refused, tmp_path, monkeypatch):
    path = tmp_path / "run"
    write_json(path / "a.json", "old")
    replace = os.replace

    def refusing(source, target):
        if refused == "the new one's place" and source.suffix == ".tmp":
            raise PermissionError("somebody looks into it")
        replace(source, target)

    monkeypatch.setattr(os, "replace", refusing)
    with contextlib.suppress(PermissionError), atomic_folder(path) as temporary:
        (temporary / "b.json").write_text("1")
        if refused == "the block":
            raise PermissionError
    assert names(tmp_path) == ["run"] and names(path) == (["a.json"] if refused else ["b.json"])


def test_two_that_write_a_folder_at_once_do_not_meet(tmp_path):
    path = tmp_path / "run"
    with atomic_folder(path) as last, atomic_folder(path) as first:
        (first / "a").touch()
        (last / "b").touch()
    assert names(tmp_path) == ["run"] and names(path) == ["b"]


def test_a_kill_in_the_middle_leaves_the_old_file_whole(tmp_path):
    path = tmp_path / "a.json"
    write_json(path, {"state": "old"})
    code = f"""
        import sys, time
        from mtld_core.files import atomic_path
        with atomic_path({str(path)!r}) as temporary, open(temporary, "w") as file:
            file.write('{{"state": ')
            file.flush()
            print("half", flush=True)
            time.sleep(60)
    """
    with subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(code)], stdout=subprocess.PIPE, text=True, cwd=ROOT
    ) as child:
        try:
            assert child.stdout.readline() == "half\n"
            assert any(file.read_text() == '{"state": ' for file in tmp_path.iterdir())
        finally:
            child.kill()
    assert json.loads(path.read_text()) == {"state": "old"}
    write_json(path, {"state": "new"})
    assert json.loads(path.read_text()) == {"state": "new"}


def test_write_json_and_sha256(tmp_path):
    value = {"a": [1, 2.5, None, True], "b": {"c": "ü"}}
    write_json(tmp_path / "deep" / "v.json", value)
    assert json.loads((tmp_path / "deep" / "v.json").read_text()) == value
    with pytest.raises(TypeError):
        write_json(tmp_path / "deep" / "v.json", {"a": object()})
    assert json.loads((tmp_path / "deep" / "v.json").read_text()) == value and names(tmp_path / "deep") == [
        "v.json"
    ]
    (tmp_path / "abc").write_bytes(b"abc")
    assert sha256(tmp_path / "abc") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"


# ---- device and precision


def fake_card(monkeypatch, capability, codes):
    """Two cards of one kind, and a torch that has `codes` for them."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device=None: capability)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device=None: "Tesla P100-PCIE-16GB")
    monkeypatch.setattr(torch.cuda, "get_arch_list", lambda: codes)


KAGGLE = ["sm_70", "sm_75", "sm_80", "sm_86", "sm_90", "sm_100", "sm_120"]


@pytest.mark.parametrize(
    ("capability", "codes", "fits"),
    [
        ((6, 0), KAGGLE, False),  # a P100
        ((7, 5), KAGGLE, True),
        ((8, 9), KAGGLE, True),  # by sm_86
        ((8, 9), ["sm_75", "sm_90"], False),
        ((7, 0), ["sm_75"], False),
        ((12, 0), ["sm_90", "compute_90"], True),  # compiled by the driver
        ((6, 1), ["sm_60", "compute_90"], True),
        ((9, 0), ["sm_90a"], True),
        ((9, 0), ["gfx90a", "gfx942"], True),  # AMD's
    ],
)
def test_a_card_that_torch_has_no_code_for_is_not_there(monkeypatch, capability, codes, fits):
    fake_card(monkeypatch, capability, codes)
    said = []
    assert pick_device("auto", said.append) == torch.device("cuda" if fits else "cpu")
    assert len(said) == (not fits)
    if fits:
        assert pick_device("cuda:1") == torch.device("cuda:1")
        return
    has = rf"Tesla P100-PCIE-16GB has compute capability {capability[0]}\.{capability[1]}, .* is made for {', '.join(codes)}"
    assert re.search(f"{has}: going on with the CPU", said[0])
    with pytest.raises(
        UserError, match=rf"device='cuda:1': {has}; choose another card \(on Kaggle a T4\), or device='cpu'"
    ):
        pick_device("cuda:1")


def test_the_device_by_itself_and_by_name(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert pick_device() == pick_device("cpu") == torch.device("cpu")
    for wanted in ("cuda", "cuda:1"):
        with pytest.raises(UserError, match=f"device='{wanted}': no CUDA device here; use device='auto'"):
            pick_device(wanted)
    fake_card(monkeypatch, (7, 5), ["sm_75"])
    assert pick_device() == torch.device("cuda") and pick_device("cpu") == torch.device("cpu")
    assert pick_device("cuda:1") == torch.device("cuda:1")
    with pytest.raises(UserError, match="device='cuda:2': the CUDA devices here are numbered from 0 to 1"):
        pick_device("cuda:2")


def test_a_misspelt_device_is_a_user_error():
    with pytest.raises(UserError, match="device='gpu'"):
        pick_device("gpu")


@pytest.mark.parametrize(
    ("capability", "dtype"),
    [
        ((7, 5), torch.float16),
        ((7, 0), torch.float16),
        ((8, 0), torch.bfloat16),
        ((8, 9), torch.bfloat16),
        ((9, 0), torch.bfloat16),
    ],
)
def test_precision_follows_the_compute_capability(monkeypatch, capability, dtype):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    monkeypatch.setattr(
        torch.cuda, "is_bf16_supported", lambda *_, **__: True
    )  # as a T4 answers, by emulation
    found, why = pick_precision(torch.device("cuda"))
    assert found is dtype and f"{capability[0]}.{capability[1]}" in why


def test_precision_on_a_cpu_and_as_asked(monkeypatch):
    cpu, gpu = torch.device("cpu"), torch.device("cuda")
    assert pick_precision(cpu)[0] is torch.float32
    assert pick_precision(cpu, "bf16") == (torch.bfloat16, "as asked")
    assert pick_precision(cpu, "fp16") == (torch.float16, "as asked")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (7, 5))
    for wanted, dtype in (("fp32", torch.float32), ("bf16", torch.bfloat16), ("fp16", torch.float16)):
        assert pick_precision(gpu, wanted) == (dtype, "as asked")


# ---- memory


@pytest.fixture
def machine(tmp_path, monkeypatch):
    """A function that fakes `available` bytes of RAM and a control group's files (None: there is none)."""

    def fake(available, **files):
        monkeypatch.setattr(psutil, "virtual_memory", lambda: types.SimpleNamespace(available=available))
        for name, text in files.items():
            (tmp_path / name.replace("_", ".")).write_text(text)

    monkeypatch.setattr(runtime, "Path", lambda path: tmp_path if path == "/sys/fs/cgroup" else Path(path))
    return fake


@pytest.mark.parametrize(
    ("available", "files", "free"),
    [
        (1000, {}, 1000),
        (1000, {"memory_max": "max\n", "memory_current": "5\n"}, 1000),
        (1000, {"memory_max": "900\n", "memory_current": "600\n", "memory_stat": "anon 1\n"}, 300),
        (100, {"memory_max": "900\n", "memory_current": "600\n", "memory_stat": "anon 1\n"}, 100),
        (1000, {"memory_max": "900\n"}, 1000),
    ],
)
def test_free_memory_knows_a_containers_limit(machine, available, files, free):
    machine(available, **files)
    assert free_memory() == free_memory(torch.device("cpu")) == free


def test_files_in_the_page_cache_count_as_free(machine):
    """memory.current holds what was read from disk; the kernel gives it back when asked, as MemAvailable
    knows.
    """
    machine(
        1000,
        memory_max="900\n",
        memory_current="800\n",
        memory_stat="anon 100\nfile 700\nactive_file 50\ninactive_file 600\n",
    )
    assert free_memory() >= 700


def test_free_memory_of_a_gpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (123, 456))
    assert free_memory(torch.device("cuda")) == 123


def test_peak_memory_and_versions():
    assert 10 < runtime.peak_memory_mb() < 1e6
    assert (
        runtime.versions()["torch"] == torch.__version__.split("+")[0]
        or runtime.versions()["torch"] == torch.__version__
    )


# ---- front end


@pytest.fixture
def kernel(monkeypatch):
    """A function that makes this process look like a kernel that a process with the given command line
    started.
    """

    def fake(launcher, parent=4242):
        class Process:
            def __init__(self, pid):
                assert pid == parent

            def cmdline(self):
                if launcher is None:
                    raise psutil.AccessDenied(parent)
                return launcher.split()

        app = types.SimpleNamespace(initialized=lambda: True)
        monkeypatch.setitem(sys.modules, "ipykernel", types.ModuleType("ipykernel"))
        monkeypatch.setitem(sys.modules, "ipykernel.kernelapp", types.SimpleNamespace(IPKernelApp=app))
        monkeypatch.setattr(psutil, "Process", Process)
        monkeypatch.setenv("JPY_PARENT_PID", str(parent))
        monkeypatch.delenv("KAGGLE_KERNEL_RUN_TYPE", raising=False)

    return fake


@pytest.mark.parametrize(
    "launcher",
    [
        "/opt/venv/bin/python /opt/venv/bin/jupyter-lab --no-browser",
        "/usr/bin/python3 /usr/local/bin/jupyter-notebook --port=8888",
        "/usr/bin/python3 -m jupyter lab",
        "/usr/bin/python3 -m jupyterlab",
        "/opt/conda/bin/python /opt/conda/bin/jupyterhub-singleuser",
        "/usr/bin/python3 /usr/local/bin/jupyter-server --ip=0.0.0.0",
        "/opt/venv/bin/python /opt/venv/bin/voila 03_generate.ipynb",
        "/usr/bin/python3 /usr/local/bin/colab-fileshim.py",
    ],
)
def test_a_server_starts_kernels_for_a_person(kernel, launcher):
    kernel(launcher)
    assert is_interactive() is True


@pytest.mark.parametrize(
    "launcher",
    [
        "/opt/venv/bin/python /opt/venv/bin/papermill in.ipynb out.ipynb",
        "/opt/venv/bin/python -m papermill in.ipynb out.ipynb",
        "/opt/venv/bin/python -m papermill notebook.ipynb voila.ipynb -p lab 1",
        "/opt/venv/bin/python /opt/venv/bin/jupyter-nbconvert --execute --to notebook a.ipynb",
        "/opt/venv/bin/python /opt/venv/bin/jupyter nbconvert --execute a.ipynb",
        "/opt/venv/bin/python /opt/venv/bin/jupyter-execute a.ipynb",
        "/opt/venv/bin/python /opt/venv/bin/jupyter execute a.ipynb",
        # papermill as a library, called in a notebook
        "/opt/venv/bin/python -m ipykernel_launcher -f kernel.json",
        "python run_all.py",  # papermill as a library, called in a script
        "python -m pytest",
        None,  # may not be asked
    ],
)
def test_whatever_runs_a_notebook_unwatched_is_batch(kernel, launcher):
    kernel(launcher)
    assert is_interactive() is False


@pytest.mark.parametrize(
    "launcher",
    [
        "/home/jupyter/venv/bin/python /home/jupyter/run_all.py",  # Vertex AI's home folder
        "/opt/venv/bin/python /opt/venv/bin/jupyter-run job.ipynb",
        "/opt/venv/bin/python /opt/venv/bin/jupyter-book build book/",
        "/opt/venv/bin/python /opt/venv/bin/jupyter-console --existing",
    ],
)
def test_the_word_jupyter_alone_is_no_front_end(kernel, launcher):
    """In doubt it must be batch: a training thread dies with its kernel."""
    kernel(launcher)
    assert is_interactive() is False


def test_a_plain_script_is_batch(kernel, monkeypatch):
    kernel("/opt/venv/bin/jupyter-lab")
    monkeypatch.delitem(sys.modules, "ipykernel")
    assert is_interactive() is False


def test_papermill_called_from_a_jupyter_terminal_is_batch(kernel, monkeypatch):
    """jupyter-lab -> kernel -> papermill -> this kernel: only who started this kernel counts."""
    kernel(
        "python -m papermill in.ipynb out.ipynb", parent=77
    )  # the outer kernel's JPY_PARENT_PID was replaced by 77
    monkeypatch.setenv("JPY_SESSION_NAME", "notebooks/outer.ipynb")
    assert is_interactive() is False


def test_without_jpy_parent_pid_the_parent_process_is_asked(kernel, monkeypatch):
    kernel("/opt/venv/bin/jupyter-lab", parent=os.getppid())
    monkeypatch.delenv("JPY_PARENT_PID")
    assert is_interactive() is True
    monkeypatch.setenv("JPY_PARENT_PID", "no number")
    assert is_interactive() is False


def test_a_kaggle_batch_is_batch(kernel, monkeypatch):
    kernel("/usr/local/bin/jupyter-lab")
    monkeypatch.setenv("KAGGLE_KERNEL_RUN_TYPE", "Batch")
    assert is_interactive() is False
    monkeypatch.setenv("KAGGLE_KERNEL_RUN_TYPE", "Interactive")
    assert is_interactive() is True


def test_a_setting_comes_before_any_guess(kernel):
    kernel("/usr/local/bin/jupyter-lab")
    assert is_interactive(False) is False and is_interactive("auto") is True
    kernel("papermill")
    assert is_interactive(True) is True
    with pytest.raises(UserError, match="interactive must be 'auto', True or False, not 'yes'"):
        is_interactive("yes")


# ---- chance


def test_seed_of_is_the_same_for_ever():
    assert seed_of(0, "train", 5) == 1024884402324170926
    assert seed_of("a", 1.5, None) == 4350351879704853213
    assert seed_of(1, 23) != seed_of(12, 3) and min(seed_of(i) for i in range(1000)) >= 0
    assert max(seed_of(i) for i in range(1000)) < 2**63


def test_keyed_uniform_is_the_same_for_ever():
    """Written down once: a run that was begun with one version goes on with the next."""
    found = keyed_uniform(torch.tensor([0, 1, 2**62 + 1]), "test", 2)
    assert (found * 2**24).long().tolist() == [[1811630, 12544366], [9551696, 8027197], [10132572, 12971703]]
    assert keyed_normal(torch.tensor([7]), "test", 3)[0].tolist() == pytest.approx(
        [1.531778, 0.065763, -0.282685], abs=1e-5
    )


@pytest.mark.parametrize("draw", [keyed_uniform, keyed_normal])
def test_keyed_numbers_depend_on_key_and_purpose_alone(draw):
    keys = torch.tensor([seed_of("k", i) for i in range(64)])
    whole = draw(keys, "noise", 5)
    assert whole.shape == (64, 5) and whole.dtype == torch.float32
    torch.manual_seed(1)  # no generator has a say
    assert torch.equal(torch.cat([draw(part, "noise", 5) for part in keys.split(7)]), whole)
    order = torch.randperm(64)
    assert torch.equal(draw(keys[order], "noise", 5), whole[order])
    other = draw(keys, "mask", 5)
    assert not (other == whole).any()
    assert len(torch.cat([whole, other]).unique()) > 0.99 * 640


def test_keyed_uniform_grows_at_the_end():
    keys = torch.arange(8)
    assert torch.equal(keyed_uniform(keys, "a", 9)[:, :4], keyed_uniform(keys, "a", 4))


@pytest.mark.parametrize("keys", [torch.arange(250_000), torch.arange(250_000) * 2**40 - 2**62])
def test_keyed_uniform_is_uniform(keys):
    u = keyed_uniform(keys, "moments", 4).double()  # a million: the standard error of the mean is 0.0003
    assert u.mean().item() == pytest.approx(0.5, abs=0.0012)
    assert u.var().item() == pytest.approx(1 / 12, abs=0.0004)
    assert 0 <= u.min() < 1e-5 and 1 - 1e-5 < u.max() < 1
    shares = torch.histc(u, 64, 0, 1) / u.numel()
    assert (shares * 64 - 1).abs().max() < 0.04


def test_neighbouring_keys_places_and_purposes_are_not_correlated():
    u = keyed_uniform(torch.arange(250_001), "a", 3).double()
    v = keyed_uniform(torch.arange(250_001), "b", 3).double()
    pairs = [
        (u[:-1, 0], u[1:, 0]),
        (u[:-1, 0], u[1:, 1]),
        (u[:-1, 1], u[1:, 0]),
        (u[:, 0], u[:, 1]),
        (u[:, 0], v[:, 0]),
        (u[:-1, 0], v[1:, 0]),
    ]
    for x, y in pairs:
        assert abs(torch.corrcoef(torch.stack([x, y]))[0, 1]) < 0.01  # five standard errors


def test_keyed_normal_has_the_moments_of_a_normal():
    n = keyed_normal(torch.arange(250_000), "moments", 4).double()
    assert torch.isfinite(n).all()
    for power, moment, margin in ((1, 0, 0.005), (2, 1, 0.007), (3, 0, 0.02), (4, 3, 0.05)):
        assert (n**power).mean().item() == pytest.approx(moment, abs=margin)
    assert 4 < n.abs().max() < 6
    assert abs(torch.corrcoef(n.T).fill_diagonal_(0)).max() < 0.01


# ---- memory that is kept


FAULTS = """
import contextlib, resource, sys, threading
import torch
from mtld_core.runtime import warm_memory

def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(10):
        torch.ones(12, 1024, 1024).add(1)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

def report():
    with warm_memory() if sys.argv[1] == "warm" else contextlib.nullcontext():
        faults()
        print(faults())
    print(faults())

if sys.argv[2] == "thread":
    thread = threading.Thread(target=report)
    thread.start(), thread.join()
else:
    report()
"""


@pytest.mark.versionless  # the C library's doing
@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc can be told to keep memory")
@pytest.mark.parametrize("where", ["main", "thread"])
def test_warm_memory_spares_the_page_faults_and_is_undone(where):
    def run(kind):
        command = [sys.executable, "-c", FAULTS, kind, where]
        return map(
            int, subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT).stdout.split()
        )

    inside, after = run("warm")
    cold, _ = run("cold")
    assert cold > 1000 and inside < cold / 20 and after > 1000


# ---- borrowed machines


@pytest.fixture
def pip(monkeypatch, tmp_path):
    """A function that makes this Python lack some modules -> the list that gets pip's arguments.

    For PyAV pip finds no network.
    """
    asked, find_spec = [], runtime.importlib.util.find_spec

    def run(command, **_):
        asked.append([*map(str, command)])
        return types.SimpleNamespace(returncode="av" in command, stderr="a\nno network\n")

    def lacking(*modules):
        fake = types.SimpleNamespace(find_spec=lambda name: None if name in modules else find_spec(name))
        monkeypatch.setattr(runtime.importlib, "util", fake)
        return asked

    monkeypatch.setattr(runtime.subprocess, "run", run)
    monkeypatch.setattr(runtime, "INPUTS", tmp_path)
    return lacking


def test_only_what_is_missing_is_installed_and_nothing_that_it_wants(pip, tmp_path, capsys):
    asked = pip()
    runtime.install_missing()
    assert asked == [] and capsys.readouterr().out == ""
    (tmp_path / "datasets/me/mtld-inputs").mkdir(parents=True)
    (tmp_path / "datasets/me/mtld-inputs/lpips-0.1.4-py3-none-any.whl").touch()
    asked = pip("lpips", "pynvml")
    runtime.install_missing()
    [command] = asked
    assert command[:4] == [sys.executable, "-m", "pip", "install"] and "--no-deps" in command
    assert command[-4:] == ["--find-links", f"{tmp_path}/datasets/me/mtld-inputs", "lpips", "nvidia-ml-py"]
    assert "installing lpips, nvidia-ml-py" in capsys.readouterr().out


def test_what_cannot_be_installed_is_one_line_with_the_way_out(pip):
    pip("av")
    with pytest.raises(
        UserError, match=r"lacks av, .* \(a no network\): turn the notebook's internet on"
    ) as said:
        runtime.install_missing()
    assert "\n" not in str(said.value)


@pytest.mark.parametrize("name", runtime.LACKING.split())
def test_what_a_borrowed_machine_gets_wants_nothing_that_it_lacks(name):
    """Without its dependencies an installed package works only where these are there."""
    image = {"torch", "torchvision", "numpy", "scipy", "tqdm", "packaging", "typing-extensions", "setuptools"}
    names = {each.replace("_", "-").replace("pynvml", "nvidia-ml-py") for each in runtime.LACKING.split()}
    wanted = metadata.requires(name.replace("pynvml", "nvidia-ml-py")) or []
    wanted = {re.match(r"[\w-]+", line)[0] for line in wanted if "extra ==" not in line}
    assert {each.replace("_", "-") for each in wanted} <= image | names


def test_the_banner_says_what_there_is_and_what_to_do(monkeypatch):
    for name in ("COLAB_RELEASE_TAG", "KAGGLE_KERNEL_RUN_TYPE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    first, advice = runtime.machine().splitlines()
    assert re.match(
        rf"Python 3\S+, torch {re.escape(torch.__version__)}, no GPU, \d+ cores; free: \d+ GB of RAM, ", first
    )
    assert "preset demo" in advice
    monkeypatch.setenv("KAGGLE_KERNEL_RUN_TYPE", "Interactive")
    assert "Settings > Accelerator" in runtime.machine() and "Drive" not in runtime.machine()
    monkeypatch.delenv("KAGGLE_KERNEL_RUN_TYPE")
    monkeypatch.setenv("COLAB_RELEASE_TAG", "release-colab")
    monkeypatch.setattr(runtime.shutil, "disk_usage", lambda _: types.SimpleNamespace(free=2e9))
    said = runtime.machine()
    assert "Change runtime type" in said and "mirror_dir" in said and "keep_checkpoints=1" in said
    fake_card(monkeypatch, (7, 5), ["sm_75"])
    about = types.SimpleNamespace(total_memory=15.8e9)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: about)
    assert ", Tesla P100-PCIE-16GB with 16 GB, " in runtime.machine() and "lent" not in runtime.machine()
