"""Small networks in float64 and their data."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import skip_init

from stochprune import models

Batches = list[tuple[Tensor, Tensor]]


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def correlated(examples: int, features: int, seed: int = 0) -> Tensor:
    """Random inputs [examples, features] whose features are correlated."""
    return normal(examples, features, seed=seed) @ normal(features, features, seed=seed + 1)


class ConvNet(nn.Module):
    """A convolution, batch normalisation and a linear layer on [n, 1, 4, 4]."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = skip_init(nn.Conv2d, 1, 3, 3, dtype=torch.float64)
        self.norm = nn.BatchNorm2d(3, dtype=torch.float64)
        self.head = skip_init(nn.Linear, 12, 3, dtype=torch.float64)
        for seed, parameter in enumerate(p for layer in (self.conv, self.head) for p in layer.parameters()):
            nn.init.normal_(parameter, std=0.5, generator=torch.Generator().manual_seed(seed))

    def forward(self, x: Tensor) -> Tensor:
        return self.head(F.softplus(self.norm(self.conv(x))).flatten(1))


def smooth_mlp() -> nn.Module:
    """Softplus, not ReLU: second derivatives exist everywhere."""
    network = models.mlp((4, 5, 3), seed=1).double()
    network.relu1 = nn.Softplus()
    return network


@pytest.fixture
def layer() -> nn.Linear:
    return models.mlp((6, 4), seed=2).double().fc1


@pytest.fixture(params=["mlp", "conv"])
def smooth(request: pytest.FixtureRequest) -> tuple[nn.Module, Batches]:
    """A smooth network and three batches of different sizes."""
    model = smooth_mlp() if request.param == "mlp" else ConvNet()
    x, y = normal(12, *((4,) if request.param == "mlp" else (1, 4, 4))), torch.arange(12) % 3
    return model, list(zip(x.split([3, 4, 5]), y.split([3, 4, 5]), strict=True))


@pytest.fixture
def mlp() -> tuple[nn.Module, Batches]:
    x, y = normal(12, 4), torch.arange(12) % 3
    return smooth_mlp(), list(zip(x.split([3, 4, 5]), y.split([3, 4, 5]), strict=True))


def central_difference(function: Callable[[], float], weight: Tensor, index: int, step: float) -> float:
    """The derivative of ``function`` by an entry of ``weight``, which is left as it was."""
    with torch.no_grad():
        flat, values = weight.view(-1), []
        original = flat[index].item()
        for sign in (1, -1):
            flat[index] = original + sign * step
            values.append(function())
        flat[index] = original
    return (values[0] - values[1]) / (2 * step)


@pytest.fixture
def derivative() -> Callable[[Callable[[], float], Tensor, int, float], float]:
    return central_difference
