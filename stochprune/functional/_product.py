"""Products of x with weights that are formed for each draw and dropped: linear, or a convolution; and their gradients.

Weights come from a function of a slice of the draws, which writes them to scratch memory. torch makes the product.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from stochprune.functional._geometry import Geometry
from stochprune.functional._op import reshaped

SCRATCH = 64 << 20
"""Weights of per-example masks that are held at once, in bytes (those of one draw at least)."""
LINEAR: list[int] = []
"""The geometry of a linear layer; that of a convolution is packed by Geometry."""

Weights = Callable[[slice], Tensor]  # [d, *weight.shape] for d of the draws, valid until the next call
Through = Callable[[slice, Tensor], Sequence[Tensor | None]]  # gradients from dL/d(weights) [d, *weight.shape]


def forward(
    x: Tensor, weight: Tensor, bias: Tensor | None, weights: Weights, geometry: Sequence[int], draws: int
) -> Tensor:
    """y [D, M, N, ...] of x [D, M, K, ...], slice d with the weights of draw d; of ``weight`` the shape counts.

    Of one draw x is [M, K, ...], in a linear layer [..., K].
    """
    if draws == 1:
        return multiply(x, weights(slice(0, 1))[0], bias, geometry)
    return _join([_multiply_draws(x[part], weights(part), bias, geometry) for part in _parts(x, weight, geometry)])


def backward(
    grad: Tensor,
    x: Tensor,
    weight: Tensor,
    weights: Weights,
    through: Through,
    geometry: Sequence[int],
    draws: int,
    needs: tuple[bool, bool],
) -> tuple[Tensor, Sequence[Tensor | None]]:
    """dx [D, M, K, ...] of grad [D, M, N, ...], and what ``through`` makes of dL/d(weights), summed over the draws.

    Args:
        needs: whether dx is wanted, and whether anything of ``through``; what is not is empty.
    """
    if draws == 1:
        dx_one, g = differentiate(grad, x, weights(slice(0, 1))[0] if needs[0] else weight.to(x.dtype), geometry, needs)
        return x.new_empty(0) if dx_one is None else dx_one, [] if g is None else through(slice(0, 1), g[None])
    dx: list[Tensor] = []
    sums: Sequence[Tensor | None] = []
    for part in _parts(x, weight, geometry):
        # Without need of dx only the shape of the weights is looked at.
        w = weights(part) if needs[0] else x.new_empty(part.stop - part.start, *weight.shape)
        dx_part, g = _differentiate_draws(grad[part], x[part], w, geometry, needs)
        if dx_part is not None:
            dx.append(dx_part)
        if g is not None:
            found = through(part, g)
            sums = [plus(*pair) for pair in zip(sums, found, strict=True)] if sums else found
    return (_join(dx) if needs[0] else x.new_empty(0)), sums


def fake_forward(x: Tensor, weight: Tensor, geometry: Sequence[int], draws: int) -> Tensor:
    """The result of :func:`forward` on tensors without values."""
    return forward(x, weight, None, lambda part: x.new_empty(part.stop - part.start, *weight.shape), geometry, draws)


def empties(likes: Sequence[Tensor | None], grads: Sequence[Tensor | None], spare: Tensor) -> list[Tensor]:
    """The gradients as an operator returns them: shaped like the tensors, an empty one where there is none."""
    if not grads:
        grads = [None] * len(likes)
    return [
        (spare if like is None else like).new_empty(0) if g is None or like is None else reshaped(g, like.shape)
        for like, g in zip(likes, grads, strict=True)
    ]


def _parts(x: Tensor, weight: Tensor, geometry: Sequence[int]) -> Iterator[slice]:
    """Draws to take together: in a convolution as many as fit where each has one example, by groups; else one."""
    together = 1
    if geometry and x.shape[1] == 1:
        together = max(1, SCRATCH // max(1, weight.numel() * x.element_size()))
    return (slice(start, min(start + together, x.shape[0])) for start in range(0, x.shape[0], together))


def multiply(x: Tensor, weight: Tensor, bias: Tensor | None, geometry: Sequence[int]) -> Tensor:
    """y [M, N, ...] of x [M, K, ...] under one weight; in a linear layer M is any dimensions."""
    if not geometry:
        flat = F.linear(rows(x), weight, bias)
        return flat if x.dim() == 2 else reshaped(flat, (*x.shape[:-1], len(weight)))
    y: Tensor = torch.ops.aten.convolution(x, weight, bias, *Geometry.of(geometry))
    return y


def differentiate(
    grad: Tensor, x: Tensor, weight: Tensor, geometry: Sequence[int], needs: tuple[bool, bool]
) -> tuple[Tensor | None, Tensor | None]:
    """dx and dweight of grad [M, N, ...]; None where not needed."""
    need_x, need_weight = needs
    if not geometry:
        dx = grad @ weight if need_x else None
        return dx, rows(grad).mT @ rows(x) if need_weight else None
    dx, dweight, _ = torch.ops.aten.convolution_backward(
        grad, x, weight, None, *Geometry.of(geometry), [need_x, need_weight, False]
    )
    return dx, dweight


def rows(x: Tensor) -> Tensor:
    """[M, K] of x [..., K]."""
    return x if x.dim() == 2 else x.reshape(x.shape[:-1].numel(), x.shape[-1])


def _multiply_draws(x: Tensor, weights: Tensor, bias: Tensor | None, geometry: Sequence[int]) -> Tensor:
    draws = len(weights)
    biases = bias if bias is None or draws == 1 else bias.repeat(draws)
    return _apart(multiply(_side_by_side(x), weights.flatten(0, 1), biases, _grouped(geometry, draws)), draws)


def _differentiate_draws(
    grad: Tensor, x: Tensor, weights: Tensor, geometry: Sequence[int], needs: tuple[bool, bool]
) -> tuple[Tensor | None, Tensor | None]:
    """dx [d, M, K, ...] and dL/d(weights) [d, *weight.shape]; None where not needed."""
    draws = len(weights)
    inputs = _side_by_side(grad), _side_by_side(x), weights.flatten(0, 1)
    dx, g = differentiate(*inputs, _grouped(geometry, draws), needs)
    return (
        None if dx is None else _apart(dx, draws),
        None if g is None else reshaped(g, weights.shape) if g.is_contiguous() else g.unflatten(0, (draws, -1)),
    )


def _grouped(geometry: Sequence[int], draws: int) -> Sequence[int]:
    """The convolution whose groups are those of each draw."""
    return geometry if draws == 1 else [*geometry[:-1], draws * geometry[-1]]


def _side_by_side(x: Tensor) -> Tensor:
    """[M, D C, ...] of [D, M, C, ...]: the draws become groups of channels. A view for one draw."""
    if len(x) == 1:
        return x[0]
    return x.transpose(0, 1).reshape(x.shape[1], x.shape[0] * x.shape[2], *x.shape[3:])


def _apart(y: Tensor, draws: int) -> Tensor:
    """The inverse, in the memory of y: there is one draw or one example."""
    return reshaped(y, (draws, y.shape[0], y.shape[1] // draws, *y.shape[2:]))


def _join(parts: list[Tensor]) -> Tensor:
    return parts[0] if len(parts) == 1 else torch.cat(parts)


def plus(total: Tensor | None, part: Tensor | None) -> Tensor | None:
    """Return the sum of two gradients, either of which may be missing."""
    return part if total is None or part is None else total + part
