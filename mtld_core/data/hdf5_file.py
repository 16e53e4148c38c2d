"""Opening an HDF5 file and what lies in it. HDF5 gives zeros for parts that are gone: here each is named,
with the way out.
"""

import contextlib
import errno
import os
from pathlib import Path

import h5py
import numpy as np
import torch

from mtld_core.config import UserError, nearest
from mtld_core.frames import fit_frame

FILTERS = {
    4: "szip",
    307: "bzip2",
    32001: "blosc",
    32004: "lz4",
    32008: "bitshuffle",
    32013: "zfp",
    32015: "zstd",
    32026: "blosc2",
}
UNLIMITED = 2**64 - 1  # as HDF5 says it: an external file as far as it is needed, or a part that grows


def open_file(path):
    """The `h5py.File` at `path`, to be read. Raises UserError, with the reason and the way out, where it
    cannot be opened.
    """
    try:
        return h5py.File(path)
    except OSError as error:
        raise UserError(_why_not(path, error)) from None


def _why_not(path, error):
    text = str(error)
    if "unable to lock file" in text and error.errno in (errno.EAGAIN, errno.EACCES):
        return f"{path} is open for writing in another program: close it there, or wait until that is done"
    if "unable to lock file" in text:
        way = "set the environment variable HDF5_USE_FILE_LOCKING=FALSE"
        reason = os.strerror(error.errno)
        return f"{path} lies where files cannot be locked ({reason}): {way}, or copy it to another disk"
    if "already open for" in text:
        return (
            f"{path} is open for writing: close it in the program (or the notebook's cell) that has it open; "
            "if none has any "
            f"more, `h5clear -s {path}` takes the mark away that it left"
        )
    if error.errno in (errno.EACCES, errno.EPERM):
        return f"{path} cannot be read ({os.strerror(error.errno)}); give yourself the right to"
    return f"{path} is no HDF5 file, or a damaged one ({error}); record or download it again"


def find_dataset(file, name):
    """The dataset `name` of an open file, known to be whole; None where there is no such thing.

    Raises UserError where `name` is a group, a link that leads nowhere, or a dataset that lacks a part or a
    filter.
    """
    link = file.get(name, getlink=True)
    if link is None:
        return None
    found = None
    with contextlib.suppress(KeyError, OSError):
        found = file[name]
    if isinstance(found, h5py.Group):
        inside = [one for one in found if isinstance(found.get(one), h5py.Dataset)]
        likely = max(
            inside, key=lambda one: found[one].ndim, default="..."
        )  # pictures have the most dimensions
        way = (
            f"with h5py.File({file.filename!r}, 'a') as f: f.move({name!r}, 'all'); "
            f"f[{name!r}] = f['all/{likely}']"
        )
        raise UserError(
            f"{file.filename}: {name!r} is a group ({', '.join(found) or 'an empty one'}), where a dataset "
            "is wanted; give one "
            f"of its datasets the name: {way}"
        )
    if found is None:
        raise UserError(f"{file.filename}: {_dead(file, name, link)}")
    if isinstance(found, h5py.Dataset):
        _check_whole(found, f"{file.filename}: dataset {name!r}", set())
    return found if isinstance(found, h5py.Dataset) else None


def missing_dataset(file, name):
    """What to say where there is no dataset `name`."""
    there = nearest(name, list(file)) if len(file) else "; the file is empty"
    return f"{file.filename} has no dataset {name!r}{there}"


def _dead(file, name, link):
    """Why the link `name` leads nowhere."""
    if isinstance(link, h5py.ExternalLink):
        there = next(filter(os.path.isfile, _places(file.filename, link.filename, "HDF5_EXT_PREFIX")), None)
        what = f"{name!r} is a link to {link.path!r} in the file {link.filename}"
        if there is None:
            return f"{what}, which is not there: bring that file back"
        return f"{what}, in which it cannot be read: mend that file"
    target = f" to {link.path!r}" if isinstance(link, h5py.SoftLink) else ""
    return f"{name!r} is a link{target} that leads nowhere: store the dataset itself"


# ---- parts of a dataset that lie elsewhere


def _check_whole(dataset, what, seen):
    """Raise UserError where a part of `dataset` is gone, or a filter that it needs; `what` names it there."""
    where = (dataset.file.filename, dataset.name)
    if where in seen:
        return
    seen.add(where)
    _check_filters(dataset, what)
    if dataset.external:
        _check_external(dataset, what)
    if dataset.is_virtual:
        _check_virtual(dataset, what, seen)


def _check_filters(dataset, what):
    plist = dataset.id.get_create_plist()
    codes = [plist.get_filter(i)[0] for i in range(plist.get_nfilters())]
    if all(map(h5py.h5z.filter_avail, codes)):
        return
    with contextlib.suppress(ImportError):
        import hdf5plugin  # noqa: F401  (h5py knows its filters from then on)
    missing = [code for code in codes if not h5py.h5z.filter_avail(code)]
    if not missing:
        return
    try:
        dataset[:1]  # without the filter, where it was missing when that was written, too
    except OSError:
        names = ", ".join(f"{code} ({FILTERS[code]})" if code in FILTERS else str(code) for code in missing)
        raise UserError(
            f"{what} is compressed with filter {names}, which is not installed here: `pip install "
            "hdf5plugin`, or write the "
            f"file anew with compression='gzip' where it can be read"
        ) from None


def _check_external(dataset, what):
    """The raw bytes lie in other files, each (name, offset, size); what lies behind the end of one is read as
    zeros.
    """
    left = dataset.nbytes
    for name, offset, size in dataset.external:
        used = min(left, size)
        left -= used
        places = _places(dataset.file.filename, name, "HDF5_EXTFILE_PREFIX", beside=False)
        found = next(filter(os.path.isfile, places), None)
        if found is None:
            way = (
                "bring it back, start in the folder that it is relative to, "
                "or set HDF5_EXTFILE_PREFIX='${ORIGIN}'"
            )
            raise UserError(
                f"{what} keeps its values in the file {name}, which is not at {places[-1]}: {way}"
            )
        if os.path.getsize(found) < offset + used:
            raise UserError(
                f"{what} keeps its values in the file {found}, which was cut short ({os.path.getsize(found)} "
                "bytes, "
                f"{offset + used} are needed): bring it back whole"
            )


def _check_virtual(dataset, what, seen):
    """Its rows lie in datasets of other files; where there is none, HDF5 reads zeros."""
    sources = dataset.virtual_sources()
    for source in sources:
        name = source.file_name
        if "%" in name.replace(
            "%%", ""
        ):  # a series that ends at the first file that is missing, which is no fault
            return
        places = _places(dataset.file.filename, name, "HDF5_VDS_PREFIX")
        path = dataset.file.filename if name == "." else next(filter(os.path.isfile, places), None)
        if path is None:
            raise UserError(
                f"{what} has a part in {name}, which is missing: bring that file back to {places[-1]}"
            )
        with open_file(path) as file:
            part = find_dataset(file, source.dset_name)
            if part is None:
                raise UserError(f"{what} has a part in {path}: {missing_dataset(file, source.dset_name)}")
            if not _is_covered(source, part.shape):
                raise UserError(
                    f"{what} has a part in {path}, whose dataset {source.dset_name!r} is {list(part.shape)} "
                    "now, not what it "
                    f"was when that part was taken: bring the earlier file back, or join the parts anew"
                )
            _check_whole(part, f"{path}: dataset {source.dset_name!r}", seen)
    points = [source.vspace.get_select_npoints() for source in sources]
    if sum(points) < dataset.size:
        share = f"{dataset.size - sum(points)} of its {dataset.size} values"
        raise UserError(
            f"{what} is made of parts of other files, and {share} lie in none: make it anew with all its "
            "parts"
        )


def _is_covered(source, shape):
    """Whether a dataset of `shape` holds all that one part of a virtual dataset takes from it."""
    wanted = source.vspace.get_select_npoints()
    if wanted >= UNLIMITED:  # as much as there is
        return True
    if source.src_space.get_select_type() == h5py.h5s.SEL_ALL:
        return np.prod(shape) == wanted
    _, last = source.src_space.get_select_bounds()
    return len(last) == len(shape) and all(np.array(last) < shape)


def _places(path, name, variable, beside=True):
    """Where HDF5 looks for the file `name` that the file at `path` names, the place where it should be
    last.
    """
    folder = str(Path(path).absolute().parent)
    base = os.path.basename(name) if os.path.isabs(name) and beside else name
    prefixes = [
        one.replace("${ORIGIN}", folder) for one in os.environ.get(variable, "").split(os.pathsep) if one
    ]
    places = [os.path.join(prefix, base) for prefix in prefixes]
    places += (
        [os.path.abspath(base), os.path.join(folder, base)]
        if beside
        else []
        if prefixes
        else [os.path.abspath(base)]
    )
    return [name, *places] if os.path.isabs(name) else places


PIECE = 2**22  # bytes that are read at once, so that reading adds next to nothing to what the frames take


OPEN = 32  # files that are kept open at once


class LazyFrames:
    """Stands in for the uint8 tensor `[N, H, W, 3]`: frames[i], frames[a:b] and frames[rows] (int64 tensor,
    any shape).

    parts: (path, how many frames) of each file; their rows count on from file to file.
    order: int64 `[N]`, the row in the files for each row here. shape: (N, H, W, 3) after `fit`. What is
    indexed is read anew each time, each frame of it once. Raises UserError where a file cannot be read.
    """

    device, dtype = torch.device("cpu"), torch.uint8

    def __init__(self, parts, order, shape, fit="crop"):
        self.parts, self.order, self.shape, self.fit = parts, torch.from_numpy(order), torch.Size(shape), fit
        self._starts = np.cumsum([0, *(count for _, count in parts)])
        self._files = {}  # number of a part -> its open file, the longest open first
        frames = self._dataset(0)
        self.piece = max(1, PIECE // int(np.prod(frames.shape[1:])), (frames.chunks or [0])[0])

    def __len__(self):
        return self.shape[0]

    @property
    def nbytes(self):
        return self.shape.numel()

    def __getitem__(self, index):
        rows = self.order[index].numpy()
        wanted, place = np.unique(rows, return_inverse=True)
        found, done = np.empty((len(wanted), *self.shape[1:]), np.uint8), 0
        apart = (np.diff(wanted) != 1) | np.isin(wanted[1:], self._starts)
        for run in np.split(wanted, np.flatnonzero(apart) + 1):
            for part in np.split(run, range(self.piece, len(run), self.piece)):
                for frame in self._read(part):
                    found[done] = fit_frame(frame, *self.shape[1:3], self.fit)
                    done += 1
        in_order = rows.ndim == 1 and np.array_equal(rows, wanted)
        return torch.from_numpy(found if in_order else found[place.reshape(rows.shape)])

    def to(self, device):
        """A tensor of all frames on `device`, filled piece by piece."""
        frames = torch.empty(self.shape, dtype=torch.uint8, device=device)
        for start in range(0, len(self), self.piece):
            frames[start : start + self.piece] = self[start : start + self.piece].to(device)
        return frames

    def _read(self, run):
        """The frames at rows that follow each other in one file, as they are there."""
        if not len(run):
            return ()
        part = int(np.searchsorted(self._starts, run[0], side="right")) - 1
        first = run[0] - self._starts[part]
        try:
            return self._dataset(part)[first : first + len(run)]
        except (OSError, KeyError) as error:
            path = self.parts[part][0]
            raise UserError(
                f"{path}: its frames cannot be read ({error}); record or download it again"
            ) from None

    def _dataset(self, part):
        path, _ = self.parts[part]
        if part not in self._files:
            if len(self._files) == OPEN:
                self._files.pop(next(iter(self._files))).close()
            self._files[part] = open_file(path)
        return self._files[part]["frames"]
