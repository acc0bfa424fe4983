"""The operators behind all masked convolutions: ``stochprune::masked_convolution`` and its backward.

A backend writes the masked filters to scratch memory, torch's convolution uses them, and they are dropped. Nothing but
x, weight, logits and the integers is saved for backward; the mask is drawn again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from stochprune import backends
from stochprune.functional._autograd import differentiable_once, masked_product, reshaped

SCRATCH = 64 << 20
"""Masked filters of per-example masks that are held at once, in bytes (one filter bank at least)."""


class Geometry(NamedTuple):
    """What aten's convolution takes after the bias; one number for each spatial dimension."""

    stride: Sequence[int]
    padding: Sequence[int]
    dilation: Sequence[int]
    transposed: bool
    output_padding: Sequence[int]
    groups: int

    def packed(self) -> list[int]:
        """One list, as the operators take it: each of their arguments costs time in every call."""
        return [*self.stride, *self.padding, *self.dilation, *self.output_padding, self.transposed, self.groups]

    @classmethod
    def of(cls, packed: Sequence[int]) -> Geometry:
        """The inverse."""
        n = len(packed) // 4
        parts = [list(packed[i * n : (i + 1) * n]) for i in range(4)]
        return cls(parts[0], parts[1], parts[2], bool(packed[-2]), parts[3], packed[-1])


def _parts(x: Tensor, weight: Tensor) -> Iterator[slice]:
    """Draws to take together: as many as fit where each has one example, by groups; else one."""
    together = 1
    if x.shape[1] == 1:
        together = max(1, SCRATCH // max(1, weight.numel() * x.element_size()))
    for start in range(0, x.shape[0], together):
        yield slice(start, min(start + together, x.shape[0]))


def _side_by_side(x: Tensor) -> Tensor:
    """[M, D C, ...] of [D, M, C, ...]: the draws become groups of channels. A view for one draw."""
    return x.transpose(0, 1).reshape(x.shape[1], x.shape[0] * x.shape[2], *x.shape[3:])


def _apart(y: Tensor, draws: int) -> Tensor:
    """The inverse, in the memory of y: there is one draw or one example."""
    return reshaped(y, (draws, y.shape[0], y.shape[1] // draws, *y.shape[2:]))


def _join(parts: list[Tensor]) -> Tensor:
    return parts[0] if len(parts) == 1 else torch.cat(parts)


Filters = Callable[[slice], Tensor]  # masked filters [d, *weight.shape] of some of the draws


def _convolve(x: Tensor, weight: Tensor, bias: Tensor | None, filters: Filters, geometry: Geometry) -> Tensor:
    out = []
    for part in _parts(x, weight):
        draws = part.stop - part.start
        biases = bias if bias is None or draws == 1 else bias.repeat(draws)
        grouped = geometry._replace(groups=draws * geometry.groups)
        y = torch.ops.aten.convolution(_side_by_side(x[part]), filters(part).flatten(0, 1), biases, *grouped)
        out.append(_apart(y, draws))
    return _join(out)


def _differentiate_convolution(
    grad: Tensor,
    x: Tensor,
    weight: Tensor,
    filters: Filters,
    geometry: Geometry,
    part: slice,
    needs: tuple[bool, bool],
) -> tuple[Tensor, Tensor]:
    """dx [d, M, C, ...] and the gradient [d, *weight.shape] of the masked filters; undefined where not needed."""
    draws = part.stop - part.start
    grouped = geometry._replace(groups=draws * geometry.groups)
    # Without need of dx only the shape of the filters is looked at.
    bank = filters(part) if needs[0] else x.new_empty(draws, *weight.shape)
    dx, g, _ = torch.ops.aten.convolution_backward(
        _side_by_side(grad[part]), _side_by_side(x[part]), bank.flatten(0, 1), None, *grouped, [*needs, False]
    )
    return _apart(dx, draws) if needs[0] else dx, g.unflatten(0, (draws, len(weight))) if needs[1] else g


@torch.library.custom_op("stochprune::masked_convolution", mutates_args=())
def masked_convolution(
    x: Tensor,
    weight: Tensor,
    logits: Tensor,
    bias: Tensor | None,
    seed: Tensor,
    draw: Tensor,
    stream: int,
    estimator: str,
    temperature: float,
    geometry: Sequence[int],
) -> Tensor:
    """y [D, M, N, ...] of x [D, M, C, ...], slice d under the mask of ``draw[d]``; ``geometry`` packed."""
    backend = backends.resolve(x, weight, logits)

    def filters(part: slice) -> Tensor:
        return backend.masked_weight(weight, logits, seed, draw[part], stream, estimator, temperature, x.dtype)

    return _convolve(x, weight, bias, filters, Geometry.of(geometry))


@masked_convolution.register_fake
def _(x: Tensor, weight: Tensor, logits: Tensor, bias: Tensor | None, *rest: Any) -> Tensor:
    def filters(part: slice) -> Tensor:
        return x.new_empty(part.stop - part.start, *weight.shape)

    return _convolve(x, weight, bias, filters, Geometry.of(rest[-1]))


@torch.library.custom_op("stochprune::masked_convolution_backward", mutates_args=())
def _backward(
    grad: Tensor,
    x: Tensor,
    weight: Tensor,
    logits: Tensor,
    seed: Tensor,
    draw: Tensor,
    stream: int,
    estimator: str,
    temperature: float,
    geometry: Sequence[int],
    need_x: bool,
    need_weight: bool,
    need_logits: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    backend = backends.resolve(x, weight, logits)
    options = (stream, estimator, temperature)

    memo: list[Tensor] = []

    def filters(part: slice) -> Tensor:
        return backend.masked_weight(weight, logits, seed, draw[part], *options, x.dtype, memo=memo)

    dx, sums = [], [weight.new_empty(0), logits.new_empty(0)]
    needs = (need_x, need_weight or need_logits)
    for part in _parts(x, weight):
        memo.clear()
        dx_part, g = _differentiate_convolution(grad, x, weight, filters, Geometry.of(geometry), part, needs)
        dx.append(dx_part)
        if needs[1]:
            through = (g, weight, logits, seed, draw[part], *options, need_weight, need_logits)
            grads = backend.weight_grad(*through, memo=memo)
            sums = [s if t is None else t + s if s.numel() else t for s, t in zip(sums, grads, strict=True)]
    return _join(dx) if need_x else x.new_empty(0), sums[0], sums[1]


@_backward.register_fake
def _(grad: Tensor, x: Tensor, weight: Tensor, logits: Tensor, *rest: Any) -> tuple[Tensor, Tensor, Tensor]:
    geometry, need_x, need_weight, need_logits = rest[-4:]

    def filters(part: slice) -> Tensor:
        return x.new_empty(part.stop - part.start, *weight.shape)

    def input_gradient(part: slice) -> Tensor:
        return _differentiate_convolution(grad, x, weight, filters, Geometry.of(geometry), part, (True, False))[0]

    return (
        _join([input_gradient(part) for part in _parts(x, weight)]) if need_x else x.new_empty(0),
        weight.new_empty(weight.shape if need_weight else 0),
        logits.new_empty(logits.shape if need_logits else 0),
    )


masked_product(masked_convolution, _backward)
differentiable_once(
    _backward, "masked convolutions are differentiable once: backward has no derivative (double backward)"
)


@masked_convolution.register_vmap
def _(info: Any, in_dims: tuple[int | None, ...], x: Tensor, *rest: Any) -> tuple[Tensor, int]:
    if in_dims[0] is None or any(dim is not None for dim in in_dims[1:6]):
        raise NotImplementedError("masked convolutions: vmap goes over x only; give draw as a vector for many masks")
    batched = x.movedim(in_dims[0], 1)  # [D, B, M, C, ...]: the draws stay outermost
    y = masked_convolution(batched.flatten(1, 2), *rest)
    return y.unflatten(1, batched.shape[1:3]), 1
