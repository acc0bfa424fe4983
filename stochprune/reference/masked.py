"""Masks of independent weights: the mask itself, products with masked weights, and their gradients."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from stochprune import materialised, rng
from stochprune.address import Grads2, Grads3, KLTerm, Logits, Mask, Masks, Memo, Needs2, Needs3, Rows
from stochprune.memory_format import in_format_of
from stochprune.reference.kl import bernoulli_kl_backward, sigmoid_slope

STRETCH = (-0.1, 1.1)
"""The hard concrete mask is stretched to this interval before it is clamped to [0, 1] (Louizos et al. 2018)."""


def keep_mask(threshold: Tensor, *, mask: Mask) -> Tensor:
    """Return which weights one draw keeps, bool [N, K], from thresholds [N, K] (integers 0 .. 32768)."""
    return (mask.uniform16(*threshold.shape) & 0x7FFF) < threshold.to(torch.int32)


def threshold_from_logits(logits: Logits) -> Tensor:
    """Return the thresholds of logits, uint16 of the same shape.

    Raises:
        ValueError: a logit is NaN.
    """
    if logits.isnan().any():
        raise ValueError("logits contain NaN")
    return rng.threshold_from_logits(logits)


def factor(logits: Logits, mask: Mask) -> tuple[Tensor, Tensor]:
    """Return the estimator's mask z of one draw and its slope dz/dlogit, both [N, K], in float32 or wider.

    straight_through: z is the hard mask; the slope is that of its mean sigmoid(logit) (Bengio et al. 2013). concrete: z
    is the binary concrete variable, with its own slope (Maddison et al. 2017). straight_through_concrete: z is the hard
    mask; the slope is that of the concrete variable of the same uniforms. hard_concrete: z is the concrete variable,
    stretched and clamped to [0, 1], with its own slope (Louizos et al. 2018). expected: z = sigmoid(logit), with its
    own slope.
    """
    exact = logits.to(torch.promote_types(logits.dtype, torch.float32))
    if mask.estimator == "expected":
        return torch.sigmoid(exact), sigmoid_slope(exact)
    u = mask.uniform16(*logits.shape) & 0x7FFF
    hard = (u < threshold_from_logits(logits).to(torch.int32)).to(exact.dtype)
    if mask.estimator == "straight_through":
        return hard, sigmoid_slope(exact)
    v = (u.double() + 0.5) / rng.LEVELS
    relaxed = (exact - torch.logit(v).to(exact.dtype)) / mask.temperature
    soft, slope = torch.sigmoid(relaxed), sigmoid_slope(relaxed) / mask.temperature
    if mask.estimator == "hard_concrete":
        low, high = STRETCH
        stretched = soft * (high - low) + low
        return stretched.clamp(0, 1), torch.where((stretched > 0) & (stretched < 1), slope * (high - low), 0)
    return (soft if mask.estimator == "concrete" else hard), slope


def times(z: Tensor, values: Tensor, estimator: str) -> Tensor:
    """Return z * values. Under a hard mask, pruned values become 0, NaN too."""
    return torch.where(z.bool(), values, 0) if estimator.startswith("straight_through") else z * values


def masked_linear(x: Tensor, weight: Tensor, logits: Logits, bias: Tensor | None, *, mask: Mask) -> Tensor:
    """Return y [D, M, N] from x [D, M, K], weight and logits [N, K], bias [N]; slice d has the mask of ``draw[d]``."""
    weight, out = materialised.readable(weight), []
    for i in range(len(mask.draw)):
        z, _ = factor(logits, mask.one(i))
        out.append(F.linear(x[i], times(z, weight, mask.estimator).to(x.dtype), bias))
    return torch.stack(out) if out else x.new_zeros(0, x.shape[1], weight.shape[0])


def masked_linear_backward(
    grad: Tensor, x: Tensor, weight: Tensor, logits: Logits, *, mask: Mask, needs: Needs3, kl: KLTerm | None = None
) -> Grads3:
    """Return dx [D, M, K], dweight [N, K] and dlogits [N, K] from grad [D, M, N]; None where not needed.

    The gradient of ``kl`` is added to dlogits.
    """
    need_x, need_weight, need_logits = needs
    weight = materialised.readable(weight)
    wide = torch.promote_types(weight.dtype, torch.float32)
    dx = []
    dweight, dlogits = torch.zeros_like(weight, dtype=wide), torch.zeros_like(weight, dtype=wide)
    for i in range(len(mask.draw)):
        z, slope = factor(logits, mask.one(i))
        if need_x:
            dx.append(grad[i] @ times(z, weight, mask.estimator).to(grad.dtype))
        if need_weight or need_logits:
            g = (grad[i].mT @ x[i]).to(wide)  # [N, K]: dL/d(z * weight)
            dweight += times(z, g, mask.estimator)
            dlogits += g * weight * slope
    if kl is not None:
        pull, _ = bernoulli_kl_backward(kl.grad, logits, kl.prior_logits, needs=(True, False))
        assert pull is not None
        dlogits += pull
    return (
        (torch.stack(dx) if dx else torch.zeros_like(x)) if need_x else None,
        dweight.to(weight.dtype) if need_weight else None,
        dlogits.to(logits.dtype) if need_logits else None,
    )


def masked_weight(
    weight: Tensor, logits: Logits, *, mask: Mask, dtype: torch.dtype, rows: Rows = None, memo: Memo = None
) -> Tensor:
    """Return z * weight [D, N, ...] in ``dtype`` for products in torch; slice d has the mask of ``draw[d]``.

    Filters keep their memory format. The result may be temporary memory that the backend's next call overwrites.

    Args:
        weight, logits: [N, ...]; the trailing dimensions are flattened to the contract's columns.
        rows: int64 [R]: return these rows only, [D, R, ...].
        memo: a backend may append intermediate results that :func:`weight_grad` of the same masks can use.
    """
    weight = materialised.readable(weight)
    out = weight.new_empty(len(mask.draw), *weight.shape, dtype=dtype)
    for i in range(len(mask.draw)):
        z, _ = factor(Logits(logits.flatten(1)), mask.one(i))
        out[i] = times(z.view(weight.shape), weight, mask.estimator)
    return in_format_of(weight, out if rows is None else out[:, rows])


def weight_grad(
    grad: Tensor, weight: Tensor, logits: Logits, *, mask: Mask, needs: Needs2, rows: Rows = None, memo: Memo = None
) -> Grads2:
    """Return dweight and dlogits, each shaped like ``grad[0]`` and summed over draws; None where not needed.

    The results may overwrite the memory of ``grad``.

    Args:
        grad: dL/d(z * weight), [D, N, ...], or [D, R, ...] with ``rows``.
        weight, logits, rows, memo: as for :func:`masked_weight`.
    """
    need_weight, need_logits = needs
    weight = materialised.readable(weight)
    wide = torch.promote_types(weight.dtype, torch.float32)
    part = slice(None) if rows is None else rows
    dweight, dlogits = (grad.new_zeros(grad.shape[1:], dtype=wide) for _ in range(2))
    for i in range(len(mask.draw)):
        z, slope = factor(Logits(logits.flatten(1)), mask.one(i))
        g = grad[i].to(wide)
        dweight += times(z.view(weight.shape)[part], g, mask.estimator)
        dlogits += g * (weight * slope.view(weight.shape))[part]
    return dweight.to(weight.dtype) if need_weight else None, dlogits.to(logits.dtype) if need_logits else None


def masked_weights(
    weights: Sequence[Tensor], logits: Sequence[Logits], *, masks: Masks, dtype: torch.dtype
) -> list[Tensor]:
    """Return z * weight of many layers in ``dtype``, each shaped like its weight; later calls do not overwrite them."""
    return materialised.masked_weights(masked_weight, weights, logits, masks=masks, dtype=dtype)


def multi_layer_grads(
    grads: Sequence[Tensor], weights: Sequence[Tensor], logits: Sequence[Logits], *, masks: Masks, needs: Needs2
) -> tuple[list[Tensor] | None, list[Tensor] | None]:
    """Return dweight and dlogits of many layers from the gradients of :func:`masked_weights`; None if not needed."""
    return materialised.multi_layer_grads(weight_grad, grads, weights, logits, masks=masks, needs=needs)
