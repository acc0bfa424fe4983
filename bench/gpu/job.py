"""The job of a step's module: its cases run one after the other, and each row is on disk before the next case."""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Iterator, Sequence
from types import ModuleType
from typing import Any

from bench.gpu.journal import Journal, Row

_prctl = ctypes.CDLL(None).prctl  # looked up now, because few calls are safe between fork and exec
REPLACE = 75  # exit status of a worker whose case is in the journal, but which cannot run another one
LENGTH = 4000  # characters of an error that are kept


class Unusable(Exception):
    """The machine cannot run any step."""


class Skip(Exception):
    """Something that a case needs is missing. The row of the case says so, and it is not a failure."""


class Failed(Exception):
    """A check that failed; ``found`` holds the measurements made before."""

    def __init__(self, message: str, found: dict[str, Any]) -> None:
        super().__init__(message)
        self.found = found


class Job:
    """A worker's task: every ``lanes``-th case of a step, without those that are done."""

    def __init__(
        self, step: str, journal: Journal, pipe: int, lane: int = 0, lanes: int = 1, done: Sequence[str] = ()
    ) -> None:
        self.step, self.journal, self.lane, self.lanes, self.done = step, journal, lane, lanes, set(done)
        self._pipe, self._start = pipe, 0.0

    def mine(self, names: Sequence[str]) -> list[str]:
        """Tell the driver this worker's share of all cases, and return those of them that are not done."""
        share = list(names)[self.lane :: self.lanes]
        self._tell(plan=share)
        return [name for name in share if name not in self.done]

    def begin(self, name: str) -> None:
        """Start the clock of a case."""
        self._start = time.monotonic()
        self._tell(begin=name)

    def record(self, name: str, ok: bool | None, found: Row | None = None, **more: str) -> Row:
        """Append a case's row to the journal.

        Args:
            name: name of the case.
            ok: whether it succeeded; None if it was skipped.
            found: the measurements.
            more: ``error``, or the reason why the case was ``skipped``.
        """
        seconds = round(time.monotonic() - self._start, 3)
        row: Row = {"step": self.step, "case": name, "ok": ok, "seconds": seconds, **more}
        if found:
            row["found"] = found
        self.journal.write(row)
        return row

    def end(self, row: Row) -> None:
        """Tell the driver that a case is over."""
        self._tell(end=row["case"], row=row)

    def unusable(self, why: str) -> None:
        """Tell the driver that no step can run."""
        self._tell(unusable=why)

    def _tell(self, **event: Any) -> None:
        os.write(self._pipe, json.dumps(event, default=str).encode() + b"\n")


def each(job: Job, module: ModuleType) -> None:
    """Run the cases of a module, and catch the error of each one; end the process if an error remains in it."""
    for name in job.mine(module.cases()):
        job.begin(name)
        try:
            found = _result(job, name, module.run(name))
            if late := getattr(module, "lost", lambda: None)():
                raise Failed(f"the case ended well, but left an error: {late}", found)
            row = job.record(name, True, found)
        except Skip as why:
            row = job.record(name, None, skipped=str(why))
        except Unusable as why:
            job.end(job.record(name, False, error=str(why)))
            raise
        except Exception as error:
            row = job.record(name, False, getattr(error, "found", None), error=error_text(error))
        well = module.healthy()
        job.end(row)
        if not well:
            leave(REPLACE)


def _result(job: Job, name: str, found: Row | Iterator[Row]) -> Row:
    """Return the measurements of a case. If it yields them in parts, record those so far after each part."""
    if isinstance(found, dict):
        return found
    last: Row = {}
    for last in found:
        job.record(name, None, last, skipped="not finished")
    return last


def error_text(error: BaseException) -> str:
    """Return the last part of the traceback."""
    return "".join(traceback.format_exception(error))[-LENGTH:]


def leave(status: int) -> None:
    """End the process at once: a clean end may take for ever if the GPU hangs."""
    with contextlib.suppress(OSError):
        sys.stdout.flush()
        sys.stderr.flush()
    os._exit(status)


def die_with_parent() -> None:
    """Make the system kill this process when its parent ends."""
    _prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG


def tool(command: Sequence[str], **options: Any) -> subprocess.CompletedProcess[str]:
    """Run a program that ends with this process at the latest, and return its output."""
    return subprocess.run(command, capture_output=True, text=True, preexec_fn=die_with_parent, **options)
