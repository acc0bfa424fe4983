"""sparse_linear: the product with a matrix of which only the kept weights are stored, for inference."""

from __future__ import annotations

import torch
from torch import Tensor

from stochprune import backends
from stochprune.sparse_rows import SparseRows

_OP = "SparseLinear"


def _forward(x: Tensor, values: Tensor, columns: Tensor, first: Tensor, bias: Tensor | None) -> Tensor:
    return backends.resolve(x).sparse_linear(x, SparseRows(values, columns, first), bias)


_SCHEMA = "(Tensor x, Tensor values, Tensor columns, Tensor first, Tensor? bias) -> Tensor"
_operator = torch.library.custom_op("stochprune::sparse_linear", _forward, mutates_args=(), schema=_SCHEMA)


@_operator.register_fake
def _fake(x: Tensor, values: Tensor, columns: Tensor, first: Tensor, bias: Tensor | None) -> Tensor:
    return x.new_empty(x.shape[0], first.shape[0] - 1)


def sparse_linear(x: Tensor, rows: SparseRows, in_features: int, bias: Tensor | None) -> Tensor:
    """Return ``x W^T + bias`` [..., N] of sparse rows that are known to be valid.

    Args:
        x: float32 [..., in_features], on the device of the rows.
        rows: float32 values of a matrix [N, in_features].
        bias: float32 [N], or None.

    Raises:
        TypeError: x or the values are not float32.
        ValueError: x has another last dimension, or lies on another device.
        RuntimeError: x requires a gradient.
    """
    values = rows.values
    fits = x.dtype is torch.float32 is values.dtype and x.device == values.device and x.shape[-1:] == (in_features,)
    if not fits or (x.requires_grad and torch.is_grad_enabled()):
        _refuse(x, values, in_features)
    if x.dim() != 2:
        y = sparse_linear(x.flatten(0, -2) if x.dim() > 1 else x.unsqueeze(0), rows, in_features, bias)
        return y.view(*x.shape[:-1], y.shape[1])
    if torch.compiler.is_compiling():
        product: Tensor = _operator(x, *rows, bias)
        return product
    return backends.resolve(x).sparse_linear(x, rows, bias)


def _refuse(x: Tensor, values: Tensor, in_features: int) -> None:
    """Raise what is wrong."""
    for name, tensor in (("x", x), ("the weight", values)):
        if tensor.dtype != torch.float32:
            raise TypeError(
                f"{_OP}: {name} is {tensor.dtype}, the product is one of float32: convert it with .float(), or use "
                f"to_linear() for other dtypes"
            )
    if x.shape[-1:] != (in_features,):
        raise ValueError(f"{_OP}: x {tuple(x.shape)} must be [..., {in_features}]")
    if x.device != values.device:
        raise ValueError(f"{_OP}: x lies on {x.device}, the weight on {values.device}; move them to one")
    raise RuntimeError(
        f"{_OP}: x requires a gradient and this layer has none: use torch.no_grad(), or train with to_linear()"
    )
