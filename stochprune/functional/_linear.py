"""What the linear ops share: x, its masks' draws and the bias, checked and brought to the shapes of the operators."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

from stochprune.functional._autograd import reshaped
from stochprune.functional._checks import (
    Address,
    address,
    check_floating,
    check_same_device,
    in_product_dtype,
)


class Slices(NamedTuple):
    """x as one slice a draw: what the operators take, and how their results are given back."""

    x: Tensor  # [D, M, K], in the dtype of the product
    bias: Tensor | None  # in the same dtype
    address: Address  # of D draws
    shape: tuple[int, ...]  # of y but for its last dimension

    def restore(self, y: Tensor) -> Tensor:
        """The result of x's shape from y [D, M, N]."""
        return reshaped(y, (*self.shape, y.shape[-1]))


def slices(
    op: str,
    x: Tensor,
    weights: dict[str, Tensor | None],
    bias: Tensor | None,
    seed: int | Tensor,
    draw: int | Tensor,
    stream: int,
    samples: int | None,
) -> Slices:
    """Check a linear op's arguments and slice x.

    Args:
        op: the name of the op in messages.
        x: [..., K], or [D, ..., K] for a vector of D draws.
        weights: by name the tensors [N, K]; the first is the weight, which the others are to be like.
        bias: [N] or None.
        seed, draw, stream, samples: as in :func:`stochprune.functional.masked_linear`.

    Raises:
        TypeError, ValueError: as listed there.
    """
    check_floating(op, x=x, **weights, bias=bias)
    check_same_device(op, x=x, **weights, bias=bias)
    (name, weight), *others = weights.items()
    assert weight is not None
    if x.dim() < 1 or weight.dim() != 2 or x.shape[-1] != weight.shape[1]:
        raise ValueError(f"{op}: x {tuple(x.shape)} and {name} {tuple(weight.shape)} do not fit")
    for other, tensor in others:
        if tensor is not None and tensor.shape != weight.shape:
            raise ValueError(f"{op}: {other} {tuple(tensor.shape)} and {name} {tuple(weight.shape)} differ in shape")
    if bias is not None and bias.shape != weight.shape[:1]:
        raise ValueError(f"{op}: bias {tuple(bias.shape)} does not fit {name} {tuple(weight.shape)}")
    size = {"rows": weight.shape[0], "cols": weight.shape[1]}
    at = address(op, seed, draw, stream, x.device, samples=samples, **size)
    x, bias = in_product_dtype(op, x, name, weight, bias)
    draws = len(at.draw)
    many = samples is not None or draws > 1
    if many and samples is None:
        if x.dim() < 2 or x.shape[0] != draws:
            raise ValueError(f"{op}: x {tuple(x.shape)} has no leading dimension of {draws}, one for each draw")
        inner = x.shape[1:-1]
        apart = x.reshape(x.shape[0], inner.numel(), x.shape[-1])
    else:
        inner = x.shape[:-1]
        apart = x.reshape(1, inner.numel(), x.shape[-1]).expand(draws, -1, -1)
    return Slices(apart, bias, at, (*((draws,) if many else ()), *inner))
