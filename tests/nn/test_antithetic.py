"""DisARM on whole models: the op's own estimate, under masks that the layers run with."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import stochprune as sp
from stochprune import functional
from stochprune.nn import antithetic_gradients, masked_layers


def network(pattern=None):
    generator = torch.Generator().manual_seed(3)
    layers = [nn.utils.skip_init(nn.Linear, *sizes) for sizes in ((8, 6), (6, 4))]
    for parameter in (p for layer in layers for p in layer.parameters()):
        nn.init.normal_(parameter, generator=generator)
    return sp.convert(nn.Sequential(layers[0], nn.Tanh(), layers[1]), pattern=pattern, keep_kept=0.7, seed=9)


@pytest.mark.parametrize("pattern", [None, "rows", "2x2"])
@pytest.mark.parametrize("estimator", ["disarm", "arm"])
def test_the_estimate_is_the_op_s(pattern, estimator, generator):
    model, x, y = network(pattern), torch.randn(5, 8, generator=generator), torch.arange(5) % 4
    layers = masked_layers(model)
    draws = [layer.mask_draw.item() for layer in layers.values()]
    got = antithetic_gradients(model, lambda m: F.cross_entropy(m(x), y), draw=4, estimator=estimator)
    assert [layer.mask_draw.item() for layer in layers.values()] == draws
    assert all(layer.given_weight is None and layer.mask_logits.grad is None for layer in layers.values())

    def by_hand(masks):
        h = x
        for name, layer in layers.items():
            mask = masks[name]
            rows, columns = (a // b for a, b in zip(layer.weight.shape, mask.shape, strict=True))
            mask = mask.repeat_interleave(rows, 0).repeat_interleave(columns, 1)
            h = F.linear(torch.tanh(h) if h is not x else h, layer.weight * mask, layer.bias)
        return F.cross_entropy(h, y)

    logits = {name: layer.mask_logits.detach() for name, layer in layers.items()}
    streams = {name: layer.stream for name, layer in layers.items()}
    expected = functional.antithetic_gradient(by_hand, logits, seed=9, draw=4, streams=streams, estimator=estimator)
    assert list(got) == list(expected)
    for name in got:
        torch.testing.assert_close(got[name], expected[name], rtol=1e-4, atol=1e-7)


def test_tied_layers_have_one_mask_and_one_gradient(generator):
    shared = nn.utils.skip_init(nn.Linear, 6, 6)
    other = nn.utils.skip_init(nn.Linear, 6, 6)
    other.weight = shared.weight
    nn.init.normal_(shared.weight, generator=generator)
    nn.init.zeros_(shared.bias), nn.init.zeros_(other.bias)
    model, seen = sp.convert(nn.Sequential(shared, nn.Tanh(), other)), []

    def loss(m):
        seen.append([layer.given_weight for layer in masked_layers(m).values()])
        return m(torch.ones(1, 6)).sum()

    assert list(antithetic_gradients(model, loss, draw=0)) == ["0.weight"]
    assert all(torch.equal(a, b) for a, b in seen)


def test_bad_input():
    with pytest.raises(ValueError, match="the model has no masked layer"):
        antithetic_gradients(nn.Identity(), lambda m: torch.zeros(()), draw=0)
    nm = sp.convert(nn.utils.skip_init(nn.Linear, 8, 4), pattern="2:4")
    with pytest.raises(ValueError, match="the masks of weight are not independent"):
        antithetic_gradients(nm, lambda m: torch.zeros(()), draw=0)
    model = network()
    model[0].mask_seed.fill_(1)
    with pytest.raises(ValueError, match="2 different seeds"):
        antithetic_gradients(model, lambda m: torch.zeros(()), draw=0)
    with pytest.raises(ValueError, match="finite scalar"):
        antithetic_gradients(network(), lambda m: m(torch.ones(1, 8)), draw=0)
    assert network()[0].given_weight is None
