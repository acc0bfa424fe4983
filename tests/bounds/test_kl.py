"""kl and its inverse against arbitrary precision."""

from __future__ import annotations

import math

import mpmath
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from stochprune.bounds import kl, kl_inverse

mpmath.mp.dps = 700  # 1 - 5e-324 is not 1
probabilities = st.one_of(
    st.sampled_from([0.0, 1.0, 0.5, 5e-324, 1e-300, 1e-16, 1 - 2**-53, 0.0155]), st.floats(0, 1), st.floats(0, 1e-6)
)
amounts = st.one_of(st.sampled_from([0.0, 1e-300, 1e-18, math.inf]), st.floats(0, 50), st.floats(0, 1e-6))


def exact_kl(q: float, p: float) -> mpmath.mpf:
    def term(a: mpmath.mpf, b: mpmath.mpf) -> mpmath.mpf:
        return mpmath.mpf(0) if a == 0 else mpmath.inf if b == 0 else a * mpmath.log(a / b)

    q, p = mpmath.mpf(q), mpmath.mpf(p)
    return term(q, p) + term(1 - q, 1 - p)


@given(probabilities, probabilities)
@settings(deadline=None, max_examples=400)
@example(0.02, 0.02 * (1 + 2**-40))
@example(0.5, 0.5 + 2**-53)
@example(1e-300, 1.0 - 2**-53)
def test_kl_is_exact_to_rounding(q, p):
    found, exact = kl(q, p), exact_kl(q, p)
    if mpmath.isinf(exact):
        assert found == math.inf
    else:
        assert abs(found - exact) <= exact * mpmath.mpf(2e-14) + mpmath.mpf(1e-307)


@given(probabilities, amounts)
@settings(deadline=None, max_examples=400)
@example(0.0, 0.0)
@example(1.0, 0.0)
@example(0.0, math.inf)
def test_inverse_rounds_outward_and_tightly(q, c):
    p = kl_inverse(q, c)
    assert q <= p <= 1
    assert p == 1 or exact_kl(q, p) >= c, "the defining inequality, outward"
    below = math.nextafter(p, 0)
    if below > q and c > 1e-290:
        assert exact_kl(q, below) <= c * (1 + mpmath.mpf(2) ** -43), "no wider than the margin"


@pytest.mark.parametrize("c", [1e-9, 0.01, 1.0])
def test_inverse_at_the_ends(c):
    assert kl_inverse(0.0, c) == pytest.approx(-math.expm1(-c), rel=1e-12)
    assert kl_inverse(1.0, c) == 1.0
    assert kl_inverse(0.3, math.inf) == 1.0


@pytest.mark.parametrize(("q", "c"), [(0.02, 3e-4), (0.3, 0.1), (0.9, 0.001), (1e-5, 1e-3)])
def test_gradient_is_that_of_the_implicit_function(q, c):
    x, y = (torch.tensor(value, dtype=torch.float64, requires_grad=True) for value in (q, c))
    kl_inverse(x, y).backward()
    step = 1e-6
    assert x.grad.item() == pytest.approx(
        (kl_inverse(q * (1 + step), c) - kl_inverse(q * (1 - step), c)) / (2 * q * step), rel=1e-5
    )
    assert y.grad.item() == pytest.approx(
        (kl_inverse(q, c * (1 + step)) - kl_inverse(q, c * (1 - step))) / (2 * c * step), rel=1e-5
    )


def test_gradient_at_no_risk_is_finite():
    """The slope at q = 0 is infinite. A loss with a minimum there must not give 0 * inf."""
    x, c = (torch.tensor(value, dtype=torch.float64, requires_grad=True) for value in (0.0, 0.1))
    kl_inverse(x.square(), c).backward()
    assert x.grad == 0 and c.grad.item() == pytest.approx(math.exp(-0.1))
    q = torch.tensor(0.0, dtype=torch.float64, requires_grad=True)
    kl_inverse(q, 0.1).backward()
    assert 100 < q.grad < math.inf


def test_gradient_vanishes_where_the_inverse_is_one():
    x = torch.tensor(0.5, requires_grad=True)
    kl_inverse(x, 100.0).backward()
    assert x.grad == 0


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: kl(-0.1, 0.5), "q .*, got -0.1"),
        (lambda: kl(0.1, math.nan), "p .*, got nan"),
        (lambda: kl_inverse(1.5, 0.1), "q .*, got 1.5"),
        (lambda: kl_inverse(0.5, -1.0), "c .*, got -1.0"),
        (lambda: kl_inverse(0.5, math.nan), "c .*, got nan"),
    ],
)
def test_bad_arguments(call, message):
    with pytest.raises(ValueError, match=message):
        call()
