"""Layers under structured masks: shapes of their logits, evaluation, hardening, conversion of masks."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import stochprune as sp
from stochprune import keep_mask, rng
from stochprune.nn import StructuredMaskedLinear, layer_kl, masked_layers
from stochprune.training import FinetuneConfig, finetune

GRIDS = {"rows": (12, 1), "columns": (1, 16), "4x8": (3, 2)}


@pytest.mark.parametrize("structure", GRIDS)
def test_forward_samples_one_mask_a_block(structure, generator):
    layer = StructuredMaskedLinear(16, 12, bias=False, structure=structure, keep=0.5, seed=7, stream=3)
    assert layer.mask_logits.shape == GRIDS[structure]
    kept = keep_mask(rng.threshold_from_logits(layer.mask_logits), seed=7, draw=0, stream=3)
    rows, columns = 12 // kept.shape[0], 16 // kept.shape[1]
    kept = kept.repeat_interleave(rows, 0).repeat_interleave(columns, 1)
    assert torch.equal(layer(torch.eye(16)).mT, layer.weight * kept)
    assert f"structure={structure}" in repr(layer)


@pytest.mark.parametrize("structure", GRIDS)
@pytest.mark.parametrize("sparsity", [None, 0.5])
def test_evaluation_and_hardening_prune_whole_blocks(structure, sparsity, generator):
    layer = StructuredMaskedLinear(16, 12, structure=structure)
    with torch.no_grad():
        layer.mask_logits.normal_(generator=generator)
    logits = layer.mask_logits.detach()
    x = torch.randn(5, 16, generator=generator)
    evaluated = layer.eval()(x)
    hard = sp.harden(layer, sparsity)
    if sparsity is None:
        torch.testing.assert_close(hard(x), evaluated)
        kept = logits >= 0
    else:
        kept = sp.masks.from_scores({"weight": logits}, sparsity)["weight"]
    expanded = kept.repeat_interleave(12 // kept.shape[0], 0).repeat_interleave(16 // kept.shape[1], 1)
    assert torch.equal(hard.weight != 0, expanded)


def test_a_mask_is_averaged_over_its_blocks():
    mask = torch.zeros(12, 16, dtype=torch.bool)
    mask[:4, :8] = True
    mask[4:6, :8] = True  # half of a block
    layer = sp.convert(nn.utils.skip_init(nn.Linear, 16, 12), {"weight": mask}, pattern="4x8")
    keep = torch.sigmoid(layer.mask_logits.detach())
    torch.testing.assert_close(keep, torch.tensor([[0.95, 0.05], [0.5, 0.05], [0.05, 0.05]]))


def test_a_converted_model_trains_and_has_a_kl(generator):
    layers = [nn.utils.skip_init(nn.Linear, *sizes) for sizes in ((16, 12), (12, 8))]
    for parameter in (p for layer in layers for p in layer.parameters()):
        nn.init.normal_(parameter, std=0.5, generator=generator)
    model = sp.convert(nn.Sequential(layers[0], nn.ReLU(), layers[1]), pattern="rows", exclude="2.*")
    prior = {"0.weight": model[0].mask_logits.detach().clone()}
    finetune(model, [(torch.randn(32, 16, generator=generator), torch.arange(32) % 8)] * 5, FinetuneConfig(epochs=4))
    assert list(masked_layers(model)) == ["0.weight"]
    assert layer_kl(model, prior)["0.weight"] > 0
    twin = sp.convert(
        nn.Sequential(nn.Linear(16, 12, device="meta"), nn.ReLU(), layers[1]), pattern="rows", exclude="2.*"
    )
    twin.load_state_dict(model.state_dict(), assign=True)
    assert torch.equal(twin[0].mask_logits, model[0].mask_logits)


@pytest.mark.parametrize("dimensions", [1, 2, 3])
def test_filters_of_convolutions(dimensions, generator):
    kind = [nn.Conv1d, nn.Conv2d, nn.Conv3d][dimensions - 1]
    dense = nn.utils.skip_init(kind, 4, 6, 3, stride=2, padding=1, groups=2)
    for parameter in dense.parameters():
        nn.init.normal_(parameter, generator=generator)
    x = torch.randn(2, 4, *[5] * dimensions, generator=generator)
    outputs, bias = dense(x).detach(), dense.bias.detach().view(-1, *[1] * dimensions)
    layer = sp.convert(dense, pattern="rows", keep_kept=0.5, seed=7)
    assert layer.mask_logits.shape == (6, 1)
    kept = keep_mask(rng.threshold_from_logits(layer.mask_logits), seed=7, draw=0, stream=rng.stream("weight"))
    y = layer(x)
    torch.testing.assert_close(y, (outputs - bias) * kept.view(-1, *[1] * dimensions) + bias)
    gradients = torch.autograd.grad(y.sin().sum(), (layer.weight, layer.mask_logits))
    assert all(g.isfinite().all() and g.any() for g in gradients)
    with torch.no_grad():
        layer.mask_logits.normal_(generator=generator)
    evaluated = layer.eval()(x)
    gate = layer.mask_logits.detach() >= 0
    torch.testing.assert_close(evaluated, (outputs - bias) * gate.view(-1, *[1] * dimensions) + bias)
    hard = sp.harden(layer)
    assert type(hard) is kind and torch.equal(hard.weight.flatten(1).ne(0).any(1), gate.flatten())
    torch.testing.assert_close(hard(x), evaluated)


def test_a_filter_s_gradient_gathers_its_weights(generator):
    """Straight-through: dL/dlogit = sigmoid' times the sum over the filter of dL/d(z w) w, by the unstructured op."""
    dense = nn.utils.skip_init(nn.Conv2d, 3, 4, 3)
    for parameter in dense.parameters():
        nn.init.normal_(parameter, generator=generator)
    x = torch.randn(2, 3, 6, 6, generator=generator)
    layer = sp.convert(dense, pattern="rows", keep_kept=0.5)
    z = torch.ones(4, 1, 1, 1, requires_grad=True)
    y = layer(x)
    (got,) = torch.autograd.grad(y.square().sum(), layer.mask_logits)
    kept = keep_mask(rng.threshold_from_logits(layer.mask_logits), seed=0, draw=0, stream=rng.stream("weight"))
    again = nn.functional.conv2d(x, layer.weight * (z * kept.view(4, 1, 1, 1)), layer.bias)
    torch.testing.assert_close(again, y)
    through = nn.functional.conv2d(x, layer.weight * (z + kept.view(4, 1, 1, 1) - 1.0), layer.bias)
    (dz,) = torch.autograd.grad(through.square().sum(), z)
    torch.testing.assert_close(got, (dz * 0.25).view(4, 1))


@pytest.mark.parametrize(
    "structure, message",
    [
        ("filters", "got 'filters'"),
        ("5x8", "5x8.*12x16"),
        ("0x8", "0x8"),
    ],
)
def test_bad_structure(structure, message):
    with pytest.raises(ValueError, match=message):
        StructuredMaskedLinear(16, 12, structure=structure)
