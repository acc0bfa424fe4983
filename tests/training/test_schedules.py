"""Learning rates over a training, and where they continue after a resumption."""

from __future__ import annotations

import copy
import math

import pytest
import torch

from stochprune.training import WeightConfig, train_weights
from stochprune.training.schedules import SCHEDULES, follow


@pytest.mark.parametrize(
    ("name", "points"),
    [
        ("constant", {0.0: 1, 0.9: 1}),
        ("linear", {0.0: 1, 0.25: 0.75}),
        ("cosine", {0.0: 1, 0.5: 0.5, 1 / 3: 0.75}),
        ("steps", {0.0: 1, 0.49: 1, 0.5: 0.1, 0.75: 0.01}),
    ],
)
def test_factors(name, points):
    for progress, factor in points.items():
        assert SCHEDULES[name](progress) == pytest.approx(factor)


def test_rates_are_set_before_each_step():
    weight = torch.nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([weight], lr=2.0)
    follow(optimizer, SCHEDULES["linear"], 4)
    seen = []
    for _ in range(4):
        before = weight.item()
        weight.grad = torch.ones(1)
        optimizer.step()
        seen.append(before - weight.item())
    assert seen == pytest.approx([2.0, 1.5, 1.0, 0.5])


@pytest.mark.parametrize("schedule", ["cosine", "steps"])
def test_resumed_is_bit_for_bit_the_uninterrupted(resumes, loader, schedule):
    config = WeightConfig(3, 0.1, 2, "sgd", 1e-3, schedule)
    resumes(lambda model, **options: train_weights(model, loader, config, **options), stop_after=5)


def test_sgd_is_torchs_with_nesterov_and_decay(dense, problem):
    x, y = problem
    config = WeightConfig(2, 0.1, optimizer="sgd", weight_decay=0.01, schedule="cosine")
    mine = copy.deepcopy(dense)
    train_weights(mine, [(x, y)], config)
    optimizer = torch.optim.SGD(dense.parameters(), lr=0.1, momentum=0.9, nesterov=True, weight_decay=0.01)
    for step in range(2):
        optimizer.param_groups[0]["lr"] = 0.05 * (1 + math.cos(math.pi * step / 2))
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(dense(x), y).backward()
        optimizer.step()
    assert all(torch.allclose(a, b) for a, b in zip(mine.parameters(), dense.parameters(), strict=True))


def test_bad_values_are_named(dense, problem):
    with pytest.raises(ValueError, match=r"optimizer.*got 'lion'"):
        WeightConfig(optimizer="lion")
    with pytest.raises(ValueError, match=r"weight_decay.*got -0\.1"):
        WeightConfig(weight_decay=-0.1)
    with pytest.raises(ValueError, match="train_loader"):
        train_weights(dense, iter([problem]), WeightConfig(schedule="linear"))
