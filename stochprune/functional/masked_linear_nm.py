"""masked_linear_nm: a linear layer under an N:M mask, which is sampled where it is used and never stored.

Only the inputs are saved for backward, which samples the mask again.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from stochprune import backends, patterns
from stochprune.address import Logits, Mask
from stochprune.functional import _product
from stochprune.functional._address import Address
from stochprune.functional._inputs import linear
from stochprune.functional._op import ADDRESS, product
from stochprune.functional._sharded import linear_shards
from stochprune.shards import is_dtensor

_OP = "masked_linear_nm"


def _forward(x: Tensor, weight: Tensor, logits: Tensor, bias: Tensor | None, *rest: Any) -> Tensor:
    backend, mask, (n, m) = backends.resolve(x, weight, logits), Mask(*rest[:7]), rest[7:]

    def weights(part: slice) -> Tensor:
        return backend.nm_masked_weight(weight, Logits(logits), (n, m), mask=mask.part(part), dtype=x.dtype)

    return _product.forward(x, weight, bias, weights, _product.LINEAR, len(mask.draw))


def _fake(x: Tensor, weight: Tensor, *rest: Any) -> Tensor:
    return x.new_empty(*x.shape[:-1], weight.shape[0])


def _backward(grad: Tensor, x: Tensor, weight: Tensor, logits: Tensor, *rest: Any) -> tuple[Tensor, Tensor, Tensor]:
    backend, mask, (n, m) = backends.resolve(x, weight, logits), Mask(*rest[:7]), rest[7:9]
    levels, need_x, needs = Logits(logits), rest[9], rest[10:]

    def weights(part: slice) -> Tensor:
        return backend.nm_masked_weight(weight, levels, (n, m), mask=mask.part(part), dtype=x.dtype)

    def parameter_grads(part: slice, g: Tensor) -> tuple[Tensor | None, Tensor | None]:
        wide = g.to(weight.dtype)
        return backend.nm_weight_grad(wide, weight, levels, (n, m), mask=mask.part(part), needs=needs)

    wanted = (need_x, any(needs))
    dx, grads = _product.backward(grad, x, weight, weights, parameter_grads, _product.LINEAR, len(mask.draw), wanted)
    dweight, dlogits = _product.operator_grads((weight, logits), grads, x)
    return dx, dweight, dlogits


_masked_linear_nm = product(_OP, ("x", "weight", "logits"), f"{ADDRESS}, int n, int m", _forward, _backward, _fake)


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
    row_offset: int = 0,
    col_offset: int = 0,
) -> Tensor:
    """Apply a linear layer that keeps exactly n of every m neighbouring weights of a row: ``x (z * weight)^T + bias``.

    In each group of m columns, a pattern has a probability proportional to ``exp(sum of the kept logits)``. These are
    independent Bernoulli masks, conditioned on keeping n. The address determines the pattern
    (:mod:`stochprune.patterns`).

    With G the gradient of ``z * weight``, the gradient of the weight is ``G * z``. The gradient of the logits is the
    straight-through estimate (Bengio et al. 2013): ``G * weight`` times the exact Jacobian of the inclusion
    probabilities, which is the covariance of a group's mask. It is unbiased for the expected loss if the loss is affine
    in the mask of each group, as for a linear layer with a linear loss; for other losses it is biased.

    Args:
        x: [..., K], floating. With a vector of D draws: [D, ..., K]; slice d gets the mask of ``draw[d]``.
        weight, logits: [N, K], floating; m divides K.
        bias: [N] or None.
        pattern: ``"n:m"``, such as ``"2:4"``: m is 2, 4 or 8; n is below m and at most 4.
        seed, draw, stream, samples, row_offset, col_offset: as in :func:`stochprune.functional.masked_linear`; m
            divides ``col_offset``.

    Returns:
        [..., N] in x's dtype; [S, ..., N] with ``samples``; [D, ..., N] with a vector of draws.

    Raises:
        TypeError: a tensor that is not floating.
        ValueError: shapes or a pattern that do not fit, devices that differ, NaN logits (on the CPU), an integer out of
            range.
        RuntimeError: if it is differentiated twice.
    """
    if is_dtensor(weight):
        offsets = {"row_offset": row_offset, "col_offset": col_offset}
        address = {"seed": seed, "draw": draw, "stream": stream, "samples": samples, "pattern": pattern, **offsets}
        return linear_shards(masked_linear_nm, x, (weight, logits), bias, **address)
    at = Address(seed, draw, stream, samples=samples, row_offset=row_offset, col_offset=col_offset)
    given = linear(_OP, x, {"weight": weight, "logits": logits}, bias, at)
    n, m = patterns.parse(pattern, _OP)
    patterns.check(_OP, n, m, weight.shape[1])
    patterns.check_offset(_OP, m, given.mask.col)
    return given.restore(_masked_linear_nm(_OP, given.x, weight, logits, given.bias, *given.mask, n, m))
