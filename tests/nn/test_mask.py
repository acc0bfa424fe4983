"""layer.mask: the mask of each draw is the one that the layer's forward runs under, for every layer type."""

from __future__ import annotations

import pytest
import torch

import stochprune as sp
from stochprune.nn.layer import MaskedLayer
from stochprune.nn.random_weights import RANDOM
from tests.nn.zoo import MODULES, ZOO, Applied, make

MASKED = [name for name in ZOO if not name.startswith(("random", "spike", "gated")) and name not in MODULES]


def test_only_random_weights_and_gates_are_left_out():
    random = {*RANDOM.values()}
    left = {name for name in ZOO if not isinstance(make(name)[0], MaskedLayer) or type(make(name)[0]) in random}
    assert left == ZOO.keys() - {*MASKED}


@pytest.mark.parametrize("name", sorted(MODULES))
def test_the_masks_of_a_module_are_those_of_its_forward(name):
    outer, x = make(name)
    masks = {weight: layer.mask(0) for weight, layer in sp.nn.masked_layers(outer.module).items()}
    torch.testing.assert_close(outer(x), Applied(outer.module.to_dense(masks), outer.inputs)(x))


@pytest.mark.parametrize("name", MASKED)
def test_the_mask_of_a_draw_is_the_one_of_the_forward(name):
    layer, x = make(name)
    masks = [layer.mask(draw) for draw in range(4)]
    assert int(layer.mask_draw) == 0
    for mask in masks:
        assert mask.dtype == torch.bool and mask.shape == layer.weight.shape
        torch.testing.assert_close(layer(x), layer.to_dense(mask)(x))
    assert any(not torch.equal(masks[0], other) for other in masks[1:])


@pytest.mark.parametrize("name", MASKED)
def test_without_a_draw_it_is_what_harden_cuts(name):
    layer, _ = make(name)
    with torch.no_grad():
        layer.mask_logits.view(-1)[0] = -1.0
    mask = layer.mask()
    assert mask.dtype == torch.bool and not bool(mask.all())
    assert torch.equal(layer.to_dense().weight != 0, mask)


def test_a_draw_out_of_range_is_named():
    with pytest.raises(ValueError, match=r"draw.*-1"):
        make("linear")[0].mask(-1)
