"""Files of a run: written whole or not at all, and refused on reading if any byte of them has changed."""

from __future__ import annotations

import contextlib
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
"""Bytes of a JSON file."""
DEEPEST = 32
"""Levels of a JSON file."""
LARGEST = 1 << 64
"""Integers of a JSON file lie between its negative and itself."""
MARK = b"stochprune-sha256"
"""Ends a file of tensors, followed by the digest of all bytes before the mark."""
_TAIL = len(MARK) + hashlib.sha256().digest_size
_ANY = "Restore it from a copy, or move it away and run again."


Kinds = Mapping[str, Any]
"""The keys of what is read, and their types as annotations write them."""


class CheckpointError(RuntimeError):
    """A file or folder of a run that cannot be read or used, or that belongs to another run."""


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
    """Open a new file that takes the place of ``path``, durably, when the block ends, and never if it raises.

    Its name until then is unique to the process and the call, so writers of one path do not meet.

    Raises:
        OSError: it cannot be written; ``filename`` is ``path``, which is as it was.
    """
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
        with contextlib.suppress(OSError):  # it is there only after a failure
            partial.unlink()


def sync_folder(folder: Path) -> None:
    """Wait until the names in a folder are on disk."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write the whole file or nothing, and with it ``digest``, the SHA-256 of the content.

    Raises:
        ValueError: NaN, infinity, an integer of more than 64 bits, or a key ``digest``.
        TypeError: what JSON cannot hold.
        OSError: see :func:`replacing`.
    """
    if "digest" in content:
        raise ValueError(f"write_json: {path} gets a key 'digest' of its own; name that of the content otherwise")
    try:
        known = _parsed(json.dumps(content, allow_nan=False))
    except ValueError as error:
        raise ValueError(f"write_json: the content of {path} has a number that is not allowed: {error}") from error
    with replacing(path) as file:
        file.write(_file_of(known))


def read_json(path: Path, what: str) -> dict[str, Any]:
    """The content that :func:`write_json` was given, tuples as lists.

    Args:
        what: names the kind of file in messages, for example ``certificate``.

    Raises:
        CheckpointError: the file is not there or cannot be read, is no JSON object, has another digest than it states,
            or is one that no ``write_json`` makes: more than 256 MiB, NaN or numbers out of range, nested too deeply.
    """
    with _opened(path, what) as file:
        data = file.read(MOST_BYTES + 1)
    if len(data) > MOST_BYTES:
        raise CheckpointError(f"{path} is no {what}: it has more than {MOST_BYTES >> 20} MiB")
    try:
        content = _parsed(data.decode())
        if not isinstance(content, dict):
            raise ValueError(f"it holds {type(content).__name__} where an object must be")
        _require_shallow(content)
        stated = content.pop("digest", None)
        found = _digest(content)
    except RecursionError:
        raise CheckpointError(f"{path} is no {what}: it is nested too deeply") from None
    except UnicodeDecodeError as error:
        raise CheckpointError(f"{path} is no {what}: byte {error.start} is not UTF-8 text. {_ANY}") from error
    except ValueError as error:
        raise CheckpointError(f"{path} is truncated, damaged or no {what}: {error}. {_ANY}") from error
    if stated is None:
        raise CheckpointError(f"{path} has no digest: it is no {what}, or of an older version. {_ANY}")
    if stated != found or data != _file_of(content):
        raise CheckpointError(f"{path} was changed after it was written: its digest or its bytes differ. {_ANY}")
    return content


def _file_of(content: Mapping[str, Any]) -> bytes:
    return f"{json.dumps({**content, 'digest': _digest(content)}, indent=1)}\n".encode()


def _require_shallow(content: dict[str, Any]) -> None:
    """Refuse what takes the square of its size to write, which is how a digest is compared."""
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
            raise CheckpointError(f"{path} lacks {key!r}: it is not whole, or of another version. {_ANY}")
        if not fits(kind, content[key]):
            raise CheckpointError(f"{path}: {key} must be {in_words(kind)}, got {shown(content[key])}. {_ANY}")
    return content


def save_tensors(path: Path, payload: Any) -> None:
    """Write what ``torch.save`` writes, and after it the digest of every byte: the whole file or nothing.

    ``torch.load`` reads the file too, without the check.

    Raises:
        OSError: see :func:`replacing`.
    """
    with replacing(path) as file:
        writer = _Hashed(file)
        try:
            torch.save(payload, writer)  # type: ignore[arg-type]  # all that it asks for is write
        except RuntimeError as error:
            # If a write fails, torch's writer fails once more when it is closed, and that hides the reason.
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
    """Return what :func:`save_tensors` was given, on the CPU; no code in the file is run.

    Args:
        what: names the kind of file in messages.

    Raises:
        CheckpointError: the file is not there or cannot be read, is truncated or foreign, or a byte of it has changed.
    """
    with _opened(path, what) as file:
        size = file.seek(0, os.SEEK_END) - _TAIL
        file.seek(max(size, 0))
        tail = file.read(_TAIL)
        if size < 0 or not tail.startswith(MARK):
            raise CheckpointError(f"{path} cannot be read: it is truncated, or no {what} of this program. {_ANY}")
        file.seek(0)
        digest, left = hashlib.sha256(), size
        while left and (block := file.read(min(left, 1 << 20))):
            digest.update(block)
            left -= len(block)
        if digest.digest() != tail.removeprefix(MARK):
            raise CheckpointError(f"{path} cannot be read: it was changed after it was written. {_ANY}")
        try:
            with zipfile.ZipFile(file) as packed:
                if sum(part.file_size for part in packed.infolist()) > size:  # torch writes nothing compressed
                    raise ValueError("it is compressed")
            file.seek(0)
            return torch.load(file, map_location="cpu", weights_only=True)
        except OSError:
            raise
        except Exception as error:  # torch's reader fails in many ways on a file that was written to deceive it
            raise CheckpointError(f"{path} cannot be read: it is no {what} of this program. {_ANY}") from error


@contextlib.contextmanager
def _opened(path: Path, what: str) -> Iterator[BinaryIO]:
    try:
        if not stat.S_ISREG(os.stat(path).st_mode):  # a pipe would block
            raise CheckpointError(f"{path} is no {what}: it is not a regular file")
        with Path(path).open("rb") as file:
            yield file
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read as a {what}: {error.strerror}") from error
    except ValueError as error:  # a name that no file can have
        raise CheckpointError(f"{str(path)!r} cannot be read as a {what}: {error}") from error
