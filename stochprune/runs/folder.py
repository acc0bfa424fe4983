"""Folders of runs: made under safe names, and held by one process at a time."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import itertools
import os
import stat
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from stochprune.runs.files import PARTIAL, CheckpointError, sync_folder

LOCK = ".lock"
"""The file that is locked; it holds the process id of its last owner."""
held: list[Path] = []
"""The folders that this process holds, outermost first."""


def file_name(name: str, what: str) -> str:
    """``name``, if it can be a part of a path: not another folder, hidden, or taken for an option.

    Args:
        what: names the value in messages.

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
    """Make a folder, durably, and hold it for this process while the block runs; nothing for None.

    The kernel frees it when the process ends, however it ends. What a killed process left half-written there is
    removed. Where the file system has no locks, a warning says so and the block runs.

    Args:
        wait: until another process has freed it.

    Raises:
        CheckpointError: another process holds it.
        OSError: it cannot be made, or written to.
    """
    if folder is None:
        yield
        return
    make_folder(folder)
    with contextlib.ExitStack() as stack:
        if (lock := _locked(folder, wait)) is not None:
            stack.enter_context(lock)
            stack.callback((folder / LOCK).unlink, missing_ok=True)  # before it is closed
            for path in folder.iterdir():
                if PARTIAL.fullmatch(path.name):
                    path.unlink()
        held.append(folder)
        stack.callback(held.remove, folder)
        yield


def make_folder(folder: Path) -> None:
    """Make a folder and those above it, as far as they are missing, and wait until their names are on disk."""
    missing = list(itertools.takewhile(lambda path: not path.is_dir(), (folder, *folder.parents)))
    for path in reversed(missing):
        path.mkdir(exist_ok=True)
        sync_folder(path.parent)


def _lock_file(path: Path) -> BinaryIO:
    """The file, made if missing, and never one that a link names: it will be overwritten."""
    flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK
    try:
        descriptor = os.open(path, flags, 0o666)
        if stat.S_ISREG(os.fstat(descriptor).st_mode):
            return os.fdopen(descriptor, "r+b")
        os.close(descriptor)
    except OSError as error:
        if error.errno not in (errno.ELOOP, errno.EISDIR):
            raise
    raise CheckpointError(f"{path} is no lock of this program: it is not a regular file. Remove it")


def _locked(folder: Path, wait: bool) -> BinaryIO | None:
    """The lock file of a folder, locked until it is closed; None where the file system cannot."""
    while True:
        with contextlib.ExitStack() as attempt:
            lock = attempt.enter_context(_lock_file(folder / LOCK))
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                lock.seek(0)
                owner = f"{folder} (pid {lock.read(20).decode(errors='replace') or 'unknown'})"
                if not wait:
                    raise CheckpointError(
                        f"another process is using {owner}: let it finish, end it, or choose another folder"
                    ) from None
                print(f"waiting for the process that is using {owner}", file=sys.stderr)
                fcntl.flock(lock, fcntl.LOCK_EX)
            except OSError as error:
                text = f"{folder} cannot be locked ({error.strerror}): let no other process use it"
                warnings.warn(text, RuntimeWarning, stacklevel=4)
                return None
            if os.fstat(lock.fileno()).st_nlink:  # else its former owner has removed it, and another may be there
                lock.truncate(0)
                lock.write(str(os.getpid()).encode())
                lock.flush()
                attempt.pop_all()
                return lock
