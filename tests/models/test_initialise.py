"""Kaiming normal initialisation from a local generator."""

from __future__ import annotations

import math

import pytest
import torch
from scipy import stats

from stochprune.models.initialise import kaiming_normal_
from stochprune.seeding import generator


@pytest.mark.parametrize(("shape", "fan_in"), [((300, 100), 100), ((40, 20, 3, 3), 180)])
def test_weights_are_normal_with_variance_two_over_fan_in(shape: tuple[int, ...], fan_in: int) -> None:
    weight = kaiming_normal_(torch.empty(shape), generator(0, "test"))
    # The seed is fixed, so the test either always passes or always fails.
    assert stats.kstest(weight.flatten().numpy() / math.sqrt(2 / fan_in), "norm").pvalue > 0.01


def test_the_given_weight_is_filled_in_its_own_dtype() -> None:
    weight = torch.nn.Parameter(torch.zeros(4, 5, dtype=torch.bfloat16))
    assert kaiming_normal_(weight, generator(0, "test")) is weight
    assert weight.dtype == torch.bfloat16 and weight.requires_grad and bool((weight != 0).any())
