"""Shrunk networks whose inputs grow, whose example has no batch, or that torch compiles."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch._dynamo import OptimizedModule

import stochprune as sp
from tests.shrinking.blocks import Net, assert_equal, zero


class _Memory:
    """An object that a model adds to, as to a cache of keys and values."""

    def __init__(self) -> None:
        self.seen: list[Tensor] = []

    def added(self, x: Tensor) -> Tensor:
        self.seen.append(x)
        return torch.cat(self.seen, 1)


def test_inputs_that_grow_are_as_given_in_each_run() -> None:
    def forward(self: Net, x: Tensor, memory: _Memory) -> Tensor:
        return self.down(memory.added(self.up(x)).relu())

    model = Net(forward, up=zero(nn.Linear(6, 8), 2, 5), down=nn.Linear(8, 6))
    x, memory = torch.randn(2, 3, 6), _Memory()
    smaller = sp.shrink(model, (x, memory))
    assert memory.seen == [] and smaller.up.weight.shape == (6, 6)
    torch.testing.assert_close(smaller(x, _Memory()), model(x, _Memory()))


@pytest.mark.parametrize("whole", [False, True])
def test_compiled_modules_are_shrunk_as_others(whole: bool) -> None:
    block = nn.Sequential(zero(nn.Linear(6, 8), 2, 5), nn.ReLU(), nn.Linear(8, 6))
    model = nn.Sequential(block if whole else torch.compile(block, backend="eager"), nn.Linear(6, 3))
    model, x = torch.compile(model, backend="eager") if whole else model, torch.randn(2, 6)
    smaller = sp.shrink(model, x)
    first = next(module for module in smaller.modules() if isinstance(module, nn.Linear))
    assert first.out_features == 6 and isinstance(smaller if whole else smaller[0], OptimizedModule)
    assert_equal(model, smaller, x)


def test_an_example_without_a_batch() -> None:
    model, x = nn.Sequential(zero(nn.Linear(6, 8), 2, 5), nn.ReLU(), nn.Linear(8, 6)), torch.randn(4, 6)
    smaller = sp.shrink(model, x[0])
    assert smaller[0].out_features == 6
    assert_equal(model, smaller, x)
