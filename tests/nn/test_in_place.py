"""Every layer returns a tensor of its own: it can be changed in place, and the gradients stay the same."""

from __future__ import annotations

import contextlib
import copy

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import stochprune as sp
from tests.nn.zoo import BATCH, MODULES, ZOO, make, numbers

LAYERS = [name for name in ZOO if name not in MODULES]  # torch's LSTM and RNNCell refuse changes in place themselves

CONTEXTS = {
    "plain": contextlib.nullcontext,
    "fused_masking": sp.nn.fused_masking,
    "batched_samples": lambda model: sp.nn.batched_samples(model, 3),
    "autocast": lambda model: torch.autocast("cpu", torch.bfloat16),
}


def other(y: Tensor) -> Tensor:
    return numbers(*y.shape, seed=2).to(y.dtype).requires_grad_()


def augmented(y: Tensor) -> Tensor:
    y += other(y)
    return y


def half_of_it(y: Tensor) -> Tensor:
    y[..., :1] *= 2
    return y


AFTER = {  # in place, and the same out of place
    "relu": (lambda y: F.relu(y, inplace=True), F.relu),
    "module": (nn.SiLU(inplace=True), nn.SiLU()),
    "add_": (lambda y: y.add_(1).mul_(y.detach().abs()), lambda y: (y + 1) * (y + 1).detach().abs()),
    "+=": (augmented, lambda y: y + other(y)),
    "slice": (half_of_it, lambda y: torch.cat([y[..., :1] * 2, y[..., 1:]], -1)),
}


def gradients(model: nn.Module, x: Tensor, context: str, after) -> list[Tensor | None]:
    """The output, and the gradients of x and of all parameters, under the model's next masks."""
    model = copy.deepcopy(model)
    x = x.clone().requires_grad_(x.is_floating_point())
    with CONTEXTS[context](model):
        y = after(model(x))
        loss = (y.float() * numbers(*y.shape, seed=3)).sum()
    if loss.requires_grad:
        loss.backward()
    return [y.detach(), x.grad, *(p.grad for p in model.parameters())]


def compare(found: list[Tensor | None], expected: list[Tensor | None]) -> None:
    assert [value is None for value in found] == [value is None for value in expected]
    for one, two in zip(found, expected, strict=True):
        if one is not None:
            torch.testing.assert_close(one, two)


@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize("context", CONTEXTS)
@pytest.mark.parametrize("name", LAYERS)
def test_in_place_is_as_out_of_place(name, context, training):
    model, x = make(name)
    model.train(training)
    seen = []
    for in_place, out_of_place in AFTER.values():
        found = gradients(model, x, context, in_place)
        compare(found, gradients(model, x, context, out_of_place))
        seen += [value.any() for value in found[2:] if value is not None]
    assert any(seen)


@pytest.mark.parametrize("context", ["plain", "fused_masking"])
@pytest.mark.parametrize("name", LAYERS)
def test_unbatched_inputs(name, context):
    model, x = make(name)
    for in_place, out_of_place in AFTER.values():
        compare(gradients(model, x[0], context, in_place), gradients(model, x[0], context, out_of_place))
    alone = gradients(model, x[0], context, F.relu)[0]
    torch.testing.assert_close(alone, gradients(model, x[:1], context, F.relu)[0][0])


@pytest.mark.parametrize("samples_in_eval", [True, False])
@pytest.mark.parametrize("name", ZOO)
def test_without_gradients(name, samples_in_eval):
    model, x = make(name)
    with torch.no_grad(), sp.nn.sampling(model.eval(), samples_in_eval):
        twice = copy.deepcopy(model)
        torch.testing.assert_close(F.relu(model(x), inplace=True), F.relu(twice(x)))


@pytest.mark.parametrize("name", [name for name in ZOO if name.startswith("transposed conv")])
def test_output_size_in_every_context(name):
    model, x = make(name)
    model.stride = (2,) * len(model.kernel_size)
    dense = model.to_dense(torch.ones_like(model.weight, dtype=torch.bool))
    smallest = dense(x).shape[2:]
    size = [length + 1 for length in smallest]
    with torch.no_grad():
        model.mask_logits.fill_(30.0)  # every mask keeps all weights, but for one in 2^15
    for context in CONTEXTS:
        for wanted in (size, [BATCH, dense.out_channels, *size]):
            with CONTEXTS[context](model):
                y = model(x, output_size=wanted)
            torch.testing.assert_close(y, dense(x, output_size=wanted).to(y.dtype), rtol=2e-2, atol=2e-2)
            assert y.shape[2:] == tuple(size)
    with pytest.raises(TypeError, match="output_size"):
        sp.nn.MaskedConv1d(1, 2, 2)(numbers(1, 4), [5])
