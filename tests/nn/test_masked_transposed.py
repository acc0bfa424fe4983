"""transformers' Conv1D under masks."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from torch import nn

import stochprune as sp
from stochprune.nn import MaskedTransposedLinear

Conv1D = pytest.importorskip("transformers.pytorch_utils").Conv1D


@pytest.fixture
def dense(generator):
    with torch.device("meta"):
        layer = Conv1D(9, 70)
    layer.to_empty(device="cpu")
    for p in layer.parameters():
        nn.init.normal_(p, generator=generator)
    return layer


@pytest.fixture
def x(generator):
    return torch.randn(2, 3, 70, generator=generator)


def test_the_mask_has_a_row_for_each_output_feature(dense, x):
    weight = dense.weight
    layer = sp.convert(dense)
    assert isinstance(layer, MaskedTransposedLinear) and layer.weight is weight
    with torch.no_grad():
        layer.mask_logits.zero_()
    threshold = sp.rng.threshold_from_logits(layer.mask_logits.mT)
    keep = sp.keep_mask(threshold, seed=0, draw=0, stream=layer.stream).mT
    torch.testing.assert_close(layer(x), x @ (weight * keep) + layer.bias)


def test_evaluation_hardening_and_gradients(dense, x, generator):
    keep = torch.rand(70, 9, generator=generator).clamp(0.01, 0.99)
    layer = MaskedTransposedLinear.from_dense(dense, keep).eval()
    plain = layer.to_dense()
    assert type(plain) is Conv1D and torch.equal(plain.weight, dense.weight * (keep >= 0.5))
    torch.testing.assert_close(layer(x), plain(x))
    layer.train()(x).square().sum().backward()
    assert layer.weight.grad.shape == layer.mask_logits.grad.shape == (70, 9)
    assert repr(layer).startswith("MaskedTransposedLinear(nf=9, nx=70, keep=")
    for clone in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        assert torch.equal(clone.eval()(x), plain(x)) and clone.dense_type is Conv1D


def test_gpt2_of_transformers(generator, transformers):
    config = transformers.GPT2Config(
        vocab_size=37,
        n_positions=16,
        n_embd=24,
        n_layer=2,
        n_head=3,
        attn_pdrop=0,
        resid_pdrop=0,
        embd_pdrop=0,
        bos_token_id=0,
        eos_token_id=0,
    )
    with torch.device("meta"):
        model = transformers.GPT2LMHeadModel(config)
    model.to_empty(device="cpu")
    model.tie_weights()
    for name, p in model.named_parameters():
        if p.dim() < 2:
            nn.init.constant_(p, float("ln_" in name and name.endswith("weight")))
        else:
            nn.init.normal_(p, std=0.2, generator=generator)
    dense = copy.deepcopy(model)
    sp.convert(model)
    layers = sp.nn.masked_layers(model)
    kinds = [type(layer).__name__ for layer in layers.values()]
    assert kinds.count("MaskedTransposedLinear") == 8 and kinds.count("MaskedEmbedding") == 1  # tied to the head
    assert model.lm_head.mask_logits is model.transformer.wte.mask_logits
    tokens = torch.tensor([[1, 5, 36, 2]])
    torch.testing.assert_close(model.eval()(tokens).logits, dense.eval()(tokens).logits)
    first, second = (model.train()(tokens, labels=tokens).loss for _ in range(2))
    assert first != second
    first.backward()
    assert all(layer.mask_logits.grad.isfinite().all() for layer in layers.values())
    sp.harden(model, 0.5, "layer")
    assert model.lm_head.weight is model.transformer.wte.weight
    assert type(model.transformer.h[0].attn.c_attn) is Conv1D
    zeros = [(p == 0).sum() for name, p in model.named_parameters() if p.dim() == 2 and "wpe" not in name]
    assert abs(int(sum(zeros)) - 0.5 * (37 * 24 + 2 * 12 * 24 * 24)) <= 1


def test_a_weight_read_in_both_ways_is_refused():
    with torch.device("meta"):
        model = nn.Sequential(nn.Linear(6, 6), Conv1D(6, 6))
    model[1].weight = model[0].weight
    with pytest.raises(ValueError, match=r"1\.weight .*0\.weight.*transposed"):
        sp.convert(model)


def test_it_is_made_by_from_dense_alone():
    with pytest.raises(TypeError, match=r"MaskedTransposedLinear.*from_dense"):
        sp.nn.MaskedTransposedLinear(4, 8)


@pytest.fixture
def pair(generator):
    """A Conv1D of twelve inputs, and the linear layer of the same weight."""
    with torch.device("meta"):
        turned, plain = Conv1D(6, 12), nn.Linear(12, 6)
    turned.to_empty(device="cpu"), plain.to_empty(device="cpu")
    with torch.no_grad():
        plain.weight.normal_(generator=generator)
        turned.weight.copy_(plain.weight.mT)
        turned.bias.zero_(), plain.bias.zero_()
    return nn.ModuleDict({"fc": turned}), nn.ModuleDict({"fc": plain})


@pytest.mark.parametrize("pattern", ["2:4", "1:2"])
def test_n_of_m_masks_are_those_of_the_transpose(pair, generator, pattern):
    turned, plain = (sp.convert(model, keep_kept=0.6, pattern=pattern)["fc"] for model in pair)
    assert type(turned) is sp.nn.NMMaskedTransposedLinear
    values, prior = torch.randn(2, 6, 12, generator=generator)
    with torch.no_grad():
        plain.mask_logits.copy_(values)
        turned.mask_logits.copy_(values.mT)
    x = torch.randn(5, 12, generator=generator)
    torch.testing.assert_close(turned(x), plain(x))
    assert torch.equal(turned.mask(3), plain.mask(3).mT) and torch.equal(turned.gate(), plain.gate().mT)
    torch.testing.assert_close(turned.divergence(prior.mT), plain.divergence(prior))
    plain(x).square().sum().backward(), turned(x).square().sum().backward()
    torch.testing.assert_close(turned.mask_logits.grad, plain.mask_logits.grad.mT)
    hard = [layer.eval().to_dense() for layer in (turned, plain)]
    assert torch.equal(hard[0].weight, hard[1].weight.mT) and type(hard[0]) is Conv1D
    torch.testing.assert_close(turned.eval()(x), hard[0](x))


def test_a_mask_along_the_inputs_is_kept(pair):
    model = pair[0]
    scores = sp.scores.by_output(model, sp.scores.magnitude(model))
    assert scores["fc.weight"].shape == (6, 12)
    masks = sp.scores.by_output(model, sp.masks.n_of_m(scores, 2, 4))
    layer = sp.convert(model, masks, pattern="2:4")["fc"]
    assert torch.equal(layer.gate(), masks["fc.weight"])
    assert sp.scores.by_output(model, masks)["fc.weight"].shape == (6, 12)  # of a masked model too


def test_m_must_divide_the_inputs():
    with torch.device("meta"), pytest.raises(ValueError, match=r"4 .*6 columns"):
        sp.convert(nn.Sequential(Conv1D(8, 6)), pattern="2:4")
