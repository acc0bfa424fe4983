"""Convolutions on a GPU: masks bit for bit, values against float64, filters with the channels last in memory."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from stochprune import reference
from stochprune.kernels import (
    gaussian_weight,
    masked_convolution,
    masked_weight,
    nm_masked_weight,
    nm_weight_grad,
    threshold_from_logits,
    weight_grad,
)
from stochprune.kernels.routes import OVERRIDE
from tests.backends.cases import ESTIMATORS, mask
from tests.gpu.test_gradients import agree

BOTH = (True, True)


@pytest.fixture(autouse=True)
def route(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Sample masks in the main loop; the reference takes the GPU's own thresholds, which may differ by 1."""
    monkeypatch.setenv(OVERRIDE, getattr(request, "param", "in_register"))
    monkeypatch.setattr(reference, "threshold_from_logits", lambda logits: threshold_from_logits(logits.float()))


@pytest.mark.parametrize("route", ["in_register", "thresholds"], indirect=True)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize("rows, channels", [(37, 20), (256, 64)])
@pytest.mark.parametrize("first", [(0, 0), (2**32 - 1024, 2**34 - 1024)], ids=str)
def test_the_mask_is_the_contract_s(dtype, rows, channels, first, device, generator) -> None:
    """The output for images with a single 1, as large as the kernel, is the masked filter itself."""
    weight = torch.randn(rows, channels, 3, 3, generator=generator).bfloat16().to(device, dtype)
    logits = (2 * torch.randn(rows, channels, 3, 3, generator=generator)).to(device)
    cols = 9 * channels
    images = torch.eye(cols, dtype=dtype, device=device).view(cols, channels, 3, 3).expand(2, -1, -1, -1, -1)
    at = mask(2**64 - 77, [5, 2**32 - 1], 7, row=first[0], col=first[1], device=device)
    y = masked_convolution(images, weight, logits, None, mask=at, geometry=[1, 1, 0, 0, 1, 1, 0, 0, 0, 1])
    here = mask(2**64 - 77, [5, 2**32 - 1], 7, row=first[0], col=first[1])
    for i in range(2):
        keep = reference.keep_mask(threshold_from_logits(logits.flatten(1)).cpu(), mask=here.one(i)).to(device)
        assert torch.equal(y[i].flatten(1).mT, weight.flatten(1) * keep)


@pytest.mark.parametrize("last", [False, True])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize(
    "route, estimator",
    [*(("in_register", name) for name in ESTIMATORS), ("thresholds", "straight_through")],
    indirect=["route"],
)
@pytest.mark.parametrize(
    "draws, x, rows", [(1, (2, 16, 9, 9), 70), (32, (1, 64, 14, 14), 64), (3, (4, 3, 33, 31), 16)], ids=str
)
def test_values(draws, x, rows, estimator, dtype, last, device, generator) -> None:
    weight, logits = (torch.randn(rows, x[1], 3, 3, generator=generator).to(device) for _ in range(2))
    images = torch.randn(draws, *x, generator=generator).to(device, dtype)
    bias = torch.randn(rows, generator=generator).to(device, dtype)
    if last:
        images = images.movedim(2, -1).contiguous().movedim(-1, 2)
        weight, logits = (t.contiguous(memory_format=torch.channels_last) for t in (weight, logits))
    at = mask(3, [*range(draws)], 7, estimator, 0.7, device=device)
    given = images if draws > 1 else images[0]
    y = masked_convolution(given, weight, logits, bias, mask=at, geometry=[2, 1, 1, 2, 1, 2, 0, 0, 0, 1])
    filters = reference.masked_weight(weight.double(), logits.double(), mask=at, dtype=torch.float64)
    pairs = zip(images.double(), filters, strict=True)
    exact = torch.stack([F.conv2d(one, w, bias.double(), (2, 1), (1, 2), (1, 2)) for one, w in pairs])
    agree(y if draws > 1 else y[None], exact, dtype)


@pytest.mark.parametrize("draws", [1, 3])
@pytest.mark.parametrize("shape", [(64, 64, 3, 3), (33, 5, 3, 2)], ids=str)
def test_filters_with_the_channels_last(shape, draws, device, generator) -> None:
    weight, logits, grad = (torch.randn(shape, generator=generator).to(device) for _ in range(3))
    grads = grad.expand(draws, *shape)
    last = [t.contiguous(memory_format=torch.channels_last) for t in (weight, logits)]
    at = mask(3, [*range(draws)], 7, "straight_through_concrete", 0.7, device=device)
    masked = masked_weight(*last, mask=at, dtype=torch.bfloat16)
    assert masked[0].stride() == last[0].stride()
    assert torch.equal(masked, masked_weight(weight, logits, mask=at, dtype=torch.bfloat16))
    expected = weight_grad(grads.clone(), weight, logits, mask=at, needs=BOTH)
    for got, want in zip(weight_grad(grads.clone(), *last, mask=at, needs=BOTH), expected, strict=True):
        assert got.stride() == last[0].stride() and torch.equal(got, want)


def test_draws_together_are_those_one_by_one(device, generator) -> None:
    weight, logits, rho = (torch.randn(100, 320, generator=generator).to(device) for _ in range(3))
    grad = torch.randn(3, 100, 320, generator=generator).to(device)
    at = mask(3, [5, 2**32 - 1, 0], 7, device=device)
    kept = nm_masked_weight(weight, logits, (2, 4), mask=at, dtype=torch.bfloat16)
    normal = gaussian_weight(weight, rho, mask=at, dtype=torch.bfloat16)
    for i in range(3):
        one = at.one(i)
        assert torch.equal(kept[i], nm_masked_weight(weight, logits, (2, 4), mask=one, dtype=torch.bfloat16)[0])
        assert torch.equal(normal[i], gaussian_weight(weight, rho, mask=one, dtype=torch.bfloat16)[0])
    together = nm_weight_grad(grad, weight, logits, (2, 4), mask=at, needs=BOTH)
    alone = [nm_weight_grad(g[None], weight, logits, (2, 4), mask=at.one(i), needs=BOTH) for i, g in enumerate(grad)]
    for total, parts in zip(together, zip(*alone, strict=True), strict=True):
        torch.testing.assert_close(total, sum(parts), rtol=1e-4, atol=1e-4)
