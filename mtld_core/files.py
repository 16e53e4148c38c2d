"""Files and folders that appear whole or not at all, and digests of files."""

import contextlib
import hashlib
import json
import os
import shutil
import uuid
from pathlib import Path


@contextlib.contextmanager
def atomic_path(path):
    """Yield a temporary path beside `path`, to which the caller writes a file.

    Where the block ends well, that file is flushed to disk and renamed to `path`; on an error it is deleted.
    So a reader sees the old file or the new one, never half of one, whenever the process dies.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp{path.suffix}")
    try:
        yield temporary
        with open(temporary, "r+b") as file:  # Windows flushes only what is open for writing
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def atomic_folder(path):
    """Yield a temporary folder beside the `Path` path, which takes its place where the block ends well.

    What lay there before goes. A process that dies may leave `.<name>.<letters>.<its number>.tmp` or `.old`
    behind. On a shared disk processes of several machines may have the same number, so there are the letters.
    """
    unique = f"{uuid.uuid4().hex}.{os.getpid()}"
    temporary, old = (path.with_name(f".{path.name}.{unique}.{word}") for word in ("tmp", "old"))
    try:
        temporary.mkdir(parents=True)
        yield temporary
        if path.exists():
            os.replace(path, old)
        os.replace(temporary, path)
    finally:
        if old.exists() and not path.exists():
            os.replace(old, path)
        shutil.rmtree(temporary, ignore_errors=True)
        shutil.rmtree(old, ignore_errors=True)


@contextlib.contextmanager
def whole(folder):
    """Delete `folder` with all that is in it where the block raises anything."""
    try:
        yield
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise


def write_json(path, value):
    """Write a value of plain types as a JSON file, whole or not at all."""
    with atomic_path(path) as temporary:
        temporary.write_text(json.dumps(value, indent=2) + "\n")


def read_json(path):
    """Read the value in a JSON file. Raises OSError, or ValueError where the text is no JSON."""
    return json.loads(Path(path).read_text())


def can_be_read(path):
    """Whether `path` is a file, or a link to none, which is named when it is opened.

    A folder is none, nor is a pipe or a socket, on which reading would wait for another program.
    """
    return os.path.isfile(path) or not os.path.exists(path)


def sha256(path):
    """The SHA-256 digest of a file, in hex. It is read in pieces, so it may be larger than the memory."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def flush(path):
    """Force the file or folder at `path` (a `Path`) to disk, as far as the file system can promise that."""
    with contextlib.suppress(OSError):  # Windows opens no folder, some network drives flush none
        handle = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
