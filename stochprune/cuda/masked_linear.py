"""masked_linear on the GPU without Triton: the masked weights of the draws in one launch, then cuBLAS."""

from __future__ import annotations

from functools import partial

from torch import Tensor

from stochprune import products
from stochprune.cuda.passes import mask_weight, through_mask
from stochprune.products import Divergence, Mask


def _product(x: Tensor, weight: Tensor, logits: Tensor, bias: Tensor | None, mask: Mask, transpose: bool) -> Tensor:
    def masked(part: slice) -> Tensor:
        return mask_weight(weight, logits, mask.part(part), x.dtype)

    return products.product(masked, weight, x, bias, transpose)


def masked_linear(
    x: Tensor,
    weight: Tensor,
    logits: Tensor,
    bias: Tensor | None,
    seed: Tensor,
    draw: Tensor,
    stream: int,
    estimator: str,
    temperature: float,
) -> Tensor:
    """As :func:`stochprune.reference.masked_linear`."""
    return _product(x, weight, logits, bias, Mask(seed, draw, stream, estimator, temperature), transpose=False)


def masked_linear_backward(
    grad: Tensor,
    x: Tensor,
    weight: Tensor,
    logits: Tensor,
    seed: Tensor,
    draw: Tensor,
    stream: int,
    estimator: str,
    temperature: float,
    need_x: bool,
    need_weight: bool,
    need_logits: bool,
    prior_logits: Tensor | None = None,
    kl_grad: Tensor | None = None,
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """As :func:`stochprune.reference.masked_linear_backward`."""
    mask = Mask(seed, draw, stream, estimator, temperature)
    divergence = None if prior_logits is None or kl_grad is None else Divergence(prior_logits, kl_grad)

    def epilogue(i: int, g: Tensor, dweight: Tensor | None, dlogits: Tensor | None, add: bool) -> None:
        once = None if i else divergence
        through_mask(g, weight, logits, mask.one(i), dweight, dlogits, add, divergence=once)

    dx = _product(grad, weight, logits, None, mask, transpose=True) if need_x else None
    dweight = dlogits = None
    if need_weight or need_logits:
        outer, needs = partial(products.outer, grad, x), (need_weight, need_logits)
        dweight, dlogits = products.weight_grads(epilogue, outer, (weight, logits), len(weight), len(x), needs)
    return dx, dweight, dlogits
