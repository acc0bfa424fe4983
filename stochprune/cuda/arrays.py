"""Tensors as the CUDA kernels take them: raw addresses of matrices with unit column stride."""

from __future__ import annotations

import torch
from torch import Tensor

CODES = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}
INTEGERS = -1  # the code of thresholds, whose dtype the kernels know
ESTIMATORS = {"straight_through": 0, "concrete": 1, "straight_through_concrete": 2, "expected": 3, "hard_concrete": 4}

Array = tuple[int, int, int]


def rows_of(t: Tensor) -> Tensor:
    """Return ``t`` itself if the entries of a row are contiguous in memory, else a copy."""
    return t if t.stride(-1) == 1 or t.shape[-1] <= 1 else t.contiguous()


def array(t: Tensor | None) -> Array:
    """Return address, row stride and dtype of a matrix whose rows are dense."""
    return (0, 0, 0) if t is None else (t.data_ptr(), t.stride(0), _code(t.dtype))


def _code(dtype: torch.dtype) -> int:
    code = CODES.get(dtype, None if dtype.is_floating_point else INTEGERS)
    if code is None:  # `supports` returns False for these
        raise TypeError(f"the compiled kernels take {', '.join(map(str, CODES))}, got {dtype}")
    return code
