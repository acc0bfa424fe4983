"""Errors in per cent."""

from __future__ import annotations

import pytest
import torch

from stochprune.nn import masked_layers
from stochprune.training import error, predict, stochastic_error


def test_error_counts():
    outputs = torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 0.0], [1.0, 0.0]])
    assert error(outputs, torch.tensor([0, 1, 1, 0])) == 25.0


def test_predict_in_parts_and_in_evaluation_mode(masked, problem):
    model = masked().train()
    whole = predict(model, problem[0])
    assert torch.allclose(predict(model, problem[0], batch_size=7), whole)
    assert model.training
    assert torch.equal(whole, model.eval()(problem[0]))


def test_stochastic_error_is_over_hard_masks_and_leaves_the_model(masked, problem):
    model = masked()
    layers = masked_layers(model).values()
    for layer in layers:
        layer.estimator = "expected"
    first = stochastic_error(model, *problem, draws=20)
    assert first == stochastic_error(model, *problem, draws=20)
    assert {(layer.estimator, layer.mask_draw.item(), layer.sample) for layer in layers} == {("expected", 0, None)}
    singles = []
    for layer in layers:
        layer.sample, layer.estimator = True, "straight_through"
    for _ in range(20):
        singles.append(error(model(problem[0]), problem[1]))
    assert first.mean == pytest.approx(sum(singles) / 20)
    assert len(set(singles)) > 1


def test_no_draws(masked, problem):
    with pytest.raises(ValueError, match="draws must be at least 1, got 0"):
        stochastic_error(masked(), *problem, draws=0)
