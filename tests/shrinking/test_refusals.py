"""Models and inputs that shrink refuses."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import stochprune as sp
from tests.shrinking.blocks import Net


@pytest.mark.parametrize(
    "model, inputs, error",
    [
        ("linear", torch.zeros(1, 2), TypeError),
        (nn.Linear(2, 2), [], ValueError),
        (nn.Linear(2, 2), None, ValueError),
        (nn.Linear(2, 2), torch.zeros(0, 2), ValueError),
        (nn.Linear(2, 2), torch.zeros(1, 3), ValueError),
        (Net(lambda self, x: None, a=nn.Linear(2, 2)), torch.zeros(1, 2), ValueError),
        (nn.Sequential(sp.nn.MaskedLinear(2, 2, stream=1)), torch.zeros(1, 2), ValueError),
    ],
)
def test_refusals(model, inputs, error) -> None:
    with pytest.raises(error, match="shrink"):
        sp.shrink(model, inputs)
