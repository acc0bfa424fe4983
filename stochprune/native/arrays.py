"""How tensors reach the extension: raw addresses with unit column stride."""

from __future__ import annotations

import torch
from torch import Tensor

from stochprune import _C

CODES = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}
INTEGERS = -1  # thresholds, bits and masks, whose kernels know what they get
DTYPES = (torch.float32, torch.bfloat16)
ESTIMATORS = {"straight_through": 0, "concrete": 1, "straight_through_concrete": 2, "expected": 3, "hard_concrete": 4}

Array = tuple[int, int, int]
NOTHING: Array = (0, 0, 0)

_HUGE_PAGE_MINIMUM = 32 << 20  # bytes from which glibc always maps fresh memory instead of using freed memory again


def supports(*tensors: Tensor) -> bool:
    """Whether the kernels take these tensors: on the CPU, float32 and bfloat16, thresholds of any kind."""
    return all(t.device.type == "cpu" and (t.dtype in DTYPES or not t.is_floating_point()) for t in tensors)


def rows_of(t: Tensor) -> Tensor:
    """``t`` itself if neighbours in a row are neighbours in memory, else a copy."""
    return t if t.stride(-1) == 1 or t.shape[-1] <= 1 else t.contiguous()


def array(t: Tensor | None) -> Array:
    """Address, row stride and dtype of a matrix whose rows are dense."""
    return NOTHING if t is None else (t.data_ptr(), t.stride(0), _code(t.dtype))


def _code(dtype: torch.dtype) -> int:
    code = CODES.get(dtype, None if dtype.is_floating_point else INTEGERS)
    if code is None:  # `supports` keeps it from here
        raise TypeError(f"the compiled kernels take {', '.join(map(str, CODES))}, got {dtype}")
    return code


def key(seed: Tensor, draw: Tensor, stream: int, row: int = 0, col: int = 0) -> tuple[int, int, int, int, int]:
    """The address of a matrix's first weight."""
    return int(seed) % (1 << 64), int(draw), stream, row, col


def fresh(shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """An uninitialised tensor, on huge pages if large: its first touch is otherwise spent in page faults."""
    out = torch.empty(shape, dtype=dtype)
    if out.nbytes >= _HUGE_PAGE_MINIMUM:
        _C.advise_huge_pages(out.data_ptr(), out.nbytes)
    return out
