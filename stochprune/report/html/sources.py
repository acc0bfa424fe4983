"""Runs as a page reads them: the JSON of a folder or a file, checked and bounded, and the tensors beside it."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from stochprune.runs.files import CheckpointError, load_tensors, read_json

MOST_BYTES = 64 << 20
"""Bytes of a file that a page reads."""
MOST_FILES = 200
"""Files of the parts of a run that a page reads."""
NAMES = ("results.json", "result.json")


class SourceError(ValueError):
    """A file that cannot be reported; the message names it."""


@dataclasses.dataclass(frozen=True)
class Source:
    """The results of one run.

    Attributes:
        path: of its JSON file.
        folder: that the run wrote to; None for a single file, beside which nothing belongs to it.
        content: of the file.
    """

    path: Path
    folder: Path | None
    content: Mapping[str, Any]

    @property
    def name(self) -> str:
        """The name of the folder, or that of the file without its ending."""
        return self.folder.resolve().name if self.folder else self.path.stem

    def parts(self, pattern: str) -> list[tuple[Path, Mapping[str, Any]]]:
        """Return the readable JSON files of the folder that match a pattern, at most :data:`MOST_FILES`.

        Raises:
            SourceError: one of them cannot be read.
        """
        if self.folder is None:
            return []
        paths = [path for path in sorted(self.folder.glob(pattern)) if path != self.path]
        return [(path, read_content(path)) for path in paths[:MOST_FILES]]

    def tensors(self, name: str) -> dict[str, Tensor]:
        """Return the tensors of a file of the folder by name, read without pickle; none if it does not exist.

        Raises:
            SourceError: it cannot be read.
        """
        path = self.folder / name if self.folder else None
        if path is None or not path.is_file():
            return {}
        if path.stat().st_size > 16 * MOST_BYTES:
            raise SourceError(f"{path} has more than {MOST_BYTES >> 16} MiB, which a report does not read")
        try:
            payload = load_tensors(path, "file of tensors")
        except CheckpointError as error:
            raise SourceError(str(error)) from error
        if not isinstance(payload, dict):
            raise SourceError(f"{path} holds no tensors by name")
        found = {str(name): value for name, value in payload.items() if isinstance(value, Tensor)}
        if wide := [name for name, value in found.items() if value.nbytes > path.stat().st_size]:
            raise SourceError(
                f"{path}: the tensor {wide[0]!r:.80} has more bytes than the file"
            )  # it repeats its values
        return found


def read_source(path: Path) -> Source:
    """Read a run: its folder, or its JSON file.

    Raises:
        SourceError: there is no result, it is too large, truncated, changed, or not JSON.
    """
    try:
        folder = path if path.is_dir() else None
        found = [path / name for name in NAMES if (path / name).is_file()] if folder else []
    except OSError as error:  # a name that is too long
        raise SourceError(f"{path} cannot be read: {error.strerror}") from error
    if folder is not None:
        if not found:
            raise SourceError(
                f"{folder} has no {' or '.join(NAMES)}: name the folder of a finished run, or a JSON file"
            )
        path = found[0]
    elif path.name in NAMES:
        folder = path.parent
    return Source(path, folder, read_content(path))


def read_content(path: Path) -> Mapping[str, Any]:
    """Return the content of a JSON file; a list becomes the ``rows`` of a mapping.

    A file with a digest must have the bytes that were written. Files of benchmarks have none.

    Raises:
        SourceError: it cannot be read, is too large, truncated, changed, nested too deeply, or not JSON.
    """
    try:
        if not path.is_file():
            raise SourceError(f"{path} is not a file or a folder of a run")
        if (size := path.stat().st_size) > MOST_BYTES:
            raise SourceError(f"{path} has {size >> 20} MiB; a report reads at most {MOST_BYTES >> 20}")
        content = json.loads(path.read_text(encoding="utf-8"), parse_constant=_refused, parse_float=_finite)
    except OSError as error:
        raise SourceError(f"{path} cannot be read: {error.strerror}") from error
    except RecursionError:
        raise SourceError(f"{path} is nested too deeply to be a result") from None
    except UnicodeDecodeError:
        raise SourceError(f"{path} is not UTF-8 text, so it is no result") from None
    except SourceError:
        raise
    except ValueError as error:
        raise SourceError(f"{path} is truncated, or is not JSON: {error}") from error
    if isinstance(content, list):
        content = {"rows": content}
    if not isinstance(content, dict):
        raise SourceError(f"{path} holds {type(content).__name__} where the results of a run must be an object")
    if "digest" in content:
        try:
            content = read_json(path, "result")
        except CheckpointError as error:
            raise SourceError(str(error)) from error
    return content


def _refused(text: str) -> float:
    raise ValueError(f"{text} is not a number of JSON")


def _finite(text: str) -> float:
    if not math.isfinite(value := float(text)):
        raise ValueError(f"{text[:24]} is not a finite number")
    return value
