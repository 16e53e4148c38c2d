"""Where the program runs: commands and signals, device, precision and memory, the front end, threads.

torch is imported only where it is needed, so that a command that needs none starts at once.
"""

import contextlib
import ctypes
import functools
import importlib.util
import os
import platform
import re
import shutil
import signal
import subprocess
import sys
import threading
import traceback
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from mtld_core.config import RunGivenUp, UserError, check

# ---- commands and signals

# what every command exits with; docs/commands.md says more
ENDED = 0
MENDABLE = 1
GIVEN_UP = 3
ASKED_TO_STOP = 130


def command(main):
    """Make a program's `main` return an exit code of the one documented set, whatever happens inside it.

    main: returns such a code, or None where all went well. Each failure ends with one plain line on stderr.
    SIGTERM counts as being asked to stop, like Ctrl-C.
    """

    @functools.wraps(main)
    def run(*arguments):
        with contextlib.suppress(AttributeError):  # a name in no letters of this screen ends no command
            sys.stdout.reconfigure(errors="backslashreplace")
        try:
            with _handling(signal.default_int_handler, signal.SIGTERM):
                return main(*arguments) or ENDED
        except SystemExit as ended:  # argparse, which has said its line, and exits with 2 for a wrong command
            return MENDABLE if ended.code else ENDED
        except KeyboardInterrupt:
            return _fail("stopped", ASKED_TO_STOP)
        except RunGivenUp as error:
            return _fail(f"given up: {error}", GIVEN_UP)
        except UserError as error:
            return _fail(f"error: {error}", MENDABLE)
        except OSError as error:
            where = "" if error.filename is None else f"{error.filename}: "
            return _fail(f"error: {where}{error.strerror or error}", MENDABLE)
        except Exception as error:  # a fault of the program: where it is stands above the line
            traceback.print_exc()
            return _fail(f"error: {type(error).__name__}: {error}", MENDABLE)

    return run


def _fail(line, code):
    print(" ".join(line.split()), file=sys.stderr)
    return code


def stop_on_signal(stop):
    """A context in which SIGINT and SIGTERM set the event `stop`, so that the step in progress ends whole.

    A second one interrupts as usual.
    """

    def handle(number, frame):
        if stop.is_set():
            raise KeyboardInterrupt
        stop.set()
        os.write(1, b"stopping after this step; once more to stop at once\n")  # print may be interrupted

    return _handling(handle, signal.SIGINT, signal.SIGTERM)


@contextlib.contextmanager
def _handling(handle, *numbers):
    """Have `handle` called for these signals; without effect in a thread that is not the main one."""
    before = {}
    if threading.current_thread() is threading.main_thread():
        before = {number: signal.signal(number, handle) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextlib.contextmanager
def reaching(service, package):
    """Raise UserError, one line, for whatever goes wrong between here and a service on the network.

    package: its own client, which is optional.
    """
    try:
        yield
    except ImportError:
        raise UserError(f"{service} needs a package that is not installed: pip install {package}") from None
    except SystemExit:  # of Kaggle's client without credentials
        raise UserError(
            f"{service}: no credentials: put kaggle.json into ~/.kaggle, or run `kaggle auth login`"
        ) from None
    except (OSError, ValueError, LookupError) as error:
        said = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise UserError(f"{service}: {said}") from None


# ---- device and precision


def pick_device(wanted="auto", say=print):
    """`torch.device` for "auto" (CUDA where torch can use it, else the CPU), "cpu", "cuda" or "cuda:1".

    say: told why "auto" passes a card over. Raises UserError where there is no such device, or torch has no
    code for it.
    """
    import torch

    check(
        re.fullmatch(r"auto|cpu|cuda(:\d+)?", wanted),
        f"device={wanted!r} is not 'auto', 'cpu', 'cuda' or 'cuda:<number>'",
    )
    if wanted == "cpu" or (wanted == "auto" and not torch.cuda.is_available()):
        return torch.device("cpu")
    check(
        torch.cuda.is_available(),
        f"device={wanted!r}: no CUDA device here; use device='auto' or 'cpu'",
    )
    device = torch.device("cuda" if wanted == "auto" else wanted)
    count = torch.cuda.device_count()
    check(
        (device.index or 0) < count,
        f"device={wanted!r}: the CUDA devices here are numbered from 0 to {count - 1}",
    )
    reason = _lacks_code(device)
    if not reason:
        return device
    if wanted == "auto":
        say(f"{reason}: going on with the CPU")
        return torch.device("cpu")
    raise UserError(f"device={wanted!r}: {reason}; choose another card (on Kaggle a T4), or device='cpu'")


def _lacks_code(device):
    """Why the installed torch cannot compute on a CUDA device, in words; "" where it can.

    Code for sm_XY runs on cards of compute capability X.Y and later X.*; code for compute_XY on all later
    ones.
    """
    import torch

    capability = torch.cuda.get_device_capability(device)
    names = torch.cuda.get_arch_list()
    codes = [re.fullmatch(r"(sm|compute)_(\d+)(\d)[af]?", name) for name in names]
    if not all(codes):  # not NVIDIA's
        return ""
    for code in codes:
        made_for = int(code[2]), int(code[3])
        if made_for <= capability and (code[1] == "compute" or made_for[0] == capability[0]):
            return ""
    return (
        f"{torch.cuda.get_device_name(device)} has {_named(capability)}, and torch {torch.__version__} is "
        f"made for {', '.join(names)}"
    )


def _named(capability):
    return f"compute capability {capability[0]}.{capability[1]}"


def pick_precision(device, wanted="auto"):
    """(torch dtype for autocast, reason in words) for "auto", "fp32", "bf16" or "fp16".

    bf16 from Ampere on; fp16 with loss scaling before (a T4 claims bf16 but emulates it); fp32 on a CPU,
    where a matrix product in half precision can be hundreds of times slower: there the other two show what a
    GPU would compute.
    """
    import torch

    if wanted != "auto":
        return {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[wanted], "as asked"
    if device.type == "cpu":
        return torch.float32, "CPU"
    capability = torch.cuda.get_device_capability(device)
    if capability >= (8, 0):
        return torch.bfloat16, f"{_named(capability)} has bf16 units"
    return torch.float16, f"{_named(capability)} has no bf16 units"


def pick_judged_precision(device, wanted):
    """The torch dtype in which a run is judged, generates and plays: that of its training, on a CPU fp32."""
    import torch

    return torch.float32 if device.type == "cpu" else pick_precision(device, wanted)[0]


def name_of(dtype):
    """ "float16" of torch.float16, and so on: as report.json has it."""
    return str(dtype).removeprefix("torch.")


def computing(device, dtype):
    """A context in which networks compute in `dtype`, by autocast; torch.float32 switches that off.

    Without autocast's cache of half-precision weights: up to torch 2.10 a copy that was made under `no_grad`
    is used where gradient is wanted, too, and then there is none.
    """
    import torch

    return torch.autocast(device.type, dtype, enabled=dtype != torch.float32, cache_enabled=False)


# ---- memory and versions

M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4  # of glibc's malloc.h


def free_memory(device=None):
    """Bytes that can still be allocated on a GPU, or in RAM (within a container's limit)."""
    import psutil

    if device is not None and device.type == "cuda":
        import torch

        return torch.cuda.mem_get_info(device)[0]
    free = psutil.virtual_memory().available
    group = Path("/sys/fs/cgroup")
    with contextlib.suppress(OSError, ValueError):  # absent on many systems, "max" where unlimited
        used = int((group / "memory.current").read_text())
        cached = re.search(r"^inactive_file (\d+)", (group / "memory.stat").read_text(), re.MULTILINE)
        if cached:  # the page cache gives way
            used -= int(cached[1])
        free = min(free, int((group / "memory.max").read_text()) - used)
    return free


@contextlib.contextmanager
def warm_memory():
    """Let glibc keep freed memory for the next request, instead of giving it back to the system.

    By default every large tensor is fresh memory whose pages the system has to clear first. The peak may grow
    by a third, for kept pieces are not always of the size wanted next. In a thread that is not the main one
    only pieces under 64 MB are kept. No effect with other C libraries.
    """
    try:
        libc = ctypes.CDLL("libc.so.6")
        libc.mallopt(M_MMAP_MAX, 0)
        libc.mallopt(M_TRIM_THRESHOLD, -1)
    except OSError:
        yield
        return
    try:
        yield
    finally:
        libc.mallopt(M_MMAP_MAX, 65536)  # glibc's own defaults
        libc.mallopt(M_TRIM_THRESHOLD, 128 * 1024)
        libc.malloc_trim(0)


def peak_memory_mb():
    """The largest resident set of this process so far, in MB (10^6 bytes); None on Windows."""
    try:
        import resource
    except ImportError:
        return None
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e6


def versions():
    """Versions of Python, of what a run's figures depend on, and of this program, by name."""
    from importlib import metadata

    found = {"python": platform.python_version()}
    for name in ("torch", "torchvision", "numpy", "mtld"):
        with contextlib.suppress(metadata.PackageNotFoundError):
            found[name] = metadata.version(name)
    return found


# ---- borrowed machines

# modules that Colab's image or Kaggle's may lack, and a notebook needs
LACKING = "av h5py lightning_utilities lpips psutil pynvml safetensors torchmetrics"
INPUTS = Path("/kaggle/input")  # what is attached there may hold wheels, for a kernel without internet


def install_missing():
    """Install whatever of LACKING this Python lacks, and nothing that these want: all else stays as it is.

    So nothing is replaced under a running kernel, whatever an image's versions are. Raises UserError where
    pip cannot.
    """
    missing = [name for name in LACKING.split() if importlib.util.find_spec(name) is None]
    missing = [name.replace("pynvml", "nvidia-ml-py") for name in missing]
    if not missing:
        return
    print(f"installing {', '.join(missing)}")
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--retries", "1"]
    for place in {file.parent for depth in ("*", "*/*/*") for file in INPUTS.glob(f"{depth}/*.whl")}:
        command += ["--find-links", place]
    done = subprocess.run([*command, *missing], capture_output=True, text=True)
    if done.returncode:
        said = " ".join(done.stderr.split()[-30:])
        raise UserError(
            f"this Python lacks {', '.join(missing)}, and pip could not install them ({said}): turn the "
            "notebook's internet on, or on Kaggle attach the dataset mtld-inputs (kaggle/README.md)"
        )
    importlib.invalidate_caches()


def machine():
    """What this machine has, a line, and below it what a newcomer should know of it."""
    import torch

    lines = []
    device, disk = pick_device(say=lines.append), shutil.disk_usage(".").free / 1e9
    on_colab, on_kaggle = "COLAB_RELEASE_TAG" in os.environ, "KAGGLE_KERNEL_RUN_TYPE" in os.environ
    card = "no GPU"
    if device.type == "cuda":
        size = torch.cuda.get_device_properties(device).total_memory / 1e9
        card = f"{torch.cuda.get_device_name(device)} with {size:.0f} GB"
    elif on_colab or on_kaggle:
        way = "Runtime > Change runtime type" if on_colab else "Settings > Accelerator"
        lines.append(f"A GPU is lent for nothing, as far as your quota goes: {way}.")
    else:
        lines.append("Without a GPU, pictures of about 64x64 pixels are learned in minutes (preset demo).")
    if on_colab:
        lines.append(
            "This machine's disk goes with the session: mount your Drive, and set overrides = "
            '\'{"mirror_dir": "/content/drive/MyDrive/mtld"}\' in notebook 02.'
        )
    if disk < 5:
        lines.append("Little disk is left: a run takes some hundred MB; keep_checkpoints=1 keeps fewer.")
    here = f"Python {platform.python_version()}, torch {torch.__version__}, {card}, {core_count()} cores"
    return "\n".join([f"{here}; free: {free_memory() / 1e9:.0f} GB of RAM, {disk:.0f} GB of disk", *lines])


# ---- front end

SERVERS = {
    "jupyter-lab",
    "jupyter-notebook",
    "jupyter-server",
    "jupyter-labhub",
    "jupyter-voila",
    "jupyterhub-singleuser",
    "jupyterlab",
    "notebook",
    "jupyter_server",
    "voila",
}


def is_interactive(setting="auto"):
    """Whether a front end is attached that can show widgets; in doubt not: a thread dies with its kernel.

    "auto" looks at who started this kernel: a Jupyter, Colab or Kaggle server does it for a person;
    papermill, nbconvert, a script, or Kaggle's `KAGGLE_KERNEL_RUN_TYPE=Batch` do not. `setting` may also be
    True or False.
    """
    if isinstance(setting, bool):
        return setting
    check(setting == "auto", f"interactive must be 'auto', True or False, not {setting!r}")
    if "ipykernel" not in sys.modules or os.environ.get("KAGGLE_KERNEL_RUN_TYPE") == "Batch":
        return False
    import psutil

    try:
        parent = int(os.environ.get("JPY_PARENT_PID", os.getppid()))
        return _is_server(psutil.Process(parent).cmdline())
    except (psutil.Error, ValueError):
        return False


def _is_server(command):
    """Whether this command line, a list of words, runs a server that shows notebooks to people."""
    names = [Path(word).name.lower() for word in command if not word.startswith("-")]
    if names and names[0].startswith("python"):
        names.pop(0)
    if names[:1] == ["jupyter"]:
        names = ["-".join(names[:2])]
    return bool(names) and (names[0] in SERVERS or names[0].startswith("colab"))


def progress_bar(**options):
    """A `tqdm` bar: a moving line where somebody watches, else a line every 30 s.

    In notebooks, too, it is text: of a widget a saved page keeps an error alone.
    """
    from tqdm import tqdm

    watched = is_interactive()
    file = sys.stdout if watched else sys.stderr
    return tqdm(file=file, mininterval=0.1 if watched or file.isatty() else 30, **options)


# ---- threads


def core_count():
    """How many cores this process may use."""
    try:
        return len(os.sched_getaffinity(0))
    except AttributeError:  # macOS, Windows
        return os.cpu_count() or 1


def in_background(work, *arguments):
    """Call `work(*arguments)` in a thread that ends with the process. Returns the thread."""
    thread = threading.Thread(target=work, args=arguments, daemon=True)
    thread.start()
    return thread


def for_each(function, count, workers, label=None):
    """Call `function(i)` for every i in range(count), in `workers` threads (0: one a core).

    label: what the progress bar says; None shows none. Raises the first error.
    """
    workers = workers or core_count()
    # calls that a thread takes at once: the queue stays short, and all threads have work until the end
    chunk = max(1, min(64, count // (8 * workers)))

    def work(start):
        stop = min(start + chunk, count)
        for i in range(start, stop):
            function(i)
        return stop - start

    bar = progress_bar(total=count, desc=label, disable=label is None)
    with bar, ThreadPoolExecutor(workers) as pool:
        for done in pool.map(work, range(0, count, chunk)):
            bar.update(done)
