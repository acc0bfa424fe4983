"""Mean and variance of random weights in C++."""

from __future__ import annotations

import torch
from torch import Tensor

from stochprune import _C
from stochprune.native.arrays import array, fresh, rows_of


def moments(weight: Tensor, logits: Tensor | None, rho: Tensor | None, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """As :func:`stochprune.reference.moments`."""
    inputs = [None if t is None else rows_of(t.detach()) for t in (weight, logits, rho)]
    shape = (weight.shape[0], weight.shape[1])
    mean, variance = fresh(shape, dtype), fresh(shape, dtype)
    arrays = [array(t) for t in (*inputs, mean, variance)]
    if _C.moments(shape, arrays[0], arrays[1], arrays[2], arrays[3], arrays[4], torch.get_num_threads()):
        raise ValueError("logits contain NaN")
    return mean, variance


def moments_grad(
    dmean: Tensor, dvariance: Tensor, weight: Tensor, logits: Tensor | None, rho: Tensor | None
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """As :func:`stochprune.reference.moments_grad`."""
    inputs = [None if t is None else rows_of(t.detach()) for t in (dmean, dvariance, weight, logits, rho)]
    shape = (weight.shape[0], weight.shape[1])
    dweight = fresh(shape, weight.dtype)
    dlogits, drho = (None if t is None else fresh(shape, t.dtype) for t in (logits, rho))
    dm, dv, *given = (array(t) for t in inputs)
    results = (array(dweight), array(dlogits), array(drho))
    _C.moments_grad(shape, dm, dv, given[0], given[1], given[2], *results, torch.get_num_threads())
    return dweight, dlogits, drho
