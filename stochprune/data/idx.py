"""Reader of IDX, the file format of MNIST and similar data sets.

A file contains two zero bytes, a type code, the number of dimensions, one uint32 per dimension, and the values in
row-major order, all big-endian (http://yann.lecun.com/exdb/mnist/).
"""

from __future__ import annotations

import gzip
import math
import zlib
from pathlib import Path
from typing import BinaryIO, cast

import numpy as np
import torch
from torch import Tensor

from stochprune.arguments import checked

_TYPES = {0x08: ">u1", 0x09: ">i1", 0x0B: ">i2", 0x0C: ">i4", 0x0D: ">f4", 0x0E: ">f8"}
_MAX_DIMENSIONS = 8
_MAX_BYTES = 1 << 30
"""Limit on the bytes of the values: a header may state any size, and a small gzip file may unpack to it."""


@checked
def read_idx(path: Path | str) -> Tensor:
    """Read the array in an IDX file, gzipped or not (decided by its content, not by its name).

    At most the size that the header states is unpacked, and at most 1 GiB.

    Returns:
        A uint8, int8, int16, int32, float32 or float64 tensor, as the header states.

    Raises:
        OSError: the file cannot be opened.
        ValueError: the file is not an IDX file, is truncated, has bytes after its last value, or is larger than 1 GiB.
    """
    path = Path(path)
    with path.open("rb") as raw:
        packed = raw.read(2) == b"\x1f\x8b"
        raw.seek(0)
        source = cast(BinaryIO, gzip.GzipFile(fileobj=raw)) if packed else raw
        try:
            return _read(path, source)
        except (EOFError, gzip.BadGzipFile, zlib.error) as error:
            raise ValueError(f"{path} is a truncated or damaged gzip file: {error}") from error


def _read(path: Path, source: BinaryIO) -> Tensor:
    start = source.read(4)
    if len(start) < 4 or start[:2] != b"\0\0":
        raise ValueError(f"{path} is not an IDX file: it starts with {start.hex(' ') or 'nothing'}")
    code, ndim = start[2], start[3]
    if code not in _TYPES:
        known = ", ".join(f"0x{known:02x}" for known in _TYPES)
        raise ValueError(f"{path} has the unknown IDX type code 0x{code:02x}; known are: {known}")
    if ndim > _MAX_DIMENSIONS:
        raise ValueError(f"{path} states {ndim} dimensions; at most {_MAX_DIMENSIONS} are read")
    header = 4 + 4 * ndim
    sizes = source.read(4 * ndim)
    if len(sizes) < 4 * ndim:
        raise ValueError(f"{path} is truncated: {4 + len(sizes)} bytes, its header of {ndim} dimensions takes {header}")
    shape = tuple(int(size) for size in np.frombuffer(sizes, ">u4"))
    dtype = np.dtype(_TYPES[code])
    expected = math.prod(shape) * dtype.itemsize
    what = f"shape {shape} of {dtype.name} takes {header + expected} bytes"
    if math.prod(max(size, 1) for size in shape) * dtype.itemsize > _MAX_BYTES:
        raise ValueError(f"{path} is too large: {what}, at most {_MAX_BYTES} are read")
    values = _at_most(source, expected)
    if len(values) < expected:
        raise ValueError(f"{path} is truncated: {what}, got {header + len(values)}")
    if source.read(1):
        raise ValueError(f"{path} has trailing bytes: {what}, and the file is longer")
    return torch.from_numpy(np.frombuffer(values, dtype).astype(dtype.newbyteorder("="), copy=False).reshape(shape))


def _at_most(source: BinaryIO, size: int) -> bytearray:
    """Read ``size`` bytes, or fewer at the end of the file, in chunks, so that a false header takes no memory."""
    values = bytearray()
    while len(values) < size and (chunk := source.read(min(size - len(values), 1 << 20))):
        values += chunk
    return values
