"""Random masks at given densities of layers, and the Erdos-Renyi-kernel rule."""

from __future__ import annotations

import pytest
import torch
from scipy.optimize import brentq
from torch import nn
from torch.nn.utils import skip_init

from stochprune import masks, models, scores


def test_a_global_cut_keeps_exactly_the_densities():
    model = models.mlp((20, 30, 10), seed=0)
    densities = {"fc1.weight": 0.123, "fc2.weight": 0.77}
    result = scores.random(model, seed=3, densities=densities)
    kept = {name: round(densities[name] * score.numel()) for name, score in result.items()}
    mask = masks.from_scores(result, 1 - sum(kept.values()) / 900)
    assert {name: int(value.sum()) for name, value in mask.items()} == kept
    uniform = scores.random(model, seed=3)
    for name, value in mask.items():  # they are those of the highest uniform scores
        assert uniform[name][value].min() > uniform[name][~value].max()


@pytest.mark.parametrize("density", [0.0, 1.0])
def test_empty_and_full_layers(density):
    model = models.mlp((4, 5, 3), seed=0)
    result = scores.random(model, densities={"fc1.weight": density, "fc2.weight": 0.4})
    assert bool((result["fc1.weight"] > 0).all() if density else (result["fc1.weight"] < 0).all())


@pytest.mark.parametrize("sparsity", [0.0, 0.5, 0.8, 0.95])
def test_erk_is_proportional_to_the_sum_of_sizes_and_meets_the_budget(sparsity):
    model = nn.Sequential(
        skip_init(nn.Conv2d, 1, 4, 3), skip_init(nn.Conv2d, 4, 32, 3), nn.Flatten(), skip_init(nn.Linear, 128, 10)
    )
    shapes = {name: weight.shape for name, weight in scores.prunable_weights(model).items()}
    densities = scores.erk_densities(model, sparsity)

    def kept(scale):
        return sum(min(1.0, scale * sum(shape) / shape.numel()) * shape.numel() for shape in shapes.values())

    total = sum(shape.numel() for shape in shapes.values())
    scale = brentq(lambda s: kept(s) - (1 - sparsity) * total, 1e-9, 1e4) if sparsity else 1e4
    for name, shape in shapes.items():
        assert densities[name] == pytest.approx(min(1.0, scale * sum(shape) / shape.numel()), rel=1e-6)
    assert sum(densities[name] * shape.numel() for name, shape in shapes.items()) == pytest.approx(
        (1 - sparsity) * total
    )


def test_bad_densities_are_named():
    model = models.mlp((4, 5, 3), seed=0)
    with pytest.raises(ValueError, match=r"densities.*got fc1\.weight"):
        scores.random(model, densities={"fc1.weight": 0.5})
    with pytest.raises(ValueError, match=r"density of fc2\.weight .*got 1\.5"):
        scores.random(model, densities={"fc1.weight": 0.5, "fc2.weight": 1.5})
    with pytest.raises(ValueError, match=r"sparsity.*got 1.0"):
        scores.erk_densities(model, 1.0)
    assert torch.equal(scores.random(model)["fc1.weight"], scores.random(model)["fc1.weight"])
