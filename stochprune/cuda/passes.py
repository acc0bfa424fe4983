"""The passes over a weight matrix in CUDA C++, each one launch on torch's current stream.

A tensor whose address is taken has a name until its launch: the memory of a nameless copy would be given out again.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from stochprune import _C
from stochprune.native.arrays import ESTIMATORS, array, rows_of

if not hasattr(_C, "cuda"):
    raise ImportError("stochprune's extension was built without nvcc")


class Address(NamedTuple):
    """Which masks, and how the estimator reads them; the numbers stay on the device."""

    seed: Tensor  # int64 [1]
    draws: Tensor  # int64 [D]
    stream: int
    estimator: str
    temperature: float


def _place(t: Tensor) -> tuple[int, int]:
    """The device and its current stream; zeros for the host, where the tests run the same code."""
    return (t.get_device(), torch.cuda.current_stream(t.device).cuda_stream) if t.is_cuda else (0, 0)


def _address(seed: Tensor, draw: Tensor, stream: int, row: int = 0, col: int = 0) -> tuple[int, int, int, int, int]:
    return seed.data_ptr(), draw.data_ptr(), stream, row, col


def keep_mask(threshold: Tensor, seed: Tensor, draw: Tensor, stream: int, row_offset: int, col_offset: int) -> Tensor:
    """As :func:`stochprune.reference.keep_mask`."""
    threshold = rows_of(threshold)
    mask = torch.empty(threshold.shape, dtype=torch.bool, device=threshold.device)
    address = _address(seed, draw, stream, row_offset, col_offset)
    _C.cuda.keep_mask(_place(mask), address, tuple(mask.shape), array(threshold), mask.data_ptr())
    return mask


def threshold_from_logits(logits: Tensor) -> Tensor:
    """uint16, the shape of ``logits``, formed in float32: within 1 of the reference's float64.

    NaN gives 1 and does not raise: looking for one would cost a synchronisation.
    """
    flat = logits.detach().contiguous().reshape(-1, logits.shape[-1] if logits.dim() else 1)
    out = torch.empty(logits.shape, dtype=torch.uint16, device=logits.device)
    _C.cuda.thresholds(_place(out), tuple(flat.shape), array(flat), out.data_ptr())
    return out


def mask_weight(weight: Tensor, logits: Tensor, at: Address, dtype: torch.dtype, rows: Tensor | None = None) -> Tensor:
    """``z * weight`` [D, N, K] in ``dtype`` for each of the draws; of the ``rows`` (int64 [R]), if given, [D, R, K]."""
    weight, logits = rows_of(weight.detach()), rows_of(logits.detach())
    draws = at.draws.contiguous()
    out = torch.empty(
        len(draws), len(weight if rows is None else rows), weight.shape[1], dtype=dtype, device=weight.device
    )
    _C.cuda.masked_weight(
        _place(out),
        _address(at.seed, draws, at.stream),
        len(draws),
        tuple(out.shape[1:]),
        ESTIMATORS[at.estimator],
        at.temperature,
        array(weight),
        array(logits),
        array(out.flatten(0, 1)),
        0 if rows is None else rows.data_ptr(),
    )
    return out


def through_mask(
    grad: Tensor,
    weight: Tensor,
    logits: Tensor,
    at: Address,
    i: int,
    dweight: Tensor | None,
    dlogits: Tensor | None,
    add: bool,
    rows: Tensor | None = None,
    prior: Tensor | None = None,
    kl_grad: Tensor | None = None,
) -> None:
    """Write (or add) to contiguous ``dweight`` and ``dlogits`` [N, K]; either may be None, or ``grad`` itself.

    Args:
        grad: contiguous [N, K], dL/d(z * weight) under draw number ``i``.
        add: add to what the results hold, which must then be float32.
        rows: int64 [N], the rows of the weight that grad and the results speak of; default all.
        prior: logits [N, K] of a prior; the gradient of the masks' divergence from it is added to dlogits.
        kl_grad: what the divergence counts, float64, one element.
    """
    prior = None if prior is None else rows_of(prior)
    weight, logits, draw = rows_of(weight.detach()), rows_of(logits.detach()), at.draws[i]
    _C.cuda.weight_grad(
        _place(grad),
        _address(at.seed, draw, at.stream),
        tuple(grad.shape),
        ESTIMATORS[at.estimator],
        at.temperature,
        array(grad),
        array(weight),
        array(logits),
        array(prior),
        0 if kl_grad is None else kl_grad.data_ptr(),
        array(dweight),
        array(dlogits),
        add,
        0 if rows is None else rows.data_ptr(),
    )
