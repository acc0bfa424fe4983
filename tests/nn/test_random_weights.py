"""Layers with random weights: they are torch's layers under the weights that the contract gives."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from torch import Tensor, nn

from stochprune import rng
from stochprune.models.initialise import initialised
from stochprune.nn import antithetic_gradients, batched_samples, convert, fused_masking, masked_layers
from stochprune.nn.random_weights import RandomConv2d, RandomLayer, RandomLinear, randomise_weights
from tests.nn.zoo import numbers

GEOMETRIES = {
    "conv1d": lambda: nn.Conv1d(4, 6, 3, stride=2, padding=1, dilation=2, groups=2),
    "conv2d": lambda: nn.Conv2d(4, 6, (2, 3), padding=(1, 0), bias=False),
    "conv3d": lambda: nn.Conv3d(4, 6, 2, padding=1),
    "depthwise": lambda: nn.Conv2d(4, 8, 3, padding=1, groups=4),
    "same": lambda: nn.Conv2d(4, 6, 2, padding="same"),  # pads one side alone
    "valid": lambda: nn.Conv1d(4, 6, 2, padding="valid"),
    "circular": lambda: nn.Conv2d(4, 6, 3, padding=1, padding_mode="circular", groups=2),
    "reflect same": lambda: nn.Conv1d(4, 6, 4, padding="same", padding_mode="reflect"),
}
KINDS = pytest.mark.parametrize("masked", [False, True], ids=["gaussian", "spike and slab"])


def random(construct, masked: bool) -> RandomLayer:
    """Return one layer whose means and standard deviations all differ."""
    layer = randomise_weights(convert(initialised(construct, 0), keep_kept=0.8), 0.1, masked=masked)
    assert isinstance(layer, RandomLayer)
    with torch.no_grad():
        layer.rho += 0.3 * numbers(*layer.rho.shape, seed=3)
        layer.mask_logits += 0.3 * numbers(*layer.rho.shape, seed=4)
    return layer


def drawn_weight(layer: RandomLayer, seed: int, draw: int) -> Tensor:
    """The weight of this address, formed by the reference of the contract."""
    rows, columns = layer.weight.flatten(1).shape
    at = {"seed": seed, "draw": draw, "stream": layer.stream}
    weight = layer.weight + layer.sigma.float() * rng.normal(rows, columns, **at).view_as(layer.weight).float()
    if layer.masked:
        uniforms = rng.uniform16(rows, columns, **at).view_as(layer.weight) & 0x7FFF
        weight = weight * (uniforms < rng.threshold_from_logits(layer.mask_logits).int())
    return weight.detach()


def place(layer: RandomLayer, seed: int, draw: int) -> None:
    layer.mask_seed.fill_(seed)
    layer.mask_draw.fill_(draw)


@KINDS
@pytest.mark.parametrize("construct", GEOMETRIES.values(), ids=GEOMETRIES)
@pytest.mark.filterwarnings("ignore:Using padding='same'")
def test_convolutions_are_torch_s_under_the_sampled_weights(construct, masked):
    dense, layer = initialised(construct, 0), random(construct, masked)
    x = numbers(3, 4, *[7] * (dense.weight.dim() - 2), seed=2)
    dense.weight, dense.bias = nn.Parameter(drawn_weight(layer, 5, 9)), layer.bias
    for given in (x, x[0]):  # with and without a batch
        place(layer, 5, 9)
        torch.testing.assert_close(layer(given), dense(given), rtol=1e-4, atol=1e-5)
    place(layer, 5, 8)
    with batched_samples(layer, 2):
        together = layer(torch.cat([x, x]))
    torch.testing.assert_close(together[3:], dense(x), rtol=1e-4, atol=1e-5)


@KINDS
@pytest.mark.parametrize("local", [False, True], ids=["weights", "pre-activations"])
def test_channels_last_changes_no_value_and_no_gradient(masked, local):
    found = []
    for memory in (torch.contiguous_format, torch.channels_last):
        layer = random(lambda: nn.Conv2d(4, 6, 3, padding="same", groups=2), masked).to(memory_format=memory)
        layer.local_reparameterisation = local
        place(layer, 5, 9)
        x = numbers(3, 4, 7, 7, seed=2).to(memory_format=memory).requires_grad_()
        y = layer(x)
        y.square().sum().backward()
        found.append([y, x.grad, layer.weight.grad, layer.rho.grad, layer.mask_logits.grad])
    assert (found[0][-1] is not None) == masked
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


@KINDS
@pytest.mark.parametrize("local", [False, True], ids=["weights", "pre-activations"])
def test_output_size_is_of_transposed_convolutions(masked, local):
    layer = random(lambda: nn.Conv2d(4, 6, 3), masked)
    layer.local_reparameterisation = local
    with pytest.raises(TypeError, match=r"RandomConv2d: output_size .*\[5, 5\]"):
        layer(numbers(1, 4, 7, 7), [5, 5])


def test_only_layers_with_a_mask_for_each_weight_become_random():
    model = initialised(lambda: nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4), nn.ConvTranspose1d(4, 4, 1)), 0)
    convert(convert(model, include="1.*", pattern="2:4"), include=["0.*", "2.*"], keep_kept=0.8)
    others = [model[1], model[2]]
    assert randomise_weights(model, 0.1, masked=True) is model
    assert type(model[0]) is RandomLinear and [model[1], model[2]] == others


@KINDS
def test_a_copy_samples_the_same_weights(masked):
    layer = random(lambda: nn.Conv2d(4, 6, 3, padding="same"), masked)
    x = numbers(2, 4, 5, 5)
    copies = [copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))]
    first = layer(x)
    assert all(type(copied) is RandomConv2d and torch.equal(copied(x), first) for copied in copies)
    assert not torch.equal(layer(x), first), "the next forward takes the next draw"


@KINDS
def test_evaluation_mode_and_fused_masking_draw_weights_too(masked):
    layer = random(lambda: nn.Linear(4, 3), masked).eval()
    x = numbers(2, 4)
    place(layer, 5, 9)
    with fused_masking(layer), torch.no_grad():
        y = layer(x)
    torch.testing.assert_close(y, x @ drawn_weight(layer, 5, 9).T + layer.bias.detach())
    with pytest.raises(ValueError, match="RandomLinear"):
        antithetic_gradients(layer, lambda m: m(x).sum(), draw=0)


def test_the_start_is_the_masked_layer():
    layer = convert(initialised(lambda: nn.Linear(4, 3), 0), keep_kept=0.8)
    slab, gaussian = (randomise_weights(copy.deepcopy(layer), 0.3, masked=masked) for masked in (True, False))
    assert torch.equal(slab.weight, layer.weight) and torch.equal(slab.mask_logits, layer.mask_logits)
    torch.testing.assert_close(gaussian.weight, 0.8 * layer.weight)
    for made in (slab, gaussian):
        torch.testing.assert_close(made.sigma, torch.full((3, 4), 0.3, dtype=torch.float64), rtol=1e-6, atol=0)
        assert made.weight is not layer.weight and [*masked_layers(made)] == ["weight"]
    assert slab.mask_logits.requires_grad and not gaussian.mask_logits.requires_grad
