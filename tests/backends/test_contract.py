"""The contract of every backend, written once: the bits of its masks and its masked products."""

from __future__ import annotations

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from stochprune import reference, rng
from stochprune.address import KLTerm
from tests.backends.cases import (
    ALL,
    ESTIMATORS,
    ON_GPU,
    SHAPES,
    TOLERANCE,
    dtypes,
    error,
    mask,
    moved,
)

fixture_per_function = settings(
    max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


@fixture_per_function
@given(
    seed=st.integers(0, 2**64 - 1),
    draw=st.integers(0, 2**32 - 1),
    stream=st.integers(0, 2**31 - 1),
    row=st.one_of(st.integers(0, 300), st.integers(2**32 - 40, 2**32 - 20)),
    col=st.one_of(st.integers(0, 300), st.integers(2**34 - 400, 2**34 - 300)),
    rows=st.integers(1, 20),
    cols=st.integers(1, 200),
    transposed=st.booleans(),
)
def test_keep_mask_bits(backend, device, seed, draw, stream, row, col, rows, cols, transposed):
    threshold = (torch.arange(rows * cols) * 7919 % (rng.LEVELS + 1)).to(torch.int32).view(rows, cols)
    if transposed:
        threshold = threshold.T.contiguous().T
    threshold = threshold.to(torch.uint16)
    at = mask(seed, draw, stream, row=row, col=col)
    expected = reference.keep_mask(threshold, mask=at)
    actual = backend.keep_mask(threshold.to(device), mask=moved(at, device))
    assert actual.dtype == torch.bool
    assert torch.equal(actual.cpu(), expected)


def test_keep_mask_keeps_all_and_none(backend, device):
    threshold = torch.tensor([[0], [rng.LEVELS]], dtype=torch.int32).expand(2, 500).to(torch.uint16)
    keep = backend.keep_mask(threshold.to(device), mask=mask(1, 2, 3, device=device))
    assert keep.sum(1).tolist() == [0, 500]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_thresholds(backend, device, dtype, generator):
    if backend.NAME == "native" and dtype == torch.float16:
        pytest.skip("served by the reference")
    logits = (torch.randn(50, 33, generator=generator) * 6).to(dtype)
    logits[0, :4] = torch.tensor([float("inf"), float("-inf"), 0.0, -0.0])
    expected = rng.threshold_from_logits(logits).int()
    actual = backend.threshold_from_logits(logits.to(device)).cpu()
    assert actual.dtype == torch.uint16
    off = (actual.int() - expected).abs().max()
    assert off <= (1 if backend.NAME in ON_GPU else 0)  # a GPU forms them in float32


@pytest.mark.parametrize("estimator", ESTIMATORS)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_values_and_gradients(backend, device, estimator, shape, generator):
    m, n, k = shape
    at = mask(2**63 + 11, [5, 2**32 - 1, 6], 77, estimator, 0.7)
    there_at = moved(at, device)
    for dtype in dtypes(backend):
        make = lambda *s: torch.randn(*s, generator=generator).to(dtype)  # noqa: B023, E731
        x, w, logits, bias, grad = make(3, m, k), make(n, k), make(n, k), make(n), make(3, m, n)
        exact = [t.double() for t in (x, w, logits, bias, grad)]
        y = reference.masked_linear(*exact[:4], mask=at)
        grads = reference.masked_linear_backward(exact[4], *exact[:3], mask=at, needs=ALL)

        there = [t.to(device) for t in (x, w, logits, bias, grad)]
        actual = backend.masked_linear(*there[:4], mask=there_at)
        assert actual.dtype == dtype
        assert error(actual, y) < TOLERANCE[dtype]
        actuals = backend.masked_linear_backward(there[4], *there[:3], mask=there_at, needs=ALL)
        for got, expected, like in zip(actuals, grads, (x, w, logits), strict=True):
            assert got.dtype == like.dtype and got.shape == like.shape
            assert error(got, expected) < TOLERANCE[dtype]
        for needs in ((True, False, False), (False, True, False), (False, False, True)):
            some = backend.masked_linear_backward(there[4], *there[:3], mask=there_at, needs=needs)
            for got, whole, need in zip(some, actuals, needs, strict=True):
                assert (got is not None) == need
                assert got is None or error(got, whole.cpu()) < TOLERANCE[dtype]


@pytest.mark.parametrize("estimator", ESTIMATORS)
@pytest.mark.parametrize("draws", [1, 2])
def test_the_kl_is_added_to_the_gradient_of_the_logits(backend, device, estimator, draws, generator):
    at = mask(5, list(range(draws)), 77, estimator, 0.7)
    for dtype in dtypes(backend):
        shapes = ((draws, 6, 33), (draws, 6, 130), (33, 130), (33, 130), (33, 130))
        grad, x, w, logits, prior = (torch.randn(s, generator=generator).to(dtype) for s in shapes)
        logits[0, 0], logits[1, 1] = float("inf"), float("-inf")
        scale = torch.tensor(0.37, dtype=torch.float64)
        exact = [t.double() for t in (grad, x, w, logits)]
        expected = reference.masked_linear_backward(*exact, mask=at, needs=ALL)
        pull, _ = reference.bernoulli_kl_backward(scale, exact[3], prior.double(), needs=(True, False))
        kl = KLTerm(prior.to(device), scale.to(device))
        here = [t.to(device) for t in (grad, x, w, logits)]
        for needs in ((True, True, True), (False, False, True), (True, True, False)):
            grads = backend.masked_linear_backward(*here, mask=moved(at, device), needs=needs, kl=kl)
            for got, value, add, need in zip(grads, expected, (0, 0, pull), needs, strict=True):
                assert (got is not None) == need
                if need:
                    assert error(got, value + add) < TOLERANCE[dtype]


def test_strided_inputs_give_the_bits_of_their_copies(backend, device, generator):
    x = torch.randn(2, 70, 6, generator=generator).to(device).transpose(1, 2)
    w = torch.randn(70, 9, generator=generator).to(device).T
    logits = torch.randn(9, 140, generator=generator).to(device)[:, ::2]
    grad = torch.randn(2, 6, 9, generator=generator).to(device)
    at = mask(8, [1, 2], 3, device=device)
    copies = [t.contiguous() for t in (x, w, logits)]
    y = backend.masked_linear(x, w, logits, None, mask=at)
    assert error(y, backend.masked_linear(*copies, None, mask=at)) < 1e-6
    grads = backend.masked_linear_backward(grad, x, w, logits, mask=at, needs=ALL)
    for got, expected in zip(grads, backend.masked_linear_backward(grad, *copies, mask=at, needs=ALL), strict=True):
        assert error(got, expected) < 1e-6


def test_one_input_shared_by_all_draws(backend, device, generator):
    x = torch.randn(1, 4, 70, generator=generator).to(device)
    w, logits = torch.randn(2, 9, 70, generator=generator).to(device)
    at = mask(8, [0, 1, 2], 3, device=device)
    shared = backend.masked_linear(x.expand(3, 4, 70), w, logits, None, mask=at)
    apart = backend.masked_linear(x.repeat(3, 1, 1), w, logits, None, mask=at)
    assert error(shared, apart) < 1e-6
    assert error(shared[0], apart[1]) > 1e-2


@pytest.mark.parametrize("shape", [(0, 3, 4), (2, 0, 4), (2, 3, 0)], ids=str)
def test_empty_dimensions(backend, device, shape):
    m, n, k = shape
    x, w, bias = torch.ones(1, m, k, device=device), torch.ones(n, k, device=device), torch.ones(n, device=device)
    at = mask(0, 0, 1, device=device)
    y = backend.masked_linear(x, w, torch.zeros_like(w), bias, mask=at)
    assert y.shape == (1, m, n) and (y == 1).all()
    dx, dw, dl = backend.masked_linear_backward(torch.ones_like(y), x, w, torch.zeros_like(w), mask=at, needs=ALL)
    assert dx.shape == x.shape and (dx == 0).all()
    assert dw.shape == dl.shape == w.shape and (dw == 0).all() and (dl == 0).all()


def test_wide_weights_under_a_narrow_input(backend, device, generator):
    x = torch.randn(1, 8, 130, generator=generator).bfloat16().to(device)
    if backend.NAME == "triton" and device == "cpu":
        x = x.half()  # bfloat16 products are wrong in Triton's interpreter
    w, logits = torch.randn(2, 20, 130, generator=generator).to(device)
    grad = torch.randn(1, 8, 20, generator=generator).to(x)
    at = mask(3, 4, 5)
    here = [t.cpu().double() for t in (grad, x, w, logits)]
    y = reference.masked_linear(*here[1:], None, mask=at)
    grads = reference.masked_linear_backward(*here, mask=at, needs=ALL)
    at = moved(at, device)
    assert error(backend.masked_linear(x, w, logits, None, mask=at), y) < 1e-2
    actual = backend.masked_linear_backward(grad, x, w, logits, mask=at, needs=ALL)
    assert [t.dtype for t in actual] == [x.dtype, torch.float32, torch.float32]
    for got, expected in zip(actual, grads, strict=True):
        assert error(got, expected) < 1e-2


@pytest.mark.parametrize("k", [70, 0])
@pytest.mark.parametrize("budget", [None, 1000])
def test_a_matrix_of_one_draw(backend, device, k, budget, generator, monkeypatch):
    """A backend that takes x [M, K] gives the results of [1, M, K], also in panels of a small budget."""
    if not backend.MATRICES:
        pytest.skip("takes slices of draws alone")
    if budget is not None:
        monkeypatch.setattr(type(backend.workspace), "budget", budget)
    x, w, logits, grad = (torch.randn(s, generator=generator).to(device) for s in ((6, k), (9, k), (9, k), (6, 9)))
    at, kl = mask(8, 3, 5, device=device), KLTerm(torch.zeros_like(logits), torch.tensor(0.3, dtype=torch.float64))
    for bias in (None, torch.ones(9, device=device)):
        y = backend.masked_linear(x, w, logits, bias, mask=at)
        assert torch.equal(y, backend.masked_linear(x[None], w, logits, bias, mask=at)[0])
        assert not y._is_view()
    for needs in (ALL, (True, False, False), (False, True, False), (False, False, True)):
        term = kl if needs[2] else None
        got = backend.masked_linear_backward(grad, x, w, logits, mask=at, needs=needs, kl=term)
        expected = backend.masked_linear_backward(grad[None], x[None], w, logits, mask=at, needs=needs, kl=term)
        for one, other in zip(got, expected, strict=True):
            assert (one is None) == (other is None)
            assert one is None or error(one, other.view(one.shape)) < 1e-6
