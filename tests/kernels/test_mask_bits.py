"""mask_bits: bit k % 32 of word k // 32 is the contract's decision for column k."""

from __future__ import annotations

import pytest
import torch

from stochprune import reference, rng
from stochprune.kernels.mask_bits import mask_bits
from stochprune.products import Mask


@pytest.mark.parametrize("rows, cols", [(1, 1), (5, 31), (33, 130), (4, 64), (0, 7), (7, 0)])
@pytest.mark.parametrize("transposed", [False, True])
def test_bits(rows: int, cols: int, transposed: bool, device: torch.device, generator: torch.Generator) -> None:
    logits = 2 * torch.randn(rows, cols, generator=generator)
    seed, draw, stream = torch.tensor([-3]), torch.tensor([2**32 - 2, 5]), 2**31 - 5
    keep = [reference.keep_mask(rng.threshold_from_logits(logits), seed, d, stream, 0, 0) for d in draw]
    laid = logits.mT.contiguous().mT if transposed else logits
    mask = Mask(seed.to(device), draw.to(device), stream, "straight_through", 1.0)
    bits = mask_bits(laid.to(device), mask).cpu()
    assert bits.shape == (2, rows, (cols + 31) // 32) and bits.dtype == torch.int32
    column = torch.arange(cols)
    assert torch.equal((bits[:, :, column // 32] >> (column % 32)) & 1, torch.stack(keep).int())
