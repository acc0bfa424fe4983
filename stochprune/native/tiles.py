"""Masked linear layers on Intel's AMX: masks are sampled into tiles, and no masked weight is written.

Activations in bfloat16, and in float32 where torch's setting for products of float32 on the CPU permits less than full
precision: ``torch.set_float32_matmul_precision("high")`` or ``"medium"``. Then a float32 number is the sum of two
bfloat16 numbers, and the smallest of the four products is left out: a product is off by at most 2^-15 of its size.

Results are rounded once, from float32 sums. Memory is the shared workspace: the packed activations, a few hundred
kilobytes for each thread and, in the backward pass, hard masks as bits.
"""

from __future__ import annotations

import torch
from torch import Tensor

from stochprune import _C
from stochprune.address import Grads3, KLTerm, Needs3
from stochprune.native.results import fresh
from stochprune.native.workspace import workspace

# Estimates; `python -m bench.amx` measures them. oneDNN multiplies large batches a little faster, and the masked copy
# that it needs costs about 1.5 ns a weight and thread. A small layer does not repay packing its activations.
LARGEST_BATCH = 1024
SMALLEST_LAYER = 1 << 16  # weights


def take(x: Tensor, weight: Tensor) -> bool:
    """Return True if tile kernels, where there are some, serve x [..., M, K] and a masked weight [N, K]."""
    return (
        0 < x.shape[-2] <= LARGEST_BATCH
        and weight.numel() >= SMALLEST_LAYER
        and x.numel() > 0
        and (x.dtype is torch.bfloat16 or (x.dtype is torch.float32 and reduced()))
    )


def reduced() -> bool:
    """Return True if torch may multiply float32 on the CPU with less than its precision.

    Both ways to say so set what is read here: ``torch.set_float32_matmul_precision``, whose getter fails after the
    other way was used, and ``fp32_precision`` of ``torch.backends``, of its part ``mkldnn`` or of ``mkldnn.matmul``.
    """
    return torch.backends.mkldnn.matmul.fp32_precision in ("tf32", "bf16")  # type: ignore[attr-defined]


def forward(layer: _C.Masked, x: Tensor, bias: Tensor | None) -> Tensor | None:
    """Return y [D, M, N] = x [D, M, K] (z * weight)^T + bias; with one draw, [M, N] of [M, K].

    None: a product of float32 is infinite or NaN. Its parts can be when the number is not, and an infinite number can
    give NaN, so that only torch's product decides.
    """
    y, threads = x.new_empty(*x.shape[:-1], layer.shape[0]), torch.get_num_threads()
    return y if _C.tile_forward(layer, x, bias, y, _memory(layer, x, threads), threads) else None


def backward(
    layer: _C.Masked, grad: Tensor, x: Tensor, dtypes: tuple[torch.dtype, torch.dtype], needs: Needs3, kl: KLTerm | None
) -> Grads3 | None:
    """Return dx [D, M, K], dweight and dlogits [N, K] of grad [D, M, N] and x [D, M, K], or of matrices with one draw.

    Args:
        dtypes: of dweight and dlogits, which are summed over draws.
        needs: which of the three are computed; the others are None.
        kl: its gradient is added to dlogits.

    None instead of the gradients: as of :func:`forward`.
    """
    dx, threads = torch.empty(x.shape, dtype=x.dtype) if needs[0] else None, torch.get_num_threads()
    dweight = fresh(layer.shape, dtypes[0]) if needs[1] else None
    dlogits = fresh(layer.shape, dtypes[1]) if needs[2] else None
    memory = _memory(layer, x, threads)
    finite = _C.tile_backward(layer, x, grad, dx, (dweight, dlogits), kl, memory, threads)
    return (dx, dweight, dlogits) if finite else None


def _memory(layer: _C.Masked, x: Tensor, threads: int) -> Tensor:
    return workspace.take((_C.tile_bytes(layer, x, threads),), torch.uint8)
