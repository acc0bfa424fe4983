"""masked_linear_kl: masked_linear and the divergence of its masks from a prior, for bounds that hold both.

Forward is the two ops one after the other. Backward adds the divergence's gradient where the weight's gradient passes
through the mask: with two ops it would be written to memory, read and added, as many bytes again as the whole pass.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from stochprune import backends
from stochprune.functional._autograd import differentiable_once
from stochprune.functional._checks import check_estimator, check_floating, explain_nan, named
from stochprune.functional._linear import slices

_OP = "masked_linear_kl"


@torch.library.custom_op("stochprune::masked_linear_kl", mutates_args=())
def _forward(
    x: Tensor,
    weight: Tensor,
    logits: Tensor,
    prior_logits: Tensor,
    bias: Tensor | None,
    seed: Tensor,
    draw: Tensor,
    stream: int,
    estimator: str,
    temperature: float,
) -> tuple[Tensor, Tensor]:
    backend = backends.resolve(x, weight, logits, prior_logits)
    y = backend.masked_linear(x, weight, logits, bias, seed, draw, stream, estimator, temperature)
    kl = backend.bernoulli_kl(logits, prior_logits)
    explain_nan(kl, logits=logits, prior_logits=prior_logits)
    return y, kl


@_forward.register_fake
def _(x: Tensor, weight: Tensor, logits: Tensor, *rest: Any) -> tuple[Tensor, Tensor]:
    return x.new_empty(x.shape[0], x.shape[1], weight.shape[0]), logits.new_empty((), dtype=torch.float64)


@torch.library.custom_op("stochprune::masked_linear_kl_backward", mutates_args=())
def _backward(
    grad: Tensor,
    kl_grad: Tensor,
    x: Tensor,
    weight: Tensor,
    logits: Tensor,
    prior_logits: Tensor,
    seed: Tensor,
    draw: Tensor,
    stream: int,
    estimator: str,
    temperature: float,
    need_x: bool,
    need_weight: bool,
    need_logits: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    backend = backends.resolve(x, weight, logits, prior_logits)
    at, needs = (seed, draw, stream, estimator, temperature), (need_x, need_weight, need_logits)
    grads = backend.masked_linear_backward(grad, x, weight, logits, *at, *needs, prior_logits, kl_grad)
    dx, dweight, dlogits = (t.new_empty(0) if g is None else g for g, t in zip(grads, (x, weight, logits), strict=True))
    return dx, dweight, dlogits


@_backward.register_fake
def _(grad: Tensor, kl_grad: Tensor, x: Tensor, weight: Tensor, logits: Tensor, *rest: Any) -> tuple[Tensor, ...]:
    needs = rest[-3:]
    dx, dweight, dlogits = (t.new_empty(t.shape if n else 0) for t, n in zip((x, weight, logits), needs, strict=True))
    return dx, dweight, dlogits


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    x, weight, logits, prior_logits, bias, seed, draw, *ctx.options = inputs
    ctx.save_for_backward(x, weight, logits, prior_logits, seed, draw)
    ctx.has_bias = bias is not None


def _differentiate(ctx: Any, grad: Tensor, kl_grad: Tensor) -> tuple[Tensor | None, ...]:
    x, weight, logits, prior_logits, seed, draw = ctx.saved_tensors
    needs = ctx.needs_input_grad[:3]
    grads: tuple[Tensor | None, ...] = (None, None, None)
    if any(needs):
        grads = _backward(grad, kl_grad, x, weight, logits, prior_logits, seed, draw, *ctx.options, *needs)
        grads = tuple(g if need else None for g, need in zip(grads, needs, strict=True))
    dbias = grad.sum((0, 1)) if ctx.has_bias and ctx.needs_input_grad[4] else None
    return *grads, None, dbias, *([None] * (2 + len(ctx.options)))


_forward.register_autograd(_differentiate, setup_context=_save)
differentiable_once(_backward, f"{_OP} is differentiable once: its backward has no derivative (double backward)")


def masked_linear_kl(
    x: Tensor,
    weight: Tensor,
    logits: Tensor,
    prior_logits: Tensor,
    bias: Tensor | None = None,
    *,
    seed: int | Tensor,
    draw: int | Tensor,
    stream: int,
    estimator: str = "straight_through",
    temperature: float = 1.0,
    samples: int | None = None,
) -> tuple[Tensor, Tensor]:
    """A linear layer under a stochastic mask, and the divergence of its masks from a prior.

    The results and gradients of :func:`stochprune.functional.masked_linear` and
    :func:`stochprune.functional.bernoulli_kl`, in fewer passes over the weights.

    Args:
        prior_logits: [N, K], floating, fixed.
        x, weight, logits, bias, seed, draw, stream, estimator, temperature, samples: as for masked_linear.

    Returns:
        The layer's output, and the divergence in nats: a float64 scalar.

    Raises:
        TypeError, RuntimeError: as for masked_linear.
        ValueError: as for masked_linear; a prior that requires a gradient or contains NaN.
    """
    check_estimator(_OP, estimator, temperature)
    check_floating(_OP, prior_logits=prior_logits)
    if prior_logits.requires_grad:
        raise ValueError(f"{_OP}: the prior is fixed, but prior_logits requires a gradient; bernoulli_kl trains it")
    weights: dict[str, Tensor | None] = {"weight": weight, "logits": logits, "prior_logits": prior_logits}
    given = slices(_OP, x, weights, bias, seed, draw, stream, samples)
    options = (*given.address, estimator, temperature)
    y, kl = named(_OP, _forward, given.x, weight, logits, prior_logits, given.bias, *options)
    return given.restore(y), kl
