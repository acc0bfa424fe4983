"""The KL from a prior in C++: one pass over the inputs, or over copies of those that are not contiguous."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from stochprune import _C
from stochprune.address import Logits
from stochprune.native.results import fresh


def bernoulli_kl(logits: Logits, prior_logits: Logits) -> Tensor:
    """As :func:`stochprune.reference.bernoulli_kl`."""
    return torch.tensor(_C.bernoulli_kl(logits, prior_logits, torch.get_num_threads()), dtype=torch.float64)


def bernoulli_kl_backward(
    grad: Tensor, logits: Logits, prior_logits: Logits, *, needs: tuple[bool, bool]
) -> tuple[Tensor | None, Tensor | None]:
    """As :func:`stochprune.reference.bernoulli_kl_backward`."""
    dlogits, dprior = _empty_like((logits, prior_logits), needs)
    _C.bernoulli_kl_grad(float(grad), logits, prior_logits, dlogits, dprior, torch.get_num_threads())
    return dlogits, dprior


def gaussian_kl(mu: Tensor, sigma: Tensor, prior_mu: Tensor, prior_sigma: Tensor, logits: Logits | None) -> Tensor:
    """As :func:`stochprune.reference.gaussian_kl`."""
    inputs = (mu, sigma, prior_mu, prior_sigma, logits)
    return torch.tensor(_C.gaussian_kl(inputs, torch.get_num_threads()), dtype=torch.float64)


def gaussian_kl_backward(
    grad: Tensor,
    mu: Tensor,
    sigma: Tensor,
    prior_mu: Tensor,
    prior_sigma: Tensor,
    logits: Logits | None,
    *,
    needs: Sequence[bool],
) -> list[Tensor | None]:
    """As :func:`stochprune.reference.gaussian_kl_backward`."""
    inputs = (mu, sigma, prior_mu, prior_sigma, logits)
    grads = _empty_like(inputs, needs)
    _C.gaussian_kl_grad(float(grad), inputs, grads, torch.get_num_threads())
    return grads


def _empty_like(inputs: Sequence[Tensor | None], needs: Sequence[bool]) -> list[Tensor | None]:
    return [fresh(t.shape, t.dtype) if need and t is not None else None for t, need in zip(inputs, needs, strict=True)]
