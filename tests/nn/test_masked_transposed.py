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
