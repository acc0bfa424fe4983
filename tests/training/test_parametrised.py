"""parametrised: tied weights, the order of the parameters, and what the weights are afterwards."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from stochprune.training.parametrised import parametrised


class Scaled(nn.Module):
    """A parametrisation: twice the weight."""

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self.scale = nn.Parameter(weight.new_full((), 2.0))

    def forward(self, weight: Tensor) -> Tensor:
        return self.scale * weight


class Tied(nn.Module):
    """Two layers and the head have one weight, the head as its second parameter."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.layer, self.head = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 4)
        self.first.weight = self.head.weight = self.layer.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.relu(self.layer(self.first(x))))


@pytest.mark.parametrize("leave", [True, False])
def test_modules_that_share_a_weight_use_one_part(leave: bool) -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model, x = Tied(), torch.randn(3, 4)
    weight, names, before = model.layer.weight, [name for name, _ in model.named_parameters()], copy.deepcopy(model)
    doubled = copy.deepcopy(model)
    with torch.no_grad():
        doubled.layer.weight.mul_(2)
    with parametrised(model, Scaled, leave=leave) as parts:
        assert len(parts) == 1
        assert torch.equal(model(x), doubled(x))
        model(x).sum().backward()
    assert model.first.weight is model.layer.weight is model.head.weight is weight
    assert [name for name, _ in model.named_parameters()] == names
    assert list(model.head._parameters) == ["weight", "bias"]
    assert torch.equal(model(x), (doubled if leave else before)(x))
    assert next(iter(parts.values())).scale.grad is not None
