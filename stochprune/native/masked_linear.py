"""masked_linear on the CPU: torch's products, for as many draws at a time as stay in cache."""

from __future__ import annotations

from torch import Tensor

from stochprune.address import KLTerm, Logits, Mask
from stochprune.native import products
from stochprune.native.workspace import fresh, workspace


def masked_linear(x: Tensor, weight: Tensor, logits: Logits, bias: Tensor | None, *, mask: Mask) -> Tensor:
    """As :func:`stochprune.reference.masked_linear`; of one draw x may be [M, K], and the result is [M, N]."""
    if x.dim() == 2:
        if workspace.draws(weight.shape[0], weight.shape[1], x.dtype):
            return products.forward_of_one(x, weight, logits, bias, mask)
        y = x.new_empty(x.shape[0], weight.shape[0])
        products.forward_by_panels(x[None], weight, logits, bias, mask, y[None])
        return y
    draws, n = x.shape[0], weight.shape[0]
    y = x.new_empty(draws, x.shape[1], n)
    step = workspace.draws(n, weight.shape[1], x.dtype)
    if draws <= step:
        products.forward(x, weight, logits, bias, mask, y)
        return y
    run = products.forward if step else products.forward_by_panels
    for at in _parts(draws, step):
        run(x[at], weight, logits, bias, mask.part(at), y[at])
    return y


def masked_linear_backward(
    grad: Tensor,
    x: Tensor,
    weight: Tensor,
    logits: Logits,
    *,
    mask: Mask,
    needs: tuple[bool, bool, bool],
    kl: KLTerm | None = None,
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """As :func:`stochprune.reference.masked_linear_backward`; of one draw grad may be [M, N], and x [M, K]."""
    n, k = weight.shape
    step = workspace.draws(n, k, x.dtype)
    dweight = fresh((n, k), weight.dtype) if needs[1] else None
    dlogits = fresh((n, k), logits.dtype) if needs[2] else None
    if x.dim() == 2 and step:
        dx = products.backward_of_one(grad, x, weight, logits, mask, needs[0], dweight, dlogits, kl)
        return dx, dweight, dlogits
    dx = x.new_empty(x.shape) if needs[0] else None
    if x.dim() == 2:
        dx_at = None if dx is None else dx[None]
        products.backward_by_panels(grad[None], x[None], weight, logits, mask, dx_at, dweight, dlogits, False, kl)
        return dx, dweight, dlogits
    draws = x.shape[0]
    if draws <= step:
        products.backward(grad, x, weight, logits, mask, dx, dweight, dlogits, False, kl)
        return dx, dweight, dlogits
    run = products.backward if step else products.backward_by_panels
    for at in _parts(draws, step):
        dx_at, once = None if dx is None else dx[at], None if at.start else kl
        run(grad[at], x[at], weight, logits, mask.part(at), dx_at, dweight, dlogits, at.start > 0, once)
    return dx, dweight, dlogits


def _parts(draws: int, step: int) -> list[slice]:
    step = max(1, step)
    return [slice(start, start + step) for start in range(0, draws, step)]
