"""fused_masking: the same steps as without it, nothing weight-sized saved, and how many launches a step makes."""

from __future__ import annotations

import copy
import importlib
import sys
import weakref

import pytest
import torch

import stochprune as sp
from stochprune.models import gpt, resnet20


@pytest.fixture
def model():
    return sp.convert(resnet20(2, 3, width=4, seed=1), keep_kept=0.6).train()


@pytest.fixture
def x(generator):
    return torch.randn(2, 2, 8, 8, generator=generator)


def step(model, x, together):
    model.zero_grad()
    if together:
        with sp.nn.fused_masking(model):
            loss = model(x).square().sum()
    else:
        loss = model(x).square().sum()
    loss.backward()
    return loss.detach(), {name: p.grad.clone() for name, p in model.named_parameters()}


@pytest.mark.parametrize("estimator", ["straight_through", "concrete"])
def test_steps_are_those_of_the_layers_by_themselves(model, x, estimator):
    for layer in sp.nn.masked_layers(model).values():
        layer.estimator = estimator
    clone = copy.deepcopy(model)
    for _ in range(2):
        loss, grads = step(model, x, together=True)
        expected, others = step(clone, x, together=False)
        torch.testing.assert_close(loss, expected)
        for name, grad in grads.items():
            torch.testing.assert_close(grad, others[name], rtol=1e-3, atol=1e-5)
    assert all(int(layer.mask_draw) == 2 for layer in sp.nn.masked_layers(model).values())
    assert not any(layer.weight_override is not None for layer in sp.nn.masked_layers(model).values())


def test_the_masked_weights_are_not_saved_but_formed_again(model, x, monkeypatch):
    fused_masking = sys.modules["stochprune.nn.fused_masking"]
    alive = []
    original = fused_masking.masked_weights

    def watched(*args, **kwargs):
        made = original(*args, **kwargs)
        alive.append([weakref.ref(t) for t in made])
        return made

    monkeypatch.setattr(fused_masking, "masked_weights", watched)
    with sp.nn.fused_masking(model):
        loss = model(x).square().sum()
    assert len(alive) == 1 and not any(ref() is not None for ref in alive[0])
    loss.backward(retain_graph=True)
    assert len(alive) == 2 and not any(ref() is not None for ref in alive[1])
    first = model.fc.weight.grad.clone()
    loss.backward()
    assert len(alive) == 3
    torch.testing.assert_close(model.fc.weight.grad, 2 * first)


def test_the_triton_backend_makes_three_launches_a_step(model, x, monkeypatch):
    pytest.importorskip("triton")
    monkeypatch.setenv("STOCHPRUNE_BACKEND", "triton")
    launches = []
    for stem in ("multi_prepass", "multi_layer_grads", "prepass", "mask_backward"):
        module, name = importlib.import_module(f"stochprune.kernels.{stem}"), f"{stem}_kernel"
        kernel = getattr(module, name)
        counted = type(
            "Counted", (), {"__getitem__": lambda _, grid, k=kernel, n=name: launches.append(n) or k[grid]}
        )()
        monkeypatch.setattr(module, name, counted)
    clone = copy.deepcopy(model)
    _, grads = step(model, x, together=True)
    assert launches == ["multi_prepass_kernel", "multi_prepass_kernel", "multi_layer_grads_kernel"]
    monkeypatch.setenv("STOCHPRUNE_BACKEND", "reference")
    for name, expected in step(clone, x, together=False)[1].items():
        torch.testing.assert_close(grads[name], expected, rtol=1e-3, atol=1e-4)


def test_other_layers_and_modes_run_as_always(generator):
    model = sp.convert(gpt(13, 12, width=12, depth=1, heads=3, seed=0), keep_kept=0.6)
    clone = copy.deepcopy(model)
    tokens = torch.arange(24).view(2, 12) % 13
    model.blocks[0].fc1.sample = clone.blocks[0].fc1.sample = False
    with sp.nn.fused_masking(model):
        assert model.token.weight_override is None and model.blocks[0].fc1.weight_override is None
        y = model(tokens)
    torch.testing.assert_close(y, clone(tokens))
    y.sum().backward()
    clone(tokens)
    with sp.nn.fused_masking(model):
        model(tokens)
    assert model.token._awaiting is None  # its hooks are not those of checkpointing
    model.eval()
    with sp.nn.fused_masking(model):
        torch.testing.assert_close(model(tokens), clone.eval()(tokens))


def test_autocast_and_frozen_weights(model, x):
    model.fc.weight.requires_grad_(False)
    with torch.autocast("cpu", torch.bfloat16), sp.nn.fused_masking(model):
        assert model.conv1.weight_override.dtype == torch.bfloat16
        y = model(x)
    y.float().sum().backward()
    assert model.fc.weight.grad is None and model.fc.mask_logits.grad is not None


def test_a_layer_with_autocast_off_runs_in_full_precision_under_the_same_mask(model, x):
    class FullPrecision(torch.nn.Module):
        def __init__(self, inner):
            super().__init__()
            self.inner = inner

        def forward(self, x):
            with torch.autocast("cpu", enabled=False):
                return self.inner(x.float())

    model.fc = FullPrecision(model.fc)
    model.bn1 = torch.nn.Sequential(model.bn1, FullPrecision(sp.nn.MaskedConv2d(4, 4, 1, keep=0.5)))
    clone = copy.deepcopy(model)
    with torch.autocast("cpu", torch.bfloat16):
        loss, grads = step(model, x, together=True)
        expected, others = step(clone, x, together=False)
    torch.testing.assert_close(loss, expected, rtol=1e-2, atol=1e-2)
    for name in ("fc.inner.weight", "fc.inner.mask_logits", "fc.inner.bias"):
        torch.testing.assert_close(grads[name], others[name], rtol=5e-2, atol=5e-2)
    assert int(model.fc.inner.mask_draw) == 1 and model.fc.inner.draw_override is None


def test_an_error_inside_leaves_the_layers_as_they_were(model):
    with pytest.raises(RuntimeError), sp.nn.fused_masking(model):
        model(torch.ones(2, 5, 8, 8))
    assert not any(layer.weight_override is not None for layer in sp.nn.masked_layers(model).values())


def test_one_inside_the_other_is_refused(model):
    refused = pytest.raises(ValueError, match="another fused_masking")
    with sp.nn.fused_masking(model), refused, sp.nn.fused_masking(model):
        pass
    assert all(int(layer.mask_draw) == 1 for layer in sp.nn.masked_layers(model).values())


def test_a_group_that_cannot_be_formed_leaves_no_layer_with_a_weight(model, x):
    model.fc.temperature = 0.5  # a group of its own, the last
    with torch.no_grad():
        model.fc.mask_logits[0, 0] = float("nan")
    with pytest.raises(ValueError, match="NaN"), sp.nn.fused_masking(model):
        pass
    assert not any(layer.weight_override is not None for layer in sp.nn.masked_layers(model).values())


@pytest.mark.parametrize("frozen", [False, True])
@pytest.mark.parametrize("name", ["weight", "mask_logits"])
def test_a_change_in_place_before_backward_is_refused(model, x, name, frozen):
    model.requires_grad_(not frozen)
    x.requires_grad_()
    with sp.nn.fused_masking(model):
        y = model(x)
    with torch.no_grad():
        getattr(next(iter(sp.nn.masked_layers(model).values())), name).mul_(-3)
    with pytest.raises(RuntimeError, match="changed in place"):
        torch.autograd.grad(y.sum(), x)
