"""The lock of a run's folder: on a disk, on shares without locks, between machines, after a crash."""

import errno
import json
import os
import shutil
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest

from mtld_core.config import UserError
from mtld_core.runs import lock as locking
from mtld_core.runs.lock import ask_to_stop, run_lock

ROOT = Path(__file__).parents[2]
WITHOUT = [
    errno.ENOSYS,
    errno.EOPNOTSUPP,
    errno.ENOLCK,
    errno.EINVAL,
    None,
]  # as shares say it; None: Windows


def without_locks(monkeypatch, number=errno.ENOSYS):
    def flock(handle, operation):
        raise OSError(number, os.strerror(number))

    if number is None:
        monkeypatch.setattr(locking, "fcntl", None)
    elif locking.fcntl:
        monkeypatch.setattr(locking.fcntl, "flock", flock)


def on_machine(monkeypatch, name):
    monkeypatch.setattr(locking.socket, "gethostname", lambda: name)
    monkeypatch.setattr(locking, "_machine", lambda: {"boot": name, "counting": ""})


def refused(run, *words):
    with pytest.raises(UserError) as caught, run_lock(run):
        pass
    assert all(word in str(caught.value) for word in words), str(caught.value)


def grow_old(run, seconds=2 * locking.STALE):
    before = time.time() - seconds
    os.utime(run / ".lock", (before, before))


@pytest.mark.parametrize("number", WITHOUT)
def test_a_share_without_locks_takes_one_process_and_is_free_after_it(tmp_path, monkeypatch, number):
    without_locks(monkeypatch, number)
    run = tmp_path / "run"
    run.mkdir()
    for _ in range(2):
        with run_lock(run):
            refused(run, f"process {os.getpid()} on ")
        assert list(run.iterdir()) == []


@pytest.mark.parametrize("number", [0, *WITHOUT])
def test_another_machine_is_refused_while_the_heart_beats_and_takes_over_when_it_has_stopped(
    tmp_path, monkeypatch, capsys, number
):
    if number != 0:
        without_locks(monkeypatch, number)
    run = tmp_path / "run"
    on_machine(monkeypatch, "one")
    with run_lock(run):
        without_locks(monkeypatch)  # the other machine's view of the share
        on_machine(monkeypatch, "two")
        refused(
            run,
            f"process {os.getpid()} on one",
            " s ago",
            f"delete {run / '.lock'}",
            "start again after 2 minutes",
        )
        grow_old(run)
        with run_lock(run):
            assert json.loads((run / ".lock").read_text())["host"] == "two"
            assert "left by process" in capsys.readouterr().out
            refused(run, "on two")
    assert not (run / ".lock").exists() or number == 0


def test_the_heart_beats_until_another_one_has_the_lock(tmp_path, monkeypatch):
    monkeypatch.setattr(locking, "BEAT", 0.01)
    with run_lock(tmp_path / "run"):
        grow_old(tmp_path / "run")
        deadline = time.monotonic() + 20
        while time.time() - (tmp_path / "run/.lock").stat().st_mtime > 60:
            assert time.monotonic() < deadline
            time.sleep(0.01)


@pytest.mark.parametrize("marker", ["{pid}\nvm-that-is-gone\n1234567890\n", "7\nelsewhere", "what is this?"])
@pytest.mark.parametrize("number", [0, errno.ENOSYS])
def test_a_marker_of_another_program_is_believed_until_it_is_old(tmp_path, monkeypatch, marker, number):
    if number:
        without_locks(monkeypatch, number)
    (tmp_path / ".lock").write_text(marker.format(pid=os.getpid()))
    refused(tmp_path, f"delete {tmp_path / '.lock'}", "s ago")
    grow_old(tmp_path)
    with run_lock(tmp_path):
        refused(tmp_path, "in use")


def test_where_locks_reach_no_other_machine_its_heartbeat_is_believed(tmp_path, monkeypatch):
    on_machine(monkeypatch, "one")
    mine = locking.Lock(tmp_path / ".lock").owner | {"flock": True}
    (tmp_path / ".lock").write_text(json.dumps(mine))
    with run_lock(tmp_path):  # its own system has freed it: that process was killed
        pass
    (tmp_path / ".lock").write_text(json.dumps(mine))
    on_machine(monkeypatch, "two")
    refused(tmp_path, "on one", "delete")


def test_two_containers_of_one_name_tell_their_numbers_apart(tmp_path, monkeypatch):
    without_locks(monkeypatch)
    there = locking.Lock(tmp_path / ".lock").owner | {"flock": False, "counting": "pid:[2]", "pid": 2**22 + 1}
    (tmp_path / ".lock").write_text(json.dumps(there))
    refused(tmp_path, f"process {2**22 + 1} on", "delete")  # no such process here, which says nothing
    grow_old(tmp_path)
    with run_lock(tmp_path):
        pass


def test_an_empty_file_is_nobodys(tmp_path, monkeypatch):
    without_locks(monkeypatch)
    (tmp_path / ".lock").touch()
    with run_lock(tmp_path):
        refused(tmp_path, "in use")


def test_a_number_that_another_process_has_now_holds_nothing(tmp_path, monkeypatch):
    without_locks(monkeypatch)
    mine = locking.Lock(tmp_path / ".lock").owner | {"flock": False}
    (tmp_path / ".lock").write_text(json.dumps(mine))
    refused(tmp_path, "in use")
    (tmp_path / ".lock").write_text(json.dumps(mine | {"began": mine["began"] - 3600}))
    with run_lock(tmp_path):
        pass


ASKED = """
    import sys, threading
    from mtld_core.runs import lock
    lock.BEAT, stop = 0.05, threading.Event()
    with lock.run_lock(sys.argv[1], stop=stop):
        print("here", flush=True)
        sys.exit(7 if stop.wait(60) else 8)
"""


def test_another_process_is_asked_to_stop_and_an_old_wish_is_forgotten(tmp_path):
    ask_to_stop(tmp_path)  # nobody is here
    command = [sys.executable, "-c", textwrap.dedent(ASKED), tmp_path]
    there = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    try:
        assert there.stdout.readline() == "here\n" and not (tmp_path / ".stop").exists()
        with pytest.raises(locking.InUse), run_lock(tmp_path):
            pass
        time.sleep(0.3)
        assert there.poll() is None
        ask_to_stop(tmp_path)
        assert there.wait(60) == 7 and not (tmp_path / ".stop").exists()
    finally:
        there.kill()
        there.communicate()


KILLED = """
    import errno, fcntl, os, signal, sys
    def flock(handle, operation):
        raise OSError(errno.ENOLCK, "no locks available")
    fcntl.flock = flock
    from mtld_core.runs.lock import run_lock
    with run_lock(sys.argv[1]):
        os.kill(os.getpid(), signal.SIGKILL)
"""


def test_after_a_kill_on_the_same_machine_the_folder_is_free_at_once(tmp_path, monkeypatch):
    subprocess.run([sys.executable, "-c", textwrap.dedent(KILLED), tmp_path], cwd=ROOT)
    assert json.loads((tmp_path / ".lock").read_text())["flock"] is False
    with run_lock(tmp_path):  # with locks
        pass
    subprocess.run([sys.executable, "-c", textwrap.dedent(KILLED), tmp_path], cwd=ROOT)
    without_locks(monkeypatch)
    with run_lock(tmp_path):
        pass


def test_of_two_that_take_over_at_once_one_succeeds(tmp_path, monkeypatch):
    without_locks(monkeypatch)
    (tmp_path / ".lock").write_text("1\ngone\n")
    grow_old(tmp_path)
    first, second = locking.Lock(tmp_path / ".lock"), locking.Lock(tmp_path / ".lock")
    judge = second._refuse_if_in_use

    def slow(found):
        judge(found)
        first.acquire()  # between the look and the claim

    monkeypatch.setattr(second, "_refuse_if_in_use", slow)
    with pytest.raises(locking.Held):
        second.acquire()
    assert json.loads((tmp_path / ".lock").read_text()) == first.owner and len(list(tmp_path.iterdir())) == 1
    first.release()


def test_a_folder_that_was_deleted_meanwhile_hides_no_error_and_is_free(tmp_path):
    run = tmp_path / "run"
    with pytest.raises(UserError, match="what happened"), run_lock(run):
        shutil.rmtree(run)
        raise UserError("what happened")
    with run_lock(run):
        assert (run / ".lock").exists()
    assert not run.exists()
