"""The products of a masked linear layer by torch, on panels of the masked weight in the shared workspace."""

from __future__ import annotations

import torch
from torch import Tensor

from stochprune.native.masked_weight import MaskedWeight
from stochprune.native.workspace import workspace


def _panels(layer: MaskedWeight, dtype: torch.dtype) -> list[slice]:
    rows, cols = layer.shape
    step = workspace.panel_rows(rows, cols, dtype)
    return [slice(r, min(r + step, rows)) for r in range(0, rows, step)] if rows else []


def forward(layer: MaskedWeight, draw: Tensor, x: Tensor, bias: Tensor | None, y: Tensor) -> None:
    """y [M, N] = x [M, K] (z * weight)^T + bias."""
    for part in _panels(layer, x.dtype):
        w = layer.write(draw, part, workspace.take(part.stop - part.start, layer.shape[1], x.dtype))
        if bias is None:
            torch.mm(x, w.mT, out=y[:, part])
        else:
            torch.addmm(bias[part], x, w.mT, out=y[:, part])


def backward(
    layer: MaskedWeight,
    draw: Tensor,
    grad: Tensor,
    x: Tensor,
    dx: Tensor | None,
    dweight: Tensor | None,
    dlogits: Tensor | None,
    accumulate: bool,
    divergence: tuple[Tensor, float] | None = None,
) -> None:
    """dx [M, K], dweight and dlogits [N, K] from grad [M, N] and x [M, K]; what is None is not computed."""
    # dL/d(z * weight) goes straight into a gradient's own memory where dtypes agree and no sum is there yet.
    home = next((t for t in (dweight, dlogits) if not accumulate and t is not None and t.dtype == x.dtype), None)
    for part in _panels(layer, x.dtype):
        size = (part.stop - part.start, layer.shape[1], x.dtype)
        bits = None
        if dx is not None:
            bits = layer.bits(part) if dweight is not None else None
            w = layer.write(draw, part, workspace.take(*size), bits)
            torch.addmm(dx, grad[:, part], w, beta=0 if part.start == 0 else 1, out=dx)
        if dweight is not None or dlogits is not None:
            g = workspace.take(*size) if home is None else home[part]
            torch.mm(grad[:, part].mT, x, out=g)
            layer.gradients(draw, part, g, bits, dweight, dlogits, accumulate, divergence)
