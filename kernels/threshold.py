"""threshold_from_logits: keep thresholds of trained probabilities, in one elementwise pass."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from stochprune.address import Logits

from .estimators import threshold

BLOCK = 2048


@triton.jit
def threshold_kernel(logits_ptr, out_ptr, count, BLOCK: tl.constexpr):
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    logits = tl.load(logits_ptr + at, mask=at < count, other=0.0).to(tl.float32)
    tl.store(out_ptr + at, threshold(logits).to(tl.uint16), mask=at < count)


def threshold_from_logits(logits: Logits) -> Tensor:
    """Return thresholds, uint16 in the shape of ``logits``, within 1 of the reference: they are computed in float32.

    On a GPU NaN gives 1 and raises no error: a check would need a synchronisation.
    """
    dense = logits.contiguous()
    out = torch.empty_like(dense, dtype=torch.uint16)
    if out.numel():
        with torch.cuda.device_of(logits):
            threshold_kernel[(triton.cdiv(out.numel(), BLOCK),)](
                dense, out, out.numel(), BLOCK=BLOCK, num_warps=4, enable_fp_fusion=False
            )
    return out
