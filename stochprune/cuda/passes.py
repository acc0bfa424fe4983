"""The passes over a weight matrix in CUDA C++, each one launch on torch's current stream.

A tensor whose address is taken has a name until its launch: the memory of a nameless copy would be given out again.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from stochprune import _C
from stochprune.address import KLTerm, Logits, Mask
from stochprune.native.arrays import ESTIMATORS, array, rows_of

if not hasattr(_C, "cuda"):
    raise ImportError("stochprune's extension was built without nvcc")


def _place(t: Tensor) -> tuple[int, int]:
    """The device and its current stream; zeros for the host, where the tests run the same code."""
    return (t.get_device(), torch.cuda.current_stream(t.device).cuda_stream) if t.is_cuda else (0, 0)


def _masked(mask: Mask, shape: tuple[int, ...], **matrices: Any) -> _C.cuda.Masked:
    """The extension's description of a weight matrix under the draws of ``mask``, which are dense."""
    return _C.cuda.Masked(
        shape=shape,
        seed=mask.seed.data_ptr(),
        draw=mask.draw.data_ptr(),
        draws=len(mask.draw),
        stream=mask.stream,
        row=mask.row,
        col=mask.col,
        estimator=ESTIMATORS[mask.estimator],
        temperature=mask.temperature,
        **matrices,
    )


def keep_mask(threshold: Tensor, *, mask: Mask) -> Tensor:
    """As :func:`stochprune.reference.keep_mask`."""
    threshold = rows_of(threshold)
    keep = torch.empty(threshold.shape, dtype=torch.bool, device=threshold.device)
    _C.cuda.keep_mask(_place(keep), _masked(mask, keep.shape, threshold=array(threshold)), keep.data_ptr())
    return keep


def threshold_from_logits(logits: Logits) -> Tensor:
    """uint16, the shape of ``logits``, formed in float32: within 1 of the reference's float64.

    NaN gives 1 and does not raise: looking for one would cost a synchronisation.
    """
    flat = logits.detach().contiguous().reshape(-1, logits.shape[-1] if logits.dim() else 1)
    out = torch.empty(logits.shape, dtype=torch.uint16, device=logits.device)
    _C.cuda.thresholds(_place(out), tuple(flat.shape), array(flat), out.data_ptr())
    return out


def mask_weight(
    weight: Tensor, logits: Logits, *, mask: Mask, dtype: torch.dtype, rows: Tensor | None = None
) -> Tensor:
    """``z * weight`` [D, N, K] in ``dtype`` for each of the draws; of the ``rows`` (int64 [R]), if given, [D, R, K]."""
    w, levels = rows_of(weight.detach()), rows_of(logits.detach())
    mask = mask._replace(draw=mask.draw.contiguous())
    N, K = len(w) if rows is None else len(rows), w.shape[1]
    out = torch.empty(len(mask.draw), N, K, dtype=dtype, device=w.device)
    address = 0 if rows is None else rows.data_ptr()
    masked = _masked(mask, (N, K), weight=array(w), logits=array(levels), rows=address)
    _C.cuda.masked_weight(_place(out), masked, array(out.flatten(0, 1)))
    return out


def mask_backward(
    grad: Tensor,
    weight: Tensor,
    logits: Logits,
    *,
    mask: Mask,
    dweight: Tensor | None,
    dlogits: Tensor | None,
    add: bool,
    rows: Tensor | None = None,
    kl: KLTerm | None = None,
) -> None:
    """Write (or add) to contiguous ``dweight`` and ``dlogits`` [N, K]; either may be None, or ``grad`` itself.

    Args:
        grad: contiguous [N, K], dL/d(z * weight) under the first draw of ``mask``.
        add: add to what the results hold, which must then be float32.
        rows: int64 [N], the rows of the weight that grad and the results speak of; default all.
        kl: adds its gradient to dlogits.
    """
    w, levels = rows_of(weight.detach()), rows_of(logits.detach())
    prior = None if kl is None else rows_of(kl.prior_logits)
    address = 0 if rows is None else rows.data_ptr()
    _C.cuda.weight_grad(
        _place(grad),
        _masked(mask, grad.shape, weight=array(w), logits=array(levels), rows=address),
        grad=array(grad),
        prior=array(prior),
        kl_grad=0 if kl is None else kl.grad.data_ptr(),
        dweight=array(dweight),
        dlogits=array(dlogits),
        add=add,
    )
