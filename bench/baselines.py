"""The stochastic linear layer in plain PyTorch, written in the ways that a user without this package would choose.

Every contender is a function ``make(weight, logits, bias) -> forward(x)``. The contenders use torch's random generator,
so their masks differ from ours. The benchmark compares their costs only.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from stochprune.functional import masked_linear

Forward = Callable[[Tensor], Tensor]


def dense(weight: Tensor, logits: Tensor, bias: Tensor) -> Forward:
    """Return the dense layer. Its time is the lower bound."""
    return lambda x: F.linear(x, weight.to(x.dtype), bias)


def eager(weight: Tensor, logits: Tensor, bias: Tensor) -> Forward:
    """Return the layer with straight-through gradients by detaching, and its mask from ``rand_like``."""

    def forward(x: Tensor) -> Tensor:
        q = torch.sigmoid(logits)
        mask = (torch.rand_like(q) < q).to(q.dtype)
        return F.linear(x, (weight * (mask - q.detach() + q)).to(x.dtype), bias)

    return forward


def bernoulli(weight: Tensor, logits: Tensor, bias: Tensor) -> Forward:
    """Return the same layer with its mask from ``torch.bernoulli``."""

    def forward(x: Tensor) -> Tensor:
        q = torch.sigmoid(logits)
        return F.linear(x, (weight * (torch.bernoulli(q.detach()) - q.detach() + q)).to(x.dtype), bias)

    return forward


def compiled(weight: Tensor, logits: Tensor, bias: Tensor) -> Forward:
    """Return the eager layer under ``torch.compile``."""
    return torch.compile(eager(weight, logits, bias), fullgraph=True)


class _SeedReplay(torch.autograd.Function):
    """Saves the state of the generator instead of the mask, and samples the mask again in backward."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, logits: Tensor, bias: Tensor) -> Tensor:
        ctx.save_for_backward(x, weight, logits)
        generator = torch.cuda.default_generators[x.get_device()] if x.is_cuda else torch.default_generator
        ctx.state = generator.get_state()
        return F.linear(x, (weight * torch.bernoulli(torch.sigmoid(logits))).to(x.dtype), bias)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
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
    """Return a layer that calls stochprune.functional.masked_linear."""
    seed, draw = (torch.zeros(1, dtype=torch.int64, device=weight.device) for _ in range(2))

    def forward(x: Tensor) -> Tensor:
        draw.add_(1)
        return masked_linear(x, weight, logits, bias, seed=seed, draw=draw, stream=2)

    return forward


CONTENDERS = {
    "dense": dense,
    "eager": eager,
    "bernoulli": bernoulli,
    "compile": compiled,
    "seed replay": seed_replay,
    "ours": ours,
}
