"""Statistics of the kept weights, layer by layer."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy import stats
from torch import nn
from torch.nn.utils import skip_init

from stochprune import masks, models


def test_layer_statistics_are_those_of_the_kept_weights() -> None:
    layer = skip_init(nn.Linear, 4, 2, bias=False)
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([[1.0, 2.0, 3.0, 4.0], [5.0, 6.0, 7.0, 8.0]]))
    mask = {"weight": torch.tensor([[True, True, False, False], [True, False, False, True]])}
    other = {"weight": torch.tensor([[False, True, True, False], [False, True, False, False]])}
    (row,) = masks.layer_statistics(layer, mask, other)
    assert (row.name, row.shape, row.kept, row.density, row.mean) == ("weight", (2, 4), 4, 0.5, 4.0)
    assert row.std == pytest.approx(np.std([1, 2, 5, 8]))
    # Quantile functions of {1, 2, 5, 8} and {2, 3, 6} on the twelve common intervals.
    a, b = np.repeat([1, 2, 5, 8], 3), np.repeat([2, 3, 6], 4)
    assert row.wasserstein == pytest.approx(np.abs(a - b).mean())
    assert masks.layer_statistics(layer, mask)[0].wasserstein is None
    assert masks.layer_statistics(layer, mask, mask)[0].wasserstein == 0


def test_statistics_of_an_emptied_layer_are_nan() -> None:
    mask = {"weight": torch.zeros(2, 4, dtype=torch.bool)}
    (row,) = masks.layer_statistics(skip_init(nn.Linear, 4, 2), mask, mask)
    assert row.kept == 0 and row.density == 0
    assert row.wasserstein is not None and all(math.isnan(value) for value in (row.mean, row.std, row.wasserstein))


def test_reference_of_other_layers_is_named() -> None:
    model = models.mlp((6, 8, 4), seed=0)
    result = masks.from_scores({"fc1.weight": model.fc1.weight.detach(), "fc2.weight": model.fc2.weight.detach()}, 0.5)
    with pytest.raises(ValueError, match=r"fc2\.weight"):
        masks.layer_statistics(model, result, {"fc1.weight": result["fc1.weight"]})


def test_moments_are_those_of_scipy() -> None:
    model = models.mlp((30, 40, 5), seed=0)
    with torch.no_grad():
        model.fc1.weight.exp_()
    mask = {"fc1.weight": torch.rand(40, 30, generator=torch.Generator().manual_seed(0)) < 0.5}
    (row,) = masks.layer_statistics(model, mask)
    kept = model.fc1.weight.detach()[mask["fc1.weight"]].double().numpy()
    assert row.skewness == pytest.approx(stats.skew(kept)) and row.skewness > 0
    assert row.kurtosis == pytest.approx(stats.kurtosis(kept, fisher=False))
    assert masks.kept_weights(model, mask)["fc1.weight"].tolist() == kept.tolist()


def test_distances_with_zeros_and_to_another_model() -> None:
    model, other = models.mlp((6, 8, 4), seed=0), models.mlp((6, 8, 4), seed=1)
    mask = masks.from_scores({"fc1.weight": model.fc1.weight.detach()}, 0.5)
    reference = masks.from_scores({"fc1.weight": other.fc1.weight.detach()}, 0.75)
    (row,) = masks.layer_statistics(model, mask, reference, other)
    a, b = (network.fc1.weight.detach().double() for network in (model, other))
    chosen, chosen_b = mask["fc1.weight"], reference["fc1.weight"]
    assert row.wasserstein == pytest.approx(stats.wasserstein_distance(a[chosen].numpy(), b[chosen_b].numpy()))
    # of samples of equal size the distance is the mean difference of the sorted ones
    whole = ((a * chosen).flatten().sort().values - (b * chosen_b).flatten().sort().values).abs().mean().item()
    assert row.wasserstein_zeros == pytest.approx(whole)
    assert row.wasserstein != pytest.approx(row.wasserstein_zeros)


def test_equal_weights_have_no_shape() -> None:
    layer = nn.init.constant_(skip_init(nn.Linear, 4, 2).weight, 0.5)
    row = masks.statistics("w", layer.detach().double().flatten().numpy(), (2, 4))
    assert row.std == 0 and math.isnan(row.skewness) and math.isnan(row.kurtosis)
