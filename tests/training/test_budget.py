"""The common shift."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from stochprune.training.shift import expected_kept, solve_shift

TOLERANCES = {torch.float32: 4e-6, torch.float64: 1e-11}  # float32: half a rounding of a logit near 20 is 1e-6


@given(
    dtype=st.sampled_from([torch.float32, torch.float64]),
    seed=st.integers(0, 10_000),
    count=st.integers(1, 300),
    spread=st.floats(0.0, 3.0),
    centre=st.floats(-6.0, 6.0),
    share=st.floats(1e-3, 1 - 1e-3),
)
def test_shift_meets_any_budget(dtype, seed, count, spread, centre, share):
    generator = torch.Generator().manual_seed(seed)
    logits = (centre + spread * torch.randn(count, generator=generator)).to(dtype)
    shift = solve_shift(logits.split(7), share * count)
    assert expected_kept([logits + shift]).item() == pytest.approx(share * count, rel=TOLERANCES[dtype])


@pytest.mark.parametrize("spread", [0.0, 100.0, 1000.0])
def test_shift_with_saturated_probabilities(spread):
    logits = spread * torch.linspace(-1, 1, 101, dtype=torch.float64)
    shift = solve_shift([logits], 30.25)
    assert expected_kept([logits + shift]).item() == pytest.approx(30.25, rel=1e-11)


def test_no_shift_where_the_budget_is_met():
    logits = torch.tensor([1.0, -2.0, 0.5])
    assert solve_shift([logits], expected_kept([logits]).item()) == 0.0


@pytest.mark.parametrize("budget", [0.0, 3.0, -1.0, math.nan])
def test_impossible_budgets(budget):
    with pytest.raises(ValueError, match=f"3 weights, got {budget}"):
        solve_shift([torch.zeros(3)], budget)
