"""Masked weights in scratch memory, and the gradients through their masks, for products that torch makes."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor

from stochprune import _C, materialised
from stochprune.address import Logits, Mask
from stochprune.native.masked import masked
from stochprune.native.workspace import fresh, workspace


def masked_weight(
    weight: Tensor,
    logits: Logits,
    *,
    mask: Mask,
    dtype: torch.dtype,
    rows: Tensor | None = None,
    memo: list[Tensor] | None = None,
) -> Tensor:
    """As :func:`stochprune.reference.masked_weight`, in the shared workspace; ``memo`` gets hard masks as bits."""
    layer = masked(weight, logits, mask, rows)
    shape = (mask.draw.shape[0], *(weight if rows is None else rows).shape[:1], *weight.shape[1:])
    bits = None
    if memo is not None and layer.groups:
        bits = torch.empty(shape[0] * shape[1], layer.groups, dtype=torch.int64)
        memo.append(bits)
    out = workspace.take(shape, dtype)
    _C.masked_weight(layer, out, bits, torch.get_num_threads())
    return out


def weight_grad(
    grad: Tensor,
    weight: Tensor,
    logits: Logits,
    *,
    mask: Mask,
    needs: tuple[bool, bool],
    rows: Tensor | None = None,
    memo: list[Tensor] | None = None,
) -> tuple[Tensor | None, Tensor | None]:
    """As :func:`stochprune.reference.weight_grad`."""
    grad, shape = grad.contiguous(), grad.shape[1:]
    # A gradient alone of its draw makes room for one of the results.
    spare = grad[0] if grad.shape[0] == 1 else None
    dweight = dlogits = None
    if needs[0]:
        if spare is not None and spare.dtype == weight.dtype:
            dweight, spare = spare, None
        else:
            dweight = fresh(shape, weight.dtype)
    if needs[1]:
        dlogits = spare if spare is not None and spare.dtype == logits.dtype else fresh(shape, logits.dtype)
    layer, bits = masked(weight, logits, mask, rows), memo[0] if memo else None
    _C.weight_grad(layer, grad=grad, kept=bits, dweight=dweight, dlogits=dlogits, threads=torch.get_num_threads())
    return dweight, dlogits


masked_weights = partial(materialised.masked_weights, masked_weight)
multi_layer_grads = partial(materialised.multi_layer_grads, weight_grad)
