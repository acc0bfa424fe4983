"""KL divergences of random weights from a prior, and their gradients."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from stochprune import rng
from stochprune.address import Grads2, Logits, Needs2


def bernoulli_kl(logits: Logits, prior_logits: Logits) -> Tensor:
    """Return the sum of kl(q || p) over weights, a float64 scalar in nats.

    q = threshold / 32768 of the logits, and p = sigmoid(prior_logits), of the same shape. The result is NaN if an input
    is NaN, and infinite if a prior logit is.
    """
    q, prior = _sampled(logits), prior_logits.double()
    size = prior.abs()  # -ln p and -ln(1 - p) are log1p(exp(-size)); size is added to one of them
    cross = torch.log1p(torch.exp(-size)) + size * torch.where(prior > 0, 1 - q, q)
    terms = (cross - torch.special.entr(q) - torch.special.entr(1 - q)).clamp_min(0)
    return terms.masked_fill(logits.isnan(), math.nan).sum()


def bernoulli_kl_backward(grad: Tensor, logits: Logits, prior_logits: Logits, *, needs: Needs2) -> Grads2:
    """Return dlogits and dprior_logits; None where not needed. For dlogits, q is sigmoid(logits)."""
    dlogits = dprior = None
    prior = prior_logits.double()
    if needs[0]:
        wide = logits.double()
        dlogits = (grad * (wide - prior) * sigmoid_slope(wide)).masked_fill(logits.isinf(), 0).to(logits.dtype)
    if needs[1]:
        dprior = (grad * (torch.sigmoid(prior) - _sampled(logits))).to(prior_logits.dtype)
    return dlogits, dprior


def gaussian_kl(mu: Tensor, sigma: Tensor, prior_mu: Tensor, prior_sigma: Tensor, logits: Logits | None) -> Tensor:
    """Return the sum of q KL(N(mu, sigma^2) || N(prior_mu, prior_sigma^2)) over weights, a float64 scalar in nats.

    q = threshold / 32768 of the logits, or 1 without logits. All inputs have the same shape. The result is NaN if an
    input is NaN or a standard deviation is not positive.
    """
    terms = _gaussian_terms(mu, sigma, prior_mu, prior_sigma)
    if logits is not None:
        terms = (terms * _sampled(logits)).masked_fill(logits.isnan(), math.nan)
    return terms.sum()


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
    """Return the gradients of the five inputs in order; None where not needed. For dlogits, q is sigmoid(logits)."""
    s, m0, s0 = sigma.double(), prior_mu.double(), prior_sigma.double()
    scale = grad if logits is None else grad * _sampled(logits)
    z, r = (mu.double() - m0) / s0, s / s0
    terms = 0 if logits is None else _gaussian_terms(mu, sigma, prior_mu, prior_sigma) * sigmoid_slope(logits.double())
    grads = (scale * z / s0, scale * (r - 1 / r) / s0, -scale * z / s0, scale * (1 - r * r - z * z) / s0, grad * terms)
    inputs = (mu, sigma, prior_mu, prior_sigma, logits)
    return [g.to(t.dtype) if need and t is not None else None for g, t, need in zip(grads, inputs, needs, strict=True)]


def _sampled(logits: Tensor) -> Tensor:
    """Return the exact probability that each weight is kept, in float64."""
    return rng.threshold_from_logits(logits).to(torch.int32).double() / rng.LEVELS


def sigmoid_slope(logits: Tensor) -> Tensor:
    """Return the derivative of the sigmoid, without the cancellation of s (1 - s).

    It becomes 0 only where it underflows, so that an infinite weight has an infinite gradient and not 0 times infinity.
    """
    return torch.sigmoid(logits) * torch.sigmoid(-logits)


def _gaussian_terms(mu: Tensor, sigma: Tensor, prior_mu: Tensor, prior_sigma: Tensor) -> Tensor:
    m, s, m0, s0 = (t.double() for t in (mu, sigma, prior_mu, prior_sigma))
    z, r = (m - m0) / s0, s / s0
    terms = (((r - 1) * (r + 1) + z * z) / 2 - torch.log(r)).clamp_min(0)
    return terms.masked_fill(~((s > 0) & (s0 > 0)), math.nan)
