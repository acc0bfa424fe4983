"""Divergences from a prior in C++: one pass over dense copies of the inputs, or over the inputs themselves if dense."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from stochprune import _C
from stochprune.native.arrays import Array, array, fresh


def bernoulli_kl(logits: Tensor, prior_logits: Tensor) -> Tensor:
    """As :func:`stochprune.reference.bernoulli_kl`."""
    a, b = _dense(logits, prior_logits)
    return _scalar(_C.bernoulli_kl(logits.numel(), _row(a), _row(b), torch.get_num_threads()))


def bernoulli_kl_backward(
    grad: Tensor, logits: Tensor, prior_logits: Tensor, need_logits: bool, need_prior: bool
) -> tuple[Tensor | None, Tensor | None]:
    """As :func:`stochprune.reference.bernoulli_kl_backward`."""
    a, b = _dense(logits, prior_logits)
    dlogits, dprior = _room((logits, prior_logits), (need_logits, need_prior))
    threads = torch.get_num_threads()
    _C.bernoulli_kl_grad(logits.numel(), float(grad), _row(a), _row(b), _row(dlogits), _row(dprior), threads)
    return dlogits, dprior


def gaussian_kl(mu: Tensor, sigma: Tensor, prior_mu: Tensor, prior_sigma: Tensor, logits: Tensor | None) -> Tensor:
    """As :func:`stochprune.reference.gaussian_kl`."""
    inputs = _dense(mu, sigma, prior_mu, prior_sigma, logits)
    return _scalar(_C.gaussian_kl(mu.numel(), [_row(t) for t in inputs], torch.get_num_threads()))


def gaussian_kl_backward(
    grad: Tensor,
    mu: Tensor,
    sigma: Tensor,
    prior_mu: Tensor,
    prior_sigma: Tensor,
    logits: Tensor | None,
    needs: Sequence[bool],
) -> list[Tensor | None]:
    """As :func:`stochprune.reference.gaussian_kl_backward`."""
    inputs = _dense(mu, sigma, prior_mu, prior_sigma, logits)
    grads = _room(inputs, needs)
    rows = [_row(t) for t in inputs], [_row(t) for t in grads]
    _C.gaussian_kl_grad(mu.numel(), float(grad), *rows, torch.get_num_threads())
    return grads


def _dense(*tensors: Tensor | None) -> list[Tensor | None]:
    return [None if t is None else t.detach().contiguous() for t in tensors]


def _row(t: Tensor | None) -> Array:
    """A dense tensor of any shape as one row."""
    return array(None if t is None else t.view(1, -1))


def _room(inputs: Sequence[Tensor | None], needs: Sequence[bool]) -> list[Tensor | None]:
    return [
        fresh(tuple(t.shape), t.dtype) if need and t is not None else None
        for t, need in zip(inputs, needs, strict=True)
    ]


def _scalar(value: float) -> Tensor:
    return torch.tensor(value, dtype=torch.float64)
