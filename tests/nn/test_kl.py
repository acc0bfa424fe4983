"""layer_kl: every mask counts once, under its own name."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import stochprune as sp
from stochprune.nn.kl import layer_kl


def linear(inputs, outputs):
    return nn.utils.skip_init(nn.Linear, inputs, outputs)


@pytest.fixture
def model():
    return sp.convert(nn.Sequential(linear(5, 4), nn.ReLU(), linear(4, 3)), keep_kept=0.8)


def priors(model, shift=0.0):
    return {name: layer.mask_logits.detach() + shift for name, layer in sp.nn.masked_layers(model).items()}


def test_layers_and_their_sum(model):
    kl = layer_kl(model, priors(model, 1.0))
    assert list(kl) == ["0.weight", "2.weight"]
    q, p = 0.8, torch.sigmoid(torch.logit(torch.tensor(0.8).double()) + 1).item()
    one = q * torch.tensor(q / p).log().item() + (1 - q) * torch.tensor((1 - q) / (1 - p)).log().item()
    assert [value.item() for value in kl.values()] == pytest.approx([20 * one, 12 * one], rel=1e-3)
    sum(kl.values()).backward()
    assert all(layer.mask_logits.grad.lt(0).all() for layer in sp.nn.masked_layers(model).values())


def test_numbers_as_prior(model):
    assert layer_kl(model, {"0.weight": 0.0, "2.weight": torch.zeros(4)})["0.weight"] > 0


def test_tied_masks_count_once():
    first = linear(4, 4)
    second = linear(4, 4)
    second.weight = first.weight
    model = sp.convert(nn.Sequential(first, second))
    assert list(layer_kl(model, priors(model, 1.0))) == ["0.weight"]
    assert list(layer_kl(model, {"0.weight": 0.0})) == ["0.weight"]


def test_bad_input(model):
    with pytest.raises(ValueError, match=r"'x'.* 0\.weight, 2\.weight"):
        layer_kl(model, {**priors(model), "x": 0.0})
    with pytest.raises(ValueError, match=r"layer_kl: prior_logits .*2\.weight"):
        layer_kl(model, {"0.weight": 0.0})
    with pytest.raises(ValueError, match=r"Linear .*masked layer"):
        layer_kl(linear(2, 2), {})
