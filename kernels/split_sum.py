"""split_sum: the sum of the partial results of a matrix product whose reduction was split, in a fixed order."""

from __future__ import annotations

import math

import torch
import triton
import triton.language as tl
from torch import Tensor

BLOCK = 1024
MINIMUM_STEPS = 4
PARTIAL = 0.1
"""Most bytes of partial sums, as a part of the bytes that the product reads of its weights."""


def split(steps: int, programs: int, resident: int, device: torch.device, most: float = math.inf) -> tuple[int, int]:
    """Return how the ``steps`` of a reduction are split: the steps of a share, and the number of shares.

    Without a split ``programs`` programs would run. All shares run at once, in one wave. A share has at least four
    steps, so that the start of its loop takes little of the time.

    Args:
        resident: the number of programs that a multiprocessor runs at a time.
        most: the most shares.
    """
    wanted = max(1, min(resident * multiprocessors(device) // max(programs, 1), int(min(most, steps))))
    share = max(MINIMUM_STEPS, triton.cdiv(steps, wanted))
    return share, max(1, triton.cdiv(steps, share))


def most_shares(read: int, results: int) -> float:
    """Return the most shares for a product that reads ``read`` bytes of weights and has ``results`` elements."""
    return PARTIAL * read / (4 * max(results, 1))


def multiprocessors(device: torch.device) -> int:
    """Return the number of multiprocessors of the device; 1 for the interpreter on the CPU."""
    return torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 1


@triton.jit
def split_sum_kernel(partial_ptr, bias_ptr, out_ptr, splits, count, cols, BLOCK: tl.constexpr):
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    total = tl.zeros([BLOCK], tl.float32)
    for _ in range(splits):
        total += tl.load(partial_ptr + at, mask=at < count, other=0.0)
        partial_ptr += count
    if bias_ptr is not None:
        total += tl.load(bias_ptr + at % cols, mask=at < count, other=0.0).to(tl.float32)
    tl.store(out_ptr + at, total.to(out_ptr.dtype.element_ty), mask=at < count)


def split_sum(partial: Tensor, bias: Tensor | None, out: Tensor) -> None:
    """Write ``partial.sum(0) + bias`` to ``out``: float32 [S, ..., O] to contiguous [..., O], bias [O]."""
    with torch.cuda.device_of(out):
        split_sum_kernel[(triton.cdiv(out.numel(), BLOCK),)](
            partial, bias, out, len(partial), out.numel(), out.shape[-1], BLOCK=BLOCK, num_warps=4
        )
