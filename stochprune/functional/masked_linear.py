"""masked_linear: ``y = x (z * W)^T + b`` with a stochastic mask z that is drawn where it is used and never stored.

The two operators ``stochprune::masked_linear`` and ``stochprune::masked_linear_backward`` dispatch to a backend.
Nothing but x, weight, logits and the integers is saved for backward; the mask is drawn again.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from stochprune import backends
from stochprune.functional._autograd import differentiable_once, masked_product
from stochprune.functional._checks import check_estimator, named
from stochprune.functional._linear import slices

_OP = "masked_linear"


@torch.library.custom_op("stochprune::masked_linear", mutates_args=())
def _forward(
    x: Tensor,
    weight: Tensor,
    logits: Tensor,
    bias: Tensor | None,
    seed: Tensor,
    draw: Tensor,
    stream: int,
    estimator: str,
    temperature: float,
) -> Tensor:
    backend = backends.resolve(x, weight, logits)
    return backend.masked_linear(x, weight, logits, bias, seed, draw, stream, estimator, temperature)


@_forward.register_fake
def _(
    x: Tensor,
    weight: Tensor,
    logits: Tensor,
    bias: Tensor | None,
    seed: Tensor,
    draw: Tensor,
    stream: int,
    estimator: str,
    temperature: float,
) -> Tensor:
    return x.new_empty(x.shape[0], x.shape[1], weight.shape[0])


@torch.library.custom_op("stochprune::masked_linear_backward", mutates_args=())
def _backward(
    grad: Tensor,
    x: Tensor,
    weight: Tensor,
    logits: Tensor,
    seed: Tensor,
    draw: Tensor,
    stream: int,
    estimator: str,
    temperature: float,
    need_x: bool,
    need_weight: bool,
    need_logits: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    backend = backends.resolve(x, weight, logits)
    needs = (need_x, need_weight, need_logits)
    grads = backend.masked_linear_backward(grad, x, weight, logits, seed, draw, stream, estimator, temperature, *needs)
    dx, dweight, dlogits = (t.new_empty(0) if g is None else g for g, t in zip(grads, (x, weight, logits), strict=True))
    return dx, dweight, dlogits


@_backward.register_fake
def _(
    grad: Tensor,
    x: Tensor,
    weight: Tensor,
    logits: Tensor,
    seed: Tensor,
    draw: Tensor,
    stream: int,
    estimator: str,
    temperature: float,
    need_x: bool,
    need_weight: bool,
    need_logits: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    needs = (need_x, need_weight, need_logits)
    dx, dweight, dlogits = (t.new_empty(t.shape if n else 0) for t, n in zip((x, weight, logits), needs, strict=True))
    return dx, dweight, dlogits


masked_product(_forward, _backward)
differentiable_once(_backward, "masked_linear is differentiable once: its backward has no derivative (double backward)")


@_forward.register_vmap
def _(info: Any, in_dims: tuple[int | None, ...], x: Tensor, *rest: Any) -> tuple[Tensor, int]:
    if in_dims[0] is None or any(dim is not None for dim in in_dims[1:]):
        raise NotImplementedError("masked_linear: vmap goes over x only; give draw as a vector for many masks at once")
    batched = x.movedim(in_dims[0], 1)  # [D, B, M, K]: the draws stay outermost
    y = _forward(batched.flatten(1, 2), *rest)
    return y.unflatten(1, batched.shape[1:3]), 1


def masked_linear(
    x: Tensor,
    weight: Tensor,
    logits: Tensor,
    bias: Tensor | None = None,
    *,
    seed: int | Tensor,
    draw: int | Tensor,
    stream: int,
    estimator: str = "straight_through",
    temperature: float = 1.0,
    samples: int | None = None,
) -> Tensor:
    """A linear layer under a stochastic mask: ``x (z * weight)^T + bias``.

    The mask z is drawn from its address (seed, draw, stream, row, column), applied and dropped; backward draws it
    again. The gradient of the weight is ``G * z`` and that of the logits ``G * weight * slope``, G the gradient of
    ``z * weight``:

    ==========================  =============================  =======================================
    estimator                   z                              slope
    ==========================  =============================  =======================================
    straight_through            m, the hard mask               sigmoid'(logit)   (Bengio et al. 2013)
    concrete                    s, the binary concrete mask    s (1 - s) / temperature
    straight_through_concrete   m                              s (1 - s) / temperature
    expected                    sigmoid(logit)                 sigmoid'(logit)
    hard_concrete               clamp(1.2 s - 0.1, 0, 1)       1.2 s (1 - s) / temperature where not clamped
    ==========================  =============================  =======================================

    with ``m = u < T`` of the quantised thresholds T and ``s = sigmoid((logit - logit(v)) / temperature)`` of the same
    uniforms (Maddison et al. 2017). The weight's gradient is unbiased for the expected loss over hard masks with
    straight_through and straight_through_concrete. The logits' gradient is unbiased for the expected loss over hard
    masks with straight_through where the loss is affine in each weight's mask, in particular in a linear layer under
    a linear loss; for other losses it is biased. With concrete and
    hard_concrete both are unbiased for the expected loss over such soft masks; hard_concrete (Louizos et al. 2018) has
    exact zeros among them, counted by :func:`stochprune.functional.expected_l0`. expected is exact for the loss at the
    mean weights.

    Args:
        x: [..., K], floating. With a vector of D draws: [D, ..., K], slice d under ``draw[d]``.
        weight: [N, K], floating, any strides. May be wider than x: the product is taken in x's dtype.
        logits: [N, K], floating; the probability of keeping is sigmoid(logits).
        bias: [N] or None.
        seed: 0 .. 2^64 - 1, or a one-element int64 tensor with those bits.
        draw: 0 .. 2^32 - 1, or an int64 tensor: one element for one mask; a vector [D] for a mask each of the D
            slices of x (Monte Carlo samples, or per-example masks).
        stream: 0 .. 2^31 - 1, the layer (:func:`stochprune.rng.stream`).
        estimator, temperature: see above.
        samples: S masks of the same x: draws draw .. draw + S - 1.

    Returns:
        [..., N] in x's dtype; [S, ..., N] with ``samples``; [D, ..., N] with a vector of draws.

    Raises:
        TypeError: a tensor that is not floating.
        ValueError: shapes that do not fit, devices that differ, NaN logits (on the CPU), an unknown estimator, an
            integer out of range.
        RuntimeError: on differentiating twice.
    """
    check_estimator(_OP, estimator, temperature)
    given = slices(_OP, x, {"weight": weight, "logits": logits}, bias, seed, draw, stream, samples)
    options = (*given.address, estimator, temperature)
    y = named(_OP, _forward, given.x, weight, logits, given.bias, *options)
    return given.restore(y)
