"""Errors in per cent."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

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
    with pytest.raises(ValueError, match=r"draws.*got 0"):
        stochastic_error(masked(), *problem, draws=0)


def test_errors_of_regression(masked, problem):
    x, target = problem[0], problem[0][:, :3]
    model = masked()
    outputs = predict(model, x)
    assert error(outputs, target, F.mse_loss) == pytest.approx((outputs - target).square().mean().item())
    found = stochastic_error(model, x, target, draws=4, loss_fn=F.mse_loss)
    assert 0 < found.ensemble < found.mean  # the square is convex
    with pytest.raises(ValueError, match=r"labels.*\(60, 3\).*loss_fn"):
        error(outputs, target)
    with pytest.raises(ValueError, match=r"\(60, 3\).*\by \(60,\)"):
        error(outputs, target[:, 0], F.mse_loss)
    with pytest.raises(ValueError, match=r"loss_fn.*got Tensor"):
        error(outputs, target, lambda a, b: (a - b).square())


@pytest.mark.parametrize(
    ("outputs", "y"),
    [
        (torch.ones(3), torch.zeros(3, dtype=torch.int64)),
        (torch.ones(3, 2), torch.zeros(2, dtype=torch.int64)),
        (torch.ones(3, 2), torch.zeros(3)),
        (torch.ones(3, 2), torch.tensor(0)),
        (torch.ones(0, 2), torch.zeros(0, dtype=torch.int64)),
        (torch.full((3, 2), float("nan")), torch.zeros(3, dtype=torch.int64)),
    ],
)
def test_outputs_and_labels_that_do_not_fit(outputs, y):
    with pytest.raises(ValueError, match=r"error: .*outputs"):
        error(outputs, y)


@pytest.mark.parametrize("batch_size", [0, -1])
def test_predictions_in_no_parts(dense, problem, batch_size):
    with pytest.raises(ValueError, match=rf"batch_size.*got {batch_size}"):
        predict(dense, problem[0], batch_size)
    with pytest.raises(ValueError, match=r"got shape \(0, 6\)"):
        predict(dense, problem[0][:0])


def test_predict_restores_the_mode_of_each_module(dense, problem):
    dense.train()
    dense[0].eval()
    predict(dense, problem[0])
    assert [module.training for module in (dense, *dense)] == [True, False, True, True]
