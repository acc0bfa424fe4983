"""Both bounds on the spectral norm: against rational arithmetic where it can be had, else against the SVD."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest

from stochprune.seeding import generator
from stochprune.theory.spectral import norm_lower, norm_upper


@pytest.mark.parametrize("shape", [(1, 1), (1, 7), (7, 1), (5, 40), (40, 5), (120, 120)])
@pytest.mark.parametrize("size", [1e-150, 1.0, 1e150])
def test_both_sides_are_close_to_the_svd(shape, size):
    a = size * generator(0, "spectral", *shape).standard_normal(shape)
    norm = np.linalg.norm(a / size, 2) * size
    assert norm_lower(a) <= norm * (1 + 1e-13)
    assert norm * (1 - 1e-13) <= norm_upper(a) <= norm * (1 + 1e-3)
    assert norm_lower(a) > 0.9 * norm


def test_tight_if_the_first_singular_value_is_well_separated():
    a = generator(0, "gap").standard_normal((60, 80))
    a += 5 * np.ones_like(a)
    assert norm_upper(a) == pytest.approx(np.linalg.norm(a, 2), rel=1e-8)
    assert norm_lower(a) == pytest.approx(np.linalg.norm(a, 2), rel=1e-8)


@pytest.mark.parametrize("k", [1, 2, 3, 8])
def test_equal_singular_values(k):
    """Power iteration has nothing to find, and a smaller trial would be refuted at once."""
    assert 1 <= norm_upper(np.eye(k)) < 1 + 1e-8
    assert 1 - 1e-12 < norm_lower(np.eye(k)) <= 1


@pytest.mark.parametrize("seed", range(20))
def test_holds_exactly_for_rank_one(seed):
    """|u v^T|^2 = |u|^2 |v|^2, a rational number: the bounds are compared with it without any rounding."""
    numbers = generator(seed, "rank one")
    u, v = (numbers.integers(-9, 10, size) for size in (6, 9))
    exact = Fraction(int(u @ u)) * Fraction(int(v @ v))
    a = np.outer(u, v).astype(float)
    assert Fraction(norm_lower(a)) ** 2 <= exact <= Fraction(norm_upper(a)) ** 2


def test_a_start_that_power_iteration_cannot_leave():
    """Two singular values of nearly equal size: the lower bound stays low, the upper bound still holds."""
    a = np.diag([1.0, 1 - 1e-9, 0.5])
    assert norm_lower(a, iterations=1) <= 1 <= norm_upper(a)


@pytest.mark.parametrize("size", [5e-324, 1e-310, 1.7e308])
def test_the_ends_of_the_range(size):
    a = np.diag([size, size / 2])
    assert norm_lower(a) <= size <= norm_upper(a) <= size * (1 + 1e-8) + 1e-323


def test_zero_and_bad_input():
    assert norm_upper(np.zeros((3, 4))) == norm_lower(np.zeros((3, 4))) == 0
    with pytest.raises(ValueError, match=r"spectral.*got shape \(3,\)"):
        norm_upper(np.ones(3))
    with pytest.raises(ValueError, match="finite"):
        norm_upper(np.array([[np.nan]]))
