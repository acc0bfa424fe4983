"""masked_linear on the GPU without Triton: the masked weights of the draws in one launch, then cuBLAS."""

from __future__ import annotations

from functools import partial

from torch import Tensor

from stochprune import products
from stochprune.cuda.passes import Address, mask_weight, through_mask


def _product(x: Tensor, weight: Tensor, logits: Tensor, bias: Tensor | None, at: Address, transpose: bool) -> Tensor:
    def masked(part: slice) -> Tensor:
        return mask_weight(weight, logits, at._replace(draws=at.draws[part]), x.dtype)

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
    return _product(x, weight, logits, bias, Address(seed, draw, stream, estimator, temperature), transpose=False)


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
    at = Address(seed, draw, stream, estimator, temperature)

    def epilogue(i: int, g: Tensor, dweight: Tensor | None, dlogits: Tensor | None, add: bool) -> None:
        prior = None if i else prior_logits
        through_mask(g, weight, logits, at, i, dweight, dlogits, add, prior=prior, kl_grad=kl_grad)

    dx = _product(grad, weight, logits, None, at, transpose=True) if need_x else None
    dweight = dlogits = None
    if need_weight or need_logits:
        outer, needs = partial(products.outer, grad, x), (need_weight, need_logits)
        dweight, dlogits = products.weight_grads(epilogue, outer, (weight, logits), len(weight), len(x), needs)
    return dx, dweight, dlogits
