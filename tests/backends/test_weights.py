"""The contract of every backend: masked weights as tensors, and gradients through their masks."""

from __future__ import annotations

import pytest
import torch

from stochprune import reference
from tests.backends.cases import (
    BOTH,
    ESTIMATORS,
    ON_GPU,
    TOLERANCE,
    dtypes,
    error,
    mask,
    moved,
)


@pytest.mark.parametrize("estimator", ESTIMATORS)
@pytest.mark.parametrize("shape, gathered", [((9, 3, 3, 7), False), ((33, 130), True)], ids=str)
def test_masked_weights_and_their_gradients(backend, device, estimator, shape, gathered, generator):
    rows = torch.tensor([shape[0] - 1, 0, shape[0] // 2, 0]) if gathered else None
    at = mask(2**63 + 11, [5, 2**32 - 1, 6], 77, estimator, 0.7)
    there = moved(at, device)
    rows_there = None if rows is None else rows.to(device)
    for dtype in dtypes(backend):
        w, logits = (torch.randn(*shape, generator=generator).to(dtype) for _ in range(2))
        grad = torch.randn(3, len(w if rows is None else rows), *shape[1:], generator=generator).to(dtype)
        exact = [t.double() for t in (w, logits)]
        wl = (w.to(device), logits.to(device))
        z = reference.masked_weight(*exact, mask=at, dtype=torch.float64, rows=rows)
        actual = backend.masked_weight(*wl, mask=there, dtype=dtype, rows=rows_there)
        assert actual.dtype == dtype and actual.shape == z.shape
        assert error(actual, z) < TOLERANCE[dtype]
        for draws in (1, 3):
            few, few_there = at.part(slice(draws)), there.part(slice(draws))
            grads = reference.weight_grad(grad[:draws].double(), *exact, mask=few, needs=BOTH, rows=rows)
            for needs in ((True, True), (True, False), (False, True)):
                spent = grad[:draws].clone().to(device)  # which may be overwritten
                actuals = backend.weight_grad(spent, *wl, mask=few_there, needs=needs, rows=rows_there)
                for got, expected, need in zip(actuals, grads, needs, strict=True):
                    assert (got is not None) == need
                    if need:
                        assert got.dtype == dtype and got.shape == expected.shape
                        assert error(got, expected) < TOLERANCE[dtype]


def test_rows_of_a_masked_weight_are_those_of_the_whole(backend, device, generator):
    w, logits = torch.randn(2, 40, 70, generator=generator).to(device)
    rows = torch.tensor([39, 3, 3, 17], device=device)
    at = mask(8, 4, 3, device=device)
    some = backend.masked_weight(w, logits, mask=at, dtype=torch.float32, rows=rows).clone()
    assert torch.equal(some, backend.masked_weight(w, logits, mask=at, dtype=torch.float32)[:, rows])


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_memory_kept_by_a_masked_weight_changes_no_gradient(backend, device, estimator, generator):
    w, logits = torch.randn(2, 9, 5, 3, 3, generator=generator).to(device)
    grad = torch.randn(2, 9, 5, 3, 3, generator=generator).to(device)
    at = mask(8, [4, 6], 3, estimator, 0.5, device=device)
    memo = []
    masked = backend.masked_weight(w, logits, mask=at, dtype=torch.float32, memo=memo).clone()
    assert torch.equal(masked, backend.masked_weight(w, logits, mask=at, dtype=torch.float32))
    expected = backend.weight_grad(grad.clone(), w, logits, mask=at, needs=BOTH)
    actual = backend.weight_grad(grad.clone(), w, logits, mask=at, needs=BOTH, memo=memo)
    for got, value in zip(actual, expected, strict=True):
        assert error(got, value) < 1e-6


def test_masked_weights_whatever_their_memory_format(backend, device, generator):
    w, logits = torch.randn(2, 6, 5, 3, 3, generator=generator).to(device)
    grad = torch.randn(1, 6, 5, 3, 3, generator=generator).to(device)
    other = [t.contiguous(memory_format=torch.channels_last) for t in (w, logits)]
    at = mask(8, 4, 3, "concrete", 0.5, device=device)
    expected = backend.masked_weight(w, logits, mask=at, dtype=torch.float32).clone()
    assert torch.equal(backend.masked_weight(*other, mask=at, dtype=torch.float32), expected)
    strange = grad[0].contiguous(memory_format=torch.channels_last)[None]
    expected = backend.weight_grad(grad.clone(), w, logits, mask=at, needs=BOTH)
    for got, value in zip(backend.weight_grad(strange, *other, mask=at, needs=BOTH), expected, strict=True):
        assert error(got, value) < 1e-6


def test_masked_weights_of_wide_weights_for_a_narrow_product(backend, device, generator):
    narrow = torch.float16 if backend.NAME in ON_GPU else torch.bfloat16
    w, logits = torch.randn(2, 20, 130, generator=generator).to(device)
    grad = torch.randn(1, 20, 130, generator=generator).to(narrow).to(device)
    here = mask(3, 4, 5)
    at = moved(here, device)
    masked = backend.masked_weight(w, logits, mask=at, dtype=narrow)
    assert masked.dtype == narrow
    exact = reference.masked_weight(w.cpu(), logits.cpu(), mask=here, dtype=torch.float32)
    assert error(masked, exact) < 1e-2
    expected = reference.weight_grad(grad.cpu().float(), w.cpu(), logits.cpu(), mask=here, needs=BOTH)
    for got, value in zip(backend.weight_grad(grad, w, logits, mask=at, needs=BOTH), expected, strict=True):
        assert got.dtype == torch.float32 and error(got, value) < 1e-5


@pytest.mark.parametrize("draws", [[3], [3, 4]], ids=len)
@pytest.mark.parametrize("estimator", ["straight_through", "hard_concrete"])
def test_frozen_weights_of_eight_bits(backend, device, estimator, draws, generator):
    """They are read as their numbers, which every dtype of x contains; only the logits have a gradient."""
    here = mask(3, draws, 5, estimator, 0.7, row=4, col=64)
    at = moved(here, device)
    w, logits = torch.randn(2, 20, 130, generator=generator)
    w = w.to(torch.float8_e4m3fn)
    x, grad = torch.randn(len(draws), 6, 130, generator=generator), torch.randn(len(draws), 6, 20, generator=generator)
    there = [t.to(device) for t in (w, logits)]
    masked = backend.masked_weight(*there, mask=at, dtype=torch.float32)
    expected = reference.masked_weight(w.float(), logits, mask=here, dtype=torch.float32)
    assert masked.dtype == torch.float32 and error(masked, expected) < 2e-6
    needs = (True, False, True)
    y = backend.masked_linear(x.to(device), *there, None, mask=at)
    assert error(y, reference.masked_linear(x, w.float(), logits, None, mask=here)) < TOLERANCE[torch.float32]
    grads = backend.masked_linear_backward(grad.to(device), x.to(device), *there, mask=at, needs=needs)
    exact = reference.masked_linear_backward(grad, x, w.float(), logits, mask=here, needs=needs)
    assert grads[1] is None
    assert all(error(grads[i], exact[i]) < TOLERANCE[torch.float32] for i in (0, 2))
