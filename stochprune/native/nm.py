"""N:M masked weights and their gradients in C++."""

from __future__ import annotations

import torch
from torch import Tensor

from stochprune import _C
from stochprune.address import Logits, Mask
from stochprune.native.results import fresh
from stochprune.native.workspace import workspace


def nm_masked_weight(
    weight: Tensor, logits: Logits, pattern: tuple[int, int], *, mask: Mask, dtype: torch.dtype
) -> Tensor:
    """As :func:`stochprune.reference.nm_masked_weight`, in the shared workspace."""
    out = workspace.take((mask.draw.shape[0], *weight.shape), dtype)
    _C.nm_masked_weight(_C.Masked(mask, weight=weight, logits=logits), pattern, out, torch.get_num_threads())
    return out


def nm_weight_grad(
    grad: Tensor, weight: Tensor, logits: Logits, pattern: tuple[int, int], *, mask: Mask, needs: tuple[bool, bool]
) -> tuple[Tensor | None, Tensor | None]:
    """As :func:`stochprune.reference.nm_weight_grad`."""
    dweight = fresh(weight.shape, weight.dtype) if needs[0] else None
    dlogits = fresh(logits.shape, logits.dtype) if needs[1] else None
    layer = _C.Masked(mask, weight=weight, logits=logits)
    _C.nm_weight_grad(layer, pattern, grad, dweight, dlogits, torch.get_num_threads())
    return dweight, dlogits
