"""Mean and variance of random weights in C++."""

from __future__ import annotations

import torch
from torch import Tensor

from stochprune import _C
from stochprune.address import Logits
from stochprune.native.results import fresh


def moments(weight: Tensor, logits: Logits | None, rho: Tensor | None, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """As :func:`stochprune.reference.moments`."""
    mean, variance = fresh(weight.shape, dtype), fresh(weight.shape, dtype)
    _C.moments(weight, logits, rho, mean, variance, torch.get_num_threads())
    return mean, variance


def moments_grad(
    dmean: Tensor, dvariance: Tensor, weight: Tensor, logits: Logits | None, rho: Tensor | None
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """As :func:`stochprune.reference.moments_grad`."""
    dweight = fresh(weight.shape, weight.dtype)
    dlogits, drho = (None if t is None else fresh(t.shape, t.dtype) for t in (logits, rho))
    _C.moments_grad(dmean, dvariance, weight, logits, rho, dweight, dlogits, drho, torch.get_num_threads())
    return dweight, dlogits, drho
