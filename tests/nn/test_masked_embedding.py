"""MaskedEmbedding: its op in training, thresholds in evaluation, there and back, and what it refuses."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import stochprune as sp
from stochprune.nn import MaskedEmbedding

TOKENS = torch.tensor([[1, 7, 7], [0, 3, 1]])


@pytest.fixture
def dense(generator):
    layer = nn.utils.skip_init(nn.Embedding, 9, 70, padding_idx=3)
    nn.init.normal_(layer.weight, generator=generator)
    return layer


def test_forward_is_the_op_at_consecutive_draws(dense):
    layer = MaskedEmbedding.from_embedding(dense, 0.5, seed=4, stream=8)
    for draw in range(2):
        expected = sp.functional.masked_embedding(
            TOKENS, dense.weight, layer.mask_logits, padding_idx=3, seed=4, draw=draw, stream=8
        )
        assert torch.equal(layer(TOKENS), expected)
    layer(TOKENS).sum().backward()
    assert layer.weight.grad[7].any() and not layer.weight.grad[3].any() and not layer.weight.grad[2].any()


@pytest.mark.parametrize("estimator", ["straight_through", "hard_concrete"])
def test_evaluation_and_hardening(dense, estimator, generator):
    keep = torch.rand(9, 70, generator=generator).clamp(0.01, 0.99)
    layer = MaskedEmbedding.from_embedding(dense, keep, estimator=estimator).eval()
    torch.testing.assert_close(layer(TOKENS), layer.thresholded_weight()[TOKENS])
    plain = layer.to_embedding()
    assert type(plain) is nn.Embedding and repr(plain) == repr(dense)
    torch.testing.assert_close(plain(TOKENS), layer(TOKENS))
    assert torch.equal(plain.weight == 0, layer.gate() == 0) and bool((plain.weight == 0).any())
    layer(TOKENS).sum().backward()
    assert not layer.weight.grad[3].any()
    assert repr(layer).startswith("MaskedEmbedding(9, 70, padding_idx=3, keep=")


def test_a_layer_of_its_own():
    layer = MaskedEmbedding(50, 40, padding_idx=1, keep=0.3, seed=2)
    assert not layer.weight[1].any() and 0.9 < layer.weight[2:].std().item() < 1.1
    assert torch.equal(layer.weight, MaskedEmbedding(50, 40, padding_idx=1, seed=2).weight)


@pytest.mark.parametrize("options", [{"max_norm": 1.0}, {"sparse": True}, {"scale_grad_by_freq": True}], ids=str)
def test_options_without_a_masked_counterpart(options):
    dense = nn.utils.skip_init(nn.Embedding, 9, 70, **options)
    with pytest.raises(ValueError, match=rf"MaskedEmbedding: .*{next(iter(options)).split('_')[0]}"):
        MaskedEmbedding.from_embedding(dense)
    with pytest.raises(ValueError, match=r"convert: the model \(Embedding\) .*exclude it"):
        sp.convert(dense, include="*")
