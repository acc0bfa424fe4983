"""spike_and_slab_linear: a linear layer whose weights are Gaussian, or Gaussian under a stochastic mask.

The operators ``stochprune::spike_and_slab_linear`` and its backward form the weights of one draw at a time; nothing but
the inputs is saved for backward, normals and mask are drawn again.
"""

from __future__ import annotations

from types import ModuleType
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from stochprune import backends
from stochprune.functional._checks import check_estimator
from stochprune.functional._linear import slices

_OP = "spike_and_slab_linear"


def _sampled(
    backend: ModuleType,
    mu: Tensor,
    rho: Tensor,
    logits: Tensor | None,
    seed: Tensor,
    draw: Tensor,
    options: tuple[int, str, float],
    dtype: torch.dtype,
) -> Tensor:
    """The weights [N, K] of one draw (int64 [1])."""
    wide: Tensor = backend.gaussian_weight(mu, rho, seed, draw, options[0], dtype if logits is None else mu.dtype)[0]
    if logits is None:
        return wide
    masked: Tensor = backend.masked_weight(wide, logits, seed, draw, *options, dtype)[0]
    return masked


@torch.library.custom_op("stochprune::spike_and_slab_linear", mutates_args=())
def _forward(
    x: Tensor,
    mu: Tensor,
    rho: Tensor,
    logits: Tensor | None,
    bias: Tensor | None,
    seed: Tensor,
    draw: Tensor,
    stream: int,
    estimator: str,
    temperature: float,
) -> Tensor:
    backend = backends.resolve(x, mu, rho, *([] if logits is None else [logits]))
    y = x.new_empty(x.shape[0], x.shape[1], mu.shape[0])
    for i in range(len(draw)):
        options = (stream, estimator, temperature)
        weight = _sampled(backend, mu, rho, logits, seed, draw[i : i + 1], options, x.dtype)
        y[i] = F.linear(x[i], weight, bias)
    return y


@_forward.register_fake
def _(x: Tensor, mu: Tensor, *rest: Any) -> Tensor:
    return x.new_empty(x.shape[0], x.shape[1], mu.shape[0])


@torch.library.custom_op("stochprune::spike_and_slab_linear_backward", mutates_args=())
def _backward(
    grad: Tensor,
    x: Tensor,
    mu: Tensor,
    rho: Tensor,
    logits: Tensor | None,
    seed: Tensor,
    draw: Tensor,
    stream: int,
    estimator: str,
    temperature: float,
    need_x: bool,
    need_mu: bool,
    need_rho: bool,
    need_logits: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    backend = backends.resolve(x, mu, rho, *([] if logits is None else [logits]))
    options = (stream, estimator, temperature)
    wide = torch.promote_types(mu.dtype, torch.float32)
    dx = x.new_empty(x.shape if need_x else 0)
    needs = (need_mu, need_rho, need_logits and logits is not None)
    totals = [mu.new_zeros(mu.shape if need else 0, dtype=wide) for need in needs]
    for i in range(len(draw)):
        one = draw[i : i + 1]
        if need_x:
            dx[i] = grad[i] @ _sampled(backend, mu, rho, logits, seed, one, options, x.dtype)
        if not any(needs):
            continue
        dweight, dlogits = (grad[i].mT @ x[i]).to(mu.dtype), None  # [N, K]: dL/d(weight), through the mask if any
        if logits is not None:
            weight = backend.gaussian_weight(mu, rho, seed, one, stream, mu.dtype)[0]
            slab = need_mu or need_rho
            dweight, dlogits = backend.weight_grad(dweight[None], weight, logits, seed, one, *options, slab, needs[2])
        if needs[0]:
            totals[0] += dweight
        if needs[1]:
            totals[1] += backend.gaussian_grad(dweight[None], rho, seed, one, stream)
        if dlogits is not None and needs[2]:
            totals[2] += dlogits
    dmu, drho, dlogit = (
        t.to(like.dtype) for t, like in zip(totals, (mu, rho, mu if logits is None else logits), strict=True)
    )
    return dx, dmu, drho, dlogit


@_backward.register_fake
def _(grad: Tensor, x: Tensor, mu: Tensor, rho: Tensor, logits: Tensor | None, *rest: Any) -> tuple[Tensor, ...]:
    inputs, needs = (x, mu, rho, mu if logits is None else logits), (*rest[-4:-1], rest[-1] and logits is not None)
    dx, dmu, drho, dlogits = (t.new_empty(t.shape if need else 0) for t, need in zip(inputs, needs, strict=True))
    return dx, dmu, drho, dlogits


def _save(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, mu, rho, logits, bias, seed, draw, *ctx.options = inputs
    ctx.save_for_backward(x, mu, rho, logits, seed, draw)
    ctx.has_bias = bias is not None


def _differentiate(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    x, mu, rho, logits, seed, draw = ctx.saved_tensors
    needs = ctx.needs_input_grad[:4]
    grads: tuple[Tensor | None, ...] = (None,) * 4
    if any(needs):
        grads = _backward(grad, x, mu, rho, logits, seed, draw, *ctx.options, *needs)
        grads = tuple(g if need else None for g, need in zip(grads, needs, strict=True))
    dbias = grad.sum((0, 1)) if ctx.has_bias and ctx.needs_input_grad[4] else None
    return *grads, dbias, *([None] * (2 + len(ctx.options)))


def _refuse(ctx: Any, *grads: Tensor) -> None:
    raise RuntimeError(f"{_OP} is differentiable once: its backward has no derivative (double backward)")


_forward.register_autograd(_differentiate, setup_context=_save)
_backward.register_autograd(_refuse)


def spike_and_slab_linear(
    x: Tensor,
    mu: Tensor,
    rho: Tensor,
    logits: Tensor | None = None,
    bias: Tensor | None = None,
    *,
    seed: int | Tensor,
    draw: int | Tensor,
    stream: int,
    estimator: str = "straight_through",
    temperature: float = 1.0,
    samples: int | None = None,
) -> Tensor:
    """A linear layer with random weights: ``x (z (mu + softplus(rho) e))^T + bias``, e standard normal.

    With logits each weight is N(mu, softplus(rho)^2) with probability sigmoid(logit), else 0: the spike and slab. z is
    the stochastic mask of :func:`stochprune.functional.masked_linear` at the same address, e the normal of
    :func:`stochprune.rng.normal`, independent of it. Without logits z = 1: plain Gaussian weights (Blundell et al.
    2015).

    With G the gradient of the weight and s = mu + softplus(rho) e: dmu = G z, drho = G z e sigmoid(rho), the
    reparameterised gradients, unbiased for the expected loss over the normals and, with a hard mask, over masks; and
    dlogits = G s slope, with the estimator's slope (listed at masked_linear, which says what each is unbiased for).

    Args:
        x: [..., K], floating. With a vector of D draws: [D, ..., K], slice d under ``draw[d]``.
        mu, rho: [N, K], floating; the standard deviation is softplus(rho).
        logits: [N, K], floating, or None.
        bias: [N] or None.
        seed, draw, stream, estimator, temperature, samples: as for masked_linear.

    Returns:
        [..., N] in x's dtype; [S, ..., N] with ``samples``; [D, ..., N] with a vector of draws.

    Raises:
        TypeError: a tensor that is not floating.
        ValueError: shapes that do not fit, devices that differ, NaN logits (on the CPU), an unknown estimator, an
            integer out of range.
        RuntimeError: on differentiating twice.
    """
    check_estimator(_OP, estimator, temperature)
    given = slices(_OP, x, {"mu": mu, "rho": rho, "logits": logits}, bias, seed, draw, stream, samples)
    y = _forward(given.x, mu, rho, logits, given.bias, given.seed, given.draw, stream, estimator, temperature)
    return given.restore(y)
