"""masked_lora_linear: ``y = x (z * (W + scale * B A))^T + b``, a low-rank update of a weight under the weight's mask.

``W + scale * B A`` is formed in temporary memory, in forward and again in backward. Saved for backward are x, W, A, B,
the logits and the address: no updated weight, no mask of the weights, and no mask of the dropout.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from stochprune import backends, materialised, rng
from stochprune.address import Mask
from stochprune.functional._address import Address
from stochprune.functional._checks import check_tensors, in_product_dtype, is_number
from stochprune.functional._inputs import by_draw, linear
from stochprune.functional._op import ADDRESS, product, reshaped
from stochprune.functional._product import rows
from stochprune.functional.masked_linear import _backward as _learnt_grads
from stochprune.functional.masked_linear import _forward as _learnt_product
from stochprune.quantised import dequantised

_OP = "masked_lora_linear"
DROPOUT_STREAM = 1 << 30
"""This bit tells the stream of a layer's dropout from that of its mask."""


def _numbers(weight: Tensor) -> Tensor:
    """Return a frozen weight in a dtype of products: one in eight bits is converted, a quantised one dequantised."""
    return materialised.readable(dequantised(weight))


def updated_weight(weight: Tensor, a: Tensor, b: Tensor, scale: float) -> Tensor:
    """Return ``W + scale * B A`` [N, K] in the wider dtype of W and A, also under autocast; differentiable."""
    base = _numbers(weight)
    dtype = torch.promote_types(base.dtype, a.dtype)
    with torch.autocast(a.device.type, enabled=False):
        return torch.addmm(base.to(dtype), b.to(dtype), a.to(dtype), alpha=scale)


def where_kept(values: Tensor, weight: Tensor) -> Tensor:
    """Return the values [N, K] under the fixed mask of a weight [N, K]: 0 where the weight is 0."""
    return torch.where(_numbers(weight) != 0, values, 0)


def _product(
    x: Tensor, values: Tensor, weight: Tensor, logits: Tensor | None, bias: Tensor | None, address: tuple[Any, ...]
) -> Tensor:
    """Return y [..., N] of x [..., K] and masked values [N, K]."""
    if logits is not None:
        return _learnt_product(x, values, logits, bias, *address)
    y = F.linear(rows(x), where_kept(values, weight).to(x.dtype), bias)
    return reshaped(y, (*x.shape[:-1], len(values)))


def _product_grads(
    grad: Tensor,
    x: Tensor,
    values: Tensor,
    weight: Tensor,
    logits: Tensor | None,
    address: tuple[Any, ...],
    needs: tuple[bool, bool, bool],
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the gradients of x, the values and the logits; one that is not needed is empty."""
    if logits is not None:
        return _learnt_grads(grad, x, values, logits, *address, *needs)
    dx = dvalues = none = grad.new_empty(0)
    if needs[0]:
        dx = (rows(grad) @ where_kept(values, weight).to(grad.dtype)).view(x.shape)
    if needs[1]:
        dvalues = where_kept(materialised.outer(rows(grad)[None], rows(x)[None], 0, values.dtype), weight)
    return dx, dvalues, none


def _dropped(x: Tensor, mask: Mask, keep: int, before: int) -> Tensor:
    """Return x with inverted dropout: ``x * LEVELS / keep`` at the activations [M, K] that each draw keeps, else 0.

    ``before`` columns of other processes precede those of x.
    """
    many = by_draw(x, mask.draw)  # [D, M, K]
    threshold = torch.full(many.shape[1:], keep, dtype=torch.int32, device=x.device).to(torch.uint16)
    backend = backends.resolve(threshold)
    at = mask._replace(stream=mask.stream ^ DROPOUT_STREAM, row=0, col=mask.col + before)
    kept = torch.stack([backend.keep_mask(threshold, mask=at.one(i)) for i in range(len(mask.draw))])
    return torch.where(kept, many * (rng.LEVELS / keep), 0).view(x.shape)


def _forward(
    x: Tensor, weight: Tensor, a: Tensor, b: Tensor, logits: Tensor | None, bias: Tensor | None, *rest: Any
) -> Tensor:
    address, (scale, *drop) = rest[:7], rest[7:]
    if drop[0] == rng.LEVELS:
        return _product(x, updated_weight(weight, a, b, scale), weight, logits, bias, address)
    base, update = _separate(weight, a, b, scale)
    y = _product(x, base, weight, logits, bias, address)
    return y.add_(_product(_dropped(x, Mask(*address), *drop), update, weight, logits, None, address))


def _separate(weight: Tensor, a: Tensor, b: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    """Return W and ``scale * B A``, which multiply different inputs if there is dropout."""
    base = _numbers(weight)
    return base, updated_weight(base.new_zeros(()).expand_as(base), a, b, scale)


def _backward(
    grad: Tensor, x: Tensor, weight: Tensor, a: Tensor, b: Tensor, logits: Tensor | None, *rest: Any
) -> tuple[Tensor, ...]:
    address, (scale, *drop), (need_x, need_weight, need_a, need_b, need_logits) = rest[:7], rest[7:10], rest[10:]
    need_update = need_a or need_b
    if drop[0] == rng.LEVELS:
        values, needs = updated_weight(weight, a, b, scale), (need_x, need_weight or need_update, need_logits)
        dx, dupdate, dlogits = _product_grads(grad, x, values, weight, logits, address, needs)
        dweight = dupdate
    else:
        base, update = _separate(weight, a, b, scale)
        needs = (need_x, need_weight, need_logits)
        dx, dweight, dlogits = _product_grads(grad, x, base, weight, logits, address, needs)
        dropped, needs = _dropped(x, Mask(*address), *drop), (need_x, need_update, need_logits)
        dx2, dupdate, dlogits2 = _product_grads(grad, dropped, update, weight, logits, address, needs)
        dx = dx + _dropped(dx2, Mask(*address), *drop) if need_x else dx
        dlogits = dlogits + dlogits2
    none = grad.new_empty(0)
    with torch.autocast(grad.device.type, enabled=False):
        da = (b.to(dupdate.dtype).mT @ dupdate).mul_(scale).to(a.dtype) if need_a else none
        db = (dupdate @ a.to(dupdate.dtype).mT).mul_(scale).to(b.dtype) if need_b else none
    return dx, dweight.to(weight.dtype) if need_weight else none, da, db, dlogits


def _fake(x: Tensor, weight: Tensor, *rest: Any) -> Tensor:
    return x.new_empty(*x.shape[:-1], weight.shape[0])


_TENSORS = ("x", "weight", "lora_a", "lora_b", "logits?")
_masked_lora_linear = product(
    _OP, _TENSORS, f"{ADDRESS}, float scale, int keep, SymInt before", _forward, _backward, _fake
)


def masked_lora_linear(
    x: Tensor,
    weight: Tensor,
    lora_a: Tensor,
    lora_b: Tensor,
    logits: Tensor | None = None,
    bias: Tensor | None = None,
    *,
    seed: int | Tensor,
    draw: int | Tensor,
    stream: int,
    scale: float = 1.0,
    dropout: float = 0.0,
    dropout_offset: int = 0,
    estimator: str = "straight_through",
    temperature: float = 1.0,
    samples: int | None = None,
    row_offset: int = 0,
    col_offset: int = 0,
) -> Tensor:
    """Apply a linear layer with a low-rank update under the mask of its weight: ``x (z * (W + scale * B A))^T + b``.

    This is LoRA (Hu et al. 2021, arXiv 2106.09685) whose update keeps the zeros of a pruned weight: the merged weight
    ``z * (W + scale * B A)`` has them too.

    The mask z is learnt or fixed. With logits it is the stochastic mask of
    :func:`stochprune.functional.masked_linear`, which lists the estimators. Without logits it is 1 where the weight is
    not 0, and is stored nowhere else.

    With dropout the update multiplies ``dropout(x)`` instead of x, as in LoRA: ``x (z * W)^T + dropout(x) (z * scale *
    B A)^T + b``. Row and column of an activation, in x as a matrix, determine whether it is kept, so that backward, a
    repeated forward pass and a resumed run use the same dropout. Its stream is ``stream ^ 2^30``. Processes that share
    a draw but have examples of their own use different columns: process r passes ``dropout_offset = r * K``, so no two
    activations have the same bits, however many rows each process has.

    Args:
        x: [..., K], floating. With a vector of D draws: [D, ..., K]; slice d gets the masks of ``draw[d]``.
        weight: [N, K], floating; a weight without a gradient may be float8_e4m3fn, or quantised by torchao.
        lora_a: [r, K], floating, A above; r is the rank.
        lora_b: [N, r], B above, in the dtype of ``lora_a``. The sum with W is computed in the wider dtype of the two.
        logits: [N, K], floating, for a learnt mask; None for the fixed mask.
        bias: [N] or None.
        scale: of the update; LoRA's alpha / r.
        dropout: the probability of dropping an activation, in [0, 1); it is rounded to a multiple of 2^-15.
        dropout_offset: the columns, in the dropout's address, before those of x.
        seed, draw, stream, estimator, temperature, samples, row_offset, col_offset: as in masked_linear. With a fixed
            mask they concern the dropout alone.

    Returns:
        [..., N] in x's dtype; [S, ..., N] with ``samples``; [D, ..., N] with a vector of draws.

    Raises:
        TypeError: a tensor that is not floating, ``lora_a`` and ``lora_b`` of different dtypes, a scale or a dropout
            that is not a number.
        ValueError: as for masked_linear; a dropout outside [0, 1), a scale that is not finite, a dropout_offset that
            leaves the addressable columns.
        RuntimeError: if it is differentiated twice.
    """
    at = Address(seed, draw, stream, estimator, temperature, samples, row_offset, col_offset)
    given = linear(_OP, x, {"weight": weight, "logits": logits}, bias, at)
    check_tensors(_OP, weight=weight, lora_a=lora_a, lora_b=lora_b)
    (n, k), a, b = weight.shape, tuple(lora_a.shape), tuple(lora_b.shape)
    if len(a) != 2 or a[1] != k or b != (n, a[0]):
        raise ValueError(f"{_OP}: lora_a {a} and lora_b {b} must be [r, {k}] and [{n}, r] for a weight {(n, k)}")
    if lora_a.dtype != lora_b.dtype:
        raise TypeError(f"{_OP}: lora_a is {lora_a.dtype} and lora_b {lora_b.dtype}; convert one of them")
    in_product_dtype(_OP, given.x, "lora_a", lora_a, None)
    keep = kept_of(_OP, dropout)
    if not is_number(scale):
        raise TypeError(f"{_OP}: scale must be a number, got {scale!r}")
    if not abs(scale) < float("inf"):
        raise ValueError(f"{_OP}: scale must be finite, got {scale}")
    most = rng.COLUMN_LIMIT - k - col_offset
    if not 0 <= rng.integer(_OP, "dropout_offset", dropout_offset) <= most:
        raise ValueError(f"{_OP}: dropout_offset must lie in 0 .. {most}, got {dropout_offset}")
    y = _masked_lora_linear(
        _OP, given.x, weight, lora_a, lora_b, logits, given.bias, *given.mask, float(scale), keep, dropout_offset
    )
    return given.restore(y)


def kept_of(op: str, dropout: float) -> int:
    """Return the threshold of a probability of dropping: how many of ``rng.LEVELS`` values are kept, at least 1."""
    if not is_number(dropout):
        raise TypeError(f"{op}: dropout must be a number in [0, 1), got {dropout!r}")
    if not 0 <= dropout < 1:
        raise ValueError(f"{op}: dropout must lie in [0, 1), got {dropout}")
    return max(1, round((1 - dropout) * rng.LEVELS))
