"""Masked weights in scratch memory, and the gradients through their masks, for products that torch makes."""

from __future__ import annotations

import torch
from torch import Tensor

from stochprune.native.arrays import fresh, rows_of
from stochprune.native.masked_weight import MaskedWeight
from stochprune.native.workspace import workspace


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
    """As :func:`stochprune.reference.masked_weight`, in the shared workspace; ``memo`` gets hard masks as bits."""
    layer = MaskedWeight(weight, logits, seed, stream, estimator, temperature, rows)
    n, k = layer.shape
    out = workspace.take(len(draw) * n, k, dtype).view(len(draw), n, k)
    whole = slice(0, n)
    for i in range(len(draw)):
        bits = None if memo is None else layer.bits(whole)
        layer.write(draw[i], whole, out[i], bits)
        if memo is not None and bits is not None:
            memo.append(bits)
    return out.view(len(draw), n, *weight.shape[1:])


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
    """As :func:`stochprune.reference.weight_grad`."""
    layer = MaskedWeight(weight, logits, seed, stream, estimator, temperature, rows)
    parts = [rows_of(g.flatten(1)) for g in grad]
    # A gradient alone of its draw makes room for one of the results.
    spare = {parts[0].dtype: parts[0]} if len(parts) == 1 else {}
    dweight, dlogits = (
        spare.pop(like.dtype, None) if need else None for need, like in ((need_weight, weight), (need_logits, logits))
    )
    if need_weight and dweight is None:
        dweight = fresh(layer.shape, weight.dtype)
    if need_logits and dlogits is None:
        dlogits = fresh(layer.shape, logits.dtype)
    for i, g in enumerate(parts):
        bits = memo[i] if memo else None
        layer.gradients(draw[i], slice(0, len(g)), g, bits, dweight, dlogits, accumulate=i > 0)
    return (
        None if dweight is None else dweight.view(grad.shape[1:]),
        None if dlogits is None else dlogits.view(grad.shape[1:]),
    )
