"""The passes over a weight matrix in CUDA C++, each one launch on torch's current stream.

A tensor whose address is taken has a name until its launch: the memory of a nameless copy would be given out again.
"""

from __future__ import annotations

import torch
from torch import Tensor

from stochprune import _C
from stochprune.native.arrays import ESTIMATORS, array, rows_of
from stochprune.products import Divergence, Mask

if not hasattr(_C, "cuda"):
    raise ImportError("stochprune's extension was built without nvcc")


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


def mask_weight(weight: Tensor, logits: Tensor, mask: Mask, dtype: torch.dtype, rows: Tensor | None = None) -> Tensor:
    """``z * weight`` [D, N, K] in ``dtype`` for each of the draws; of the ``rows`` (int64 [R]), if given, [D, R, K]."""
    weight, logits = rows_of(weight.detach()), rows_of(logits.detach())
    draws = mask.draw.contiguous()
    out = torch.empty(
        len(draws), len(weight if rows is None else rows), weight.shape[1], dtype=dtype, device=weight.device
    )
    _C.cuda.masked_weight(
        _place(out),
        _address(mask.seed, draws, mask.stream),
        len(draws),
        tuple(out.shape[1:]),
        ESTIMATORS[mask.estimator],
        mask.temperature,
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
    mask: Mask,
    dweight: Tensor | None,
    dlogits: Tensor | None,
    add: bool,
    rows: Tensor | None = None,
    divergence: Divergence | None = None,
) -> None:
    """Write (or add) to contiguous ``dweight`` and ``dlogits`` [N, K]; either may be None, or ``grad`` itself.

    Args:
        grad: contiguous [N, K], dL/d(z * weight) under the first draw of ``mask``.
        add: add to what the results hold, which must then be float32.
        rows: int64 [N], the rows of the weight that grad and the results speak of; default all.
        divergence: adds its gradient to dlogits.
    """
    prior = None if divergence is None else rows_of(divergence.prior)
    weight, logits = rows_of(weight.detach()), rows_of(logits.detach())
    _C.cuda.weight_grad(
        _place(grad),
        _address(mask.seed, mask.draw, mask.stream),
        tuple(grad.shape),
        ESTIMATORS[mask.estimator],
        mask.temperature,
        array(grad),
        array(weight),
        array(logits),
        array(prior),
        0 if divergence is None else divergence.grad.data_ptr(),
        array(dweight),
        array(dlogits),
        add,
        0 if rows is None else rows.data_ptr(),
    )
