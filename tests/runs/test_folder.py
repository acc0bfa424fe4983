"""Folders: safe names, one process at a time, and what killed ones left."""

from __future__ import annotations

import errno
import os
import re
import signal
import threading
from pathlib import Path

import pytest

from stochprune.runs import CheckpointError, claim, file_name
from stochprune.runs import folder as folder_module
from tests.runs.owners import OWNERS

BAD_NAMES = ["", ".", "..", "../x", "/tmp/x", "a/b", "-rf", ".hidden", "a\0b", "a\nb", "x" * 101, "\u00e9" * 60]


@pytest.mark.parametrize("name", [*BAD_NAMES, "\ud800", None, 3])
def test_names_that_leave_the_folder_are_refused(name):
    with pytest.raises(ValueError, match="name"):
        file_name(name, "the name of a study")


@pytest.mark.parametrize("name", ["mine", "a b", "\u00e9tude", "x" * 100, "a..b", "0.9-seed0", "a\\b"])
def test_names_that_are_fine(name, tmp_path):
    (tmp_path / file_name(name, "a name")).mkdir()


def hold(folder: Path, ready: int) -> None:
    with claim(folder):
        os.write(ready, b"x")
        signal.pause()


def test_another_process_is_named_and_its_death_frees_the_folder(tmp_path):
    receive, send = os.pipe()
    if not (pid := os.fork()):
        hold(tmp_path / "run", send)
    os.read(receive, 1)
    try:
        with (
            pytest.raises(CheckpointError, match=rf"run \(pid {pid}\)"),
            claim(tmp_path / "run"),
        ):
            pass
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
    with claim(tmp_path / "run"):
        assert (tmp_path / "run" / ".lock").read_text() == str(os.getpid())
    assert not list((tmp_path / "run").iterdir())


@pytest.mark.parametrize("kind", ["link", "dangling", "folder", "pipe"])
def test_a_lock_that_is_no_file_is_refused_and_never_written_through(tmp_path, kind):
    """Otherwise another user who may write to the folder could empty any file of this user."""
    mine, run = tmp_path / "mine", tmp_path / "run"
    mine.write_text("mine"), run.mkdir()
    make = {
        "link": lambda path: path.symlink_to(mine),
        "dangling": lambda path: path.symlink_to("nowhere"),
        "folder": Path.mkdir,
        "pipe": os.mkfifo,
    }
    make[kind](run / ".lock")
    with pytest.raises(CheckpointError, match=r"\.lock"), claim(run):
        pass
    assert mine.read_text() == "mine" and [path.name for path in run.iterdir()] == [".lock"]


def test_many_folders_above_one_another(tmp_path):
    with claim(deep := tmp_path.joinpath(*["a"] * 1500)):
        assert deep.is_dir()
    for path in (deep, *deep.parents):  # more than rmtree can
        if path == tmp_path:
            break
        path.rmdir()


def held_in_a_thread(folder):
    """Hold the folder in a thread; return the event that ends it, and the thread."""
    entered, leave = threading.Event(), threading.Event()

    def hold():
        with claim(folder):
            entered.set()
            leave.wait(30)

    thread = threading.Thread(target=hold)
    thread.start()
    assert entered.wait(30)
    return leave, thread


def test_waiting(tmp_path, capsys):
    leave, thread = held_in_a_thread(tmp_path)
    threading.Timer(0.2, leave.set).start()
    with claim(tmp_path, wait=True):
        assert leave.is_set()
    thread.join()
    assert str(tmp_path) in capsys.readouterr().err


def test_the_first_of_several_ranks_tells_the_others_that_it_waits(tmp_path, monkeypatch, capsys):
    """They give up a rank that is silent for long, so each exchange is short."""
    heard: list[bool] = []

    def from_first(work):
        heard.append(work())
        if len(heard) == 3:
            leave.set()
            thread.join()
        return heard[-1]

    leave, thread = held_in_a_thread(tmp_path)
    monkeypatch.setattr(folder_module.ranks, "count", lambda: 2)
    monkeypatch.setattr(folder_module.ranks, "from_first", from_first)
    monkeypatch.setattr(folder_module, "BEAT", 0.01)
    with claim(tmp_path, wait=True):
        assert heard == [False, False, False, True]
    assert capsys.readouterr().err.count(str(tmp_path)) == 1


def test_one_who_waited_holds_the_folder_against_a_third(tmp_path, monkeypatch):
    """The file that was waited for is gone with its former owner."""
    waits, entered, leave = threading.Event(), threading.Event(), threading.Event()
    original = folder_module.fcntl.flock

    def flock(file, operation):
        if not operation & folder_module.fcntl.LOCK_NB:
            waits.set()
        original(file, operation)

    def second():
        with claim(tmp_path, wait=True):
            entered.set()
            leave.wait(30)

    monkeypatch.setattr(folder_module.fcntl, "flock", flock)
    thread = threading.Thread(target=second)
    with claim(tmp_path):
        thread.start()
        assert waits.wait(30)
    try:
        assert entered.wait(30)
        with pytest.raises(CheckpointError, match=r"\(pid \d+\)"), claim(tmp_path):
            pass
    finally:
        leave.set()
        thread.join()


def test_one_of_many_processes_enters_the_folder(tmp_path):
    """Locks are removed and made all the time, so that a late comer may hold one that has no name any more."""
    inside, most, lock = 0, 0, threading.Lock()

    def work():
        nonlocal inside, most
        for _ in range(50):
            with claim(tmp_path, wait=True):
                with lock:
                    inside += 1
                    most = max(most, inside)
                with lock:
                    inside -= 1

    threads = [threading.Thread(target=work) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == 1


def test_half_written_files_of_killed_processes_are_removed_and_others_stay(tmp_path):
    stale = [".partial-12-0123abcd", f".partial-{os.getpid()}-deadbeef"]
    others = [".partial-notes", "partial-12-0123abcd", ".partial-12-0123abcd.txt", "x.partial", "checkpoint.pt"]
    for name in stale + others:
        (tmp_path / name).write_text("x")
    with claim(tmp_path):
        assert {path.name for path in tmp_path.iterdir()} == {".lock", *others}


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS])
def test_without_locks_there_is_a_warning_and_nothing_is_removed(tmp_path, monkeypatch, number):
    (tmp_path / ".partial-12-0123abcd").write_text("x")

    def fail(*_):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr("fcntl.flock", fail)
    with pytest.warns(RuntimeWarning, match=re.escape(str(tmp_path))), claim(tmp_path):
        assert (tmp_path / ".partial-12-0123abcd").exists()


@pytest.mark.parametrize("name", OWNERS)
def test_every_owner_holds_its_folders(tmp_path, name, monkeypatch):
    """Each folder in turn is held by another; an owner that would share it by waiting asks to wait."""
    claimed: dict[str, bool] = {}
    original = folder_module._locked

    def spy(folder, wait, say):
        claimed.setdefault(str(folder.relative_to(tmp_path / "first")), wait)
        return original(folder, wait, say)

    with monkeypatch.context() as patch:
        patch.setattr(folder_module, "_locked", spy)
        OWNERS[name](tmp_path / "first")
    written = {str(path.parent.relative_to(tmp_path / "first")) for path in (tmp_path / "first").rglob("*.*")}
    assert written and written <= set(claimed)
    for number, (part, wait) in enumerate(claimed.items()):
        out = tmp_path / str(number)
        with claim(out / part):
            if wait:
                monkeypatch.setattr(folder_module.fcntl, "flock", _refuse_to_wait(folder_module.fcntl.flock))
            with pytest.raises(Waited if wait else CheckpointError, match=None if wait else r"\(pid \d+\)"):
                OWNERS[name](out)
            monkeypatch.undo()


class Waited(Exception):
    """Another's lock was waited for."""


def _refuse_to_wait(original):
    def flock(file, operation):
        if not operation & folder_module.fcntl.LOCK_NB:
            raise Waited
        return original(file, operation)

    return flock
