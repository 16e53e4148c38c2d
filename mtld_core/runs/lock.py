"""One process at a time in a folder: by the system's lock, or by a heartbeat where a file system has none.

The file says who holds it, as JSON: {"host", "pid", "began", "boot", "counting", "flock"}; empty, it is
nobody's. Its time is the holder's last heartbeat, so that another machine on the same share can tell a
process that works from one that is gone. Many shares lock between the processes of one machine only, so a
machine believes another one's heartbeat in any case.
"""

import contextlib
import errno
import json
import os
import socket
import threading
import uuid
from pathlib import Path

import psutil

from mtld_core.config import UserError
from mtld_core.runs.folder import LOCK, STOP

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

BEAT = 5  # seconds between two heartbeats, and looks whether somebody asks to stop
STALE = 120  # seconds without one after which a process on another machine counts as gone
HELD = (errno.EACCES, errno.EAGAIN, errno.EWOULDBLOCK)  # flock's answers where somebody else has it
CLOCK = 2  # seconds by which the system's word on when a process began may vary
JUST_NOW = "it began in this moment"


class InUse(UserError):
    """Another process trains in the folder."""


def ask_to_stop(run_dir):
    """Ask whatever process trains in a run's folder, on any machine, to save, judge and end."""
    Path(run_dir, STOP).touch()


@contextlib.contextmanager
def run_lock(run_dir, say=print, stop=None):
    """Hold a run's folder for this process, which is to train in it. However it dies, the folder is free.

    A folder that was made for this and holds nothing else in the end goes again. say: told when a lock that
    was left behind is taken over. stop: an event, set some seconds after another process asked this
    one to stop. Raises InUse, or UserError where the folder cannot be written.
    """
    run_dir = Path(run_dir)
    made, lock = not run_dir.exists(), Lock(run_dir / LOCK, say, stop)
    try:
        run_dir.mkdir(parents=True, exist_ok=True)
        lock.acquire()
    except Held as who:
        raise InUse(
            f"{run_dir} is in use by another training process; wait for {who} or choose another run_dir"
        ) from None
    except OSError as error:
        raise UserError(
            f"{run_dir} cannot be a run's folder ({error.strerror}); choose another run_dir"
        ) from None
    try:
        yield
    finally:
        empty = made and [file.name for file in run_dir.glob("*")] == [LOCK]  # it may be gone
        lock.release(remove=empty)
        if empty:
            with contextlib.suppress(OSError):  # somebody else has begun in it
                run_dir.rmdir()


class Held(Exception):
    """Somebody else holds the lock; the message says who, and what to do where that cannot be true."""


class Lock:
    """The lock file at `path`. say: told when a lock that was left behind is taken over.

    stop: an event, set when another process asks this one to stop.
    """

    handle = None  # of the file, where the system has locked it

    def __init__(self, path, say=print, stop=None):
        self.path, self.say, self.stop = Path(path), say, stop or threading.Event()
        self.asked = self.path.with_name(STOP)
        me = psutil.Process()
        self.owner = {"host": socket.gethostname(), "pid": me.pid, "began": me.create_time(), **_machine()}

    def acquire(self):
        """Take it. Raises Held where a process that lives has it, OSError where it cannot be written."""
        self.handle = _flocked(self.path)
        self.owner["flock"] = self.handle is not None
        self.text = json.dumps(self.owner)
        try:
            found = _read(self.path) if self.path.exists() else ""
            self._refuse_if_in_use(found)
            if self.handle is None:
                self._claim(found)
            else:
                _write(self.handle, self.text)
        except BaseException:
            self._close()
            raise
        self.asked.unlink(missing_ok=True)  # whoever was here before
        self.ended = threading.Event()
        threading.Thread(target=self._beat, daemon=True).start()

    def release(self, remove=False):
        """Give it back. remove: delete the file, too, where the system's lock would leave it, empty."""
        self.ended.set()
        with contextlib.suppress(OSError):
            if self.handle is not None and not remove:
                os.ftruncate(self.handle, 0)
            elif self._is_mine():
                self.path.unlink()
        self._close()

    def _is_mine(self):
        return _read(self.path) == self.text

    def _close(self):
        if self.handle is not None:
            os.close(self.handle)  # which frees it
            self.handle = None

    def _beat(self):
        while not self.ended.wait(BEAT):
            with contextlib.suppress(OSError):  # a share that is away for a while
                if not self._is_mine():
                    return
                os.utime(self.path)
                self.asked.unlink()  # an OSError where nobody asks
                self.stop.set()

    # ---- who has it

    def _refuse_if_in_use(self, found):
        """Raise Held where the owner that the text `found` names may still be at work."""
        owner = _parse(found)
        if owner is None:
            return
        here = owner.get("boot") == self.owner["boot"]
        if here and owner.get("flock") and self.handle is not None:
            return  # the system has freed it
        if here and all(owner.get(name) == self.owner[name] for name in ("host", "counting")):
            if _lives(owner):
                raise Held(_name(owner))
            return
        age = self._age()
        if age < STALE:
            raise Held(
                f"{_name(owner)}, which gave a sign of life {age:.0f} s ago (if that one is gone, start "
                f"again after {STALE / 60:g} minutes, or delete {self.path})"
            )
        self.say(
            f"{self.path} was left by {_name(owner)}, whose last sign of life is {age / 60:.0f} minutes old: "
            "taken over"
        )

    def _age(self):
        """Seconds since the last heartbeat, by the clock that gives the folder's files their times."""
        probe = _beside(self.path)
        try:
            probe.touch()
            return max(0.0, probe.stat().st_mtime - self.path.stat().st_mtime)
        finally:
            probe.unlink(missing_ok=True)

    # ---- without the system's locks

    def _claim(self, found):
        """Make the file, which holds `found` and is nobody's, this process's own.

        Of several that try one succeeds; Held is raised in the others.
        """
        path = self.path
        if path.exists():
            aside = _beside(path)
            os.rename(path, aside)
            if _read(aside) != found:  # another one was faster, and has it now
                os.rename(aside, path)
                raise Held(JUST_NOW)
            aside.unlink()
        try:
            handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL)
        except FileExistsError:
            raise Held(JUST_NOW) from None
        try:
            _write(handle, self.text)
        finally:
            os.close(handle)
        if not self._is_mine():
            raise Held(JUST_NOW)


def _beside(path):
    return path.with_name(f"{path.name}.{uuid.uuid4().hex}")


def _read(path):
    return path.read_text(errors="replace")


def _write(handle, text):
    os.ftruncate(handle, 0)
    os.write(handle, text.encode())
    with contextlib.suppress(OSError):
        os.fsync(handle)


def _flocked(path):
    """A handle of the file, locked by the system; None where there are no such locks. Raises Held."""
    if fcntl is None:
        return None
    handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        os.close(handle)
        if error.errno not in HELD:  # no such locks; file systems say it in many ways
            return None
        owner = _parse(_read(path))
        raise Held(_name(owner) if owner else "it does not say which") from None
    if not os.fstat(handle).st_nlink:
        os.close(handle)
        raise Held("it ended in this moment")
    return handle


# ---- owners


def _parse(text):
    """Who holds a lock file: a dict with "host" and "pid" at least; None where it is empty."""
    if not text.strip():
        return None
    with contextlib.suppress(ValueError, TypeError, KeyError):
        owner = json.loads(text)
        return owner | {"pid": int(owner["pid"]), "host": str(owner["host"])}
    return {"pid": 0, "host": "an unknown machine"}  # another program's words


def _name(owner):
    return f"process {owner['pid']} on {owner['host']}"


def _lives(owner):
    """Whether the process that wrote this still runs here; its number may have gone to another one since."""
    try:
        return abs(psutil.Process(owner["pid"]).create_time() - owner["began"]) < CLOCK
    except (psutil.Error, KeyError, TypeError):
        return False


def _machine():
    """Where this is: "boot" tells this system, since its start, from others; "counting" whose numbers count.

    Containers number their processes from 1, each.
    """
    found = {"boot": socket.gethostname(), "counting": ""}
    with contextlib.suppress(OSError):
        found["boot"] = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    with contextlib.suppress(OSError):
        found["counting"] = os.readlink("/proc/self/ns/pid")
    return found
