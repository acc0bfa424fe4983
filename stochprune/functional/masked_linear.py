"""masked_linear: ``y = x (z * W)^T + b`` with a stochastic mask z that is sampled where it is used and never stored.

Only x, weight, logits and the address are saved for backward, which samples the mask again.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from stochprune import backends
from stochprune.address import Logits, Mask
from stochprune.functional._address import Address
from stochprune.functional._checks import usual_linear
from stochprune.functional._inputs import by_draw, linear
from stochprune.functional._op import ADDRESS, product, reshaped
from stochprune.functional._sharded import linear_shards
from stochprune.shards import is_dtensor

_OP = "masked_linear"


def _forward(x: Tensor, weight: Tensor, logits: Tensor, bias: Tensor | None, *address: Any) -> Tensor:
    mask, backend = Mask(*address), backends.resolve(x, weight, logits)
    if backend.MATRICES and x.dim() == 2:
        return backend.masked_linear(x, weight, Logits(logits), bias, mask=mask)
    y = backend.masked_linear(by_draw(x, mask.draw), weight, Logits(logits), bias, mask=mask)
    return reshaped(y, (*x.shape[:-1], weight.shape[0]))


def _backward(grad: Tensor, x: Tensor, weight: Tensor, logits: Tensor, *rest: Any) -> tuple[Tensor, Tensor, Tensor]:
    mask, needs = Mask(*rest[:7]), rest[7:]
    backend = backends.resolve(x, weight, logits)
    given = (grad, x) if backend.MATRICES and x.dim() == 2 else (by_draw(grad, mask.draw), by_draw(x, mask.draw))
    dx, dweight, dlogits = backend.masked_linear_backward(*given, weight, Logits(logits), mask=mask, needs=needs)
    return (
        x.new_empty(0) if dx is None else dx if dx.shape == x.shape else dx.view(x.shape),
        weight.new_empty(0) if dweight is None else dweight,
        logits.new_empty(0) if dlogits is None else dlogits,
    )


def _fake(x: Tensor, weight: Tensor, *rest: Any) -> Tensor:
    return x.new_empty(*x.shape[:-1], weight.shape[0])


_masked_linear = product(_OP, ("x", "weight", "logits"), ADDRESS, _forward, _backward, _fake)


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
    row_offset: int = 0,
    col_offset: int = 0,
) -> Tensor:
    """Apply a linear layer under a stochastic mask: ``x (z * weight)^T + bias``.

    The address (seed, draw, stream, row, column) determines the mask z, which is applied and dropped. Backward computes
    it again. With G the gradient of ``z * weight``, the gradient of the weight is ``G * z`` and the gradient of the
    logits is ``G * weight * slope``:

    ==========================  =============================  =======================================
    estimator                   z                              slope
    ==========================  =============================  =======================================
    straight_through            m, the hard mask               sigmoid'(logit)   (Bengio et al. 2013)
    concrete                    s, the binary concrete mask    s (1 - s) / temperature
    straight_through_concrete   m                              s (1 - s) / temperature
    expected                    sigmoid(logit)                 sigmoid'(logit)
    hard_concrete               clamp(1.2 s - 0.1, 0, 1)       1.2 s (1 - s) / temperature where not clamped
    ==========================  =============================  =======================================

    Here ``m = u < T`` with the quantised thresholds T, and ``s = sigmoid((logit - logit(v)) / temperature)`` with the
    same uniforms (Maddison et al. 2017).

    With straight_through and straight_through_concrete, the weight's gradient is unbiased for the expected loss over
    hard masks. With straight_through, the logits' gradient is unbiased too if the loss is affine in each weight's mask,
    as for a linear layer with a linear loss; for other losses it is biased. With concrete and hard_concrete, both
    gradients are unbiased for the expected loss over these soft masks. Some masks of hard_concrete (Louizos et al.
    2018) are exactly zero, see :func:`stochprune.functional.expected_l0`. The gradients of expected are exact for the
    loss at the mean weights.

    Args:
        x: [..., K], floating. With a vector of D draws: [D, ..., K]; slice d gets the mask of ``draw[d]``.
            If weight and logits are DTensors, x, bias and the result are DTensors too: each process uses its part of
            the whole mask (docs/distributed.md).
        weight: [N, K], floating, any strides. It may be wider than x: the product is computed in x's dtype. A weight
            without a gradient may be float8_e4m3fn, whose numbers reach 448. Its scale is the caller's, as here with a
            scale for each output::

                narrow = (weight / scale[:, None]).to(torch.float8_e4m3fn)  # scale = weight.abs().amax(1) / 448, [N]
                y = masked_linear(x, narrow, logits, **address) * scale + bias

            Or it may be a quantised tensor of torchao, which forward and backward each dequantise; autograd saves the
            integers.
        logits: [N, K], floating; the probability of keeping is sigmoid(logits).
        bias: [N] or None.
        seed: 0 .. 2^64 - 1, or a one-element int64 tensor with those bits.
        draw: 0 .. 2^32 - 1, or an int64 tensor: one element for one mask, or a vector [D] with one mask for each of the
            D slices of x (Monte Carlo samples, or per-example masks).
        stream: 0 .. 2^31 - 1, the number of the layer (:func:`stochprune.rng.stream`).
        estimator, temperature: see above.
        samples: S masks for the same x, with the draws draw .. draw + S - 1.
        row_offset, col_offset: global position of ``weight[0, 0]`` if the weight is a shard of a larger one.

    Returns:
        [..., N] in x's dtype; [S, ..., N] with ``samples``; [D, ..., N] with a vector of draws.

    Raises:
        TypeError: a tensor that is not floating.
        ValueError: shapes that do not fit, devices that differ, NaN logits (on the CPU), an eight-bit weight that
            requires a gradient, an unknown estimator, an integer out of range.
        RuntimeError: if it is differentiated twice.
    """
    if not torch.compiler.is_compiling() and usual_linear(
        x, weight, logits, bias, seed, draw, stream, estimator, temperature, samples, row_offset, col_offset
    ):
        return _masked_linear(_OP, x, weight, logits, bias, seed, draw, stream, estimator, temperature, 0, 0)
    at = Address(seed, draw, stream, estimator, temperature, samples, row_offset, col_offset)
    if is_dtensor(weight):
        return linear_shards(masked_linear, x, (weight, logits), bias, **at._asdict())
    given = linear(_OP, x, {"weight": weight, "logits": logits}, bias, at)
    return given.restore(_masked_linear(_OP, given.x, weight, logits, given.bias, *given.mask))
