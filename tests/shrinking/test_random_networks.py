"""Random networks with random zeros give the same outputs, and shrinking them twice is shrinking them once."""

from __future__ import annotations

import random

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import stochprune as sp
from tests.shrinking.blocks import trained, zero

KINDS = "plain", "residual", "bottleneck", "depthwise", "concat", "excite", "norm", "group", "pool", "split"


def convolution(numbers: random.Random, *sizes: int, **options: object) -> nn.Module:
    """A convolution with 40 % zero filters and sometimes unused inputs."""
    layer = nn.Conv2d(*sizes, **options)
    zero(layer, *(i for i in range(len(layer.weight)) if numbers.random() < 0.4))
    if layer.groups == 1 and numbers.random() < 0.3:
        zero(layer, *(i for i in range(layer.in_channels) if numbers.random() < 0.3), columns=True)
    return layer


class Random(nn.Module):
    """One to five random blocks between a convolution and a linear layer, for images of 8 x 8."""

    def __init__(self, numbers: random.Random) -> None:
        super().__init__()
        width = numbers.choice((4, 6, 8))
        self.stem = convolution(numbers, 3, width, 3, padding=numbers.choice((0, 1)))
        self.kinds = [numbers.choice(KINDS) for _ in range(numbers.randint(1, 5))]
        self.activations = [numbers.choice((F.relu, F.gelu, torch.tanh, torch.sigmoid, F.relu6)) for _ in self.kinds]
        self.blocks = nn.ModuleList()
        for kind in self.kinds:
            self.blocks.append(nn.ModuleList(self._layers(numbers, kind, width)))
            width += 2 if kind == "concat" else 0
        self.out = nn.Linear(4 * width, 3)

    @staticmethod
    def _layers(numbers: random.Random, kind: str, width: int) -> list[nn.Module]:
        bias, padding = numbers.random() < 0.5, numbers.choice((0, 1))
        if kind in ("bottleneck", "excite"):
            return [convolution(numbers, width, 3, 1), convolution(numbers, 3, width, 1, bias=bias)]
        layers: dict[str, list[nn.Module]] = {
            "plain": [convolution(numbers, width, width, 3, padding=1, bias=bias)],
            "residual": [convolution(numbers, width, width, 3, padding=1), nn.BatchNorm2d(width)],
            "depthwise": [convolution(numbers, width, width, 3, padding=padding, groups=width)],
            "concat": [convolution(numbers, width, 2, 1)],
            "norm": [nn.BatchNorm2d(width)],
            "group": [nn.GroupNorm(2, width)],
            "split": [convolution(numbers, width, 2 * width, 1)],
        }
        return layers.get(kind, [])

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.stem(x))
        for kind, f, layers in zip(self.kinds, self.activations, self.blocks, strict=True):
            if kind == "residual":
                x = f(layers[1](layers[0](x)) + x)
            elif kind == "bottleneck":
                x = x + layers[1](f(layers[0](x)))
            elif kind == "concat":
                x = torch.cat([x, f(layers[0](x))], 1)
            elif kind == "excite":
                x = x * torch.sigmoid(layers[1](f(layers[0](x.mean((2, 3), keepdim=True)))))
            elif kind == "pool":
                x = F.max_pool2d(x, 2, 1, 1)
            elif kind == "split":
                a, b = layers[0](x).chunk(2, 1)
                x = a * f(b)
            else:
                x = f(layers[0](x))
        return self.out(F.adaptive_avg_pool2d(x, 2).flatten(1))


@pytest.mark.parametrize("seed", range(20))
def test_outputs_stay_on_other_inputs(seed: int) -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = trained(Random(random.Random(seed))).eval()
        smaller = sp.shrink(model, torch.randn(2, 3, 8, 8))
        report = smaller.shrink_report
        x = torch.randn(5, 3, 8, 8)
    with torch.no_grad():
        expected, found = model(x), smaller(x)
    assert (expected - found).abs().max() <= 1e-5 * expected.abs().max()
    assert sp.shrink(smaller, x).shrink_report.parameters == (report.parameters[1], report.parameters[1])
