"""The work of a worker: one cell, and a file that says how far it is."""

from __future__ import annotations

import dataclasses
import json
import os
import socket
import time
from pathlib import Path

from stochprune.runs.folder import patient
from stochprune.runs.progress import ProgressBar, Training
from stochprune.studies.cells import Job, Task, run_task

EVERY = 0.5
"""Seconds between two writings of the file."""


@dataclasses.dataclass(frozen=True)
class Status:
    """How far a worker is: its name, what it trains, the steps of its cell so far, and its last loss."""

    worker: str = ""
    part: str = "waiting for a worker"
    steps: int = 0
    loss: str = ""


class StatusFile(ProgressBar):
    """A progress bar that writes a file instead of a line on a terminal."""

    def __init__(self, path: Path) -> None:
        self.path, self.worker = path, f"{socket.gethostname()}:{os.getpid()}"
        self.part, self.steps, self.loss, self.written = "starting", 0, "", 0.0
        self._write()

    def expect(self, total: int) -> None:
        pass  # of the whole study

    def begin(self, title: str) -> None:
        self.part, self.loss = title, ""
        self._write()

    def finish(self, steps: int) -> None:
        pass

    def show(self, done: int, text: str) -> None:
        self.loss = text
        self._write()

    def on_step(self, state: Training) -> None:
        self.steps, self.loss = self.steps + 1, f"{state.loss:.4g}"
        if time.monotonic() >= self.written + EVERY:
            self._write()

    def _write(self) -> None:
        self.written = time.monotonic()
        partial = self.path.with_suffix(f".{os.getpid()}")
        partial.write_text(json.dumps(dataclasses.asdict(Status(self.worker, self.part, self.steps, self.loss))))
        os.replace(partial, self.path)


def read_status(path: Path) -> Status:
    """Return what a worker wrote, if it has begun."""
    try:
        return Status(**json.loads(path.read_text()))
    except (OSError, ValueError, TypeError):
        return Status()


def work(job: Job, task: Task, status: Path) -> Exception | None:
    """Run a cell and store its result; return the error that ended it, or None."""
    try:
        with patient():
            run_task(job, task, StatusFile(status))
    except Exception as error:  # the study raises it, whatever the engine
        return error
    return None
