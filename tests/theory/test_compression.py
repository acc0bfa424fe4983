"""The compression keeps what it predicts, the bounds on outputs hold, codes can be written."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy.special import comb

from stochprune import bounds
from stochprune.theory import compression
from stochprune.theory.spectral import norm_upper


@pytest.fixture
def weights(generator):
    shapes = {"fc1.weight": (30, 20), "fc2.weight": (30, 30), "fc3.weight": (10, 30)}
    return {name: torch.randn(shape, generator=generator) / shape[1] ** 0.5 for name, shape in shapes.items()}


def test_outputs_are_those_of_the_layers(weights, generator):
    x = torch.randn(7, 4, 5, generator=generator)
    a, b, c = weights.values()
    expected = (((x.flatten(1) @ a.T).relu() @ b.T).relu()) @ c.T
    torch.testing.assert_close(compression.outputs(weights, x, batch_size=3), expected)


@pytest.mark.parametrize("scale", [0.05, 0.5, 2.0, 10.0])
def test_gaussian_weights_are_kept_as_predicted(scale, generator):
    weights = {"w": 0.03 * torch.randn(600, 600, generator=generator)}
    draws = [compression.compress(weights, scale, seed=1, draw=d) for d in range(3)]
    share = np.mean([compression.kept(draw) for draw in draws])
    assert share == pytest.approx(compression.predicted_kept(scale), abs=4e-3)
    x = np.linspace(-12, 12, 20001)  # the prediction is an integral over the normal distribution
    chance = np.trapezoid((1 - np.exp(-(x**2) / scale)) * np.exp(-(x**2) / 2) / np.sqrt(2 * np.pi), x)
    assert compression.predicted_kept(scale) == pytest.approx(chance, rel=1e-6)


def test_each_weight_is_kept_with_its_own_probability():
    weights = {"w": torch.tensor([[0.0, 0.5, 1.0, 3.0]])}
    variance = weights["w"].var(correction=0).item()
    total = sum((compression.compress(weights, 0.7, seed=0, draw=d)["w"] != 0).double() for d in range(3000)) / 3000
    expected = 1 - np.exp(-(weights["w"].numpy().astype(float) ** 2) / (0.7 * variance))
    assert np.abs(total.numpy() - expected).max() < 0.04
    assert total[0, 0] == 0


def test_margins():
    logits = torch.tensor([[1.0, 3.0, 2.0], [1.0, 3.0, 2.0]])
    assert compression.margins(logits, torch.tensor([1, 0])).tolist() == [1.0, -2.0]


@pytest.mark.parametrize("scale", [0.01, 0.5, 5.0])
def test_no_output_changes_by_more_than_the_bound(weights, scale, generator):
    pruned = compression.compress(weights, scale, seed=3)
    norms = [norm_upper(w.double().numpy()) for w in weights.values()]
    changes = [norm_upper((w - pruned[name]).double().numpy()) for name, w in weights.items()]
    x = torch.randn(2000, 20, generator=generator)
    x = torch.cat([x, torch.linalg.svd(weights["fc1.weight"]).Vh[:5]])
    bound = compression.output_change(norms, changes, float(x.norm(dim=1).max()))
    moved = (compression.outputs(weights, x) - compression.outputs(pruned, x)).norm(dim=1).max()
    assert 0 < moved <= bound


def test_output_change_is_reached_by_diagonal_layers():
    norms, changes = [2.0, 3.0, 0.5], [0.5, 0.1, 0.2]
    exact = math.prod(a + c for a, c in zip(norms, changes, strict=True)) - math.prod(norms)
    assert compression.output_change(norms, changes, 4.0) == pytest.approx(4 * exact, rel=1e-11)


def test_the_papers_margin_covers_the_change_where_its_condition_holds():
    """c_l <= a_l / L makes (1 + 1/L)^L <= e, so that without contractions its margin is above the exact bound."""
    norms = [2.0, 3.0, 0.5, 1.0]
    changes = [a / 4 for a in norms]
    ours = compression.output_change(norms, changes, 1.5)
    assert ours <= compression.paper_margin(norms, changes, 1.5, [1.0] * 4)


def test_contractions():
    assert compression.contractions([(784, 784), (900, 784)], 60_000) == [1.0, 1.0]
    (last,) = compression.contractions([(10, 784)], 60_000)
    assert last == pytest.approx(math.sqrt(math.log(6_000_000) / 784 * 10))


def test_the_code_is_long_enough_for_all_networks():
    """The chances exp(-nats) of all networks of one layer of 6 weights and 3 levels sum to 1 at most."""
    range_bits = 64 * math.log(2)
    total = 0.0
    for count in range(7):
        w = torch.zeros(1, 6)
        w[0, :count] = 1.0
        networks = comb(6, count) * 3.0**count  # for each range of levels
        total += networks * math.exp(range_bits - compression.code_length({"w": w}, 3))
    assert total <= 1 + 1e-12


def test_the_code_writes_the_statistics_that_scale_the_inputs():
    """With another prior part, and so other statistics, the same weights are another function of an input."""
    assert compression.scaling_length(torch.zeros(5, 3, 2, 2)) == pytest.approx(3 * 128 * math.log(2))
    assert compression.scaling_length(torch.zeros(5, 7)) == pytest.approx(128 * math.log(2))


def test_quantised_weights_take_so_many_values(weights):
    pruned = compression.compress(weights, 1.0, seed=0)
    found = compression.quantise(pruned, 16)
    for name, w in pruned.items():
        assert len(found[name][w != 0].unique()) <= 16 and not found[name][w == 0].any()
        assert (found[name] - w).abs().max() <= (w.max() - w.min()) / 32 * 1.001
    one = compression.quantise({"w": torch.tensor([[2.0, 0.0, 2.0]])}, 4)["w"]
    assert torch.equal(one, torch.tensor([[2.0, 0.0, 2.0]]))


def test_the_counting_bound_is_its_inequality():
    got = compression.counting_bound(0.05, 100.0, 1000, 0.01)
    assert bounds.kl(0.05, got) == pytest.approx((100 + math.log(100)) / 1000, rel=1e-9)
    assert compression.counting_bound(0.05, 1e6, 1000, 0.01) == 1


def test_the_counting_bound_holds_by_simulation(generator):
    """A class of 64 predictors of which the best on the sample is chosen: the bound fails at most as often as delta."""
    risk, examples, delta, failed = 0.3, 50, 0.1, 0
    for _ in range(400):
        errors = (torch.rand(64, examples, generator=generator) < risk).double().mean(1).min().item()
        failed += compression.counting_bound(errors, math.log(64), examples, delta) < risk
    assert failed <= 400 * delta


def test_bad_input(weights):
    with pytest.raises(ValueError, match=r"scale d.*got 0\.0"):
        compression.compress(weights, 0.0, seed=0)
    with pytest.raises(ValueError, match=r"levels.*got 0"):
        compression.quantise(weights, 0)
