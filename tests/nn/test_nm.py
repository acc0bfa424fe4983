"""Layers under N:M masks: sampling, evaluation and hardening, in a model and alone."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.sparse._semi_structured_conversions import (
    sparse_semi_structured_from_dense_cutlass,
    sparse_semi_structured_to_dense_cutlass,
)

import stochprune as sp
from stochprune import patterns
from stochprune.functional import nm_keep_mask, nm_kl
from stochprune.nn import NMMaskedLinear, layer_kl, masked_layers, sampling, semi_structured
from stochprune.nn.semi_structured import is_two_of_four
from stochprune.training import FinetuneConfig, finetune


def model():
    generator = torch.Generator().manual_seed(3)
    layers = [nn.utils.skip_init(nn.Linear, *sizes) for sizes in ((16, 12), (12, 8))]
    for parameter in (p for layer in layers for p in layer.parameters()):
        nn.init.normal_(parameter, std=0.5, generator=generator)
    return nn.Sequential(layers[0], nn.ReLU(), layers[1])


@pytest.mark.parametrize("pattern", ["2:4", "1:4"])
def test_forward_samples_the_contract_s_masks(pattern, generator):
    layer = NMMaskedLinear(16, 12, pattern=pattern, keep=0.5, seed=7, stream=3)
    with torch.no_grad():
        layer.mask_logits.normal_(generator=generator)
    x = torch.randn(5, 16, generator=generator)
    for draw in range(2):
        kept = nm_keep_mask(layer.mask_logits.detach(), pattern=pattern, seed=7, draw=draw, stream=3)
        torch.testing.assert_close(layer(x), F.linear(x, layer.weight * kept, layer.bias))
    assert f"pattern={pattern}" in repr(layer)


def test_evaluation_keeps_the_most_probable_pattern_and_hardening_makes_it_so(generator):
    masked = sp.convert(model(), pattern="2:4")
    for layer in masked_layers(masked).values():
        assert isinstance(layer, NMMaskedLinear)
        with torch.no_grad():
            layer.mask_logits.normal_(generator=generator)
        table = patterns.kept(2, 4, layer.mask_logits)
        best = table[patterns.log_probabilities(patterns.groups(layer.mask_logits, 4), 2).argmax(-1)].flatten(-2)
        assert torch.equal(layer.gate(), best.bool())
    x = torch.randn(5, 16, generator=generator)
    expected = masked.eval()(x)
    hard = sp.harden(masked)
    torch.testing.assert_close(hard(x), expected)
    for layer in (hard[0], hard[2]):
        assert type(layer) is nn.Linear
        assert (patterns.groups(layer.weight.detach(), 4).ne(0).sum(-1) == 2).all()


def test_masks_of_the_pattern_stay_the_most_probable(generator):
    dense = model()
    scores = {name: p.detach().abs() for name, p in dense.named_parameters() if p.dim() == 2}
    masks = sp.masks.n_of_m(scores, 2, 4)
    masked = sp.convert(dense, masks, pattern="2:4")
    for name, layer in masked_layers(masked).items():
        assert torch.equal(layer.gate(), masks[name])


def test_kl_of_a_model(generator):
    masked = sp.convert(model(), pattern="2:4")
    priors = {name: layer.mask_logits.detach().clone() for name, layer in masked_layers(masked).items()}
    for layer in masked_layers(masked).values():
        with torch.no_grad():
            layer.mask_logits.add_(torch.randn(layer.mask_logits.shape, generator=generator))
    for name, kl in layer_kl(masked, priors).items():
        assert kl == nm_kl(masked_layers(masked)[name].mask_logits, priors[name], "2:4") and kl > 0


def test_a_converted_model_trains_and_resumes_bit_for_bit(generator):
    x, y = torch.randn(32, 16, generator=generator), torch.arange(32) % 8
    masked = sp.convert(model(), pattern="2:4")
    before = {name: layer.mask_logits.detach().clone() for name, layer in masked_layers(masked).items()}
    finetune(masked, [(x, y)] * 5, FinetuneConfig(epochs=4))
    assert all(not torch.equal(before[n], layer.mask_logits) for n, layer in masked_layers(masked).items())
    twin = sp.convert(model(), pattern="2:4")
    twin.load_state_dict(masked.state_dict())
    with sampling(masked), sampling(twin), sampling(copied := copy.deepcopy(masked)):
        out = masked(x)
        assert torch.equal(out, twin(x)) and torch.equal(out, copied(x))


def test_hardened_weights_in_torch_s_compressed_layout(generator):
    layer = sp.harden(NMMaskedLinear(64, 32, bias=False, keep=0.5, dtype=torch.float16))
    assert is_two_of_four(layer.weight)
    values, metadata = sparse_semi_structured_from_dense_cutlass(layer.weight.detach())
    assert values.shape == (32, 32)
    assert torch.equal(sparse_semi_structured_to_dense_cutlass(values, metadata), layer.weight)


def test_semi_structured_refuses_clearly():
    with pytest.raises(ValueError, match=r"\bfc\b.* cpu.*CUDA"):
        semi_structured(nn.ModuleDict({"fc": sp.harden(NMMaskedLinear(16, 4))}))
    with pytest.raises(ValueError, match=r"linear layer.*2:4"):
        semi_structured(model())


@pytest.mark.parametrize(
    "call, message",
    [
        (
            lambda: sp.harden(sp.convert(model(), pattern="2:4"), sparsity=0.5),
            r"0\.weight",
        ),
        (lambda: sp.convert(model(), pattern="4:8"), r"2\.weight: NMMaskedLinear: .*\b8\b.*12 columns"),
        (lambda: sp.convert(model(), pattern="2:3"), "got 2:3"),
        (lambda: NMMaskedLinear(16, 4, pattern="two"), "n:m.*got 'two'"),
        (lambda: NMMaskedLinear(16, 4, estimator="concrete")(torch.ones(1, 16)), "straight_through.*concrete"),
        (lambda: sp.convert(nn.Conv2d(4, 4, 1, device="meta"), pattern="2:4"), r"weight.*Conv2d"),
    ],
)
def test_bad_input(call, message):
    with pytest.raises(ValueError, match=message):
        call()
