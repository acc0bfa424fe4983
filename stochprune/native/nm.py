"""N:M masked weights and their gradients in C++."""

from __future__ import annotations

import torch
from torch import Tensor

from stochprune import _C
from stochprune.native.arrays import array, fresh, key, rows_of
from stochprune.native.workspace import workspace


def nm_masked_weight(
    weight: Tensor, logits: Tensor, n: int, m: int, seed: Tensor, draw: Tensor, stream: int, dtype: torch.dtype
) -> Tensor:
    """As :func:`stochprune.reference.nm_masked_weight`, in the shared workspace."""
    weight, logits = rows_of(weight.detach()), rows_of(logits.detach())
    rows, cols = weight.shape
    out = workspace.take(len(draw) * rows, cols, dtype).view(len(draw), rows, cols)
    for d, part in zip(draw, out, strict=True):
        address, arrays = key(seed, d, stream), (array(weight), array(logits), array(part))
        if _C.nm_masked_weight(address, (rows, cols), (n, m), *arrays, torch.get_num_threads()):
            raise ValueError("logits contain NaN")
    return out


def nm_weight_grad(
    grad: Tensor,
    weight: Tensor,
    logits: Tensor,
    n: int,
    m: int,
    seed: Tensor,
    draw: Tensor,
    stream: int,
    need_weight: bool,
    need_logits: bool,
) -> tuple[Tensor | None, Tensor | None]:
    """As :func:`stochprune.reference.nm_weight_grad`."""
    weight, logits = rows_of(weight.detach()), rows_of(logits.detach())
    shape = (weight.shape[0], weight.shape[1])
    dweight = fresh(shape, weight.dtype) if need_weight else None
    dlogits = fresh(shape, logits.dtype) if need_logits else None
    for i, d in enumerate(draw):
        g = rows_of(grad[i])
        given, results = (array(g), array(weight), array(logits)), (array(dweight), array(dlogits))
        _C.nm_weight_grad(key(seed, d, stream), shape, (n, m), *given, *results, i > 0, torch.get_num_threads())
    return dweight, dlogits
