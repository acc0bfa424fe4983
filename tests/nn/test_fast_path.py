"""The fused path of torch's encoders, which calls no module inside: closed while one of these is not torch's own."""

from __future__ import annotations

import importlib

import pytest
import torch
from torch import nn

import stochprune as sp
from stochprune.nn import add_lora, mask_units_by_input, merge_lora
from stochprune.nn.gated_branch import drop_branches, gate_branches, gated_branches
from stochprune.nn.sparse_linear import SparseLinear
from tests.nn.zoo import numbers

E = 8
X = numbers(2, 4, E)
PADDING = torch.arange(4) >= torch.tensor([[4], [2]])


def encoder() -> nn.TransformerEncoder:
    with torch.device("meta"):
        layer = nn.TransformerEncoderLayer(E, 2, 16, dropout=0.0, batch_first=True)
        model = nn.TransformerEncoder(layer, 2)
    model.to_empty(device="cpu").eval()
    for i, parameter in enumerate(model.parameters()):
        parameter.detach().copy_(numbers(*parameter.shape, seed=i) / 4)
    return model


def same_on_both_paths(model: nn.Module) -> torch.Tensor:
    """Return the output at positions that are not padded, after a comparison with that of the slow path."""
    slow = model(X.clone().requires_grad_(), src_key_padding_mask=PADDING)[~PADDING]
    with torch.no_grad():
        fast = model(X, src_key_padding_mask=PADDING)[~PADDING]
    torch.testing.assert_close(fast, slow.detach())
    return fast


@pytest.mark.parametrize("branch", ["linear2", "norm2", "dropout2"])
def test_gates_act_in_evaluation_and_stay_dropped(branch):
    model = gate_branches(encoder(), f"layers.*.{branch}")
    kept = same_on_both_paths(model)
    for gated in gated_branches(model).values():
        gated.gate.mask_logits.detach().fill_(-1)
    dropped = same_on_both_paths(model)
    assert not torch.allclose(kept, dropped)
    assert len(drop_branches(model)) == 2
    torch.testing.assert_close(same_on_both_paths(model), dropped)


def test_masks_of_units_act_in_evaluation():
    model = mask_units_by_input(encoder(), "*linear1.weight", hidden=0)
    every = same_on_both_paths(model)
    model.layers[0].linear1.offset.detach()[:8] = -1
    assert not torch.allclose(same_on_both_paths(model), every)


def test_sparse_layers_run_in_an_encoder(monkeypatch):
    monkeypatch.setattr(importlib.import_module("stochprune.nn.sparsify"), "SMALLEST", 1)
    model = encoder()
    for layer in model.layers:
        layer.linear1.weight.detach()[1:] = 0
    dense = same_on_both_paths(model)
    assert isinstance(sp.sparsify(model).layers[0].linear1, SparseLinear)
    with torch.no_grad():
        torch.testing.assert_close(model(X, src_key_padding_mask=PADDING)[~PADDING], dense)


def test_an_encoder_without_its_feed_forward_is_shrunk():
    model = encoder()
    model.layers[0].linear2.weight.detach().zero_()
    smaller = sp.shrink(model, X)
    torch.testing.assert_close(same_on_both_paths(smaller), same_on_both_paths(model))


@pytest.mark.parametrize("sample", [False, True])
def test_padded_inputs_under_masks_and_updates(sample):
    model = add_lora(sp.convert(encoder(), include="*linear*"), 2)
    assert not model.use_nested_tensor
    if sample:
        with sp.nn.sampling(model), torch.no_grad():
            assert model(X, src_key_padding_mask=PADDING).shape == X.shape
    hard = sp.harden(merge_lora(model), 0.25)
    assert hard.use_nested_tensor and all(layer.activation_relu_or_gelu == 1 for layer in hard.layers)
    same_on_both_paths(hard)
