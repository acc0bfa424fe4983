"""Files of a run. A file is written completely or not at all, and refused on reading if any byte has changed."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import re
import secrets
import stat
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import torch

from stochprune.arguments import fits, in_words, shown

PARTIAL = re.compile(r"\.partial-[0-9]+-[0-9a-f]{8}")
"""Names of the files that :func:`replacing` writes to."""
MOST_BYTES = 1 << 28
"""Limit on the bytes of a JSON file."""
DEEPEST = 32
"""Limit on the levels of a JSON file."""
LARGEST = 1 << 64
"""Limit on the absolute value of integers in a JSON file."""
MARK = b"stochprune-sha256"
"""A file of tensors ends with this mark and the digest of all bytes before it."""
_TAIL = len(MARK) + hashlib.sha256().digest_size
_ANY = "Restore it from a copy, or move it away and run again."


Kinds = Mapping[str, Any]
"""The keys of what is read, and their types as annotations write them."""


class CheckpointError(RuntimeError):
    """A file or folder of a run that cannot be read or used, or that belongs to another run."""


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
    """Open a new file that replaces ``path`` durably when the block ends, or not at all if the block raises.

    Until then its name is unique to the process and the call, so that two writers of one path do not conflict.

    Raises:
        OSError: it cannot be written; ``filename`` is ``path``, which is not changed.
    """
    if path.exists() and not (path.is_file() or path.is_dir()):  # a device or a pipe, which a file must not replace
        raise OSError(errno.EEXIST, "is not a regular file", str(path))
    partial = path.parent / f".partial-{os.getpid()}-{secrets.token_hex(4)}"
    try:
        with partial.open("xb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
        sync_folder(path.parent)
    except OSError as error:
        if error.errno is None:
            raise
        raise OSError(error.errno, error.strerror, str(path)) from error
    finally:
        with contextlib.suppress(OSError):  # it exists only after a failure
            partial.unlink()


def sync_folder(folder: Path) -> None:
    """Wait until the names in a folder are on disk."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write the content and its SHA-256 as ``digest``; write the whole file or nothing.

    Raises:
        ValueError: NaN, infinity, an integer of more than 64 bits, or a key ``digest``.
        TypeError: a value that JSON does not support.
        OSError: see :func:`replacing`.
    """
    if "digest" in content:
        raise ValueError(f"write_json: {path} gets its own key 'digest'; use another key in the content")
    try:
        known = _parsed(json.dumps(content, allow_nan=False))
    except ValueError as error:
        raise ValueError(f"write_json: the content of {path} has a number that is not allowed: {error}") from error
    with replacing(path) as file:
        file.write(_file_of(known))


def read_json(path: Path, what: str) -> dict[str, Any]:
    """Read the content of a file of :func:`write_json`; tuples become lists.

    Args:
        what: the kind of file for messages, for example ``certificate``.

    Raises:
        CheckpointError: the file does not exist or cannot be read, is not a JSON object, has another digest than it
            states, or is one that ``write_json`` never writes: more than 256 MiB, NaN or numbers out of range, nested
            too deeply.
    """
    with _opened(path, what) as file:
        data = file.read(MOST_BYTES + 1)
    if len(data) > MOST_BYTES:
        raise CheckpointError(f"{path} is not a {what}: it has more than {MOST_BYTES >> 20} MiB")
    try:
        content = _parsed(data.decode())
        if not isinstance(content, dict):
            raise ValueError(f"it must contain an object, got {type(content).__name__}")
        _require_shallow(content)
        stated = content.pop("digest", None)
        found = _digest(content)
    except RecursionError:
        raise CheckpointError(f"{path} is not a {what}: it is nested too deeply") from None
    except UnicodeDecodeError as error:
        raise CheckpointError(f"{path} is not a {what}: byte {error.start} is not UTF-8 text. {_ANY}") from error
    except ValueError as error:
        raise CheckpointError(f"{path} is truncated, damaged or not a {what}: {error}. {_ANY}") from error
    if stated is None:
        raise CheckpointError(f"{path} has no digest: it is not a {what}, or is from an older version. {_ANY}")
    if stated != found or data != _file_of(content):
        raise CheckpointError(f"{path} was changed after it was written: its digest or its bytes differ. {_ANY}")
    return content


def _file_of(content: Mapping[str, Any]) -> bytes:
    return f"{json.dumps({**content, 'digest': _digest(content)}, indent=1)}\n".encode()


def _require_shallow(content: dict[str, Any]) -> None:
    """Raise on deep content: to compare its digest it is written, which takes the square of its size."""
    level: list[Any] = [content]
    for _ in range(DEEPEST):
        inner = (child for each in level for child in (each.values() if isinstance(each, dict) else each))
        if not (level := [child for child in inner if isinstance(child, dict | list)]):
            return
    raise RecursionError


def _parsed(text: str) -> Any:
    return json.loads(text, parse_int=_integer, parse_float=_number, parse_constant=_number)


def _integer(text: str) -> int:
    if len(text) > 21 or abs(int(text)) > LARGEST:
        raise ValueError(f"the integer {text[:24]} needs more than 64 bits")
    return int(text)


def _number(text: str) -> float:
    value = float(text)
    if not abs(value) < float("inf"):
        raise ValueError(f"{text[:24]} is not a finite number")
    return value


def _digest(content: Any) -> str:
    canonical = json.dumps(content, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(canonical.encode()).hexdigest()


def require(content: Any, kinds: Kinds, path: Path) -> dict[str, Any]:
    """Return ``content``, a mapping from ``path``, if it has the keys of ``kinds``, each of its type.

    Raises:
        CheckpointError: it has not. ``True`` is no number, an integer is one.
    """
    if not isinstance(content, dict):
        raise CheckpointError(f"{path} holds {shown(content)} where a mapping must be. {_ANY}")
    for key, kind in kinds.items():
        if key not in content:
            raise CheckpointError(f"{path} lacks {key!r}: it is incomplete, or from another version. {_ANY}")
        if not fits(kind, content[key]):
            raise CheckpointError(f"{path}: {key} must be {in_words(kind)}, got {shown(content[key])}. {_ANY}")
    return content


def save_tensors(path: Path, payload: Any) -> None:
    """Write a file like ``torch.save``, followed by the digest of every byte; write the whole file or nothing.

    ``torch.load`` also reads the file, without the check.

    Raises:
        OSError: see :func:`replacing`.
    """
    with replacing(path) as file:
        writer = _Hashed(file)
        try:
            torch.save(payload, writer)  # type: ignore[arg-type]  # torch only calls its write
        except RuntimeError as error:
            # If a write fails, torch's writer fails again when it is closed, which hides the reason.
            if error.__context__ is not None:
                raise error.__context__ from None
            raise
        file.write(MARK + writer.digest.digest())


class _Hashed:
    """A file that is hashed as it is written."""

    def __init__(self, file: BinaryIO) -> None:
        self.file, self.digest = file, hashlib.sha256()

    def write(self, data: bytes) -> int:
        self.digest.update(data)
        return self.file.write(data)

    def flush(self) -> None:
        self.file.flush()


def load_tensors(path: Path, what: str = "checkpoint") -> Any:
    """Read the payload of a file of :func:`save_tensors`, on the CPU; no code in the file is run.

    Args:
        what: the kind of file for messages.

    Raises:
        CheckpointError: the file does not exist or cannot be read, is truncated, is another kind of file, or a byte of
            it has changed.
    """
    with _opened(path, what) as file:
        size = file.seek(0, os.SEEK_END) - _TAIL
        file.seek(max(size, 0))
        tail = file.read(_TAIL)
        if size < 0 or not tail.startswith(MARK):
            raise CheckpointError(f"{path} cannot be read: it is truncated, or not a {what} of this program. {_ANY}")
        file.seek(0)
        digest, left = hashlib.sha256(), size
        while left and (block := file.read(min(left, 1 << 20))):
            digest.update(block)
            left -= len(block)
        if digest.digest() != tail.removeprefix(MARK):
            raise CheckpointError(f"{path} cannot be read: it was changed after it was written. {_ANY}")
        try:
            with zipfile.ZipFile(file) as packed:
                if sum(part.file_size for part in packed.infolist()) > size:  # torch never compresses
                    raise ValueError("it is compressed")
            file.seek(0)
            return torch.load(file, map_location="cpu", weights_only=True)
        except OSError:
            raise
        except Exception as error:  # torch's reader fails in many ways on a forged file
            raise CheckpointError(f"{path} cannot be read: it is not a {what} of this program. {_ANY}") from error


@contextlib.contextmanager
def _opened(path: Path, what: str) -> Iterator[BinaryIO]:
    try:
        if not stat.S_ISREG(os.stat(path).st_mode):  # a pipe would block
            raise CheckpointError(f"{path} is not a {what}: it is not a regular file")
        with Path(path).open("rb") as file:
            yield file
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read as a {what}: {error.strerror}") from error
    except ValueError as error:  # an invalid file name
        raise CheckpointError(f"{str(path)!r} cannot be read as a {what}: {error}") from error
