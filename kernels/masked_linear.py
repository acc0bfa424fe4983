"""masked_linear: y = x (z * W)^T + b and its gradients, a mask for each slice of x, by the route for its shape."""

from __future__ import annotations

import torch
from torch import Tensor

from .mask import Mask
from .mask_bits import mask_bits
from .masked_matmul import masked_matmul
from .one_pass import one_pass, one_pass_fits
from .prepass import mask_weight
from .routes import choose
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
    return _product(choose(x.shape[1], x.dtype, estimator), x, weight, logits, bias, mask)


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
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """The gradients dx [D, M, K], dweight [N, K] and dlogits [N, K] of grad [D, M, N]; None where not needed."""
    mask = Mask(seed, draw, stream, estimator, temperature)
    route = choose(x.shape[1], x.dtype, estimator)
    wanted = need_weight or need_logits
    if wanted and route == "in_register":
        dweight = torch.empty(weight.shape, dtype=weight.dtype, device=weight.device) if need_weight else None
        dlogits = torch.empty(logits.shape, dtype=logits.dtype, device=logits.device) if need_logits else None
        if need_x and one_pass_fits(x):
            dx = one_pass(grad[0], x[0], weight, logits, mask, dweight, dlogits)[None]
            return dx, dweight, dlogits
        weight_grad_matmul(grad, x, weight, logits, mask, dweight, dlogits)
    elif wanted:
        dweight, dlogits = _weight_grads(grad, x, weight, logits, mask, need_weight, need_logits)
    else:
        dweight = dlogits = None
    dx = _product(route, grad, weight, logits, None, mask, transpose=True) if need_x else None
    return dx, dweight, dlogits


def _product(
    route: str, x: Tensor, weight: Tensor, logits: Tensor, bias: Tensor | None, mask: Mask, transpose: bool = False
) -> Tensor:
    """x (z * W)^T + b, or x (z * W) with ``transpose``, for each draw."""
    out = x.new_empty(*x.shape[:2], weight.shape[1 if transpose else 0])
    if route == "in_register":
        masked_matmul(x, weight, logits, bias, mask, out, transpose)
        return out
    for i in range(len(x)):
        one = mask.one(i)
        if route == "bits":
            masked_matmul(x[i : i + 1], weight, logits, bias, one, out[i : i + 1], transpose, mask_bits(logits, one))
            continue
        masked = mask_weight(weight, logits, one, x.dtype)
        masked = masked if transpose else masked.mT
        if bias is None:
            torch.mm(x[i], masked, out=out[i])
        else:
            torch.addmm(bias.to(x.dtype), x[i], masked, out=out[i])
    return out


def _weight_grads(
    grad: Tensor, x: Tensor, weight: Tensor, logits: Tensor, mask: Mask, need_weight: bool, need_logits: bool
) -> tuple[Tensor | None, Tensor | None]:
    """dweight and dlogits by G = grad^T x in memory and one elementwise pass over it."""
    if len(x) == 1:
        g = _outer(grad[0], x[0], torch.promote_types(weight.dtype, logits.dtype))
        home = {g.dtype: g}  # the first gradient of this dtype overwrites G
        dweight = dlogits = None
        if need_weight:
            dweight = home.pop(weight.dtype, None)
            dweight = torch.empty_like(g, dtype=weight.dtype) if dweight is None else dweight
        if need_logits:
            dlogits = home.pop(logits.dtype, None)
            dlogits = torch.empty_like(g, dtype=logits.dtype) if dlogits is None else dlogits
        weight_grad(g, weight, logits, mask, dweight, dlogits)
        return dweight, dlogits
    sums = [
        torch.zeros(like.shape, dtype=torch.float32, device=like.device) if need else None
        for like, need in ((weight, need_weight), (logits, need_logits))
    ]
    for i in range(len(x)):
        weight_grad(_outer(grad[i], x[i], torch.float32), weight, logits, mask.one(i), *sums, add=True)
    dweight, dlogits = sums
    return (
        None if dweight is None else dweight.to(weight.dtype),
        None if dlogits is None else dlogits.to(logits.dtype),
    )


def _outer(grad: Tensor, x: Tensor, dtype: torch.dtype) -> Tensor:
    """G = grad^T x [N, K] in ``dtype``, summed in float32 whatever the inputs."""
    if grad.dtype == dtype:
        return torch.mm(grad.mT, x)
    if grad.is_cuda:
        return torch.mm(grad.mT, x, out_dtype=dtype)
    return torch.mm(grad.mT.to(dtype), x.to(dtype))
