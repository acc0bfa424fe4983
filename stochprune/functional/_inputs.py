"""What the products share: x, bias and mask, checked and brought to the shapes of the operators."""

from __future__ import annotations

from typing import NamedTuple

import torch.nn.functional as F
from torch import Tensor

from stochprune.address import Mask
from stochprune.functional._address import Address
from stochprune.functional._checks import check_floating, check_same_device, in_product_dtype
from stochprune.functional._geometry import Convolution
from stochprune.functional._op import reshaped


class Inputs(NamedTuple):
    """x as one slice a draw: what the operators take, and how their results are given back."""

    x: Tensor  # [D, M, ...], in the dtype of the product
    bias: Tensor | None  # in the same dtype
    mask: Mask  # of D draws
    leading: tuple[int, ...]  # dimensions of the result in place of [D, M]

    def restore(self, y: Tensor) -> Tensor:
        """Return the result of x's shape from y [D, M, N, ...]."""
        return reshaped(y, (*self.leading, *y.shape[2:]))


def check_weights(op: str, x: Tensor, weights: dict[str, Tensor | None], bias: Tensor | None, outputs: int) -> None:
    """Raise unless the weights, of which the first is the model of the others, and a bias for the outputs fit."""
    (name, weight), *others = weights.items()
    assert weight is not None
    for other, tensor in others:
        if tensor is not None and tensor.shape != weight.shape:
            raise ValueError(f"{op}: {other} {tuple(tensor.shape)} and {name} {tuple(weight.shape)} differ in shape")
    if bias is not None and bias.shape != (outputs,):
        raise ValueError(f"{op}: bias {tuple(bias.shape)} does not fit {name} {tuple(weight.shape)}")


def linear(op: str, x: Tensor, weights: dict[str, Tensor | None], bias: Tensor | None, at: Address) -> Inputs:
    """Check the arguments of a linear op and slice x.

    Args:
        op: the function that messages name.
        x: [..., K], or [D, ..., K] for a vector of D draws.
        weights: by name the tensors [N, K], the weight first.
        bias: [N] or None.
        at: the address.

    Raises:
        TypeError, ValueError: as listed at :func:`stochprune.functional.masked_linear`.
    """
    check_floating(op, x=x, **weights, bias=bias)
    check_same_device(op, x=x, **weights, bias=bias)
    name, weight = next(iter(weights.items()))
    assert weight is not None
    if x.dim() < 1 or weight.dim() != 2 or x.shape[-1] != weight.shape[1]:
        raise ValueError(f"{op}: x {tuple(x.shape)} and {name} {tuple(weight.shape)} do not fit")
    check_weights(op, x, weights, bias, weight.shape[0])
    mask = at.mask(op, x.device, *weight.shape)
    x, bias = in_product_dtype(op, x, name, weight, bias)
    draws = len(mask.draw)
    if at.samples is not None or draws == 1:
        inner = x.shape[:-1]
        apart = x.reshape(1, inner.numel(), x.shape[-1]).expand(draws, -1, -1)
    else:
        if x.dim() < 2 or x.shape[0] != draws:
            raise ValueError(f"{op}: x {tuple(x.shape)} has no leading dimension of {draws}, one for each draw")
        inner = x.shape[1:-1]
        apart = x.reshape(draws, inner.numel(), x.shape[-1])
    many = at.samples is not None or draws > 1
    return Inputs(apart, bias, mask, (*((draws,) if many else ()), *inner))


def convolution(
    op: str,
    x: Tensor,
    weights: dict[str, Tensor | None],
    bias: Tensor | None,
    at: Address,
    form: Convolution,
) -> tuple[Inputs, list[int]]:
    """Check the arguments of a convolution and slice x; return the operators' geometry too.

    Args:
        op, bias, at: as for :func:`linear`.
        x: [C, *S] or [M, C, *S], or [D, ...] of either for a vector of D draws.
        weights: by name the tensors [N, C / groups, *kernel] ([C, N / groups, *kernel] transposed), the weight first.
        form: stride, padding and the others, not checked yet.

    Raises:
        TypeError, ValueError: as listed at the masked convolutions.
    """
    check_floating(op, x=x, **weights, bias=bias)
    check_same_device(op, x=x, **weights, bias=bias)
    name, weight = next(iter(weights.items()))
    assert weight is not None
    geometry, extra = form.checked(op, name, weight)
    channels, outputs = geometry.channels(weight)
    check_weights(op, x, weights, bias, outputs)
    mask = at.mask(op, x.device, weight.shape[0], weight.shape[1:].numel())
    draws, dimensions = len(mask.draw), weight.dim() - 2
    many = at.samples is not None or draws != 1
    apart = many and at.samples is None  # each draw has an x of its own
    inner = x.dim() - apart
    if inner not in (dimensions + 1, dimensions + 2) or x.shape[-dimensions - 1] != channels:
        raise ValueError(
            f"{op}: x {tuple(x.shape)} and {name} {tuple(weight.shape)} do not fit"
            + (f" in {geometry.groups} groups" if geometry.groups > 1 else "")
            + (f" with {draws} draws" if apart else "")
        )
    if apart and x.shape[0] != draws:
        raise ValueError(f"{op}: x {tuple(x.shape)} has no leading dimension of {draws}, one for each draw")
    x, bias = in_product_dtype(op, x, name, weight, bias)
    if any(extra):  # torch too pads an odd amount at the end
        x = F.pad(x, [side for after in reversed(extra) for side in (0, after)])
    geometry.check_sizes(op, x.shape[-dimensions:], weight.shape[2:])
    single = inner == dimensions + 1
    x = x.unsqueeze(-dimensions - 2) if single else x  # [(D,) M, C, *S]
    x = x if apart else x.unsqueeze(0).expand(draws, *(-1,) * x.dim())
    leading = (*((draws,) if many else ()), *(() if single else x.shape[1:2]))
    return Inputs(x, bias, mask, leading), geometry.packed()
