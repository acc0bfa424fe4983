"""masked_linear_nm: a linear layer under an N:M mask, drawn where it is used and never stored.

The operators ``stochprune::masked_linear_nm`` and its backward dispatch to a backend; nothing but the inputs is saved.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from stochprune import backends, patterns
from stochprune.functional._autograd import differentiable_once, masked_product
from stochprune.functional._checks import named
from stochprune.functional._linear import slices

_OP = "masked_linear_nm"


@torch.library.custom_op("stochprune::masked_linear_nm", mutates_args=())
def _forward(
    x: Tensor,
    weight: Tensor,
    logits: Tensor,
    bias: Tensor | None,
    seed: Tensor,
    draw: Tensor,
    stream: int,
    n: int,
    m: int,
) -> Tensor:
    backend = backends.resolve(x, weight, logits)
    y = x.new_empty(x.shape[0], x.shape[1], weight.shape[0])
    for i in range(len(draw)):
        masked = backend.nm_masked_weight(weight, logits, n, m, seed, draw[i : i + 1], stream, x.dtype)
        y[i] = F.linear(x[i], masked[0], bias)
    return y


@_forward.register_fake
def _(x: Tensor, weight: Tensor, *rest: Any) -> Tensor:
    return x.new_empty(x.shape[0], x.shape[1], weight.shape[0])


@torch.library.custom_op("stochprune::masked_linear_nm_backward", mutates_args=())
def _backward(
    grad: Tensor,
    x: Tensor,
    weight: Tensor,
    logits: Tensor,
    seed: Tensor,
    draw: Tensor,
    stream: int,
    n: int,
    m: int,
    need_x: bool,
    need_weight: bool,
    need_logits: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    backend = backends.resolve(x, weight, logits)
    dx = x.new_empty(x.shape if need_x else 0)
    sums: list[Tensor | None] = [None, None]
    for i in range(len(draw)):
        at = (n, m, seed, draw[i : i + 1], stream)
        if need_x:
            dx[i] = grad[i] @ backend.nm_masked_weight(weight, logits, *at, x.dtype)[0]
        if need_weight or need_logits:
            g = (grad[i].mT @ x[i]).to(weight.dtype)[None]  # [1, N, K]: dL/d(z * weight)
            grads = backend.nm_weight_grad(g, weight, logits, *at, need_weight, need_logits)
            sums = [p if total is None or p is None else total + p for total, p in zip(sums, grads, strict=True)]
    dweight, dlogits = (
        t.new_zeros(0) if total is None else total for total, t in zip(sums, (weight, logits), strict=True)
    )
    return dx, dweight, dlogits


@_backward.register_fake
def _(grad: Tensor, x: Tensor, weight: Tensor, logits: Tensor, *rest: Any) -> tuple[Tensor, Tensor, Tensor]:
    inputs, needs = (x, weight, logits), rest[-3:]
    dx, dweight, dlogits = (t.new_empty(t.shape if need else 0) for t, need in zip(inputs, needs, strict=True))
    return dx, dweight, dlogits


masked_product(_forward, _backward)
differentiable_once(_backward, f"{_OP} is differentiable once: its backward has no derivative (double backward)")


def masked_linear_nm(
    x: Tensor,
    weight: Tensor,
    logits: Tensor,
    bias: Tensor | None = None,
    *,
    pattern: str,
    seed: int | Tensor,
    draw: int | Tensor,
    stream: int,
    samples: int | None = None,
) -> Tensor:
    """A linear layer that keeps exactly n of every m neighbouring weights of a row: ``x (z * weight)^T + bias``.

    Each group of m columns draws its pattern with probability proportional to ``exp(sum of the kept logits)``:
    Bernoulli masks conditioned on keeping n. The address fixes the pattern (:mod:`stochprune.patterns`).

    With G the gradient of ``z * weight``, that of the weight is ``G * z``. That of the logits is the straight-through
    one (Bengio et al. 2013): G * weight times the exact Jacobian of the inclusion probabilities, the covariance of the
    kept weights of a group. It is unbiased for the expected loss where the loss is affine in the mask of each group, as
    under a linear loss; for other losses it is biased.

    Args:
        x: [..., K], floating. With a vector of D draws: [D, ..., K], slice d under ``draw[d]``.
        weight, logits: [N, K], floating; m divides K.
        bias: [N] or None.
        pattern: ``"n:m"`` with m of 2, 4 or 8 and n below m and at most 4, such as ``"2:4"``.
        seed, draw, stream, samples: as in :func:`stochprune.functional.masked_linear`.

    Returns:
        [..., N] in x's dtype; [S, ..., N] with ``samples``; [D, ..., N] with a vector of draws.

    Raises:
        TypeError: a tensor that is not floating.
        ValueError: shapes or a pattern that do not fit, devices that differ, NaN logits (on the CPU), an integer out of
            range.
        RuntimeError: on differentiating twice.
    """
    given = slices(_OP, x, {"weight": weight, "logits": logits}, bias, seed, draw, stream, samples)
    n, m = patterns.parse(pattern, _OP)
    patterns.check(_OP, n, m, weight.shape[1])
    y = named(_OP, _forward, given.x, weight, logits, given.bias, *given.address, n, m)
    return given.restore(y)
