"""KL in C++: sums that no number of threads changes, and logarithms right to the last bits."""

from __future__ import annotations

import pytest
import torch

native = pytest.importorskip("stochprune.native")
from stochprune import _C, reference  # noqa: E402
from stochprune.doctor.self_test import instructions  # noqa: E402


@pytest.fixture(params=_C.instruction_sets())
def instruction_set(request):
    with instructions(request.param):
        yield request.param


@pytest.mark.parametrize("count", [1, 4096, 4097, 200_001])
def test_threads_change_no_bit(instruction_set, count, generator):
    logits, prior, mu, mu0 = torch.randn(4, count, generator=generator)
    sigma = torch.rand(count, generator=generator) + 0.1
    before = torch.get_num_threads()
    try:
        values = set()
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            kl = native.bernoulli_kl(logits, prior), native.gaussian_kl(mu, sigma, mu0, sigma + 0.5, logits)
            values.add(tuple(value.item() for value in kl))
    finally:
        torch.set_num_threads(before)
    assert len(values) == 1


def test_the_logarithm_over_the_whole_range_of_float(instruction_set):
    """One weight at a time: with mu and prior_mu equal the term is (r^2 - 1) / 2 - ln r."""
    exponents = torch.arange(-120, 60, 0.37, dtype=torch.float64)
    for sigma in (2**exponents).float():
        one = torch.ones(1)
        got = native.gaussian_kl(one, sigma[None], one, one, None).item()
        assert got == pytest.approx(reference.gaussian_kl(one, sigma[None], one, one, None).item(), rel=4e-15)


def test_the_exponential_over_its_whole_range(instruction_set):
    for prior in torch.linspace(-750, 750, 301):
        logit, prior = torch.zeros(1), prior[None]
        expected = reference.bernoulli_kl(logit, prior).item()
        assert native.bernoulli_kl(logit, prior).item() == pytest.approx(expected, rel=4e-15, abs=4e-16)


def test_bad_numbers_are_found_at_any_index(instruction_set):
    for at in (0, 63, 64, 99):
        bad = torch.ones(100)
        bad[at] = float("nan")
        fine = torch.ones(100)
        assert native.bernoulli_kl(bad, fine).isnan() and native.bernoulli_kl(fine, bad).isnan()
        bad[at] = -1.0
        assert native.gaussian_kl(fine, bad, fine, fine, None).isnan()
