"""Magnitude scores."""

from __future__ import annotations

import pytest
import torch

from stochprune import models, scores


def test_scores_are_absolute_weights_in_memory_of_their_own() -> None:
    model = models.mlp((4, 5, 3), seed=0)
    result = scores.magnitude(model)
    assert list(result) == ["fc1.weight", "fc2.weight"]
    for name, score in result.items():
        weight = model.get_parameter(name)
        assert torch.equal(score, weight.detach().abs()) and not score.requires_grad
        assert score.data_ptr() != weight.data_ptr()


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_weights_that_are_not_finite_are_named(value: float) -> None:
    model = models.mlp((4, 5, 3), seed=0)
    with torch.no_grad():
        model.fc2.weight[1, 2] = value
    with pytest.raises(ValueError, match=r"magnitude: 1 of 15 scores of fc2\.weight .*NaN"):
        scores.magnitude(model)
