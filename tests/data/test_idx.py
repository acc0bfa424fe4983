"""The IDX reader against files written byte by byte here."""

from __future__ import annotations

import gzip
import struct
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from stochprune.data import read_idx


def idx(code: int, shape: tuple[int, ...], values: bytes) -> bytes:
    return bytes([0, 0, code, len(shape)]) + struct.pack(f">{len(shape)}I", *shape) + values


GOOD = idx(0x08, (2, 3), bytes(range(6)))
PACKED = gzip.compress(GOOD, mtime=0)  # the time would make each worker's tests differ in name


@pytest.mark.parametrize("pack", [bytes, gzip.compress])
@pytest.mark.parametrize(
    ("code", "form", "dtype", "values"),
    [
        (0x08, "B", torch.uint8, [0, 1, 127, 128, 254, 255]),
        (0x09, "b", torch.int8, [0, 1, 127, -1, -2, -128]),
        (0x0B, "h", torch.int16, [0, 1, 258, -1, -258, -32768]),
        (0x0C, "i", torch.int32, [0, 1, 16909060, -1, -2, -(2**31)]),
        (0x0D, "f", torch.float32, [0.0, 1.5, -2.25, 2.0**100, 3.0, -0.0]),
        (0x0E, "d", torch.float64, [0.0, 1.5, -2.25, 2.0**1000, 0.1, -0.0]),
    ],
)
def test_every_type_is_read_in_row_major_order(
    tmp_path: Path, pack: type[bytes], code: int, form: str, dtype: torch.dtype, values: list
) -> None:
    path = tmp_path / "file"
    path.write_bytes(pack(idx(code, (2, 3), struct.pack(f">6{form}", *values))))
    array = read_idx(path)
    assert array.dtype == dtype
    assert array.tolist() == [values[:3], values[3:]]


def test_a_size_of_zero_is_an_empty_array(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(idx(0x08, (0, 28, 28), b""))
    assert read_idx(tmp_path / "file").shape == (0, 28, 28)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "IDX file"),
        (b"PNG!" + GOOD, "IDX file.* 50 4e 47 21"),
        (b"\0\0\x0a\x01" + GOOD, "0x0a.* 0x08, 0x09, 0x0b, 0x0c, 0x0d, 0x0e"),
        (GOOD[:9], "truncated.* 9 bytes.* 12"),
        (GOOD[:-1], r"truncated.*\(2, 3\) of uint8 .*18 bytes, got 17"),
        (GOOD + b"x", r"trailing bytes.*\(2, 3\) of uint8 .*18 bytes"),
        (idx(0x08, (2**20,), b"abc"), "truncated"),
        (idx(0x08, (2**32 - 1,) * 4, b"abc"), "too large"),
        (idx(0x08, (0, 2**32 - 1, 2**32 - 1), b""), "too large"),
        (idx(0x0E, (2**28,), b"abc"), "too large"),
        (idx(0x08, (1,) * 255, b"a"), r"255 dimensions.*\b8\b"),
        (PACKED[:-9], "gzip"),
        (PACKED[:12] + b"\xff" * 30, "IDX file|gzip"),
        (gzip.compress(GOOD[:-1], mtime=0), "18 bytes, got 17"),
        (gzip.compress(GOOD + b"x", mtime=0), "trailing bytes"),
        (PACKED[:-5] + b"\xff" + PACKED[-4:], "gzip"),
    ],
    ids=lambda value: repr(value)[:40],
)
def test_a_damaged_file_is_named(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "train-images"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=rf"{path} .*{message}|{path} {message}"):
        read_idx(path)


def test_a_bomb_is_not_unpacked(tmp_path: Path) -> None:
    """6 GB of zeros in 6 MB, behind a header that states ten bytes, or half a gigabyte that is not there."""
    zeros = gzip.compress(bytes(1 << 26), mtime=0) * 100
    header = gzip.compress(idx(0x08, (10,), bytes(10)), mtime=0)
    (tmp_path / "bomb").write_bytes(header + zeros)
    (tmp_path / "claim").write_bytes(gzip.compress(idx(0x08, (1 << 29,), bytes(10)), mtime=0))
    program = """
import resource, sys
from stochprune.data import read_idx
used = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
for name, fault in (("bomb", "trailing bytes"), ("claim", "truncated")):
    try:
        read_idx(name)
    except ValueError as error:
        assert fault in str(error), error
grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - used
sys.exit(f"{grown} kB more" if grown > 50_000 else 0)
"""
    run = subprocess.run([sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert run.returncode == 0, run.stderr


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="nowhere"):
        read_idx(tmp_path / "nowhere")
