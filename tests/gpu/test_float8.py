"""Frozen weights of eight bits on a GPU: every number as it is, on every route."""

from __future__ import annotations

import pytest
import torch

from stochprune import reference
from stochprune.kernels import masked_linear, masked_linear_backward, masked_weight
from stochprune.kernels.routes import OVERRIDE, ROUTES
from tests.backends.cases import moved
from tests.gpu.test_bits import AT


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_every_value(dtype: torch.dtype, device: torch.device) -> None:
    weight = torch.arange(256, dtype=torch.uint8).view(torch.float8_e4m3fn).view(4, 64)
    logits = torch.full((4, 64), 40.0)
    masked = masked_weight(weight.to(device), logits.to(device), mask=moved(AT, device), dtype=dtype).cpu()
    torch.testing.assert_close(
        masked, reference.masked_weight(weight, logits, mask=AT, dtype=dtype), rtol=0, atol=0, equal_nan=True
    )


@pytest.mark.parametrize("tokens", [16, 128])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("route", ROUTES)
def test_every_route(
    route: str, dtype: torch.dtype, tokens: int, device: torch.device, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The results are those of the same numbers in x's dtype, but for the order of sums."""
    monkeypatch.setenv(OVERRIDE, route)
    g = torch.Generator().manual_seed(5)
    narrow = torch.randn(384, 512, generator=g).to(torch.float8_e4m3fn).to(device)
    logits = torch.randn(384, 512, generator=g).to(device)
    x, grad = (torch.randn(1, tokens, n, generator=g).to(device, dtype) for n in (512, 384))
    mask, needs = moved(AT, device), (True, False, True)
    found, expected = (
        [
            masked_linear(x, weight, logits, None, mask=mask),
            *masked_linear_backward(grad, x, weight, logits, mask=mask, needs=needs),
        ]
        for weight in (narrow, narrow.to(dtype))
    )
    assert found[2] is None
    for got, wanted in zip(found, expected, strict=True):
        if got is not None:
            torch.testing.assert_close(got, wanted, rtol=1e-2, atol=1e-2 * wanted.abs().max().item())
