"""Soft-threshold pruning: the operator, the growth of the threshold, and training under it."""

from __future__ import annotations

import copy

import pytest
import torch
from scipy.integrate import quad

from stochprune import masks
from stochprune.training import SoftThresholdConfig, soft_threshold, train_soft_threshold
from stochprune.training.schedules import SCHEDULES
from stochprune.training.soft_threshold import lats


def test_operator_is_the_proximal_map_of_the_l1_norm():
    weight = torch.linspace(-1, 1, 41, dtype=torch.float64)
    result = soft_threshold(weight, torch.tensor(0.3, dtype=torch.float64))
    grid = torch.linspace(-1.5, 1.5, 60001, dtype=torch.float64)
    for w, value in zip(weight, result, strict=True):
        best = grid[(0.5 * (grid - w).square() + 0.3 * grid.abs()).argmin()]
        assert value.item() == pytest.approx(best.item(), abs=1e-4)


def test_gradients_pass_unchanged_also_where_pruned():
    weight = torch.tensor([-0.5, 0.1, 0.5], requires_grad=True)
    soft_threshold(weight, torch.tensor(0.2)).backward(torch.tensor([1.0, 2.0, 3.0]))
    assert weight.grad.tolist() == [1.0, 2.0, 3.0]


@pytest.mark.parametrize(
    ("name", "values"),
    [("weight", (torch.ones(2).int(), torch.tensor(0.2))), ("threshold", (torch.ones(2), torch.tensor(True)))],
)
def test_tensors_that_are_not_floating_are_named(name, values):
    with pytest.raises(TypeError, match=f"soft_threshold: {name} .*torch"):
        soft_threshold(*values)


def test_the_threshold_is_the_share_of_the_rate_that_is_spent():
    total = quad(SCHEDULES["cosine"], 0, 1)[0]
    for progress in (0.0, 0.1, 0.5, 0.9, 1.0):
        assert lats(progress) == pytest.approx(quad(SCHEDULES["cosine"], 0, progress)[0] / total)


def test_training_is_iterative_shrinkage(dense, problem):
    """By hand: theta moves by the gradient at its soft threshold, whose level grows after each step."""
    x, y = problem
    config = SoftThresholdConfig(epochs=4, lr=0.2, threshold=0.3)
    trained = copy.deepcopy(dense)
    found = train_soft_threshold(trained, [(x, y)], config)
    theta = {name: p.detach().clone().requires_grad_() for name, p in dense.named_parameters()}
    optimizer = torch.optim.SGD(theta.values(), lr=0.2, momentum=0.9, nesterov=True)

    def cut(level):
        return {n: p.sign() * (p.abs() - level).clamp_min(0) if "weight" in n else p for n, p in theta.items()}

    for step in range(4):
        optimizer.param_groups[0]["lr"] = 0.2 * SCHEDULES["cosine"](step / 4)
        weights = {n: p.detach().requires_grad_() for n, p in cut(0.3 * lats(step / 4)).items()}
        loss = torch.nn.functional.cross_entropy(torch.func.functional_call(dense, weights, (x,)), y)
        for p, grad in zip(theta.values(), torch.autograd.grad(loss, weights.values()), strict=True):
            p.grad = grad
        optimizer.step()
    for name, weight in cut(0.3).items():
        assert torch.allclose(trained.get_parameter(name), weight, atol=1e-6)
    assert list(found) == ["0.weight", "2.weight"] and 0.1 < masks.sparsity(found) < 0.9
    assert all(torch.equal(found[name], trained.get_parameter(name) != 0) for name in found)
    assert trained.state_dict().keys() == dense.state_dict().keys()


def test_resumed_is_bit_for_bit_the_uninterrupted(resumes, loader):
    config = SoftThresholdConfig(epochs=3, lr=0.1, threshold=0.2, checkpoint_every=2)
    resumes(lambda model, **options: train_soft_threshold(model, loader, config, **options), stop_after=7)


def test_bad_input_is_named(dense, problem):
    with pytest.raises(ValueError, match=r"threshold.*got 0\.0"):
        SoftThresholdConfig(threshold=0.0)
    with pytest.raises(ValueError, match=r"lr.*got"):
        SoftThresholdConfig(lr=-1.0)
    with pytest.raises(ValueError, match="train_loader"):
        train_soft_threshold(dense, iter([problem]))
