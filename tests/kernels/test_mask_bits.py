"""mask_bits: bit k % 32 of word k // 32 is the contract's decision for column k."""

from __future__ import annotations

import pytest
import torch

from stochprune import reference, rng
from stochprune.kernels.mask_bits import mask_bits
from tests.backends.cases import mask, moved


@pytest.mark.parametrize("rows, cols", [(1, 1), (5, 31), (33, 130), (4, 64), (0, 7), (7, 0)])
@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("row, col", [(0, 0), (2**32 - 33, 2**34 - 192)])
def test_bits(
    rows: int, cols: int, transposed: bool, row: int, col: int, device: torch.device, generator: torch.Generator
) -> None:
    logits = 2 * torch.randn(rows, cols, generator=generator)
    at = mask(2**64 - 3, [2**32 - 2, 5], 2**31 - 5, row=row, col=col)
    keep = [reference.keep_mask(rng.threshold_from_logits(logits), mask=at.one(i)) for i in range(2)]
    laid = logits.mT.contiguous().mT if transposed else logits
    bits = mask_bits(laid.to(device), mask=moved(at, device)).cpu()
    assert bits.shape == (2, rows, (cols + 31) // 32) and bits.dtype == torch.int32
    column = torch.arange(cols)
    assert torch.equal((bits[:, :, column // 32] >> (column % 32)) & 1, torch.stack(keep).int())
