"""Masked weights as transient tensors, and the gradients through their masks, for products that torch makes."""

from __future__ import annotations

import torch
from torch import Tensor

from stochprune import products
from stochprune.cuda.passes import Address, mask_weight, through_mask


def masked_weight(
    weight: Tensor,
    logits: Tensor,
    seed: Tensor,
    draw: Tensor,
    stream: int,
    estimator: str,
    temperature: float,
    dtype: torch.dtype,
    rows: Tensor | None = None,
    memo: list[Tensor] | None = None,
) -> Tensor:
    """As :func:`stochprune.reference.masked_weight`, one launch."""
    at = Address(seed, draw, stream, estimator, temperature)
    out = mask_weight(weight.flatten(1), logits.flatten(1), at, dtype, rows)
    return out.view(*out.shape[:2], *weight.shape[1:])


def weight_grad(
    grad: Tensor,
    weight: Tensor,
    logits: Tensor,
    seed: Tensor,
    draw: Tensor,
    stream: int,
    estimator: str,
    temperature: float,
    need_weight: bool,
    need_logits: bool,
    rows: Tensor | None = None,
    memo: list[Tensor] | None = None,
) -> tuple[Tensor | None, Tensor | None]:
    """As :func:`stochprune.reference.weight_grad`, a launch for each draw; several are summed in float32."""
    at = Address(seed, draw, stream, estimator, temperature)
    flat, levels = weight.flatten(1), logits.flatten(1)

    def epilogue(i: int, g: Tensor, dweight: Tensor | None, dlogits: Tensor | None, add: bool) -> None:
        through_mask(g, flat, levels, at, i, dweight, dlogits, add, rows)

    def outer(i: int, dtype: torch.dtype) -> Tensor:
        return grad[i].flatten(1).contiguous()

    needs = (need_weight, need_logits)
    grads = products.weight_grads(epilogue, outer, (flat, levels), grad.shape[1], len(grad), needs)
    dweight, dlogits = (None if g is None else g.view(grad.shape[1:]) for g in grads)
    return dweight, dlogits
