"""Divergences in Triton: of the probabilities that these kernels draw with, summed in float64 over many programs."""

from __future__ import annotations

import pytest
import torch

from stochprune import reference, rng
from stochprune.kernels import kl, threshold_from_logits

SIZES = [1, 1023, kl.BLOCK * kl.STEPS, kl.BLOCK * kl.STEPS + 1, 20_001]
TOLERANCE = {torch.float32: 1e-6, torch.float16: 1e-3, torch.bfloat16: 8e-3}


def inputs(count, dtype, device, generator):
    """mu, sigma, prior_mu, prior_sigma, logits, prior_logits; logits whose thresholds agree with the reference's."""
    normal = [(2 * torch.randn(count, generator=generator)) for _ in range(6)]
    normal[1], normal[3] = (0.3 + t.sigmoid() for t in (normal[1], normal[3]))
    mu, sigma, mu0, sigma0, logits, prior = (t.to(dtype).to(device) for t in normal)
    differs = threshold_from_logits(logits).cpu().int() != rng.threshold_from_logits(logits.cpu()).int()
    logits[differs.to(device)] = 0.5
    return mu, sigma, mu0, sigma0, logits, prior


def error(got, expected):
    return float((got.double().cpu() - expected.double()).norm() / expected.double().norm().clamp_min(1e-300))


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("count", SIZES)
def test_values(count, dtype, device, generator):
    *gaussian, logits, prior = inputs(count, dtype, device, generator)
    here = [t.cpu() for t in (*gaussian, logits, prior)]
    for got, expected in (
        (kl.bernoulli_kl(logits, prior), reference.bernoulli_kl(*here[4:])),
        (kl.gaussian_kl(*gaussian, None), reference.gaussian_kl(*here[:4], None)),
        (kl.gaussian_kl(*gaussian, logits), reference.gaussian_kl(*here[:5])),
    ):
        assert got.dtype == torch.float64 and got.shape == ()
        assert got.item() == pytest.approx(expected.item(), rel=1e-12, abs=1e-13)


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
def test_gradients(dtype, device, generator):
    *gaussian, logits, prior = inputs(5000, dtype, device, generator)
    here = [t.cpu() for t in (*gaussian, logits, prior)]
    scale = torch.tensor(0.37, dtype=torch.float64)
    got = [*kl.bernoulli_kl_backward(scale.to(device), logits, prior, needs=(True, True))]
    expected = [*reference.bernoulli_kl_backward(scale, *here[4:], needs=(True, True))]
    got += kl.gaussian_kl_backward(scale.to(device), *gaussian, logits, needs=[True] * 5)
    expected += reference.gaussian_kl_backward(scale, *here[:5], needs=[True] * 5)
    got += kl.gaussian_kl_backward(scale.to(device), *gaussian, None, needs=[True] * 4 + [False])[:4]
    expected += reference.gaussian_kl_backward(scale, *here[:4], None, needs=[True] * 4 + [False])[:4]
    for a, b in zip(got, expected, strict=True):
        assert a.dtype == dtype
        assert error(a, b) < TOLERANCE[dtype]


def test_only_what_is_needed(device, generator):
    *gaussian, logits, prior = inputs(100, torch.float32, device, generator)
    one = torch.ones((), dtype=torch.float64, device=device)
    assert [g is None for g in kl.bernoulli_kl_backward(one, logits, prior, needs=(False, True))] == [True, False]
    needs = [False, True, False, False, True]
    assert [g is None for g in kl.gaussian_kl_backward(one, *gaussian, logits, needs=needs)] == [not n for n in needs]


def test_the_same_bits_again(device, generator):
    *gaussian, logits, prior = inputs(20_000, torch.float32, device, generator)
    assert len({kl.bernoulli_kl(logits, prior).item() for _ in range(2)}) == 1
    assert len({kl.gaussian_kl(*gaussian, logits).item() for _ in range(2)}) == 1


def test_infinite_and_missing(device):
    one = torch.ones(3, device=device)
    inf, nan, zero = one * float("inf"), one * float("nan"), 0 * one
    assert kl.bernoulli_kl(one, inf) == float("inf")
    assert kl.bernoulli_kl(inf, one).isfinite() and kl.bernoulli_kl(one, nan).isnan()
    assert kl.gaussian_kl(one, zero, one, one, None).isnan() and kl.gaussian_kl(one, one, one, -one, None).isnan()
    scale = torch.ones((), dtype=torch.float64, device=device)
    dlogits, _ = kl.bernoulli_kl_backward(scale, inf, one, needs=(True, False))
    assert dlogits.abs().max() < 1e-25
    assert kl.bernoulli_kl(one[:0], one[:0]) == 0
