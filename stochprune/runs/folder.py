"""Folders of runs: they have safe names, and one process at a time holds them."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import itertools
import os
import stat
import sys
import time
import warnings
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import BinaryIO

from stochprune.runs import ranks
from stochprune.runs.files import PARTIAL, CheckpointError, sync_folder

LOCK = ".lock"
"""The file that is locked; it contains the process id of its last owner."""
BEAT = 0.5
"""The seconds after which the first of several ranks tells the others that it still waits for a folder."""
held: list[Path] = []
"""The folders that this process holds, outermost first."""
_patient: list[bool] = [False]


def file_name(name: str, what: str) -> str:
    """Return ``name`` if it is a safe part of a path: not another folder, not hidden, not like an option.

    Args:
        what: the name of the value for messages.

    Raises:
        ValueError: it is empty, longer than 100 bytes, starts with a dot or a dash, or has a slash or a character that
            cannot be printed.
    """
    if not (isinstance(name, str) and name.isprintable() and 0 < len(name.encode()) <= 100):
        raise ValueError(f"{what} must be 1 to 100 printable characters, to name a folder, got {name!r:.60}")
    if name[0] in ".-" or "/" in name:
        raise ValueError(f"{what} names a folder: it must have no slash, nor start with . or -, got {name!r}")
    return name


@contextlib.contextmanager
def claim(folder: Path | None, *, wait: bool = False) -> Iterator[None]:
    """Make a folder durably and lock it for this process while the block runs; do nothing for None.

    The kernel releases the lock when the process ends, even if it is killed. Files that a killed process left
    incomplete are removed. If the file system has no locks, the block runs after a warning. Of several ranks the first
    one holds the folder for all; while it waits, the others hear from it, so that they wait as long as it does.

    Args:
        wait: wait until another process has released it.

    Raises:
        CheckpointError: another process holds it.
        OSError: it cannot be made, or written to.
    """
    if folder is None:
        yield
        return
    with contextlib.ExitStack() as stack:
        say = True
        while not ranks.from_first(partial(_hold, folder, wait, stack, say)):
            say = False
        held.append(folder)
        stack.callback(held.remove, folder)
        yield


def _hold(folder: Path, wait: bool, stack: contextlib.ExitStack, say: bool) -> bool:
    """Make and lock a folder until the stack is closed, and clean it; return False if another process still has it.

    Several ranks wait for this together, and give up a rank that is silent for long, so they ask again and again.
    """
    make_folder(folder)
    try:
        lock = _locked(folder, wait, say)
    except BlockingIOError:
        time.sleep(BEAT)
        return False
    if lock is not None:
        stack.enter_context(lock)
        stack.callback((folder / LOCK).unlink, missing_ok=True)  # while it is still locked
        for path in folder.iterdir():
            if PARTIAL.fullmatch(path.name):
                path.unlink()
    return True


@contextlib.contextmanager
def patient() -> Iterator[None]:
    """Let every :func:`claim` wait while the block runs: workers that share dense networks meet in their folders."""
    former, _patient[0] = _patient[0], True
    try:
        yield
    finally:
        _patient[0] = former


def make_folder(folder: Path) -> None:
    """Make a folder and its missing parents, and wait until their names are on disk."""
    missing = list(itertools.takewhile(lambda path: not path.is_dir(), (folder, *folder.parents)))
    for path in reversed(missing):
        path.mkdir(exist_ok=True)
        sync_folder(path.parent)


def _lock_file(path: Path) -> BinaryIO:
    """Open the lock file, made if missing. It is never a link, because it will be overwritten."""
    flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK
    try:
        descriptor = os.open(path, flags, 0o666)
        if stat.S_ISREG(os.fstat(descriptor).st_mode):
            return os.fdopen(descriptor, "r+b")
        os.close(descriptor)
    except OSError as error:
        if error.errno not in (errno.ELOOP, errno.EISDIR):
            raise
    raise CheckpointError(f"{path} is not a lock of this program: it is not a regular file. Remove it")


def _locked(folder: Path, wait: bool, say: bool) -> BinaryIO | None:
    """Return the lock file of a folder, locked until it is closed; None if the file system has no locks.

    Raises:
        CheckpointError: another process holds it, and ``wait`` is False.
        BlockingIOError: another process holds it, and there are several ranks, of which this one must not block.
    """
    while True:
        with contextlib.ExitStack() as attempt:
            lock = attempt.enter_context(_lock_file(folder / LOCK))
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                lock.seek(0)
                owner = f"{folder} (pid {lock.read(20).decode(errors='replace') or 'unknown'})"
                if not (wait or _patient[0]):
                    raise CheckpointError(
                        f"another process is using {owner}: wait until it ends, stop it, or choose another folder"
                    ) from None
                if say:
                    print(f"waiting for the process that is using {owner}", file=sys.stderr)
                if ranks.count() > 1:
                    raise
                fcntl.flock(lock, fcntl.LOCK_EX)
            except OSError as error:
                text = f"{folder} cannot be locked ({error.strerror}): let no other process use it"
                warnings.warn(text, RuntimeWarning, stacklevel=4)
                return None
            if os.fstat(lock.fileno()).st_nlink:  # else its last owner has removed it, and a new one may exist
                lock.truncate(0)
                lock.write(str(os.getpid()).encode())
                lock.flush()
                attempt.pop_all()
                return lock
