"""Weights that several layers share, or that one layer reads in two directions."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import stochprune as sp
from tests.shrinking.blocks import Net, multihead, zero


def two_biases(self: Net, x: Tensor) -> Tensor:
    y = torch.tanh(self.a(x))
    return self.b(y) + self.c(y)


def both_directions(self: Net, x: Tensor) -> Tensor:
    y = torch.tanh(F.linear(torch.tanh(self.a(x)), self.b.weight, self.b.bias))
    return self.c(torch.tanh(y @ self.b.weight))


@pytest.mark.parametrize("forward, left", [(two_biases, 4), (both_directions, 6)])
def test_shared_weights(forward: Callable[..., Tensor], left: int) -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = Net(forward, a=zero(nn.Linear(4, 6), 0, 2), b=nn.Linear(6, 5), c=nn.Linear(6, 5))
        if forward is two_biases:
            model.c.weight = model.b.weight
        x, other = torch.randn(2, 4), torch.randn(3, 4)
    smaller = sp.shrink(model, x)
    assert smaller.a.out_features == left
    assert forward is both_directions or smaller.b.weight is smaller.c.weight
    with torch.no_grad():
        torch.testing.assert_close(smaller(other), model(other), rtol=1e-5, atol=1e-6)


def attention_twice(self: Net, x: Tensor) -> Tensor:
    for layer in (self.first, self.second):
        x = x + layer(x, x, x)[0]
    return x


@pytest.mark.parametrize("pruned", [False, True])
def test_attention_with_two_names_stays_one_layer(pruned: bool) -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        layer = multihead(batch_first=True) if pruned else nn.MultiheadAttention(12, 4, batch_first=True)
        model = Net(attention_twice, first=layer, second=layer).eval()
        x, other = torch.randn(2, 5, 12), torch.randn(3, 5, 12)
    smaller = sp.shrink(model, x)
    assert smaller.first is smaller.second
    assert (smaller.shrink_report.parameters[1] < smaller.shrink_report.parameters[0]) == pruned
    with torch.no_grad():
        torch.testing.assert_close(smaller(other), model(other), rtol=1e-5, atol=1e-6)
