"""The contract of every backend: normals, KL, N:M patterns, moments."""

from __future__ import annotations

import pytest
import torch

from stochprune import reference, rng
from tests.backends.cases import (
    BOTH,
    TOLERANCE,
    dtypes,
    error,
    mask,
    moved,
)


@pytest.mark.parametrize(
    "rows, cols, row, col", [(1, 1, 0, 0), (5, 63, 7, 70), (9, 257, 2**32 - 9, 2**34 - 300)], ids=str
)
def test_normals_agree_to_1e_6_relative(backend, device, rows, cols, row, col):
    at = mask(2**64 - 5, [3, 2**32 - 1], 2**31 - 1, row=row, col=col)
    actual = backend.normal(rows, cols, mask=moved(at, device))
    assert actual.dtype == torch.float32 and actual.shape == (2, rows, cols)
    for got, draw in zip(actual.cpu().double(), at.draw, strict=True):
        offsets = {"row_offset": row, "col_offset": col}
        exact = rng.normal(rows, cols, seed=at.seed, draw=draw, stream=at.stream, **offsets)
        assert ((got - exact) / exact).abs().max() < 1e-6


@pytest.mark.parametrize("shape", [(1, 1), (5, 63), (16, 257)], ids=str)
def test_gaussian_weights_and_their_gradient(backend, device, shape, generator):
    at = mask(9, [3, 4], 5)
    at_there = moved(at, device)
    for dtype in dtypes(backend):
        mu, rho = torch.randn(2, *shape, generator=generator).to(dtype)
        rho = 5 * rho - 5  # down to a standard deviation of 1e-6
        grad = torch.randn(2, *shape, generator=generator).to(dtype)
        there = [t.to(device) for t in (mu, rho, grad)]
        exact = reference.gaussian_weight(mu.double(), rho.double(), mask=at, dtype=torch.float64)
        actual = backend.gaussian_weight(*there[:2], mask=at_there, dtype=dtype)
        assert actual.dtype == dtype
        assert error(actual, exact) < TOLERANCE[dtype]
        small = backend.gaussian_weight(torch.zeros_like(there[0]), there[1] - 10, mask=at_there, dtype=dtype)
        none = torch.zeros(shape, dtype=torch.float64)
        exact = reference.gaussian_weight(none, rho.double() - 10, mask=at, dtype=torch.float64)
        if dtype != torch.bfloat16:  # rho itself is rounded
            assert ((small.cpu() - exact) / exact).abs().max() < 4e-6
        exact = reference.gaussian_grad(grad.double(), rho.double(), mask=at)
        actual = backend.gaussian_grad(there[2], there[1], mask=at_there)
        assert actual.dtype == dtype
        assert error(actual, exact) < TOLERANCE[dtype]


def kl_by_formula(q, prior, mu, sigma, prior_mu, prior_sigma):
    """Return KL(q || p) and the KL of the Gaussians, summed in float64."""
    p, r, z = torch.sigmoid(prior), sigma / prior_sigma, (mu - prior_mu) / prior_sigma
    masks = torch.special.xlogy(q, q / p) + torch.special.xlogy(1 - q, (1 - q) / (1 - p))
    weights = (r * r + z * z - 1) / 2 - r.log()
    return masks.sum(), weights.sum(), (q * weights).sum()


@pytest.mark.parametrize("shape", [(1,), (63,), (3, 64), (5, 1777)], ids=str)
def test_kl_and_its_gradients(backend, device, shape, generator):
    """Thresholds are the reference's; the gradients of the logits are those of the smooth function."""
    scale = torch.tensor(0.37, dtype=torch.float64)
    for dtype in dtypes(backend):
        logits, prior, mu, mu0, s, s0 = (torch.randn(shape, generator=generator).to(dtype) for _ in range(6))
        s, s0 = s.exp() + 0.1, s0.exp() + 0.1
        q = rng.threshold_from_logits(logits).int()
        logits[backend.threshold_from_logits(logits.to(device)).cpu().int() != q] = 0  # where a GPU's differ by 1
        q = rng.threshold_from_logits(logits).double() / rng.LEVELS
        there = [t.to(device) for t in (logits, prior, mu, s, mu0, s0)]
        exact = [t.double().requires_grad_() for t in (prior, mu, s, mu0, s0)]
        values = kl_by_formula(q, *exact)
        gaussian = there[2:]
        expected = [value.detach() for value in values]
        assert error(backend.bernoulli_kl(*there[:2]), expected[0]) < 1e-12
        assert error(backend.gaussian_kl(*gaussian, None), expected[1]) < 1e-12
        assert error(backend.gaussian_kl(*gaussian, there[0]), expected[2]) < 1e-12

        smooth = logits.double().requires_grad_()
        by_logits = kl_by_formula(torch.sigmoid(smooth), *(t.detach() for t in exact))
        grads = [*backend.bernoulli_kl_backward(scale.to(device), *there[:2], needs=BOTH)]
        grads += backend.gaussian_kl_backward(scale.to(device), *gaussian, there[0], needs=[True] * 5)
        expected = [
            *torch.autograd.grad(by_logits[0], smooth, retain_graph=True),
            *torch.autograd.grad(values[0], exact[:1]),
            *torch.autograd.grad(values[2], exact[1:]),
            *torch.autograd.grad(by_logits[2], smooth),
        ]
        for got, want in zip(grads, expected, strict=True):
            assert got.dtype == dtype and got.shape == shape
            assert error(got, 0.37 * want) < TOLERANCE[dtype]


def test_kl_of_nothing_and_of_bad_numbers(backend, device):
    one = torch.ones(3, device=device)
    none, nan = one[:0], torch.tensor([1.0, float("nan"), 1.0], device=device)
    assert backend.bernoulli_kl(none, none) == 0 and backend.gaussian_kl(none, none, none, none, none) == 0
    assert backend.bernoulli_kl(nan, one).isnan() and backend.bernoulli_kl(one, nan).isnan()
    for at in range(4):
        inputs = [one] * 4
        inputs[at] = nan
        assert backend.gaussian_kl(*inputs, None).isnan() and backend.gaussian_kl(*inputs, one).isnan()
    assert backend.gaussian_kl(one, one, one, one, nan).isnan()
    assert (
        backend.gaussian_kl(one, -one, one, -one, None).isnan()
        and backend.gaussian_kl(one, one, one, 0 * one, one).isnan()
    )
    assert backend.bernoulli_kl(one, one * float("inf")) == float("inf")


@pytest.mark.parametrize("n, m", [(1, 2), (1, 4), (2, 4), (3, 4), (2, 8), (4, 8)])
def test_patterns_bits_and_gradients(backend, device, n, m, generator):
    at = mask(2**63 + 11, [5, 2**32 - 1], 77)
    there = moved(at, device)
    for dtype in dtypes(backend):
        for cols, scale in ((m, 1), (136, 1), (64, 40)):  # within a group of 64, over its end
            w, logits = torch.randn(2, 9, cols, generator=generator).to(dtype)
            logits, grad = scale * logits, torch.randn(2, 9, cols, generator=generator).to(dtype)
            exact = reference.nm_masked_weight(w, logits, (n, m), mask=at, dtype=dtype)
            actual = backend.nm_masked_weight(w.to(device), logits.to(device), (n, m), mask=there, dtype=dtype).cpu()
            assert actual.dtype == dtype and torch.equal(actual, exact)
            inputs = [t.double() for t in (grad, w, logits)]
            grads = reference.nm_weight_grad(*inputs, (n, m), mask=at, needs=BOTH)
            inputs = [t.to(device) for t in (grad, w, logits)]
            for needs in ((True, True), (True, False), (False, True)):
                actuals = backend.nm_weight_grad(*inputs, (n, m), mask=there, needs=needs)
                for got, expected, need in zip(actuals, grads, needs, strict=True):
                    assert (got is not None) == need
                    assert not need or (got.dtype == dtype and error(got, expected) < 3 * TOLERANCE[dtype])


def test_patterns_with_infinite_logits(backend, device):
    inf = float("inf")
    logits = torch.tensor([[0.0, inf, -inf, inf], [-inf, -inf, -inf, 3.0], [inf, 1.0, -inf, -inf]], device=device)
    at = mask(1, list(range(50)), 3, device=device)
    kept = backend.nm_masked_weight(torch.ones_like(logits), logits, (2, 4), mask=at, dtype=logits.dtype)
    assert (kept[:, 0] == torch.tensor([0, 1, 0, 1], device=device)).all()
    assert (kept[:, 1, 3] == 1).all() and (kept.sum(-1) == 2).all()
    assert (kept[:, 2] == torch.tensor([1, 1, 0, 0], device=device)).all()


@pytest.mark.parametrize("random", [("logits",), ("rho",), ("logits", "rho")], ids="+".join)
@pytest.mark.parametrize("shape", [(1, 1), (5, 63), (16, 257)], ids=str)
def test_moments_and_their_gradients(backend, device, random, shape, generator):
    for dtype in dtypes(backend):
        w, logits, rho, dmean, dvariance = (torch.randn(shape, generator=generator).to(dtype) for _ in range(5))
        given = {"logits": 5 * logits, "rho": 3 * rho - 3}
        inputs = [w, *(given[name] if name in random else None for name in given)]
        exact = [None if t is None else t.double().requires_grad_() for t in inputs]
        values = reference.moments(*exact, torch.float64)  # checked against sampled masks elsewhere
        grads = torch.autograd.grad(
            values, [t for t in exact if t is not None], [dmean.double(), dvariance.double()]
        )  # by autograd, not by the reference's formulas
        there = [None if t is None else t.to(device) for t in inputs]
        for got, expected in zip(backend.moments(*there, dtype), values, strict=True):
            assert got.dtype == dtype and error(got.detach(), expected.detach()) < TOLERANCE[dtype]
        actuals = backend.moments_grad(dmean.to(device), dvariance.to(device), *there)
        assert [g is None for g in actuals] == [t is None for t in inputs]
        for got, expected in zip((g for g in actuals if g is not None), grads, strict=True):
            assert got.dtype == dtype and error(got, expected) < 2 * TOLERANCE[dtype]


OTHERS = {  # of weight, logits, rho and grad [N, K]
    "nm_masked_weight": lambda b, at, w, lo, r, g: [b.nm_masked_weight(w, lo, (2, 4), mask=at, dtype=w.dtype)],
    "nm_weight_grad": lambda b, at, w, lo, r, g: b.nm_weight_grad(g[None], w, lo, (2, 4), mask=at, needs=BOTH),
    "gaussian_weight": lambda b, at, w, lo, r, g: [b.gaussian_weight(w, r, mask=at, dtype=w.dtype)],
    "gaussian_grad": lambda b, at, w, lo, r, g: [b.gaussian_grad(g[None], r, mask=at)],
    "moments": lambda b, at, w, lo, r, g: b.moments(w, lo, r, w.dtype),
    "moments_grad": lambda b, at, w, lo, r, g: b.moments_grad(g, 2 * g, w, lo, r),
}


@pytest.mark.parametrize("col", [0, 76])
@pytest.mark.parametrize("op", ["nm_masked_weight", "gaussian_weight"])
def test_draws_together_are_those_one_by_one(backend, device, op, col, generator):
    tensors = torch.randn(4, 37, 200, generator=generator).to(device)
    at = mask(2**63 + 11, [5, 2**32 - 1, 0], 77, row=3, col=col, device=device)
    together = OTHERS[op](backend, at, *tensors)[0].clone()  # scratch memory that the next calls use
    for i, masked in enumerate(together):
        assert torch.equal(masked, OTHERS[op](backend, at.one(i), *tensors)[0][0])


@pytest.mark.parametrize("op", OTHERS)
def test_other_ops_take_any_strides_and_nothing(backend, device, op, generator):
    at = mask(8, 4, 3, device=device)
    strided = [torch.randn(72, 20, generator=generator).to(device).T[:, ::2] for _ in range(4)]  # [20, 36]
    results = OTHERS[op](backend, at, *strided)
    # Cloned: a result may lie in scratch memory that the next call uses.
    results = [t.clone() for t in results]
    for got, expected in zip(results, OTHERS[op](backend, at, *(t.contiguous() for t in strided)), strict=True):
        assert got.shape == expected.shape and error(got, expected) < 1e-6
    for shape in ((0, 8), (3, 0)):
        nothing = [torch.ones(shape, device=device)] * 4
        assert all(t.numel() == 0 and t.shape[-2:] == shape for t in OTHERS[op](backend, at, *nothing))
