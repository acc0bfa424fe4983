"""Masked linear layers in bfloat16 on Intel's AMX: masks are sampled into tiles, and no masked weight is written.

Results are rounded once, from float32 sums. Memory is the shared workspace: the packed activations, a few hundred
kilobytes for each thread and, in the backward pass, hard masks as bits.
"""

from __future__ import annotations

import torch
from torch import Tensor

from stochprune import _C
from stochprune.address import KLTerm
from stochprune.native.workspace import workspace

Targets = tuple[Tensor | None, Tensor | None]

# Estimates; `python -m bench.amx` measures them. oneDNN multiplies large batches a little faster, and the masked copy
# that it needs costs about 1.5 ns a weight and thread. A small layer does not repay packing its activations.
LARGEST_BATCH = 1024
SMALLEST_LAYER = 1 << 16  # weights


def take(x: Tensor, weight: Tensor) -> bool:
    """Return True if the tile kernels serve the product of x [..., M, K], bfloat16, with a masked weight [N, K]."""
    return _C.has_tiles() and 0 < x.shape[-2] <= LARGEST_BATCH and weight.numel() >= SMALLEST_LAYER and x.numel() > 0


def forward(layer: _C.Masked, x: Tensor, bias: Tensor | None) -> Tensor:
    """Return y [D, M, N] = x [D, M, K] (z * weight)^T + bias; with one draw, [M, N] of [M, K]."""
    y, threads = x.new_empty(*x.shape[:-1], layer.shape[0]), torch.get_num_threads()
    _C.tile_forward(layer, x, bias, y, _memory(layer, x, threads), threads)
    return y


def backward(layer: _C.Masked, grad: Tensor, x: Tensor, need_x: bool, to: Targets, kl: KLTerm | None) -> Tensor | None:
    """Return dx [D, M, K] of grad [D, M, N] and x [D, M, K], or of matrices with one draw; None if not needed.

    Args:
        to: the memory of dweight and dlogits [N, K], which are summed over draws; what is None is not computed.
        kl: its gradient is added to dlogits.
    """
    dx, threads = torch.empty(x.shape, dtype=x.dtype) if need_x else None, torch.get_num_threads()
    _C.tile_backward(layer, x, grad, dx, to, kl, _memory(layer, x, threads), threads)
    return dx


def _memory(layer: _C.Masked, x: Tensor, threads: int) -> Tensor:
    return workspace.take((_C.tile_bytes(layer, x.shape[-2], threads),), torch.uint8)
