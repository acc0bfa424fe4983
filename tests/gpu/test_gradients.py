"""Values and gradients agree with float64 on a GPU, whatever the shape, dtype, estimator and route."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from stochprune import reference
from stochprune.address import Mask
from stochprune.kernels import masked_linear, masked_linear_backward, threshold_from_logits
from stochprune.kernels.routes import OVERRIDE, ROUTES
from tests.backends.cases import ESTIMATORS
from tests.kernels.cases import case

SHAPES = [  # D, M, K, N
    (1, 1, 512, 384),
    (1, 16, 1000, 520),
    (1, 64, 512, 2048),
    (1, 100, 333, 77),
    (1, 300, 512, 512),
    (1, 700, 640, 384),
    (1, 3000, 256, 256),
    (5, 9, 320, 192),
    (64, 1, 256, 128),
]
TOLERANCE = {torch.float32: 2e-5, torch.float16: 3e-3, torch.bfloat16: 2e-2}  # of the largest element


def agree(ours: Tensor, exact: Tensor, dtype: torch.dtype) -> None:
    torch.testing.assert_close(ours.double(), exact, rtol=0, atol=TOLERANCE[dtype] * exact.abs().max().item())


@pytest.fixture
def tensors(request: pytest.FixtureRequest, device: torch.device) -> dict[str, Tensor]:
    shape, dtype, masters = request.param
    return case(shape, (dtype, masters, masters), device)


CASES = [(shape, torch.bfloat16, torch.float32) for shape in SHAPES] + [
    (shape, dtype, dtype) for shape in SHAPES[1::2] for dtype in (torch.float32, torch.float16, torch.bfloat16)
]


@pytest.mark.parametrize("tensors", CASES, ids=str, indirect=True)
@pytest.mark.parametrize("estimator", ESTIMATORS)
@pytest.mark.parametrize("route", [None, *ROUTES])
def test_against_float64(
    tensors: dict[str, Tensor], estimator: str, route: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    if route:
        monkeypatch.setenv(OVERRIDE, route)
    mask = Mask(tensors["seed"], tensors["draw"], 7, estimator, 0.7)
    check(tensors, mask, monkeypatch)


@pytest.mark.parametrize("tensors", [CASES[1], CASES[3], CASES[7]], ids=str, indirect=True)
@pytest.mark.parametrize("first", [(2**32 - 4096, 2**34 - 1024), (5, 71)], ids=str)
@pytest.mark.parametrize("route", ROUTES)
def test_shards_against_float64(
    tensors: dict[str, Tensor], first: tuple[int, int], route: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(OVERRIDE, route)
    mask = Mask(tensors["seed"], tensors["draw"], 7, "straight_through", 1.0, *first)
    check(tensors, mask, monkeypatch)


def check(t: dict[str, Tensor], mask: Mask, monkeypatch: pytest.MonkeyPatch) -> None:
    """Compare values and gradients with the reference's."""
    # The reference takes the GPU's own thresholds: a difference of 1 may turn a weight, here one in 10^7.
    monkeypatch.setattr(reference, "threshold_from_logits", lambda logits: threshold_from_logits(logits.float()))
    dtype = t["x"].dtype
    wide = {name: t[name].double() for name in ("grad", "x", "weight", "logits", "bias")}
    y = masked_linear(t["x"], t["weight"], t["logits"], t["bias"], mask=mask)
    exact = reference.masked_linear(wide["x"], wide["weight"], wide["logits"], wide["bias"], mask=mask)
    agree(y, exact, dtype)
    names = ("grad", "x", "weight", "logits")
    ours = masked_linear_backward(*(t[name] for name in names), mask=mask, needs=(True, True, True))
    exacts = reference.masked_linear_backward(*(wide[name] for name in names), mask=mask, needs=(True, True, True))
    for mine, theirs in zip(ours, exacts, strict=True):
        agree(mine, theirs, dtype)


def test_the_sum_of_shares_repeats_exactly(device: torch.device) -> None:
    """Few tiles are split along the reduction; the order of the sum is fixed."""
    g = torch.Generator().manual_seed(1)
    x, weight, logits = (
        torch.randn(shape, generator=g).bfloat16().to(device) for shape in ((1, 8, 8192), (256, 8192), (256, 8192))
    )
    mask = Mask(torch.tensor([1], device=device), torch.tensor([2], device=device), 3)
    first = masked_linear(x, weight, logits, None, mask=mask)
    assert all(torch.equal(masked_linear(x, weight, logits, None, mask=mask), first) for _ in range(20))
