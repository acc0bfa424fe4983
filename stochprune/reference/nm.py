"""N:M masks: masked weights and their gradients; see :mod:`stochprune.patterns`."""

from __future__ import annotations

import torch
from torch import Tensor

from stochprune import patterns
from stochprune.address import Grads2, Logits, Mask, Needs2


def nm_masked_weight(
    weight: Tensor, logits: Logits, pattern: tuple[int, int], *, mask: Mask, dtype: torch.dtype
) -> Tensor:
    """Return z * weight [D, N, K] in ``dtype``; z is the n:m mask of each draw."""
    out = weight.new_empty(len(mask.draw), *weight.shape, dtype=dtype)
    for i in range(len(mask.draw)):
        out[i] = torch.where(patterns.mask(logits, pattern, mask.one(i)).bool(), weight, 0)
    return out


def nm_weight_grad(
    grad: Tensor, weight: Tensor, logits: Logits, pattern: tuple[int, int], *, mask: Mask, needs: Needs2
) -> Grads2:
    """Return dweight and dlogits [N, K] from grad [D, N, K] = dL/d(z * weight), summed over draws; None if not needed.

    dweight = grad z. dlogits is the product of grad, weight and the Jacobian of the inclusion probabilities.
    """
    need_weight, need_logits = needs
    wide = torch.promote_types(weight.dtype, torch.float32)
    dweight, summed = torch.zeros_like(weight, dtype=wide), torch.zeros_like(weight, dtype=wide)
    for i in range(len(mask.draw)):
        if need_weight:
            dweight += torch.where(patterns.mask(logits, pattern, mask.one(i)).bool(), grad[i].to(wide), 0)
        summed += grad[i]
    dlogits = patterns.inclusion_grad(summed * weight, logits, *pattern).to(logits.dtype) if need_logits else None
    return dweight.to(weight.dtype) if need_weight else None, dlogits
