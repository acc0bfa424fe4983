"""Code whose indices and numbers depend on the width of a layer: units stay where a cut would change what it does."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

import stochprune as sp
from tests.shrinking.blocks import Net, zero


def one_unit(self: Net, x: Tensor) -> Tensor:
    y = self.a(x)
    return self.out(y) + y[:, 3:4]


def a_slice(self: Net, x: Tensor) -> Tensor:
    return self.out(torch.cat([self.a(x), x], 1)[:, 2:8])


def divided_by_width(self: Net, x: Tensor) -> Tensor:
    y = self.a(x)
    return self.out(y / math.sqrt(y.shape[1]))


def a_loop_over_units(self: Net, x: Tensor) -> Tensor:
    y = self.a(x)
    parts = [y.sin() for _ in range(y.shape[1])]
    return self.out(y + parts[0]) + len(parts)


def parts_for_the_width(self: Net, x: Tensor) -> Tensor:
    y = self.a(x)
    z = self.out(y)
    return torch.cat([z.sin() for _ in range(y.shape[1])])[:2]


@pytest.mark.parametrize(
    ("forward", "function"),
    [
        (one_unit, "getitem"),
        (a_slice, "getitem"),
        (divided_by_width, "div"),
        (a_loop_over_units, "sin"),
        (parts_for_the_width, "linear"),
    ],
)
def test_units_stay_where_the_code_counts_them(forward: Callable[[Net, Tensor], Tensor], function: str) -> None:
    model = Net(forward, a=zero(nn.Linear(4, 6), 0, 1), out=nn.Linear(6, 2)).eval()
    smaller = sp.shrink(model, torch.randn(2, 4))
    assert [p.shape for p in smaller.parameters()] == [p.shape for p in model.parameters()]
    assert any(function in kept.reason for kept in smaller.shrink_report.kept)
    x = torch.randn(3, 4)
    assert torch.equal(model(x), smaller(x))


def test_another_unit_at_an_index_is_seen_on_inputs_that_do_not_show_it() -> None:
    """For these inputs unit 3 and those behind it are all 0 after the ReLU."""
    model = Net(lambda self, x: self.a(x).relu()[:, 3:4], a=zero(nn.Linear(4, 6), 0, 1)).eval()
    with torch.no_grad():
        model.a.bias[:] = -1
    x = 9 * torch.randn(20, 4)
    assert model(x).any()
    assert torch.equal(model(x), sp.shrink(model, torch.zeros(2, 4))(x))


def subtracts_in_place(self: Net, x: Tensor) -> Tensor:
    x -= 0.5
    return self.out(self.a(x).relu())


def test_a_model_that_writes_into_its_input_leaves_the_example_as_it_is() -> None:
    model = Net(subtracts_in_place, a=zero(nn.Linear(4, 6), 0, 1), out=nn.Linear(6, 2)).eval()
    example = torch.ones(2, 4)
    smaller = sp.shrink(model, example)
    assert torch.equal(example, torch.ones(2, 4)) and smaller.a.out_features < 6
    x = torch.randn(3, 4)
    torch.testing.assert_close(model(x.clone()), smaller(x.clone()))


def unneeded_in_place(self: Net, x: Tensor) -> Tensor:
    y = self.a(x)
    y.relu_()
    return self.out(x) + self.b(y)


def test_what_nothing_needs_may_be_written_in_place() -> None:
    """The example has no negative element, so it does not show whether the ReLU of ``a`` writes into ``x``."""
    model = Net(unneeded_in_place, a=nn.Linear(4, 6), b=zero(nn.Linear(6, 2), 0, 1), out=nn.Linear(4, 2)).eval()
    smaller = sp.shrink(model, torch.ones(2, 4))
    x = torch.randn(3, 4)
    torch.testing.assert_close(model(x), smaller(x))
    assert "a" in smaller.shrink_report.removed
