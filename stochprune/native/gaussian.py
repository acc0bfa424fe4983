"""Gaussian weights and the contract's normals in C++."""

from __future__ import annotations

import torch
from torch import Tensor

from stochprune import _C
from stochprune.address import Mask
from stochprune.native.results import fresh


def normal(rows: int, cols: int, *, mask: Mask) -> Tensor:
    """As :func:`stochprune.reference.normal`."""
    out = fresh((mask.draw.shape[0], rows, cols), torch.float32)
    _C.normal(mask, (rows, cols), out, torch.get_num_threads())
    return out


def gaussian_weight(mu: Tensor, rho: Tensor, *, mask: Mask, dtype: torch.dtype) -> Tensor:
    """As :func:`stochprune.reference.gaussian_weight`."""
    out = fresh((mask.draw.shape[0], *mu.shape), dtype)
    _C.gaussian_weight(mask, mu, rho, out, torch.get_num_threads())
    return out


def gaussian_grad(grad: Tensor, rho: Tensor, *, mask: Mask) -> Tensor:
    """As :func:`stochprune.reference.gaussian_grad`."""
    out = fresh(rho.shape, rho.dtype)
    _C.gaussian_grad(mask, grad, rho, out, torch.get_num_threads())
    return out
