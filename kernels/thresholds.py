"""Thresholds of logits: as the public op returns them, and packed as the main loops read them, with a cache."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.utils.weak import WeakIdKeyDictionary

from stochprune.address import Logits
from stochprune.threshold_cache import ThresholdCache

from . import tiles
from .estimators import threshold
from .layers import capturing
from .pairs import raised_pairs
from .philox import GROUP
from .tiles import load, locate, offsets, within

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


@triton.jit
def packed_thresholds_kernel(
    logits_ptr, out_ptr, N, K, words, logits_row, logits_col, ROWS: tl.constexpr, GROUPS: tl.constexpr
):
    rows, cols, group = locate(tl.program_id(0), K, None, ROWS, GROUPS)
    logit = load(logits_ptr, offsets(rows, cols, logits_row, logits_col), within(rows, cols, N, K, None))
    at = group * (GROUP // 2) + tl.arange(0, GROUPS * GROUP // 2)
    tl.store(out_ptr + offsets(rows, at, words, 1), raised_pairs(logit), mask=within(rows, at, N, words, None))


def packed_thresholds(logits: Logits) -> Tensor:
    """Return ``0x7FFF + T`` of logits [N, K], two neighbouring columns in a word: int32 [N, 32 * ceil(K / 64)].

    The values behind the last column are never used. On a GPU NaN gives T = 1.
    """
    N, K = logits.shape
    words = triton.cdiv(K, GROUP.value) * (GROUP.value // 2)
    out = torch.empty(N, words, dtype=torch.int32, device=logits.device)
    if out.numel():
        with torch.cuda.device_of(logits):
            packed_thresholds_kernel[(tiles.count(N, K),)](
                logits, out, N, K, words, *logits.stride(), ROWS=tiles.ROWS, **tiles.LAUNCH
            )
    return out


class PackedCache(ThresholdCache):
    """Packed thresholds, also for CUDA graphs.

    A graph records the launches once and replays them when the logits may have other values. So while a graph is
    recorded, thresholds are formed in the graph, unless an optimiser maintains them in the same memory.
    """

    def __init__(self) -> None:
        super().__init__(packed_thresholds)
        self._maintained: WeakIdKeyDictionary = WeakIdKeyDictionary()

    def find(self, logits: Logits) -> Tensor | None:
        """As in the base class; while a graph is recorded, only what an optimiser maintains."""
        if capturing(logits.device) and logits not in self._maintained:
            return None
        return super().find(logits)

    def keep(self, logits: Logits, levels: Tensor) -> None:
        """As in the base class, unless a graph is recorded, whose memory is used again after each replay."""
        if not capturing(logits.device):
            self._maintained.pop(logits, None)
            super().keep(logits, levels)

    def maintain(self, logits: Logits, levels: Tensor) -> None:
        """Store thresholds that an optimiser writes with each change of ``logits``, always to the same memory."""
        self._maintained[logits] = True
        super().keep(logits, levels)

    def clear(self) -> None:
        """Free the memory."""
        super().clear()
        self._maintained.clear()


cache = PackedCache()
