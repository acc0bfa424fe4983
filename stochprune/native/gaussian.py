"""Gaussian weights and the contract's normals in C++."""

from __future__ import annotations

import torch
from torch import Tensor

from stochprune import _C
from stochprune.native.arrays import NOTHING, array, fresh, key, rows_of


def normal(rows: int, cols: int, seed: Tensor, draw: Tensor, stream: int, row_offset: int) -> Tensor:
    """As :func:`stochprune.reference.normal`."""
    out = fresh((len(draw), rows, cols), torch.float32)
    for d, part in zip(draw, out, strict=True):
        address = key(seed, d, stream, row_offset)
        _C.gaussian_weight(address, (rows, cols), NOTHING, NOTHING, array(part), torch.get_num_threads())
    return out


def gaussian_weight(mu: Tensor, rho: Tensor, seed: Tensor, draw: Tensor, stream: int, dtype: torch.dtype) -> Tensor:
    """As :func:`stochprune.reference.gaussian_weight`."""
    mu, rho = rows_of(mu.detach()), rows_of(rho.detach())
    out = fresh((len(draw), *mu.shape), dtype)
    for d, part in zip(draw, out, strict=True):
        address = key(seed, d, stream)
        _C.gaussian_weight(address, tuple(mu.shape), array(mu), array(rho), array(part), torch.get_num_threads())
    return out


def gaussian_grad(grad: Tensor, rho: Tensor, seed: Tensor, draw: Tensor, stream: int) -> Tensor:
    """As :func:`stochprune.reference.gaussian_grad`."""
    rho, out = rows_of(rho.detach()), fresh(tuple(rho.shape), rho.dtype)
    for i, d in enumerate(draw):
        g, threads = rows_of(grad[i]), torch.get_num_threads()
        _C.gaussian_grad(key(seed, d, stream), tuple(rho.shape), array(g), array(rho), array(out), i > 0, threads)
    return out
