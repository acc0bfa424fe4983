"""Linear layers and convolutions with temporary weights, one weight for each draw; and their gradients.

A function of a slice of the draws writes the weights to scratch memory. torch computes the product.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from stochprune.functional._geometry import Geometry
from stochprune.functional._op import reshaped
from stochprune.memory_format import in_format_of

SCRATCH = 64 << 20
"""The most bytes of x, y and weights of the draws that run together; one draw may need more."""
CACHED = 1 << 20
"""Bytes of x, y and weights that stay in a core's cache. Draws that fit run as groups of one convolution, up to 4
times as fast. Above it, the copies into groups cost more than the calls that they save."""
LINEAR: list[int] = []
"""The geometry of a linear layer; that of a convolution is packed by Geometry."""

Weights = Callable[[slice], Tensor]  # [d, *weight.shape] for d of the draws, valid until the next call
ParameterGrads = Callable[[slice, Tensor], Sequence[Tensor | None]]  # of draws and dL/d(weights) [d, *weight.shape]


def forward(
    x: Tensor, weight: Tensor, bias: Tensor | None, weights: Weights, geometry: Sequence[int], draws: int
) -> Tensor:
    """Return y [D, M, N, ...] of x [D, M, K, ...]; slice d uses the weights of draw d.

    With one draw, x is [M, K, ...], or [..., K] in a linear layer. Only the shape of ``weight`` is used. The result of
    one draw has torch's memory format; that of several is contiguous.
    """
    if draws == 1:
        return multiply(x, weights(slice(0, 1))[0], bias, geometry)
    out: Tensor | None = None
    for part in _parts(x, weight, geometry):
        out = _written(out, draws, part, _multiply_draws(x[part], weights(part), bias, geometry))
    assert out is not None
    return out


def backward(
    grad: Tensor,
    x: Tensor,
    weight: Tensor,
    weights: Weights,
    parameter_grads: ParameterGrads,
    geometry: Sequence[int],
    draws: int,
    needs: tuple[bool, bool],
) -> tuple[Tensor, Sequence[Tensor | None]]:
    """Return dx [D, M, K, ...] of grad [D, M, N, ...], and the gradients of the parameters, summed over the draws.

    In a convolution dx has the memory format of x.

    Args:
        parameter_grads: returns the gradients of the parameters from dL/d(weights).
        needs: whether dx is needed, and whether any gradient of the parameters is; what is not needed is empty.
    """
    if draws == 1:
        dx_one, g = differentiate(grad, x, weights(slice(0, 1))[0] if needs[0] else weight.to(x.dtype), geometry, needs)
        grads = [] if g is None else parameter_grads(slice(0, 1), g[None])
        return x.new_empty(0) if dx_one is None else in_format_of(x, dx_one) if geometry else dx_one, grads
    dx: Tensor | None = None
    sums: Sequence[Tensor | None] = []
    for part in _parts(x, weight, geometry):
        # If dx is not needed, only the shape of the weights is used.
        w = weights(part) if needs[0] else x.new_empty(part.stop - part.start, *weight.shape)
        dx_part, g = _differentiate_draws(grad[part], x[part], w, geometry, needs)
        if dx_part is not None:
            dx = _written(dx, draws, part, dx_part)
        if g is not None:
            found = parameter_grads(part, g)
            sums = [accumulated(*pair) for pair in zip(sums, found, strict=True)] if sums else found
    if dx is None:
        return x.new_empty(0), sums
    return in_format_of(x, dx) if geometry else dx, sums


def fake_forward(x: Tensor, weight: Tensor, geometry: Sequence[int], draws: int) -> Tensor:
    """Return the result of :func:`forward` on tensors without values; ``weight`` is of one draw, in the dtype of x."""
    y = multiply(x if draws == 1 else x[0], weight, None, geometry)
    return y if draws == 1 else y.new_empty(draws, *y.shape)


def operator_grads(likes: Sequence[Tensor | None], grads: Sequence[Tensor | None], spare: Tensor) -> list[Tensor]:
    """Return gradients as an operator returns them: in the shapes and memory formats of ``likes``; None becomes empty.

    ``spare`` gives the dtype and device of the empty tensor if the tensor itself is None.
    """

    results = []
    for like, g in zip(likes, grads or [None] * len(likes), strict=True):
        if like is None or g is None:
            results.append((spare if like is None else like).new_empty(0))
        elif like.is_contiguous():  # most are
            results.append(reshaped(g, like.shape).contiguous())
        else:
            results.append(in_format_of(like, reshaped(g, like.shape)))
    return results


def _parts(x: Tensor, weight: Tensor, geometry: Sequence[int]) -> Iterator[slice]:
    """Return the draws that run together as groups of one convolution; a linear layer's draws run one by one.

    With one example per draw, grouping copies nothing, so as many run together as :data:`SCRATCH` allows. With several,
    it transposes x and y: on the CPU, as many run together as fit in :data:`CACHED`; on a GPU one.
    """
    draws, together = len(x), 1
    if geometry and (x.shape[1] == 1 or x.is_cpu):
        form = Geometry.of(geometry)
        spatial = form.positions(x.shape[3:], weight.shape[2:])
        numbers = x[0].numel() + x.shape[1] * form.channels(weight)[1] * spatial + weight.numel()
        together = max(1, (SCRATCH if x.shape[1] == 1 else CACHED) // max(1, numbers * x.element_size()))
    return (slice(start, min(start + together, draws)) for start in range(0, draws, together))


def multiply(x: Tensor, weight: Tensor, bias: Tensor | None, geometry: Sequence[int]) -> Tensor:
    """Return y [M, N, ...] of x [M, K, ...] and one weight; x of a linear layer is [..., K]."""
    if not geometry:
        flat = F.linear(rows(x), weight, bias)
        return flat if x.dim() == 2 else reshaped(flat, (*x.shape[:-1], len(weight)))
    y: Tensor = torch.ops.aten.convolution(x, weight, bias, *Geometry.of(geometry))
    return y


def differentiate(
    grad: Tensor, x: Tensor, weight: Tensor, geometry: Sequence[int], needs: tuple[bool, bool]
) -> tuple[Tensor | None, Tensor | None]:
    """Return dx and dweight of grad [M, N, ...]; None where not needed."""
    need_x, need_weight = needs
    if not geometry:
        dx = grad @ weight if need_x else None
        return dx, rows(grad).mT @ rows(x) if need_weight else None
    dx, dweight, _ = torch.ops.aten.convolution_backward(
        grad, x, weight, None, *Geometry.of(geometry), [need_x, need_weight, False]
    )
    return dx, dweight


def rows(x: Tensor) -> Tensor:
    """Return x [..., K] as a matrix [M, K]."""
    return x if x.dim() == 2 else x.reshape(x.shape[:-1].numel(), x.shape[-1])


def _multiply_draws(x: Tensor, weights: Tensor, bias: Tensor | None, geometry: Sequence[int]) -> Tensor:
    draws = len(weights)
    biases = bias if bias is None or draws == 1 else bias.repeat(draws)
    return _from_groups(multiply(_to_groups(x), weights.flatten(0, 1), biases, _grouped(geometry, draws)), draws)


def _differentiate_draws(
    grad: Tensor, x: Tensor, weights: Tensor, geometry: Sequence[int], needs: tuple[bool, bool]
) -> tuple[Tensor | None, Tensor | None]:
    """Return dx [d, M, K, ...] and dL/d(weights) [d, *weight.shape]; None where not needed."""
    draws = len(weights)
    inputs = _to_groups(grad), _to_groups(x), weights.flatten(0, 1)
    dx, g = differentiate(*inputs, _grouped(geometry, draws), needs)
    return None if dx is None else _from_groups(dx, draws), None if g is None else g.unflatten(0, (draws, -1))


def _grouped(geometry: Sequence[int], draws: int) -> Sequence[int]:
    """Return the geometry with the groups of all draws."""
    return geometry if draws == 1 else [*geometry[:-1], draws * geometry[-1]]


def _to_groups(x: Tensor) -> Tensor:
    """Return [M, D C, ...] of x [D, M, C, ...]: the draws become groups of channels. With one draw it is a view."""
    if len(x) == 1:
        return x[0]
    return x.transpose(0, 1).reshape(x.shape[1], x.shape[0] * x.shape[2], *x.shape[3:])


def _from_groups(y: Tensor, draws: int) -> Tensor:
    """Return [d, M, N, ...] of y [M, d N, ...], in its memory: the inverse of :func:`_to_groups`."""
    if draws == 1 or len(y) == 1:
        return reshaped(y, (draws, len(y), y.shape[1] // draws, *y.shape[2:]))
    return y.unflatten(1, (draws, -1)).transpose(0, 1)


def _written(out: Tensor | None, draws: int, part: slice, y: Tensor) -> Tensor:
    """Return the contiguous results of all draws, with y [d, M, ...] as those of ``part``; y itself if it has all."""
    if len(y) == draws and y.shape[1] == 1:
        return y.contiguous()
    out = y.new_empty(draws, *y.shape[1:]) if out is None else out
    out[part].copy_(y)
    return out


def accumulated(total: Tensor | None, part: Tensor | None) -> Tensor | None:
    """Return ``total + part``; ``part`` itself if there is no total yet, and None if the part is None."""
    return part if total is None or part is None else total + part
