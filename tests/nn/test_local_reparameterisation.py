"""Local reparameterisation as a mode of layers: the ops' values at the layers' addresses, whatever is around them."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from torch import nn

from stochprune import functional
from stochprune.models.initialise import initialised
from stochprune.nn import batched_samples, convert, fused_masking, masked_layers, sampling
from stochprune.nn.local_reparameterisation import reparameterise_locally
from stochprune.nn.random_weights import randomise_weights
from tests.nn.zoo import ZOO, make, numbers

SERVED = {name for name in ZOO if name.startswith(("linear", "conv", "random", "spike", "gated"))}


def network() -> nn.Module:
    def construct() -> nn.Module:
        conv = nn.Conv2d(2, 4, 3, padding="same", groups=2)
        return nn.Sequential(conv, nn.ReLU(), nn.Flatten(), nn.Linear(36, 3))

    return convert(initialised(construct, 0), keep_kept=0.8)


@pytest.mark.parametrize("name", ZOO)
def test_every_layer_is_served_or_refused_by_name(name):
    module, x = make(name)
    layers = masked_layers(module)
    if name not in SERVED:
        key, layer = next(iter(layers.items()))
        with pytest.raises(ValueError, match=f"{key} is a {type(layer).__name__}"):
            reparameterise_locally(layers)
        assert not layer.local_reparameterisation
        return
    masks = copy.deepcopy(module)
    reparameterise_locally(layers)
    assert not torch.equal(module(x), masks(x))
    reparameterise_locally(layers, False)
    assert torch.equal(module(x), masks(x)), "both have drawn once"


@pytest.mark.parametrize("masked", [None, False, True], ids=["masks", "gaussian", "spike and slab"])
def test_a_layer_runs_the_op_at_its_address(masked):
    model, x = convert(initialised(lambda: nn.Linear(4, 3), 0), keep_kept=0.8, seed=7), numbers(5, 4)
    layer = model if masked is None else randomise_weights(model, 0.3, masked=masked)
    reparameterise_locally({"weight": layer})
    layer.mask_draw.fill_(6)
    logits, rho = None if masked is False else layer.mask_logits, None if masked is None else layer.rho
    at = {"seed": 7, "draw": 6, "stream": layer.stream}
    expected = functional.local_reparameterised_linear(x, layer.weight, logits, rho, layer.bias, **at)
    assert torch.equal(layer(x), expected) and layer.mask_draw.item() == 7


def test_examples_differ_where_one_network_would_give_the_same():
    model, x = network(), numbers(1, 2, 3, 3).expand(4, -1, -1, -1)
    reparameterise_locally(masked_layers(model))
    y = model(x)
    assert not torch.equal(y[0], y[1])
    with sampling(model, False):
        y = model(x)
    assert torch.equal(y[0], y[1]), "what thresholds draws nothing"


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))])
def test_a_copy_keeps_the_mode_and_goes_its_own_way(copied):
    model, x = network(), numbers(4, 2, 3, 3)
    reparameterise_locally(masked_layers(model))
    other, first = copied(model), model(x)
    reparameterise_locally(masked_layers(model), False)
    assert torch.equal(other(x), first)


def test_fused_masking_leaves_these_layers_alone():
    model, x = network(), numbers(4, 2, 3, 3)
    reparameterise_locally(masked_layers(model))
    plain = copy.deepcopy(model)(x)
    with fused_masking(model):
        assert torch.equal(model(x), plain)


def test_batched_samples_are_refused():
    model = network()
    reparameterise_locally(masked_layers(model))
    with pytest.raises(ValueError, match=r"0\.weight"), batched_samples(model, 2):
        pass
