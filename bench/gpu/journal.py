"""Append rows of JSON, one per line, to a file in each of several folders.

Each row is on disk before the next case starts, so a later failure of the process, its parent or the GPU does not lose
it. If a folder cannot be written, one message on standard error names it, and the other folders are used.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any, TextIO

FREE = 1 << 20  # bytes that must be free on the disk of the log
RESULTS = Path(__file__).parents[1] / "results"
Row = dict[str, Any]


def folders() -> list[Path]:
    """Return the folders for results: the one in the variable ``OUT`` if it is set, and ``bench/results``."""
    out = os.environ.get("OUT")
    return [*([Path(out).absolute()] if out else []), RESULTS]  # absolute, since the workers run in another folder


def say(text: str, file: TextIO | None = None) -> None:
    """Print a line; ignore a closed pipe or a lost terminal, so that the check continues."""
    with contextlib.suppress(OSError):
        print(text, file=file or sys.stdout, flush=True)


class Journal:
    """The file ``gpu-check-<run>.jsonl`` in each folder; several processes may append to it."""

    def __init__(self, run: str, folders: Iterable[Path]) -> None:
        self.run, self.folders = run, list(folders)
        self._refused: set[Path] = set()

    def write(self, row: Row) -> None:
        """Append a row to the file in every folder that can be written; print it if there is none."""
        line = json.dumps(row, default=str).encode() + b"\n"
        taken = [
            self._try(folder, lambda folder: _append(folder / f"gpu-check-{self.run}.jsonl", line))
            for folder in self.folders
        ]
        if not any(taken):
            say(line.decode().rstrip())

    def save(self, name: str, text: str) -> list[Path]:
        """Write a whole file to every folder that can be written, and return the paths."""
        return [
            folder / name for folder in self.folders if self._try(folder, lambda folder: _replace(folder / name, text))
        ]

    def log(self) -> Path | None:
        """Return the file for the output of the workers: in the first folder whose disk is not full."""
        for folder in self.folders:
            path = folder / f"gpu-check-{self.run}.log"
            if self._try(folder, lambda _: _open_log(path)):  # noqa: B023 - called at once
                return path
        return None

    def rows(self) -> list[Row]:
        """Return the rows of the longest file of this run in the folders."""
        found = [read(folder / f"gpu-check-{self.run}.jsonl") for folder in self.folders]
        return max(found, key=len)

    def _try(self, folder: Path, write: Any) -> bool:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            write(folder)
        except OSError as error:
            if folder not in self._refused:
                self._refused.add(folder)
                say(f"gpu-check cannot write to {folder}: {error}", sys.stderr)
            return False
        return True


def _open_log(path: Path) -> None:
    path.open("ab").close()
    if shutil.disk_usage(path).free < FREE:
        raise OSError("the disk is full")


def _append(path: Path, line: bytes) -> None:
    file = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o644)
    try:
        size = os.fstat(file).st_size
        if size and os.pread(file, 1, size - 1) != b"\n":  # a full disk cut off the previous line
            line = b"\n" + line
        if os.write(file, line) < len(line):
            raise OSError(f"{path.name}: only a part of a row was written; is the disk full?")
        os.fsync(file)
    finally:
        os.close(file)


def _replace(path: Path, text: str) -> None:
    new = path.with_suffix(path.suffix + ".new")
    new.write_text(text)
    new.replace(path)


def read(path: Path) -> list[Row]:
    """Return the rows of a file, without lines that were cut off; none if the file is missing."""
    try:
        lines = path.read_text(errors="replace").splitlines()
    except OSError:
        return []
    rows = []
    for line in lines:
        try:
            row = json.loads(line)
        except ValueError:
            continue
        if isinstance(row, dict):
            rows.append(row)
    return rows
