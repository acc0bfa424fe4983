"""masked_linear on the CPU: on tiles, or by torch's products, which take as many draws as fit in the cache."""

from __future__ import annotations

from torch import Tensor

from stochprune import _C
from stochprune.address import KLTerm, Logits, Mask, Needs3
from stochprune.native import products, tiles
from stochprune.native.masked import masked, shared_thresholds
from stochprune.native.results import fresh
from stochprune.native.workspace import workspace


def masked_linear(x: Tensor, weight: Tensor, logits: Logits, bias: Tensor | None, *, mask: Mask) -> Tensor:
    """As :func:`stochprune.reference.masked_linear`; with one draw, x may be [M, K] and the result is then [M, N]."""
    if _C.has_tiles() and tiles.take(x, weight):
        y = tiles.forward(masked(weight, logits, mask), x, bias)
        if y is not None:
            return y
    n, k = weight.shape
    step = workspace.draws(n, k, x.dtype)
    if x.dim() == 2 and step:
        return products.forward_of_one(masked(weight, logits, mask), x, bias)
    y = x.new_empty(*x.shape[:-1], n)
    if not step:
        for i, (x_one, y_one) in enumerate(zip(_each(x), _each(y), strict=True)):
            products.forward_by_panels(masked(weight, logits, mask.one(i)), x_one, bias, y_one)
        return y
    threshold = shared_thresholds(logits, mask)
    for part in _parts(len(x), step):
        products.forward(masked(weight, logits, mask.part(part), None, threshold), x[part], bias, y[part])
    return y


def masked_linear_backward(
    grad: Tensor, x: Tensor, weight: Tensor, logits: Logits, *, mask: Mask, needs: Needs3, kl: KLTerm | None = None
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """As :func:`stochprune.reference.masked_linear_backward`; with one draw, grad may be [M, N] and x [M, K]."""
    dtypes = weight.dtype, logits.dtype
    if _C.has_tiles() and tiles.take(x, weight):
        grads = tiles.backward(masked(weight, logits, mask), grad, x, dtypes, needs, kl)
        if grads is not None:
            return grads
    n, k = weight.shape
    step = workspace.draws(n, k, x.dtype)
    if x.dim() == 2 and step:
        return products.backward_of_one(masked(weight, logits, mask), grad, x, dtypes, needs, kl)
    dweight = fresh((n, k), dtypes[0]) if needs[1] else None
    dlogits = fresh((n, k), dtypes[1]) if needs[2] else None
    to = dweight, dlogits
    dx = x.new_empty(x.shape) if needs[0] else None
    if not step:
        for i, (g, x_one) in enumerate(zip(_each(grad), _each(x), strict=True)):
            dx_one, once = None if dx is None else _each(dx)[i], None if i else kl
            layer = masked(weight, logits, mask.one(i))
            products.backward_by_panels(layer, g, x_one, dx_one, to, i > 0, once)
        return dx, dweight, dlogits
    threshold = shared_thresholds(logits, mask)
    for part in _parts(len(x), step):
        dx_part, once = None if dx is None else dx[part], None if part.start else kl
        layer = masked(weight, logits, mask.part(part), None, threshold)
        products.backward(layer, grad[part], x[part], dx_part, to, part.start > 0, once)
    return dx, dweight, dlogits


def _each(x: Tensor) -> Tensor:
    """Return x [D, M, K] itself, and [1, M, K] of x [M, K]."""
    return x[None] if x.dim() == 2 else x


def _parts(draws: int, step: int) -> list[slice]:
    return [slice(start, start + step) for start in range(0, draws, step)]
