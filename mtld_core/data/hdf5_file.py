"""Opening an HDF5 file, and reading what lies in it.

HDF5 gives zeros for parts that are gone: here each is named, with the way out.
"""

import contextlib
import errno
import itertools
import os
from pathlib import Path

import h5py
import numpy as np
import torch

from mtld_core.config import UserError, check, nearest
from mtld_core.frames import fit_frame

UNLIMITED = 2**64 - 1  # HDF5's size of an external file that is used as far as needed, or of a growing part
PIECE = 2**22  # bytes that are read at once, so that reading adds next to nothing to what the frames take
MOST_OPEN = 32  # files that are kept open at once


def open_file(path):
    """The `h5py.File` at `path`, to be read. Raises UserError where it cannot be opened, with the way out."""
    try:
        return h5py.File(path)
    except OSError as error:
        raise UserError(_why_not(path, error)) from None


def _why_not(path, error):
    """Why the file at `path` cannot be opened, and the way out."""
    text = str(error)
    if "unable to lock file" in text:
        if error.errno in (errno.EAGAIN, errno.EACCES):
            return (
                f"{path} is open for writing in another program: close it there, or wait until that is done"
            )
        return (
            f"{path} lies where files cannot be locked ({os.strerror(error.errno)}): set the environment "
            "variable HDF5_USE_FILE_LOCKING=FALSE, or copy it to another disk"
        )
    if "already open for" in text:
        return (
            f"{path} is open for writing: close it in the program (or the notebook's cell) that has it open; "
            f"if none has any more, `h5clear -s {path}` takes the mark away that it left"
        )
    if error.errno in (errno.EACCES, errno.EPERM):
        return f"{path} cannot be read ({os.strerror(error.errno)}); give yourself the right to"
    return f"{path} is no HDF5 file, or a damaged one ({error}); record or download it again"


def find_dataset(file, name, of=()):
    """Find the dataset `name` in an open file, and make sure that it is whole. None where there is none.

    of: (file, dataset) of those that it is a part of. Raises UserError where `name` is a group, a link that
    leads nowhere, a dataset that lacks a part or a filter, or one that is a part of itself.
    """
    link = file.get(name, getlink=True)
    if link is None:
        return None
    try:
        found = file[name]
    except (KeyError, OSError):
        raise UserError(f"{file.filename}: {_dead(file, name, link)}") from None
    if isinstance(found, h5py.Group):
        raise UserError(f"{file.filename}: {_a_group(file, name, found)}")
    if not isinstance(found, h5py.Dataset):
        return None
    what = f"{file.filename}: dataset {name!r}"
    this = os.path.realpath(file.filename), found.name
    if this in of:
        raise UserError(f"{what} is a part of itself and has no frames of its own: make it anew")
    _check_filters(found, what)
    if found.external:
        _check_external(found, what)
    if found.is_virtual:
        _check_virtual(found, what, (*of, this))
    return found


def missing_dataset(file, name):
    """Say that an open file has no dataset `name`, with the nearest name that it has: part of an error."""
    there = nearest(name, list(file)) if len(file) else "; the file is empty"
    return f"{file.filename} has no dataset {name!r}{there}"


def _a_group(file, name, group):
    """Say that `name` is a group, and not the dataset itself, with the way out."""
    inside = [one for one in group if isinstance(group.get(one), h5py.Dataset)]
    likely = max(inside, key=lambda one: group[one].ndim, default="...")  # pictures have the most dimensions
    return (
        f"{name!r} is a group ({', '.join(group) or 'an empty one'}), where a dataset is wanted; give one of "
        f"its datasets the name: with h5py.File({file.filename!r}, 'a') as f: f.move({name!r}, 'all'); "
        f"f[{name!r}] = f['all/{likely}']"
    )


def _dead(file, name, link):
    """Say that the link `name` leads nowhere, with the way out."""
    if isinstance(link, h5py.ExternalLink):
        there, _ = _look_for(file.filename, link.filename, "HDF5_EXT_PREFIX")
        what = f"{name!r} is a link to {link.path!r} in the file {link.filename}"
        if there is None:
            return f"{what}, which is not there: bring that file back"
        return f"{what}, in which it cannot be read: mend that file"
    target = f" to {link.path!r}" if isinstance(link, h5py.SoftLink) else ""
    return f"{name!r} is a link{target} that leads nowhere: store the dataset itself"


# ---- parts of a dataset that lie elsewhere


def _check_filters(dataset, what):
    """Raise UserError where values are compressed with a filter that is not installed here.

    what: names the dataset in the error.
    """
    plist = dataset.id.get_create_plist()
    filters = [plist.get_filter(i) for i in range(plist.get_nfilters())]
    if not all(h5py.h5z.filter_avail(code) for code, *_ in filters):
        with contextlib.suppress(ImportError):
            import hdf5plugin  # noqa: F401  (h5py knows its filters from then on)
    missing = [
        f"{code} {name.decode(errors='replace')}".strip()
        for code, _, _, name in filters
        if not h5py.h5z.filter_avail(code)
    ]
    try:
        if missing:
            dataset[:1]  # can be read where the filter was missing when that was written, too
    except OSError:
        raise UserError(
            f"{what} is compressed with filter {', '.join(missing)}, which is not installed here: `pip "
            "install hdf5plugin`, or write the file anew with compression='gzip' where it can be read"
        ) from None


def _check_external(dataset, what):
    """Raise UserError where raw bytes in other files are gone: HDF5 would read zeros in their place."""
    left = dataset.nbytes
    for name, offset, size in dataset.external:
        used = min(left, size)
        left -= used
        found, wanted = _look_for(dataset.file.filename, name, "HDF5_EXTFILE_PREFIX", beside=False)
        check(
            found,
            f"{what} keeps its values in the file {name}, which is not at {wanted}: bring it back, start "
            "in the folder that it is relative to, or set HDF5_EXTFILE_PREFIX='${ORIGIN}'",
        )
        there = os.path.getsize(found)
        check(
            there >= offset + used,
            f"{what} keeps its values in the file {found}, which was cut short ({there} bytes, "
            f"{offset + used} are needed): bring it back whole",
        )


def _check_virtual(dataset, what, of):
    """Raise UserError where a dataset of another file that holds rows of this one is gone, or too short."""
    covered = 0
    for source in dataset.virtual_sources():
        name = source.file_name
        if "%" in name.replace("%%", ""):  # a series, which ends at the first file that is missing
            return
        path, wanted = _look_for(dataset.file.filename, name, "HDF5_VDS_PREFIX")
        if name == ".":
            path = dataset.file.filename
        check(path, f"{what} has a part in {name}, which is missing: bring that file back to {wanted}")
        with open_file(path) as file:
            part = find_dataset(file, source.dset_name, of)
            if part is None:
                raise UserError(f"{what} has a part in {path}: {missing_dataset(file, source.dset_name)}")
            check(
                _is_covered(source, part.shape),
                f"{what} has a part in {path}, whose dataset {source.dset_name!r} is {list(part.shape)} now, "
                "not what it was when that part was taken: bring the earlier file back, or join the parts "
                "anew",
            )
        covered += source.vspace.get_select_npoints()
    check(
        covered >= dataset.size,
        f"{what} is made of parts of other files, and {dataset.size - covered} of its {dataset.size} values "
        "lie in none: make it anew with all its parts",
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


def _look_for(path, name, variable, beside=True):
    """Look where HDF5 looks for the file `name` that the file at `path` names.

    variable: of the environment, with folders to look in. beside: look in the folder of `path`, too. Returns
    (where it is, or None; where it should be).
    """
    folder = str(Path(path).absolute().parent)
    base = os.path.basename(name) if beside and os.path.isabs(name) else name
    prefixes = filter(None, os.environ.get(variable, "").split(os.pathsep))
    places = [os.path.join(prefix.replace("${ORIGIN}", folder), base) for prefix in prefixes]
    if beside:
        places += [os.path.abspath(base), os.path.join(folder, base)]
    elif not places:
        places = [os.path.abspath(base)]
    if os.path.isabs(name):
        places.insert(0, name)
    return next(filter(os.path.isfile, places), None), places[-1]


# ---- frames that stay in their files


class LazyFrames:
    """Stands in for the uint8 tensor `[N, H, W, 3]`: frames[i], frames[a:b], frames[rows] (int64, any shape).

    parts: (path, how many frames) of each file; their rows count on from file to file. order: int64 `[N]`,
    the row in the files for each row here. shape: (N, H, W, 3) after `fit`, see `fit_frame`. What is indexed
    is read anew each time, each frame of it once, and comes as a uint8 tensor. Raises UserError where a file
    cannot be read.
    """

    device = torch.device("cpu")
    dtype = torch.uint8

    def __init__(self, parts, order, shape, fit):
        self.parts = parts
        self.order = torch.from_numpy(order)
        self.shape = torch.Size(shape)
        self.fit = fit
        self._starts = np.cumsum([0, *(count for _, count in parts)])
        self._files = {}  # number of a part -> its open file, the longest open first
        frames = self._dataset(0)
        frame_bytes = int(np.prod(frames.shape[1:]))
        chunk = frames.chunks[0] if frames.chunks else 1  # frames that the file stores together
        self.piece = max(1, PIECE // frame_bytes, chunk)  # frames that are read at once

    def __len__(self):
        return self.shape[0]

    @property
    def nbytes(self):
        return self.shape.numel()

    def __getitem__(self, index):
        rows = self.order[index].numpy()
        wanted, place = np.unique(rows, return_inverse=True)
        found = np.empty((len(wanted), *self.shape[1:]), np.uint8)
        # runs of rows that follow each other, each in one file and no longer than a piece
        apart = np.isin(wanted, self._starts) | (wanted % self.piece == 0)
        apart |= np.diff(wanted, prepend=-2) != 1
        starts = np.flatnonzero(apart).tolist()
        for start, stop in itertools.pairwise([*starts, len(wanted)]):
            for i, frame in enumerate(self._read(wanted[start:stop]), start):
                found[i] = fit_frame(frame, *self.shape[1:3], self.fit)
        if rows.ndim == 1 and np.array_equal(rows, wanted):
            return torch.from_numpy(found)
        return torch.from_numpy(found[place.reshape(rows.shape)])

    def to(self, device):
        """A tensor of all frames on `device`, filled piece by piece."""
        frames = torch.empty(self.shape, dtype=torch.uint8, device=device)
        for start in range(0, len(self), self.piece):
            rows = slice(start, start + self.piece)
            frames[rows] = self[rows].to(device)
        return frames

    def _read(self, run):
        """The frames at rows that follow each other in one file, as they are there."""
        part = int(np.searchsorted(self._starts, run[0], side="right")) - 1
        first = run[0] - self._starts[part]
        try:
            return self._dataset(part)[first : first + len(run)]
        except (OSError, KeyError) as error:
            raise UserError(
                f"{self.parts[part][0]}: its frames cannot be read ({error}); record or download it again"
            ) from None

    def _dataset(self, part):
        """The dataset with the frames of a part, whose file is opened where it is not open yet."""
        files = self._files
        if part not in files:
            if len(files) == MOST_OPEN:
                files.pop(next(iter(files))).close()
            path, _ = self.parts[part]
            files[part] = open_file(path)
        return files[part]["frames"]
