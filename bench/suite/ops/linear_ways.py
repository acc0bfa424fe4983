"""Ways to write a linear layer whose weights have a Bernoulli mask.

Each is a function ``make(weight, logits, bias) -> forward(x)``. The ways in plain PyTorch use torch's random generator,
so their masks differ from ours.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import prune

from stochprune import functional

from .layer import STREAM, Forward, counter

Layer = Callable[..., Tensor]
"""A function of x, weight and bias, such as torch.nn.functional.linear."""


def compile_fresh(forward: Forward) -> Forward:
    """Return a forward under ``torch.compile``, for the shapes that it will get alone."""
    torch._dynamo.reset()  # else it would remember other shapes, and compile for all
    return torch.compile(forward, fullgraph=True)


def straight_through(weight: Tensor, logits: Tensor) -> Tensor:
    """Return a masked weight: the mask is from ``rand_like``, and its gradient that of the probabilities."""
    q = torch.sigmoid(logits)
    mask = (torch.rand_like(q) < q).to(q.dtype)
    return weight * (mask - q.detach() + q)


def linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Return a linear layer whose weight may be wider than x, as in mixed precision."""
    return F.linear(x, weight.to(x.dtype), bias)


def by_bernoulli(weight: Tensor, logits: Tensor) -> Tensor:
    """Return a masked weight as :func:`straight_through`, with its mask from ``torch.bernoulli``."""
    q = torch.sigmoid(logits)
    return weight * (torch.bernoulli(q.detach()) - q.detach() + q)


def dense(weight: Tensor, logits: Tensor, bias: Tensor | None = None, product: Layer = linear) -> Forward:
    """Return the dense layer. Its time is the lower bound."""
    return lambda x: product(x, weight, bias)


def eager(weight: Tensor, logits: Tensor, bias: Tensor | None = None, product: Layer = linear) -> Forward:
    """Return the layer with straight-through gradients by detaching, and its mask from ``rand_like``."""
    return lambda x: product(x, straight_through(weight, logits), bias)


def bernoulli(weight: Tensor, logits: Tensor, bias: Tensor | None = None, product: Layer = linear) -> Forward:
    """Return the same layer with its mask from ``torch.bernoulli``."""
    return lambda x: product(x, by_bernoulli(weight, logits), bias)


def compiled(weight: Tensor, logits: Tensor, bias: Tensor | None = None, product: Layer = linear) -> Forward:
    """Return the eager layer under ``torch.compile``."""
    return compile_fresh(eager(weight, logits, bias, product))


class _SeedReplay(torch.autograd.Function):
    """Saves the state of the generator instead of the mask, and samples the mask again in backward."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, logits: Tensor, bias: Tensor) -> Tensor:
        ctx.save_for_backward(x, weight, logits)
        generator = torch.cuda.default_generators[x.get_device()] if x.is_cuda else torch.default_generator
        ctx.state = generator.get_state()
        return linear(x, weight * torch.bernoulli(torch.sigmoid(logits)), bias)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, logits = ctx.saved_tensors
        q = torch.sigmoid(logits)
        mask = torch.bernoulli(q, generator=torch.Generator(x.device).set_state(ctx.state))
        g = grad.T @ x
        dweight = g * mask if ctx.needs_input_grad[1] else None
        return grad @ (weight * mask).to(x.dtype), dweight, g * weight * q * (1 - q), grad.sum(0)


def seed_replay(weight: Tensor, logits: Tensor, bias: Tensor) -> Forward:
    """Return a layer that saves no mask: an autograd.Function that samples it again in backward."""
    return lambda x: _SeedReplay.apply(x, weight, logits, bias)


def ours(weight: Tensor, logits: Tensor, bias: Tensor) -> Forward:
    """Return a layer that calls stochprune.functional.masked_linear, with a new mask in each call."""
    seed, draws = counter(weight.device)

    def forward(x: Tensor) -> Tensor:
        return functional.masked_linear(x, weight, logits, bias, seed=seed, draw=draws(), stream=STREAM)

    return forward


def pruned(weight: Tensor, logits: Tensor, bias: Tensor) -> Forward:
    """Return torch's layer with a fixed mask, which keeps the weights of positive logits."""
    assert isinstance(weight, nn.Parameter) and isinstance(bias, nn.Parameter)
    layer = nn.Linear(weight.shape[1], weight.shape[0], device="meta")
    layer.weight, layer.bias = weight, bias
    return prune.custom_from_mask(layer, "weight", logits.detach() > 0)


CONTENDERS = {
    "dense": dense,
    "eager": eager,
    "bernoulli": bernoulli,
    "compile": compiled,
    "seed replay": seed_replay,
    "torch.nn.utils.prune": pruned,
    "ours": ours,
}
