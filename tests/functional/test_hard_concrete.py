"""Hard concrete masks: the closed forms against sampled masks, and in the layers."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import stochprune as sp
from stochprune.functional import expected_l0, hard_concrete_gate, masked_linear

V = (torch.arange(32768, dtype=torch.float64) + 0.5) / 32768  # every uniform of the contract


@pytest.mark.parametrize("temperature", [0.3, 2 / 3, 1.5])
def test_expected_l0_counts_the_masks_that_are_not_zero(temperature, generator):
    logits = 3 * torch.randn(40, generator=generator, dtype=torch.float64)
    soft = torch.sigmoid((logits[:, None] - torch.logit(V)) / temperature)
    alive = (soft * 1.2 - 0.1 > 0).double().mean(1)  # the probability under all the uniforms
    assert abs(expected_l0(logits, temperature) - alive.sum()) < 40 / 32768
    assert torch.autograd.gradcheck(lambda t: expected_l0(t, temperature), logits.requires_grad_())


def test_drawn_masks_are_zero_as_often_as_expected():
    logits = torch.full((64, 128), -0.5)
    eye = torch.eye(128)
    at = {"seed": 1, "draw": 2, "stream": 3, "estimator": "hard_concrete", "temperature": 0.5}
    z = masked_linear(eye, torch.ones(64, 128), logits, **at)
    count, expected = (z > 0).sum(), expected_l0(logits, 0.5)
    p = expected / logits.numel()
    assert abs(count - expected) < 4 * (logits.numel() * p * (1 - p)).sqrt()
    assert z.min() == 0 and z.max() == 1  # both ends have mass


def test_the_gate_is_the_stretched_sigmoid():
    """1.2 sigmoid(logit) - 0.1 between the clamps, which it reaches at -ln 11 and ln 11."""
    means = torch.tensor([0.01, 1 / 12, 0.1, 0.25, 0.5, 0.75, 0.9, 11 / 12, 0.99], dtype=torch.float64)
    gate = hard_concrete_gate(torch.logit(means))
    expected = torch.tensor([0, 0, 0.02, 0.2, 0.5, 0.8, 0.98, 1, 1], dtype=torch.float64)
    torch.testing.assert_close(gate, expected, rtol=0, atol=1e-12)
    assert gate[0] == 0 and gate[-1] == 1


def test_evaluation_and_hardening_use_the_gate(generator):
    layer = sp.nn.MaskedLinear(30, 8, estimator="hard_concrete", keep=0.5)
    with torch.no_grad():
        layer.mask_logits.copy_(4 * torch.randn(8, 30, generator=generator))
    x = torch.randn(5, 30, generator=generator)
    gate = hard_concrete_gate(layer.mask_logits)
    expected = nn.functional.linear(x, layer.weight * gate, layer.bias)
    torch.testing.assert_close(layer.eval()(x), expected)
    hard = sp.harden(layer)
    torch.testing.assert_close(hard(x), expected)
    assert torch.equal(hard.weight != 0, gate > 0)


@pytest.mark.parametrize(
    "arguments, error, message",
    [
        ((torch.ones(2, dtype=torch.int64),), TypeError, "logits.*int64"),
        ((torch.ones(2), -1.0), ValueError, "temperature.*got -1.0"),
    ],
)
def test_bad_input(arguments, error, message):
    with pytest.raises(error, match=message):
        expected_l0(*arguments)
