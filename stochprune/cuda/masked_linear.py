"""masked_linear on the GPU without Triton: one launch masks the weights of the draws, then cuBLAS multiplies."""

from __future__ import annotations

from torch import Tensor

from stochprune import materialised
from stochprune.address import Grads3, KLTerm, Logits, Mask, Needs3
from stochprune.cuda.passes import mask_backward, mask_weight


def _product(
    x: Tensor, weight: Tensor, logits: Logits, bias: Tensor | None, mask: Mask, transpose: bool = False
) -> Tensor:
    def masked(part: slice) -> Tensor:
        return mask_weight(weight, logits, mask=mask.part(part), dtype=x.dtype)

    return materialised.product(masked, weight, x, bias, transpose)


def masked_linear(x: Tensor, weight: Tensor, logits: Logits, bias: Tensor | None, *, mask: Mask) -> Tensor:
    """As :func:`stochprune.reference.masked_linear`."""
    return _product(x, weight, logits, bias, mask)


def masked_linear_backward(
    grad: Tensor, x: Tensor, weight: Tensor, logits: Logits, *, mask: Mask, needs: Needs3, kl: KLTerm | None = None
) -> Grads3:
    """As :func:`stochprune.reference.masked_linear_backward`."""
    need_x, wanted = needs[0], needs[1:]
    together = need_x and len(x) == 1 and any(wanted)
    dx = _product(grad, weight, logits, None, mask, transpose=True) if need_x and not together else None
    if not any(wanted):
        return dx, None, None
    found = materialised.product_grads(
        mask_backward, grad, x, weight, logits, mask=mask, needs=(together, *wanted), kl=kl
    )
    return found if together else (dx, *found[1:])
