"""Every route samples exactly the bits of the CPU's reference on a GPU."""

from __future__ import annotations

import pytest
import torch

from stochprune import reference, rng
from stochprune.address import Mask
from stochprune.kernels import keep_mask, masked_linear, threshold_from_logits
from stochprune.kernels.routes import OVERRIDE, ROUTES
from stochprune.kernels.thresholds import packed_thresholds
from tests.backends.cases import moved

AT = Mask(torch.tensor([-(2**62) - 5]), torch.tensor([2**32 - 3]), 2**31 - 1)
FIRST = [(0, 0), (2**32 - 1024, 2**34 - 1600), (11, 2**31 + 33)]  # row and column


@pytest.mark.parametrize("rows, cols", [(1, 1), (37, 501), (1024, 1536)])
@pytest.mark.parametrize("row, col", FIRST)
def test_keep_mask(rows: int, cols: int, row: int, col: int, device: torch.device, generator: torch.Generator) -> None:
    drawn = torch.randint(0, rng.LEVELS + 1, (rows, cols), generator=generator, dtype=torch.int32).to(torch.uint16)
    at = AT._replace(row=row, col=col)
    ours = keep_mask(drawn.to(device), mask=moved(at, device))
    assert torch.equal(ours.cpu(), reference.keep_mask(drawn, mask=at))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_thresholds_are_within_one(dtype: torch.dtype, device: torch.device) -> None:
    special = torch.tensor([0.0, float("inf"), -float("inf"), float("nan"), 88.0, -88.0, 1e30, -1e30, 1e-40])
    logits = torch.cat([torch.linspace(-20, 20, 1_000_003), special]).to(dtype)
    difference = threshold_from_logits(logits.to(device)).cpu().int() - rng.threshold_from_logits(logits).int()
    assert difference.abs().max() <= 1
    assert (difference != 0).float().mean() < 1e-2


@pytest.mark.parametrize("route", ROUTES)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize("rows, cols, first", [(37, 501, (0, 0)), *((256, 512, first) for first in FIRST)], ids=str)
def test_every_route_gives_the_same_masks(
    route: str,
    dtype: torch.dtype,
    rows: int,
    cols: int,
    first: tuple[int, int],
    device: torch.device,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """With x the identity the output is the masked weight: exactly the weights that the thresholds' mask keeps."""
    monkeypatch.setenv(OVERRIDE, route)
    g = torch.Generator().manual_seed(5)
    weight = torch.randn(rows, cols, generator=g).bfloat16().to(dtype).to(device)  # exact on every route
    logits = (2 * torch.randn(rows, cols, generator=g)).to(device)
    at = AT._replace(row=first[0], col=first[1])
    there = moved(at, device)
    masked = masked_linear(torch.eye(cols, dtype=dtype, device=device)[None], weight, logits, None, mask=there)[0].mT
    keep = reference.keep_mask(threshold_from_logits(logits).cpu(), mask=at).to(device)
    assert torch.equal(masked, weight * keep)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("rows, cols", [(1, 1), (37, 501), (1024, 1536)])
def test_packed_thresholds_are_those_of_the_op(rows: int, cols: int, dtype: torch.dtype, device: torch.device) -> None:
    logits = (9 * torch.randn(rows, cols, generator=torch.Generator().manual_seed(6))).to(device, dtype)
    halves = packed_thresholds(logits).view(torch.int16)[:, :cols].int() & 0xFFFF
    assert torch.equal(halves - 0x7FFF, threshold_from_logits(logits).int())
