"""IDX, the file format of MNIST and its kin.

Big-endian: two zero bytes, a type code, the number of dimensions, one uint32 for each dimension, then the values in
row-major order (http://yann.lecun.com/exdb/mnist/).
"""

from __future__ import annotations

import gzip
import math
import zlib
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

_TYPES = {0x08: ">u1", 0x09: ">i1", 0x0B: ">i2", 0x0C: ">i4", 0x0D: ">f4", 0x0E: ">f8"}


def read_idx(path: Path | str) -> Tensor:
    """The array in an IDX file, gzipped or not (told by its content, not its name).

    Returns:
        uint8, int8, int16, int32, float32 or float64 tensor, as the file says.

    Raises:
        OSError: the file cannot be opened.
        ValueError: it is no IDX file, is truncated, or goes on after its last value.
    """
    content = _read(Path(path))
    if len(content) < 4 or content[:2] != b"\0\0":
        raise ValueError(f"{path} is not an IDX file: it starts with {content[:4].hex(' ') or 'nothing'}")
    code, ndim = content[2], content[3]
    if code not in _TYPES:
        known = ", ".join(f"0x{known:02x}" for known in _TYPES)
        raise ValueError(f"{path} has the unknown IDX type code 0x{code:02x}; known are: {known}")
    start = 4 + 4 * ndim
    if len(content) < start:
        raise ValueError(f"{path} is truncated: {len(content)} bytes, its header of {ndim} dimensions takes {start}")
    shape = tuple(int(size) for size in np.frombuffer(content, ">u4", ndim, offset=4))
    dtype = np.dtype(_TYPES[code])
    expected = start + math.prod(shape) * dtype.itemsize
    if len(content) != expected:
        fault = "is truncated" if len(content) < expected else "has trailing bytes"
        raise ValueError(f"{path} {fault}: shape {shape} of {dtype.name} takes {expected} bytes, got {len(content)}")
    return torch.from_numpy(np.frombuffer(content, dtype, offset=start).astype(dtype.newbyteorder("=")).reshape(shape))


def _read(path: Path) -> bytes:
    content = path.read_bytes()
    if content[:2] != b"\x1f\x8b":
        return content
    try:
        return gzip.decompress(content)
    except (EOFError, OSError, zlib.error) as error:
        raise ValueError(f"{path} is a truncated or damaged gzip file: {error}") from error
