"""Masked convolutional layers against torch's own, in every padding mode, there and back."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

import stochprune as sp
from stochprune.nn import MaskedConv2d

LAYERS = {
    "1d": (nn.Conv1d, (3, 6, 5), {"padding": 2, "padding_mode": "circular"}),
    "2d": (nn.Conv2d, (4, 6, (3, 2)), {"stride": (2, 1), "padding": (1, 0), "groups": 2}),
    "2d reflect": (nn.Conv2d, (3, 6, 3), {"padding": (2, 1), "padding_mode": "reflect", "bias": False}),
    "2d replicate, same": (
        nn.Conv2d,
        (3, 6, (3, 2)),
        {"padding": "same", "padding_mode": "replicate", "dilation": (1, 3)},
    ),
    "2d zeros, same": (nn.Conv2d, (3, 6, (3, 2)), {"padding": "same", "dilation": (2, 1)}),
    "2d valid, reflect": (nn.Conv2d, (3, 6, 3), {"padding": "valid", "padding_mode": "reflect"}),
    "3d": (nn.Conv3d, (2, 4, 2), {"stride": 2}),
    "transposed 1d": (nn.ConvTranspose1d, (3, 6, 4), {"stride": 3, "padding": 1}),
    "transposed 2d": (nn.ConvTranspose2d, (4, 6, 3), {"stride": 2, "output_padding": 1, "groups": 2, "dilation": 2}),
    "transposed 3d": (nn.ConvTranspose3d, (2, 4, 2), {"bias": False}),
}


@pytest.fixture(params=LAYERS)
def dense(request, generator):
    kind, sizes, options = LAYERS[request.param]
    layer = nn.utils.skip_init(kind, *sizes, **options)
    for p in layer.parameters():
        nn.init.normal_(p, generator=generator)
    return layer


@pytest.fixture
def x(dense, generator):
    return torch.randn(2, dense.in_channels, *(7, 6, 5)[: len(dense.kernel_size)], generator=generator)


def masked_copy(dense, weight):
    other = copy.deepcopy(dense)
    other.weight = nn.Parameter(weight)
    return other


def test_forward_is_the_dense_layer_of_the_masked_weight(dense, x):
    weight = dense.weight
    layer = sp.convert(dense, seed=2**64 - 1)
    with torch.no_grad():
        layer.mask_logits.zero_()
    assert layer.weight is weight and type(layer).__name__ == f"Masked{type(dense).__name__}"
    threshold = sp.rng.threshold_from_logits(layer.mask_logits).flatten(1)
    for draw in range(2):
        keep = sp.keep_mask(threshold, seed=2**64 - 1, draw=draw, stream=layer.stream).view(weight.shape)
        torch.testing.assert_close(layer(x), masked_copy(dense, weight * keep)(x))
    assert int(layer.mask_draw) == 2


def test_evaluation_and_hardening(dense, x, generator):
    keep = torch.rand(dense.weight.shape, generator=generator).clamp(0.01, 0.99)
    layer = sp.nn.selection.masked_type(dense).from_dense(dense, keep).eval()
    expected = masked_copy(dense, dense.weight * (keep >= 0.5))
    torch.testing.assert_close(layer(x), expected(x))
    plain = layer.to_dense()
    assert type(plain) is type(dense) and repr(plain) == repr(dense) and not plain.training
    assert torch.equal(plain.weight, expected.weight) and torch.equal(plain(x), expected(x))
    assert repr(layer).startswith(f"Masked{repr(dense)[:-1]}, keep=")


def test_gradients_of_the_mean_weights_are_those_of_the_dense_layer(dense, x, generator):
    keep = torch.rand(dense.weight.shape, generator=generator).clamp(0.01, 0.99)
    layer = sp.nn.selection.masked_type(dense).from_dense(dense, keep, estimator="expected")
    other = masked_copy(dense, (dense.weight * torch.sigmoid(layer.mask_logits)).detach())
    layer(x).sin().sum().backward()
    other(x).sin().sum().backward()
    torch.testing.assert_close(layer.weight.grad, other.weight.grad * torch.sigmoid(layer.mask_logits))
    slope = torch.sigmoid(layer.mask_logits) * torch.sigmoid(-layer.mask_logits)
    torch.testing.assert_close(layer.mask_logits.grad, other.weight.grad * layer.weight * slope)


def test_transposed_convolutions_take_an_output_size(generator):
    dense = nn.utils.skip_init(nn.ConvTranspose2d, 3, 4, 3, stride=2)
    for p in dense.parameters():
        nn.init.normal_(p, generator=generator)
    x = torch.randn(2, 3, 5, 4, generator=generator)
    layer = sp.convert(dense)
    assert layer(x, output_size=(12, 9)).shape == (2, 4, 12, 9)
    with pytest.raises(ValueError, match="size"):
        layer(x, output_size=(20, 9))


@pytest.mark.parametrize("dimensions", [1, 2, 3])
def test_named_constructors(dimensions, generator):
    kind = getattr(nn, f"Conv{dimensions}d")
    masked = getattr(sp.nn, f"MaskedConv{dimensions}d")
    dense = nn.utils.skip_init(kind, 2, 3, 3)
    nn.init.normal_(dense.weight, generator=generator), nn.init.zeros_(dense.bias)
    layer = getattr(masked, f"from_conv{dimensions}d")(dense, 0.25, seed=3, stream=4, estimator="concrete")
    assert (layer.stream, int(layer.mask_seed), layer.estimator) == (4, 3, "concrete")
    assert type(getattr(layer, f"to_conv{dimensions}d")(torch.ones_like(dense.weight, dtype=torch.bool))) is kind


def test_a_layer_of_its_own_is_a_function_of_seed_and_stream():
    make = lambda **options: MaskedConv2d(3, 8, 5, padding=2, keep=0.5, **options)  # noqa: E731
    layer = make(seed=3)
    assert torch.equal(layer.weight, make(seed=3).weight) and not torch.equal(layer.weight, make(seed=4).weight)
    bound = 75**-0.5
    assert layer.weight.abs().max() <= bound and layer.weight.abs().max() > 0.9 * bound
    assert layer.weight.requires_grad and layer(torch.ones(1, 3, 6, 6)).shape == (1, 8, 6, 6)


def test_autocast_and_channels_last(generator):
    layer = MaskedConv2d(8, 8, 3, keep=0.5)
    x = torch.randn(2, 8, 6, 6, generator=generator)
    copied = copy.deepcopy(layer).to(memory_format=torch.channels_last)
    torch.testing.assert_close(copied(x.to(memory_format=torch.channels_last)), layer(x))
    with torch.autocast("cpu", torch.bfloat16):
        assert layer(x).dtype == torch.bfloat16
