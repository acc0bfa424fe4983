"""DisARM on whole models: the op's own estimate, under masks that the layers run with."""

from __future__ import annotations

import itertools

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import stochprune as sp
from stochprune import functional, rng
from stochprune.nn import antithetic_gradients, masked_layers
from tests.nn.zoo import ZOO, make, plain


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
    assert all(layer.weight_override is None and layer.mask_logits.grad is None for layer in layers.values())

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
        seen.append([layer.weight_override for layer in masked_layers(m).values()])
        return m(torch.ones(1, 6)).sum()

    assert list(antithetic_gradients(model, loss, draw=0)) == ["0.weight"]
    assert all(torch.equal(a, b) for a, b in seen)


def test_bad_input():
    with pytest.raises(ValueError, match=r"Identity .*masked layer"):
        antithetic_gradients(nn.Identity(), lambda m: torch.zeros(()), draw=0)
    nm = sp.convert(nn.utils.skip_init(nn.Linear, 8, 4), pattern="2:4")
    with pytest.raises(ValueError, match=r"weight.*NMMaskedLinear"):
        antithetic_gradients(nm, lambda m: torch.zeros(()), draw=0)
    model = network()
    model[0].mask_seed.fill_(1)
    with pytest.raises(ValueError, match=r"2 .*seeds"):
        antithetic_gradients(model, lambda m: torch.zeros(()), draw=0)
    with pytest.raises(ValueError, match="scalar"):
        antithetic_gradients(network(), lambda m: m(torch.ones(1, 8)), draw=0)
    assert network()[0].weight_override is None


# Layers with one independent decision for each logit; the others are refused.
COUNTED = [name for name in ZOO if not name.startswith(("n:m", "random", "spike"))]
DRAWS = 120


def like_logits(values, module):
    """Values of all logits, one after the other, by weight name in the shapes of the logits."""
    logits = {name: layer.mask_logits for name, layer in masked_layers(module).items()}
    parts = values.split([logit.numel() for logit in logits.values()])
    return {name: part.view(logits[name].shape) for name, part in zip(logits, parts, strict=True)}


def exact_gradients(module, loss):
    """q (1 - q) (E[loss | kept] - E[loss | pruned]) of each logit, by counting all masks, through plain layers."""
    logits = torch.cat([layer.mask_logits.detach().flatten() for layer in masked_layers(module).values()])
    count = len(logits)
    assert count <= 8
    q = rng.threshold_from_logits(logits).double() / rng.LEVELS
    means = torch.zeros(2, count, dtype=torch.float64)
    for bits in itertools.product((0.0, 1.0), repeat=count):
        kept = torch.tensor(bits).bool()
        probabilities = torch.where(kept, q, 1 - q)
        value = float(loss(plain(module, like_logits(kept, module))))
        for i in range(count):
            others = probabilities.prod() / probabilities[i]
            means[int(bits[i]), i] += others * value
    return like_logits(q * (1 - q) * (means[1] - means[0]), module)


@pytest.mark.parametrize("mode", ["train", "eval"])
@pytest.mark.parametrize("name", COUNTED)
def test_the_mean_over_draws_is_the_exact_gradient(name, mode):
    module, x = make(name)
    module.train(mode == "train")
    layers = masked_layers(module)
    with torch.no_grad():
        target = torch.ones_like(module(x))
    for layer in layers.values():
        layer.mask_draw.fill_(7)

    def loss(m):
        return (m(x) - target).square().mean()

    with torch.no_grad():
        exact = exact_gradients(module, loss)
        draws = [antithetic_gradients(module, loss, draw=draw) for draw in range(DRAWS)]
    assert all(int(layer.mask_draw) == 7 and layer.weight_override is None for layer in layers.values())
    for key, expected in exact.items():
        found = torch.stack([grads[key].double() for grads in draws])
        error = (found.mean(0) - expected).abs()
        assert bool((error <= 5 * found.std(0) / DRAWS**0.5 + 1e-6).all()), (key, found.mean(0), expected)
    assert max(float(expected.abs().max()) for expected in exact.values()) > 1e-3  # there is something to be found


@pytest.mark.parametrize("name", COUNTED)
def test_a_loss_that_raises_leaves_the_layers_as_they_were(name):
    module, x = make(name)
    layer = next(iter(masked_layers(module).values()))

    def loss(m):
        m(x)
        raise KeyError("the loss")

    with pytest.raises(KeyError, match="the loss"):
        antithetic_gradients(module, loss, draw=0)
    assert layer.weight_override is None and int(layer.mask_draw) == 0
    assert not torch.equal(module(x), module(x)) or int(layer.mask_draw) == 2  # and it samples a new mask


@pytest.mark.parametrize("name", sorted(set(ZOO) - set(COUNTED)))
def test_layers_of_other_randomness_are_refused_by_name(name):
    module, x = make(name)
    layer = next(iter(masked_layers(module).values()))
    with pytest.raises(ValueError, match=type(layer).__name__):
        antithetic_gradients(module, lambda m: m(x).sum(), draw=0)
    assert int(layer.mask_draw) == 0


def test_inside_fused_masking_its_masks_come_back():
    model, x = network(), torch.ones(2, 8)
    with sp.nn.fused_masking(model):
        before = model(x)
        antithetic_gradients(model, lambda m: m(x).square().mean(), draw=3)
        assert torch.equal(model(x), before)
    assert [int(layer.mask_draw) for layer in masked_layers(model).values()] == [1, 1]
