"""On a GPU every route draws the very bits of the CPU's reference."""

from __future__ import annotations

import pytest
import torch

from stochprune import reference, rng
from stochprune.kernels import keep_mask, masked_linear, threshold_from_logits
from stochprune.kernels.mask_bits import mask_bits
from stochprune.kernels.routes import OVERRIDE, ROUTES
from stochprune.products import Mask

SEED, DRAW, STREAM = torch.tensor([-(2**62) - 5]), torch.tensor([2**32 - 3]), 2**31 - 1


@pytest.mark.parametrize("rows, cols", [(1, 1), (37, 501), (1024, 1536)])
@pytest.mark.parametrize("row_offset, col_offset", [(0, 0), (2**32 - 1024, 2**34 - 1600), (11, 2**31 + 33)])
def test_keep_mask(
    rows: int, cols: int, row_offset: int, col_offset: int, device: torch.device, generator: torch.Generator
) -> None:
    drawn = torch.randint(0, rng.LEVELS + 1, (rows, cols), generator=generator, dtype=torch.int32).to(torch.uint16)
    expected = reference.keep_mask(drawn, SEED, DRAW, STREAM, row_offset, col_offset)
    ours = keep_mask(drawn.to(device), SEED.to(device), DRAW.to(device), STREAM, row_offset, col_offset)
    assert torch.equal(ours.cpu(), expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_thresholds_are_within_one(dtype: torch.dtype, device: torch.device) -> None:
    special = torch.tensor([0.0, float("inf"), -float("inf"), float("nan"), 88.0, -88.0, 1e30, -1e30, 1e-40])
    logits = torch.cat([torch.linspace(-20, 20, 1_000_003), special]).to(dtype)
    difference = threshold_from_logits(logits.to(device)).cpu().int() - rng.threshold_from_logits(logits).int()
    assert difference.abs().max() <= 1
    assert (difference != 0).float().mean() < 1e-2


@pytest.mark.parametrize("route", ROUTES)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize("rows, cols", [(37, 501), (256, 512)])
def test_every_route_masks_alike(
    route: str, dtype: torch.dtype, rows: int, cols: int, device: torch.device, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With x the identity the output is the masked weight: exactly the weights that the thresholds' mask keeps."""
    monkeypatch.setenv(OVERRIDE, route)
    g = torch.Generator().manual_seed(5)
    weight = torch.randn(rows, cols, generator=g).bfloat16().to(dtype).to(device)  # exact on every route
    logits = (2 * torch.randn(rows, cols, generator=g)).to(device)
    seed, draw = SEED.to(device), DRAW.to(device)
    masked = masked_linear(
        torch.eye(cols, dtype=dtype, device=device)[None],
        weight,
        logits,
        None,
        seed,
        draw,
        STREAM,
        "straight_through",
        1.0,
    )[0].mT
    keep = reference.keep_mask(threshold_from_logits(logits).cpu(), SEED, DRAW, STREAM, 0, 0).to(device)
    assert torch.equal(masked, weight * keep)
    bits = mask_bits(logits, Mask(seed, draw, STREAM, "straight_through", 1.0))
    column = torch.arange(cols, device=device)
    assert torch.equal((bits[0][:, column // 32] >> (column % 32)) & 1, keep.int())
