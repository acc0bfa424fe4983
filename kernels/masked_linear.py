"""masked_linear: y = x (z * W)^T + b and its gradients, a mask for each slice of x, by the route for its shape."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor

from stochprune import products
from stochprune.products import Divergence, Mask

from .mask_bits import mask_bits
from .masked_matmul import masked_matmul
from .one_pass import one_pass, one_pass_fits
from .prepass import mask_weight
from .routes import Product, choose
from .weight_grad import weight_grad
from .weight_grad_matmul import weight_grad_matmul


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
    """y [D, M, N] of x [D, M, K], weight and logits [N, K], bias [N]; slice d under the mask of ``draw[d]``."""
    mask = Mask(seed, draw, stream, estimator, temperature)
    return _product(_route(x, weight, logits, estimator), x, weight, logits, bias, mask)


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
    route = _route(x, weight, logits, estimator)
    wanted = need_weight or need_logits
    if wanted and route == "in_register":
        dweight = torch.empty(weight.shape, dtype=weight.dtype, device=weight.device) if need_weight else None
        dlogits = torch.empty(logits.shape, dtype=logits.dtype, device=logits.device) if need_logits else None
        if need_x and one_pass_fits(x, grad, weight, logits):
            dx = one_pass(grad[0], x[0], weight, logits, mask, dweight, dlogits, divergence)[None]
            return dx, dweight, dlogits
        weight_grad_matmul(grad, x, weight, logits, mask, dweight, dlogits, divergence)
    elif wanted:

        def epilogue(i: int, g: Tensor, dweight: Tensor | None, dlogits: Tensor | None, add: bool) -> None:
            weight_grad(g, weight, logits, mask.one(i), dweight, dlogits, add, divergence=None if i else divergence)

        outer, needs = partial(products.outer, grad, x), (need_weight, need_logits)
        dweight, dlogits = products.weight_grads(epilogue, outer, (weight, logits), len(weight), len(x), needs)
    else:
        dweight = dlogits = None
    dx = _product(route, grad, weight, logits, None, mask, transpose=True) if need_x else None
    return dx, dweight, dlogits


def _route(x: Tensor, weight: Tensor, logits: Tensor, estimator: str) -> str:
    product = Product(*x.shape[:2], *weight.shape, x.dtype, weight.dtype, logits.dtype)
    return choose(product, estimator, x.device)


def _product(
    route: str, x: Tensor, weight: Tensor, logits: Tensor, bias: Tensor | None, mask: Mask, transpose: bool = False
) -> Tensor:
    """x (z * W)^T + b, or x (z * W) with ``transpose``, for each draw."""
    if route == "prepass":
        return products.product(
            lambda part: mask_weight(weight, logits, mask.part(part), x.dtype),
            weight,
            x,
            None if bias is None else bias.to(x.dtype),
            transpose,
        )
    out = x.new_empty(*x.shape[:2], weight.shape[1 if transpose else 0])
    if route == "in_register":
        masked_matmul(x, weight, logits, bias, mask, out, transpose)
        return out
    for draws in products.chunks(len(x), weight.numel() // 8):
        some = mask.part(draws)
        masked_matmul(x[draws], weight, logits, bias, some, out[draws], transpose, mask_bits(logits, some))
    return out
