"""The passes over a weight matrix in CUDA C++. Each is one launch on torch's current stream.

A tensor whose address is passed on stays in a variable until the launch. The memory of a temporary tensor would be
freed before.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from stochprune import _C
from stochprune.address import KLTerm, Logits, Mask, Rows
from stochprune.cuda.arrays import ESTIMATORS, array, rows_of
from stochprune.materialised import Gradients, readable

if not hasattr(_C, "cuda"):
    raise ImportError("stochprune's extension was built without nvcc")


def _launch(t: Tensor) -> tuple[int, int]:
    """Return the device and its current stream; zeros for the host, on which the tests run the same code."""
    return (t.get_device(), torch.cuda.current_stream(t.device).cuda_stream) if t.is_cuda else (0, 0)


def _masked(mask: Mask, shape: tuple[int, ...], **matrices: Any) -> _C.cuda.Masked:
    """Return the extension's description of a weight matrix under ``mask``, whose draws must be contiguous."""
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
    _C.cuda.keep_mask(_launch(keep), _masked(mask, keep.shape, threshold=array(threshold)), keep.data_ptr())
    return keep


def threshold_from_logits(logits: Logits) -> Tensor:
    """Return thresholds, uint16 in the shape of ``logits``, within 1 of the reference: they are computed in float32.

    NaN gives 1 and raises no error: a check would need a synchronisation.
    """
    flat = logits.detach().contiguous().reshape(-1, logits.shape[-1] if logits.dim() else 1)
    out = torch.empty(logits.shape, dtype=torch.uint16, device=logits.device)
    _C.cuda.thresholds(_launch(out), tuple(flat.shape), array(flat), out.data_ptr())
    return out


def mask_weight(weight: Tensor, logits: Logits, *, mask: Mask, dtype: torch.dtype, rows: Rows = None) -> Tensor:
    """Return ``z * weight`` in ``dtype``, as :class:`stochprune.materialised.MaskWeight`."""
    w, levels = rows_of(readable(weight.detach())), rows_of(logits.detach())
    mask = mask._replace(draw=mask.draw.contiguous())
    N, K = len(w) if rows is None else len(rows), w.shape[1]
    out = torch.empty(len(mask.draw), N, K, dtype=dtype, device=w.device)
    address = 0 if rows is None else rows.data_ptr()
    masked = _masked(mask, (N, K), weight=array(w), logits=array(levels), rows=address)
    _C.cuda.masked_weight(_launch(out), masked, array(out.flatten(0, 1)))
    return out


def mask_backward(
    grad: Tensor, weight: Tensor, logits: Logits, *, mask: Mask, to: Gradients, rows: Rows, kl: KLTerm | None
) -> None:
    """Write the gradients, as :class:`stochprune.materialised.MaskBackward`."""
    w, levels = rows_of(readable(weight.detach())), rows_of(logits.detach())
    prior = None if kl is None else rows_of(kl.prior_logits)
    address = 0 if rows is None else rows.data_ptr()
    _C.cuda.weight_grad(
        _launch(grad),
        _masked(mask, grad.shape, weight=array(w), logits=array(levels), rows=address),
        grad=array(grad),
        prior=array(prior),
        kl_grad=0 if kl is None else kl.grad.data_ptr(),
        dweight=array(to.dweight),
        dlogits=array(to.dlogits),
        masked_weight=array(to.masked),
        add=to.add,
    )
