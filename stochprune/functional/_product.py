"""A linear layer's product or a convolution's, whichever an operator's geometry says, and its gradients."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from stochprune import rng
from stochprune.functional._checks import check_kernel, sizes

Geometry = Sequence[Any]
"""Stride, padding, dilation (a number for each spatial dimension) and groups; without stride: a linear layer."""
LINEAR: Geometry = ([], [], [], 1)


def product(x: Tensor, weight: Tensor, bias: Tensor | None, geometry: Geometry) -> Tensor:
    """y [M, N, ...] of x [M, K, ...]."""
    if not geometry[0]:
        return F.linear(x, weight, bias)
    stride, padding, dilation, groups = geometry
    out_padding = [0] * len(stride)
    y: Tensor = torch.ops.aten.convolution(x, weight, bias, stride, padding, dilation, False, out_padding, groups)
    return y


def product_grads(
    grad: Tensor, x: Tensor, weight: Tensor, geometry: Geometry, need_x: bool, need_weight: bool
) -> tuple[Tensor | None, Tensor | None]:
    """dx and dweight of grad [M, N, ...]; None where not needed."""
    if not geometry[0]:
        return grad @ weight if need_x else None, grad.mT @ x if need_weight else None
    stride, padding, dilation, groups = geometry
    out_padding, needs = [0] * len(stride), [need_x, need_weight, False]
    dx, dweight, _ = torch.ops.aten.convolution_backward(
        grad, x, weight, None, stride, padding, dilation, False, out_padding, groups, needs
    )
    return dx, dweight


def convolution(
    op: str,
    x: Tensor,
    weight: Tensor,
    stride: int | Sequence[int],
    padding: int | Sequence[int],
    dilation: int | Sequence[int],
    groups: int,
) -> Geometry:
    """The geometry of a convolution of x [M, C, *S]; ``ValueError`` where the arguments do not fit."""
    dimensions = weight.dim() - 2
    groups = rng.integer(op, "groups", groups)
    if groups < 1 or not 1 <= dimensions <= 3 or x.dim() != weight.dim() or x.shape[1] != weight.shape[1] * groups:
        raise ValueError(f"{op}: x {tuple(x.shape)} and weight {tuple(weight.shape)} do not fit in {groups} groups")
    if not weight.shape[0] or weight.shape[0] % groups:
        raise ValueError(f"{op}: weight {tuple(weight.shape)} does not divide into {groups} groups")
    named = (("stride", stride), ("padding", padding), ("dilation", dilation))
    geometry = [sizes(op, name, value, dimensions) for name, value in named]
    check_kernel(op, x.shape[2:], weight.shape[2:], *geometry[1:])
    return [*geometry, groups]
