"""The bounds against their defining relations, each other, and numerical minimisation."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.optimize import brentq, minimize_scalar
from scipy.special import rel_entr

from stochprune import bounds

CASES = [(0.02, 100.0, 30_000), (0.0, 0.0, 10), (0.5, 3000.0, 60_000), (0.3, 5.0, 100), (1e-4, 20.0, 30_000)]


@pytest.mark.parametrize(("risk", "kl", "m"), CASES)
def test_maurer_solves_its_inequality(risk, kl, m):
    right = (kl + math.log(2 * math.sqrt(m) / 0.025)) / m
    expected = brentq(lambda p: rel_entr(risk, p) + rel_entr(1 - risk, 1 - p) - right, risk + 1e-15, 1 - 1e-15)
    assert bounds.maurer(risk, kl, m, 0.025) == pytest.approx(expected, rel=1e-9)


@given(st.floats(0, 0.6), st.floats(0, 1e4), st.integers(8, 10**6), st.floats(1e-6, 0.5))
def test_maurer_is_the_tightest_of_its_family(risk, kl, m, delta):
    maurer, quadratic = bounds.maurer(risk, kl, m, delta), bounds.quadratic(risk, kl, m, delta)
    slack = 1 + 1e-12
    assert maurer <= quadratic * slack and maurer <= bounds.mcallester(risk, kl, m, delta) * slack
    assert quadratic <= bounds.tolstikhin_seldin(risk, kl, m, delta) * slack
    b = bounds.complexity(kl, m, delta)
    assert quadratic == pytest.approx(risk + b + math.sqrt(b * (b + 2 * risk)))


@pytest.mark.parametrize(("risk", "kl", "m"), CASES)
def test_lambda_at_its_minimum_is_quadratic(risk, kl, m):
    found = minimize_scalar(lambda x: bounds.lam(risk, kl, m, 0.05, x), bounds=(1e-6, 2 - 1e-6), method="bounded")
    best = bounds.optimal_lambda(risk, kl, m, 0.05)
    assert bounds.lam(risk, kl, m, 0.05, best) <= found.fun * (1 + 1e-9)
    assert bounds.lam(risk, kl, m, 0.05, best) == pytest.approx(bounds.quadratic(risk, kl, m, 0.05))


@pytest.mark.parametrize(("risk", "kl", "m"), CASES)
def test_catoni_from_its_own_inequality(risk, kl, m):
    """-ln(1 - (1 - e^-b) R) <= b r + (KL + ln(1/delta)) / m, solved for R."""
    beta, delta = 0.7, 0.05
    right = beta * risk + (kl + math.log(1 / delta)) / m
    value = bounds.catoni(risk, kl, m, delta, beta)
    assert -math.log(1 - (1 - math.exp(-beta)) * value) == pytest.approx(right)


@pytest.mark.parametrize("number", [float, lambda value: torch.tensor(value, dtype=torch.float64)])
@pytest.mark.parametrize("kl", [1e308, math.inf])
def test_a_huge_kl_gives_a_vacuous_bound(kl, number):
    """Neither NaN, 0 times infinity, nor an OverflowError."""
    for name in ("mcallester", "quadratic", "tolstikhin_seldin"):
        for risk in (0.0, 0.5, 1.0):
            assert getattr(bounds, name)(number(risk), number(kl), 1, 0.05) > 1e153, (name, risk)


def test_chernoff_needs_no_union_over_posteriors():
    assert bounds.chernoff(0.02, 1000, 0.05) < bounds.maurer(0.02, 0.0, 1000, 0.05)
    assert bounds.chernoff(0.0, 1000, 0.05) == pytest.approx(1 - 0.05 ** (1 / 1000))  # the binomial tail, exactly


BOUNDS = {
    "maurer": bounds.maurer,
    "mcallester": bounds.mcallester,
    "quadratic": bounds.quadratic,
    "tolstikhin_seldin": bounds.tolstikhin_seldin,
    "lam": lambda *a, **k: bounds.lam(*a, 0.5, **k),
    "catoni": lambda *a, **k: bounds.catoni(*a, 1.0, **k),
}


@pytest.mark.parametrize("bound", BOUNDS.values(), ids=BOUNDS)
class TestEach:
    def test_choices_divide_delta(self, bound):
        assert bound(0.1, 5.0, 500, 0.1, choices=4) == pytest.approx(bound(0.1, 5.0, 500, 0.025))

    def test_grows_in_risk_and_kl(self, bound):
        assert bound(0.1, 5.0, 500, 0.1) < bound(0.11, 5.0, 500, 0.1)
        assert bound(0.1, 5.0, 500, 0.1) < bound(0.1, 6.0, 500, 0.1)

    def test_gradients(self, bound):
        risk, kl = (torch.tensor(v, dtype=torch.float64, requires_grad=True) for v in (0.1, 5.0))
        value = bound(risk, kl, 500, 0.1)
        value.backward()
        assert value.item() == pytest.approx(bound(0.1, 5.0, 500, 0.1))
        for grad, name in ((risk.grad, "risk"), (kl.grad, "kl")):
            at = {"risk": 0.1, "kl": 5.0}
            up, down = ({**at, name: at[name] + s} for s in (1e-6, -1e-6))
            slope = (bound(up["risk"], up["kl"], 500, 0.1) - bound(down["risk"], down["kl"], 500, 0.1)) / 2e-6
            assert grad.item() == pytest.approx(slope, rel=1e-5)

    @pytest.mark.parametrize(
        ("risk", "kl", "m", "delta", "message"),
        [
            (-0.1, 1.0, 10, 0.1, "risk.*got -0.1"),
            (math.nan, 1.0, 10, 0.1, "risk.*got nan"),
            (0.1, -1.0, 10, 0.1, r"\bkl\b.*got -1.0"),
            (0.1, 1.0, 0, 0.1, r"\bm\b.*got 0"),
            (0.1, 1.0, 10, 1.0, "delta.*got 1.0"),
        ],
    )
    def test_bad_arguments(self, bound, risk, kl, m, delta, message):
        with pytest.raises(ValueError, match=message):
            bound(risk, kl, m, delta)


def test_bad_constants():
    with pytest.raises(ValueError, match=r"lam.*got 2"):
        bounds.lam(0.1, 1.0, 10, 0.1, 2.0)
    with pytest.raises(ValueError, match=r"beta.*got 0"):
        bounds.catoni(0.1, 1.0, 10, 0.1, 0.0)
    with pytest.raises(ValueError, match=r"choices.*got 0"):
        bounds.quadratic(0.1, 1.0, 10, 0.1, choices=0)
