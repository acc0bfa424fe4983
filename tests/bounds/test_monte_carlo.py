"""Bounds on a mean from draws: against closed forms, and by simulation."""

from __future__ import annotations

import math

import numpy as np
import pytest

from stochprune.bounds import betting, kl_inverse, monte_carlo
from stochprune.seeding import generator


def test_monte_carlo_is_the_inverse_with_two_sides():
    assert monte_carlo(0.02, 1000, 0.01, choices=3) == kl_inverse(0.02, math.log(2 * 3 / 0.01) / 1000)


def wealth(values: np.ndarray, mu: float, target: float, planned: int) -> float:
    """The bettor's wealth, one bet after the other."""
    owned, total, squares = 1.0, 0.5, 0.25
    variance = 0.25
    for t, x in enumerate(values, start=1):
        bet = min(1.0, math.sqrt(2 * target / (planned * variance)))
        owned *= 1 + bet * (mu - x)
        total += x
        squares += (x - total / (t + 1)) ** 2
        variance = squares / (t + 1)
    return owned


@pytest.mark.parametrize("planned", [None, 500])
def test_betting_is_where_the_wealth_reaches_its_target(planned):
    values = generator(0, "betting").beta(2, 30, 200)
    found = betting(values, 0.05, planned=planned)
    target = math.log(1 / 0.05) + 1e-9
    assert wealth(values, found, target, planned or 200) >= 1 / 0.05
    assert wealth(values, found - 1e-9, target, planned or 200) < 1 / 0.05


def test_betting_is_tighter_where_the_values_vary_little():
    values = generator(1, "betting").binomial(64, 0.02, 5000) / 64
    mean = values.mean()
    assert mean < betting(values, 0.01) < mean + 0.0012 < monte_carlo(mean, 5000, 0.01) - 0.003


@pytest.mark.parametrize("spread", [1, 4, 64])
@pytest.mark.parametrize("bound", ["betting", "watched", "kl"])
def test_coverage(bound, spread):
    """2,000 repetitions at a level of 0.1; ``watched`` takes the worst time to stop of each run."""
    numbers, mean, violations = generator(2, "coverage", spread), 0.1, 0
    for _ in range(2000 if bound != "watched" else 200):
        values = numbers.binomial(spread, mean, 60) / spread
        if bound == "kl":
            violations += monte_carlo(values.mean(), 60, 0.1) < mean
        elif bound == "betting":
            violations += betting(values, 0.1) < mean
        else:
            violations += min(betting(values[:t], 0.1, planned=60) for t in range(10, 61, 5)) < mean
    assert violations <= 0.1 * (2000 if bound != "watched" else 200)
