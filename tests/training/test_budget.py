"""The common shift."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import stochprune as sp
from stochprune.masks.probabilities import expected_kept
from stochprune.nn import masked_layers
from stochprune.training.shift import add_shift, solve_shift

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


def narrow(seed: int = 3) -> nn.Module:
    """Two layers with 6,144 logits in bfloat16, spread by 1."""
    generator = torch.Generator().manual_seed(1)
    layers = [nn.utils.skip_init(nn.Linear, 64, n, bias=False) for n in (64, 32)]
    model = sp.convert(nn.Sequential(*layers), seed=seed, logits_dtype=torch.bfloat16)
    for layer in masked_layers(model).values():
        layer.mask_logits.detach().copy_(2.0 + torch.randn(layer.mask_logits.shape, generator=generator))
    return model


@pytest.mark.parametrize("scope", ["global", "layer"])
def test_bfloat16_logits_follow_the_schedule_in_every_step(scope):
    model, errors = narrow(), []
    budget = sp.Budget(model, 0.9, schedule="cubic", steps=100, scope=scope)
    before, start = model[0].mask_logits.detach().double(), budget.sparsity_at(0)
    for step in range(1, 151):
        budget.step()
        kept = sum(torch.sigmoid(layer.mask_logits.detach().double()).sum().item() for layer in model)
        sparsity = 0.9 + (start - 0.9) * (1 - min(1, step / 100)) ** 3
        errors.append(kept / ((1 - sparsity) * 6144) - 1)
    assert max(map(abs, errors)) < 1e-3
    assert abs(sum(errors[-50:])) / 50 < 1e-4  # of either sign
    change = model[0].mask_logits.detach().double() - before  # common, but for the rounding
    assert change.mean() < -4 and 0 < change.std() < 0.1


def test_the_rounding_of_a_shift_has_an_address():
    results = {}
    for name, seed, draw, second in (
        ("first", 3, 1, False),
        ("again", 3, 1, False),
        ("draw", 3, 2, False),
        ("seed", 4, 1, False),
        ("stream", 3, 1, True),
    ):
        model = narrow(seed)
        layer = model[int(second)]
        layer.mask_logits.detach().fill_(2.5)
        add_shift(layer, 0.003, draw)
        results[name] = layer.mask_logits.detach()[:32].clone()
        changed = (layer.mask_logits != 2.5).float().mean().item()
        assert changed == pytest.approx(0.003 * 64, abs=0.05)  # numbers are 1/64 apart
    assert torch.equal(results.pop("again"), results["first"])
    others = [*results.values()]
    assert all(not torch.equal(a, b) for i, a in enumerate(others) for b in others[:i])
