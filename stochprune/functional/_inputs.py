"""Checks of the arguments that linear and convolutional ops share, and their shapes as the operators take them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch.nn.functional as F
from torch import Tensor

from stochprune.address import Mask
from stochprune.functional._address import Address
from stochprune.functional._checks import check_tensors, in_product_dtype
from stochprune.functional._geometry import Convolution
from stochprune.functional._op import reshaped
from stochprune.functional._product import rows


class Inputs(NamedTuple):
    """The checked inputs of an operator, and the shape in which the caller gets its result."""

    x: Tensor  # [D, M, ...] for several draws; for one draw see :func:`stochprune.functional._op.product`
    bias: Tensor | None  # in the dtype of x
    mask: Mask  # D draws
    leading: tuple[int, ...] | None  # the caller's dimensions before the outputs; None: the same as the operator's
    trailing: int  # the number of dimensions from the outputs on, which do not change

    def restore(self, y: Tensor) -> Tensor:
        """Return the operator's result in the caller's shape."""
        return y if self.leading is None else reshaped(y, (*self.leading, *y.shape[-self.trailing :]))


def by_draw(x: Tensor, draw: Tensor) -> Tensor:
    """Return x as backends take it, [D, M, K]; with one draw, x is [..., K] before."""
    return x if len(draw) > 1 else rows(x).unsqueeze(0)


def check_weights(op: str, weights: dict[str, Tensor | None], bias: Tensor | None, outputs: int) -> None:
    """Raise unless all weights have the shape of the first, and the bias has one number for each output."""
    (name, weight), *others = weights.items()
    assert weight is not None
    for other, tensor in others:
        if tensor is not None and tensor.shape != weight.shape:
            raise ValueError(f"{op}: {other} {tuple(tensor.shape)} and {name} {tuple(weight.shape)} differ in shape")
    if bias is not None and bias.shape != (outputs,):
        raise ValueError(
            f"{op}: bias {tuple(bias.shape)} does not fit the {outputs} outputs of {name} {tuple(weight.shape)}"
        )


def linear(
    op: str,
    x: Tensor,
    weights: dict[str, Tensor | None],
    bias: Tensor | None,
    at: Address,
    decisions: Sequence[int] | None = None,
) -> Inputs:
    """Check the arguments of a linear op and bring x to the operator's shape.

    Args:
        op: the public function that error messages name.
        x: [..., K], or [D, ..., K] for a vector of D draws.
        weights: the tensors [N, K] by argument name, the weight first.
        bias: [N] or None.
        at: the address.
        decisions: rows and columns of the mask, if they are not those of the weight.

    Raises:
        TypeError, ValueError: as listed at :func:`stochprune.functional.masked_linear`.
    """
    check_tensors(op, x=x, **weights, bias=bias)
    name, weight = next(iter(weights.items()))
    assert weight is not None
    if x.dim() < 1 or weight.dim() != 2 or x.shape[-1] != weight.shape[1]:
        raise ValueError(f"{op}: x {tuple(x.shape)} and {name} {tuple(weight.shape)} do not fit")
    check_weights(op, weights, bias, weight.shape[0])
    mask = at.mask(op, x.device, *(decisions or weight.shape))
    x, bias = in_product_dtype(op, x, name, weight, bias)
    draws = len(mask.draw)
    if draws == 1:
        return Inputs(x, bias, mask, None if at.samples is None else (1, *x.shape[:-1]), 1)
    if at.samples is None and (x.dim() < 2 or x.shape[0] != draws):
        raise ValueError(f"{op}: x {tuple(x.shape)} has no leading dimension of {draws}, one for each draw")
    inner = x.shape[1:-1] if at.samples is None else x.shape[:-1]
    many = x.reshape(1 if at.samples is not None else draws, inner.numel(), x.shape[-1])
    return Inputs(many.expand(draws, -1, -1), bias, mask, (draws, *inner), 1)


def convolution(
    op: str,
    x: Tensor,
    weights: dict[str, Tensor | None],
    bias: Tensor | None,
    at: Address,
    form: Convolution,
) -> tuple[Inputs, list[int]]:
    """Check the arguments of a convolution and bring x to the operator's shape; return the packed geometry too.

    Args:
        op, bias, at: as for :func:`linear`.
        x: [C, *S] or [M, C, *S], or [D, ...] of either for a vector of D draws.
        weights: the tensors [N, C / groups, *kernel] by argument name, the weight first; [C, N / groups, *kernel] if
            transposed.
        form: stride, padding and the others, not yet checked.

    Raises:
        TypeError, ValueError: as listed at the masked convolutions.
    """
    check_tensors(op, x=x, **weights, bias=bias)
    name, weight = next(iter(weights.items()))
    assert weight is not None
    geometry, extra = form.checked(op, name, weight)
    channels, outputs = geometry.channels(weight)
    check_weights(op, weights, bias, outputs)
    mask = at.mask(op, x.device, weight.shape[0], weight.shape[1:].numel())
    draws, dimensions = len(mask.draw), weight.dim() - 2
    many = at.samples is not None or draws != 1
    each = many and at.samples is None  # each draw has its own x
    inner = x.dim() - each
    if inner not in (dimensions + 1, dimensions + 2) or x.shape[-dimensions - 1] != channels:
        raise ValueError(
            f"{op}: x {tuple(x.shape)} and {name} {tuple(weight.shape)} do not fit"
            + (f" in {geometry.groups} groups" if geometry.groups > 1 else "")
            + (f" with {draws} draws" if each else "")
        )
    if each and x.shape[0] != draws:
        raise ValueError(f"{op}: x {tuple(x.shape)} has no leading dimension of {draws}, one for each draw")
    x, bias = in_product_dtype(op, x, name, weight, bias)
    if any(extra):  # like torch, which adds an odd padding at the end
        x = F.pad(x, [side for after in reversed(extra) for side in (0, after)])
    geometry.check_sizes(op, x.shape[-dimensions:], weight.shape[2:])
    single = inner == dimensions + 1
    x = x.unsqueeze(-dimensions - 2) if single else x  # [(D,) M, C, *S]
    if draws == 1:
        leading = (*((1,) if many else ()), *(() if single else x.shape[:1]))
        return Inputs(x, bias, mask, leading if single or many else None, dimensions + 1), geometry.packed()
    x = x if each else x.unsqueeze(0).expand(draws, *(-1,) * x.dim())
    return Inputs(x, bias, mask, (draws, *(() if single else x.shape[1:2])), dimensions + 1), geometry.packed()
