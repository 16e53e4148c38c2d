"""A second copy of a run in another folder, on a mounted Drive, say, kept by a thread while the run trains.

Checkpoints are written to the run's folder first; what is new there is copied, each file's sha256 compared
with what was read, and renamed. A Drive that is slow or gone costs the training nothing: it is tried again.
"""

import contextlib
import hashlib
import os
import shutil
import threading
from pathlib import Path

from mtld_core.config import check
from mtld_core.files import atomic_folder, sha256
from mtld_core.runs.checkpoint import list_checkpoints, newest_good, prune
from mtld_core.runs.folder import BEST, LATEST, SAMPLES

SECONDS_BETWEEN_LOOKS = 20
SECONDS_FOR_THE_LAST = 300  # at a run's end, for the last checkpoint


@contextlib.contextmanager
def mirrored(run_dir, mirror_dir, say):
    """Keep a copy of the run in `mirror_dir/<its name>` while the block runs; "" for none.

    say: told when copying begins to fail, and in the end where the copy is, or what it lacks. Raises
    UserError where the copy has a newer checkpoint than the run, which then would be lost.
    """
    if not mirror_dir:
        yield
        return
    copy, over, seen = Path(mirror_dir, run_dir.name), threading.Event(), {}
    here, there = ([path.name for path in list_checkpoints(each)[:1]] for each in (run_dir, copy))
    way = "choose another run_dir or mirror_dir, or remove the one that you do not need"
    check(here >= there, f"{copy} has {there}, which is newer than all in {run_dir} and would be lost: {way}")

    def work():
        failed = ""
        while True:
            last = over.is_set()
            try:
                update(run_dir, copy, seen)
                failed = ""
            except OSError as error:
                if not failed:
                    say(f"{copy}: {error.strerror or error}; training goes on, and copying is tried again")
                failed = str(error)
            if last:
                return say(f"{copy} lacks what came last: {failed}" if failed else f"a copy is in {copy}")
            over.wait(SECONDS_BETWEEN_LOOKS)

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join(SECONDS_FOR_THE_LAST)
        if thread.is_alive():
            say(f"{copy} may lack what came last: copying takes longer than {SECONDS_FOR_THE_LAST} s")


def update(run_dir, copy, seen):
    """Bring the folder `copy` to what `run_dir` holds; what points at checkpoints comes after them.

    seen: when a file that was copied had been written, by its name. Raises OSError where one cannot be
    copied, or is not what was read.
    """
    copy.parent.mkdir(exist_ok=True)  # whose own parent is there, unless a Drive is not mounted
    names = [path.relative_to(run_dir) for path in run_dir.rglob("*") if path.is_file()]
    for name in sorted(names, key=lambda name: name.name in (LATEST, BEST)):
        if name.parts[0] == SAMPLES or "." in {part[0] for part in name.parts}:
            continue
        try:
            written = (run_dir / name).stat().st_mtime_ns
            if seen.get(name) != written:
                _copy(run_dir / name, copy / name)
                seen[name] = written
        except FileNotFoundError:
            if (run_dir / name).exists():  # else it was deleted meanwhile
                raise
    prune(copy, len(list_checkpoints(run_dir)))


def _copy(source, target):
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary, read = target.with_name(f".{target.name}.part"), hashlib.sha256()
    with open(source, "rb") as old, open(temporary, "wb") as new:
        while piece := old.read(1 << 20):
            read.update(piece)
            new.write(piece)
    if sha256(temporary) != read.hexdigest():
        raise OSError(f"{target.name} came out otherwise than it was read")
    os.replace(temporary, target)


def bring_back(run_dir, mirror_dir, resume="auto"):
    """Copy a run from its mirror, where nothing is in `run_dir` and it is to go on (`resume` is "auto").

    It appears there whole or not at all.
    """
    if not (run_dir and mirror_dir) or resume != "auto" or any(Path(run_dir).glob("[!.]*")):
        return
    copy = Path(mirror_dir, Path(run_dir).name)
    if newest_good(list_checkpoints(copy)):
        print(f"going on with the copy in {copy}")
        with atomic_folder(Path(run_dir)) as temporary:
            shutil.copytree(copy, temporary, dirs_exist_ok=True)
