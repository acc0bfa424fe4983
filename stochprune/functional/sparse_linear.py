"""sparse_linear: the product with a matrix that stores only its kept weights, for inference."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

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


@_operator.register_vmap
def _over_x(info: Any, in_dims: tuple[int | None, ...], x: Tensor, *layer: Tensor | None) -> tuple[Tensor, int]:
    """Run vmap over x: its elements become examples of one call."""
    if in_dims[0] is None or any(dim is not None for dim in in_dims[1:]):
        raise RuntimeError(f"{_OP}: vmap maps over x alone, not over layers; call them one by one")
    y = _operator(x.movedim(in_dims[0], 0).flatten(0, 1), *layer)
    return y.unflatten(0, (info.batch_size, -1)), 0


def sparse_linear(x: Tensor, rows: SparseRows, in_features: int, bias: Tensor | None) -> Tensor:
    """Return ``x W^T + bias`` [..., N] of sparse rows that are known to be valid.

    Args:
        x: float32 [..., in_features], on the device of the rows.
        rows: float32 values of a matrix [N, in_features].
        bias: float32 [N], or None.

    Raises:
        TypeError: x, the values or the bias are not float32.
        ValueError: x has another last dimension, or lies on another device.
        RuntimeError: x requires a gradient.
    """
    values = rows.values
    fits = x.dtype is torch.float32 is values.dtype and x.device == values.device and x.shape[-1:] == (in_features,)
    fits = fits and (bias is None or bias.dtype is torch.float32)
    if not fits or _is_differentiated(x):
        _refuse(x, values, in_features, bias)
    if x.dim() != 2:
        y = sparse_linear(x.flatten(0, -2) if x.dim() > 1 else x.unsqueeze(0), rows, in_features, bias)
        return y.view(*x.shape[:-1], y.shape[1])
    if _is_plain(x, values):
        return backends.resolve(x).sparse_linear(x, rows, bias)
    product: Tensor = _operator(x, *rows, bias)
    return product


def _is_differentiated(x: Tensor) -> bool:
    """Return True if a derivative is recorded, of backward or forward mode."""
    if x.requires_grad and torch.is_grad_enabled():
        return True
    return forward_ad._current_level >= 0 and forward_ad.unpack_dual(x).tangent is not None


def _is_plain(x: Tensor, values: Tensor) -> bool:
    """Return True in eager code on tensors with memory; the operator serves graphs, fake tensors and torch.func."""
    if torch.compiler.is_compiling() or torch._C._len_torch_dispatch_stack():
        return False
    return type(x) is Tensor is type(values) and torch._C._functorch.peek_interpreter_stack() is None


def _refuse(x: Tensor, values: Tensor, in_features: int, bias: Tensor | None) -> None:
    """Raise the error that these arguments cause."""
    for name, tensor in (("x", x), ("the weight", values), ("the bias", bias)):
        if tensor is not None and tensor.dtype != torch.float32:
            raise TypeError(
                f"{_OP}: {name} is {tensor.dtype}, the product is one of float32: convert it with .float(), or use "
                f"to_linear() for other dtypes"
            )
    if x.shape[-1:] != (in_features,):
        raise ValueError(f"{_OP}: x {tuple(x.shape)} must be [..., {in_features}]")
    if x.device != values.device:
        raise ValueError(f"{_OP}: x is on {x.device}, the weight on {values.device}; move them to one")
    raise RuntimeError(
        f"{_OP}: x requires a gradient and this layer has none: use torch.no_grad(), or train with to_linear()"
    )
