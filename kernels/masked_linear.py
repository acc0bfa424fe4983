"""masked_linear: y = x (z * W)^T + b and its gradients, with one mask per slice of x, by the route for its shape."""

from __future__ import annotations

import torch
from torch import Tensor

from stochprune import materialised
from stochprune.address import Grads3, KLTerm, Logits, Mask, Needs3

from . import tiles
from .mask_backward import mask_backward
from .masked_matmul import masked_matmul
from .one_pass import one_pass, one_pass_fits
from .prepass import mask_weight
from .routes import FUSED_TOKENS, Product, choose
from .thresholds import cache
from .weight_grad_matmul import weight_grad_matmul

REACH = 1 << 25
"""The largest stride with which the main loops address the 64 rows of a step: these offsets have 32 bits."""


def masked_linear(x: Tensor, weight: Tensor, logits: Logits, bias: Tensor | None, *, mask: Mask) -> Tensor:
    """As :func:`stochprune.reference.masked_linear`."""
    weight = tiles.readable(weight)
    return _product(_route(x, weight, logits, mask), x, weight, logits, bias, mask)


def masked_linear_backward(
    grad: Tensor, x: Tensor, weight: Tensor, logits: Logits, *, mask: Mask, needs: Needs3, kl: KLTerm | None = None
) -> Grads3:
    """As :func:`stochprune.reference.masked_linear_backward`."""
    need_x, wanted = needs[0], needs[1:]
    weight = tiles.readable(weight)
    route = _route(x, weight, logits, mask)
    dweight = dlogits = None
    if any(wanted) and route != "prepass" and x.shape[1] <= FUSED_TOKENS:
        dweight, dlogits = (
            torch.empty(t.shape, dtype=t.dtype, device=t.device) if need else None
            for t, need in zip((weight, logits), wanted, strict=True)
        )
        if need_x and max(x.shape[2], grad.stride(2)) <= REACH and one_pass_fits(x, grad, weight, logits):
            dx = one_pass(grad[0], x[0], weight, logits, mask=mask, dweight=dweight, dlogits=dlogits, kl=kl)[None]
            return dx, dweight, dlogits
        weight_grad_matmul(grad, x, weight, logits, mask=mask, dweight=dweight, dlogits=dlogits, kl=kl)
    elif any(wanted):
        together = need_x and route == "prepass" and len(x) == 1  # this masked weight is the only temporary one
        dx, dweight, dlogits = materialised.product_grads(
            mask_backward, grad, x, weight, logits, mask=mask, needs=(together, *wanted), kl=kl
        )
        if together:
            return dx, dweight, dlogits
    dx = _product(route, grad, weight, logits, None, mask, transpose=True) if need_x else None
    return dx, dweight, dlogits


def _route(x: Tensor, weight: Tensor, logits: Logits, mask: Mask) -> str:
    formed = cache.enabled or cache.find(logits) is not None
    product = Product(*x.shape[:2], *weight.shape, x.dtype, weight.dtype, logits.dtype, mask.col, formed)
    return choose(product, mask.estimator, x.device)


def _product(
    route: str, x: Tensor, weight: Tensor, logits: Logits, bias: Tensor | None, mask: Mask, transpose: bool = False
) -> Tensor:
    """Return x (z * W)^T + b, or x (z * W) with ``transpose``, for each draw."""
    if route == "prepass":
        return materialised.product(
            lambda part: mask_weight(weight, logits, mask=mask.part(part), dtype=x.dtype),
            weight,
            x,
            None if bias is None else bias.to(x.dtype),
            transpose,
        )
    x = x if x.stride(2) <= REACH else x.contiguous()
    out = x.new_empty(*x.shape[:2], weight.shape[1 if transpose else 0])
    thresholds = cache.get(logits) if route == "thresholds" else None
    masked_matmul(x, weight, logits, bias, mask=mask, out=out, transpose=transpose, thresholds=thresholds)
    return out
