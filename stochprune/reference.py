"""Every op in plain PyTorch, a few lines each: the specification that the tests import, and the backend of last resort.

It runs on any device and in any floating dtype. It makes weight-sized temporaries and slow integer arithmetic.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from stochprune import materialised, patterns, rng
from stochprune.address import KLTerm, Logits, Mask, Masks
from stochprune.sparse_rows import sparse_linear as sparse_linear

NAME = "reference"
MATRICES = False

STRETCH = (-0.1, 1.1)
"""The interval to which the hard concrete mask is stretched before it is clamped to [0, 1] (Louizos et al. 2018)."""


def supports(*tensors: Tensor) -> bool:
    """Return True: the reference takes every tensor."""
    return True


def describe() -> str:
    """Return nothing worth telling."""
    return ""


def keep_mask(threshold: Tensor, *, mask: Mask) -> Tensor:
    """bool [N, K]: which weights are kept under thresholds [N, K] (integers 0 .. 32768), of one draw."""
    return (mask.uniform16(*threshold.shape) & 0x7FFF) < threshold.to(torch.int32)


def threshold_from_logits(logits: Logits) -> Tensor:
    """uint16, the shape of ``logits``."""
    if logits.isnan().any():
        raise ValueError("logits contain NaN")
    return rng.threshold_from_logits(logits)


def factor(logits: Logits, mask: Mask) -> tuple[Tensor, Tensor]:
    """The estimator's mask z of one draw and its slope dz/dlogit, both [N, K] in at least float32.

    straight_through: z the hard mask, the slope that of its mean sigmoid(logit) (Bengio et al. 2013).
    concrete: z the binary concrete variable, its own slope (Maddison et al. 2017).
    straight_through_concrete: z the hard mask, the slope of the concrete variable of the same uniforms.
    hard_concrete: z the concrete variable stretched and clamped to [0, 1], its own slope (Louizos et al. 2018).
    expected: z = sigmoid(logit), its own slope.
    """
    exact = logits.to(torch.promote_types(logits.dtype, torch.float32))
    mean = torch.sigmoid(exact)
    if mask.estimator == "expected":
        return mean, mean * (1 - mean)
    u = mask.uniform16(*logits.shape) & 0x7FFF
    hard = (u < threshold_from_logits(logits).to(torch.int32)).to(exact.dtype)
    if mask.estimator == "straight_through":
        return hard, mean * (1 - mean)
    v = (u.double() + 0.5) / rng.LEVELS
    soft = torch.sigmoid((exact - torch.logit(v).to(exact.dtype)) / mask.temperature)
    slope = soft * (1 - soft) / mask.temperature
    if mask.estimator == "hard_concrete":
        low, high = STRETCH
        stretched = soft * (high - low) + low
        return stretched.clamp(0, 1), torch.where((stretched > 0) & (stretched < 1), slope * (high - low), 0)
    return (soft if mask.estimator == "concrete" else hard), slope


def times(z: Tensor, values: Tensor, estimator: str) -> Tensor:
    """z * values; under a hard mask what is pruned counts as 0 whatever it holds, NaN too."""
    return torch.where(z.bool(), values, 0) if estimator.startswith("straight_through") else z * values


def masked_linear(x: Tensor, weight: Tensor, logits: Logits, bias: Tensor | None, *, mask: Mask) -> Tensor:
    """y [D, M, N] of x [D, M, K], weight and logits [N, K], bias [N]; slice d under the mask of ``draw[d]``."""
    out = []
    for i in range(len(mask.draw)):
        z, _ = factor(logits, mask.one(i))
        out.append(F.linear(x[i], times(z, weight, mask.estimator).to(x.dtype), bias))
    return torch.stack(out) if out else x.new_zeros(0, x.shape[1], weight.shape[0])


def masked_linear_backward(
    grad: Tensor,
    x: Tensor,
    weight: Tensor,
    logits: Logits,
    *,
    mask: Mask,
    needs: tuple[bool, bool, bool],
    kl: KLTerm | None = None,
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """The gradients dx [D, M, K], dweight [N, K] and dlogits [N, K] of grad [D, M, N]; None where not needed.

    With ``kl``, dlogits is also the gradient of that divergence.
    """
    need_x, need_weight, need_logits = needs
    wide = torch.promote_types(weight.dtype, torch.float32)
    dx = []
    dweight, dlogits = torch.zeros_like(weight, dtype=wide), torch.zeros_like(weight, dtype=wide)
    for i in range(len(mask.draw)):
        z, slope = factor(logits, mask.one(i))
        if need_x:
            dx.append(grad[i] @ times(z, weight, mask.estimator).to(grad.dtype))
        if need_weight or need_logits:
            g = (grad[i].mT @ x[i]).to(wide)  # [N, K]: dL/d(z * weight)
            dweight += times(z, g, mask.estimator)
            dlogits += g * weight * slope
    if kl is not None:
        pull, _ = bernoulli_kl_backward(kl.grad, logits, kl.prior_logits, needs=(True, False))
        assert pull is not None
        dlogits += pull
    return (
        (torch.stack(dx) if dx else torch.zeros_like(x)) if need_x else None,
        dweight.to(weight.dtype) if need_weight else None,
        dlogits.to(logits.dtype) if need_logits else None,
    )


def masked_weight(
    weight: Tensor,
    logits: Logits,
    *,
    mask: Mask,
    dtype: torch.dtype,
    rows: Tensor | None = None,
    memo: list[Tensor] | None = None,
) -> Tensor:
    """z * weight [D, N, ...] in ``dtype``, slice d under the mask of ``draw[d]``, for products that torch makes.

    Weight and logits [N, ...]; their trailing dimensions are flattened to the contract's columns. With ``rows``
    (int64 [R]) only those rows, [D, R, ...]. The result may be scratch memory, valid until the backend's next call.
    A backend may append to ``memo`` what spares :func:`weight_grad` of the same masks some work.
    """
    out = weight.new_empty(len(mask.draw), *weight.shape, dtype=dtype)
    for i in range(len(mask.draw)):
        z, _ = factor(Logits(logits.flatten(1)), mask.one(i))
        out[i] = times(z.view(weight.shape), weight, mask.estimator)
    return out if rows is None else out[:, rows]


def weight_grad(
    grad: Tensor,
    weight: Tensor,
    logits: Logits,
    *,
    mask: Mask,
    needs: tuple[bool, bool],
    rows: Tensor | None = None,
    memo: list[Tensor] | None = None,
) -> tuple[Tensor | None, Tensor | None]:
    """dweight and dlogits, each shaped like ``grad[0]``, of grad [D, N, ...] = dL/d(z * weight); None where not needed.

    Summed over draws; they may lie in the memory of ``grad``. With ``rows`` (int64 [R]), as in
    :func:`masked_weight`, grad is [D, R, ...] and the results are [R, ...].
    """
    need_weight, need_logits = needs
    wide = torch.promote_types(weight.dtype, torch.float32)
    part = slice(None) if rows is None else rows
    dweight, dlogits = (grad.new_zeros(grad.shape[1:], dtype=wide) for _ in range(2))
    for i in range(len(mask.draw)):
        z, slope = factor(Logits(logits.flatten(1)), mask.one(i))
        g = grad[i].to(wide)
        dweight += times(z.view(weight.shape)[part], g, mask.estimator)
        dlogits += g * (weight * slope.view(weight.shape))[part]
    return dweight.to(weight.dtype) if need_weight else None, dlogits.to(logits.dtype) if need_logits else None


def masked_weights(
    weights: Sequence[Tensor], logits: Sequence[Logits], *, masks: Masks, dtype: torch.dtype
) -> list[Tensor]:
    """z * weight of many layers in ``dtype``, each shaped like its weight; none of them is scratch memory."""
    return materialised.masked_weights(masked_weight, weights, logits, masks=masks, dtype=dtype)


def multi_layer_grads(
    grads: Sequence[Tensor],
    weights: Sequence[Tensor],
    logits: Sequence[Logits],
    *,
    masks: Masks,
    needs: tuple[bool, bool],
) -> tuple[list[Tensor] | None, list[Tensor] | None]:
    """dweight and dlogits of many layers from the gradients of :func:`masked_weights`; None where not needed."""
    return materialised.multi_layer_grads(weight_grad, grads, weights, logits, masks=masks, needs=needs)


def nm_masked_weight(
    weight: Tensor, logits: Logits, pattern: tuple[int, int], *, mask: Mask, dtype: torch.dtype
) -> Tensor:
    """z * weight [D, N, K] in ``dtype``, z the n:m mask of each draw (:mod:`stochprune.patterns`)."""
    out = weight.new_empty(len(mask.draw), *weight.shape, dtype=dtype)
    for i in range(len(mask.draw)):
        out[i] = torch.where(patterns.mask(logits, pattern, mask.one(i)).bool(), weight, 0)
    return out


def nm_weight_grad(
    grad: Tensor,
    weight: Tensor,
    logits: Logits,
    pattern: tuple[int, int],
    *,
    mask: Mask,
    needs: tuple[bool, bool],
) -> tuple[Tensor | None, Tensor | None]:
    """dweight and dlogits [N, K] of grad [D, N, K] = dL/d(z * weight), summed over draws; None where not needed.

    dweight = grad z, and dlogits is grad weight times the Jacobian of the inclusion probabilities.
    """
    need_weight, need_logits = needs
    wide = torch.promote_types(weight.dtype, torch.float32)
    dweight, summed = torch.zeros_like(weight, dtype=wide), torch.zeros_like(weight, dtype=wide)
    for i in range(len(mask.draw)):
        if need_weight:
            dweight += torch.where(patterns.mask(logits, pattern, mask.one(i)).bool(), grad[i].to(wide), 0)
        summed += grad[i]
    dlogits = patterns.inclusion_grad(summed * weight, logits, *pattern).to(logits.dtype) if need_logits else None
    return dweight.to(weight.dtype) if need_weight else None, dlogits


def moments(weight: Tensor, logits: Logits | None, rho: Tensor | None, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Mean q w and variance q (1 - q) w^2 + q softplus(rho)^2 [N, K] in ``dtype``; q = sigmoid(logits).

    q is 1 without logits, the last term 0 without rho.
    """
    w, q, slope, sigma = _random(weight, logits, rho)
    return (q * w).to(dtype), (slope * w.square() + q * sigma.square()).to(dtype)


def moments_grad(
    dmean: Tensor, dvariance: Tensor, weight: Tensor, logits: Logits | None, rho: Tensor | None
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """dweight, dlogits and drho [N, K] (None without the input) from the gradients for mean and variance."""
    w, q, slope, sigma = _random(weight, logits, rho)
    dweight = dmean * q + dvariance * 2 * slope * w
    dlogits = (dmean * w + dvariance * ((1 - 2 * q) * w.square() + sigma.square())) * slope
    drho = None if rho is None else (dvariance * q * 2 * sigma * torch.sigmoid(rho.to(w.dtype))).to(rho.dtype)
    return dweight.to(weight.dtype), None if logits is None else dlogits.to(logits.dtype), drho


def _random(weight: Tensor, logits: Logits | None, rho: Tensor | None) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """w, q, q (1 - q) and sigma, in at least float32."""
    if logits is not None and logits.isnan().any():
        raise ValueError("logits contain NaN")
    w = weight.to(torch.promote_types(weight.dtype, torch.float32))
    q, slope, sigma = torch.ones_like(w), torch.zeros_like(w), torch.zeros_like(w)
    if logits is not None:
        q = torch.sigmoid(logits.to(w.dtype))
        slope = q * torch.sigmoid(-logits.to(w.dtype))
    if rho is not None:
        sigma = F.softplus(rho.to(w.dtype), threshold=80)
    return w, q, slope, sigma


def normals(rows: int, cols: int, mask: Mask) -> Tensor:
    """float64 [D, rows, cols] on the draw's device: the contract's normals of each draw."""
    each = [mask.one(i).normal(rows, cols) for i in range(len(mask.draw))]
    return torch.stack(each) if each else torch.empty(0, rows, cols, dtype=torch.float64, device=mask.draw.device)


def normal(rows: int, cols: int, *, mask: Mask) -> Tensor:
    """float32 [D, rows, cols] on the draw's device: the contract's normals of each draw."""
    return normals(rows, cols, mask).float()


def gaussian_weight(mu: Tensor, rho: Tensor, *, mask: Mask, dtype: torch.dtype) -> Tensor:
    """mu + softplus(rho) e [D, N, K] in ``dtype``, under the contract's normals e of each draw; mu and rho [N, K]."""
    wide = torch.promote_types(mu.dtype, torch.float32)
    sigma = F.softplus(rho.to(wide), threshold=80)
    return (mu.to(wide) + sigma * normals(mu.shape[0], mu.shape[1], mask).to(wide)).to(dtype)


def gaussian_grad(grad: Tensor, rho: Tensor, *, mask: Mask) -> Tensor:
    """drho [N, K] of grad [D, N, K] = dL/d(mu + softplus(rho) e), summed over draws."""
    wide = torch.promote_types(rho.dtype, torch.float32)
    total = (grad * normals(rho.shape[0], rho.shape[1], mask).to(wide)).sum(0)
    return (total * torch.sigmoid(rho.to(wide))).to(rho.dtype)


def bernoulli_kl(logits: Logits, prior_logits: Logits) -> Tensor:
    """float64 scalar, nats: the sum of kl(q || p) over weights, q = threshold / 32768 and p = sigmoid(prior_logits).

    Of one shape. NaN if an input is; infinite where a prior logit is.
    """
    q, prior = _sampled(logits), prior_logits.double()
    size = prior.abs()  # -ln p and -ln(1 - p) are log1p(exp(-size)), one of them with size added
    cross = torch.log1p(torch.exp(-size)) + size * torch.where(prior > 0, 1 - q, q)
    terms = (cross - torch.special.entr(q) - torch.special.entr(1 - q)).clamp_min(0)
    return terms.masked_fill(logits.isnan(), math.nan).sum()


def bernoulli_kl_backward(
    grad: Tensor, logits: Logits, prior_logits: Logits, *, needs: tuple[bool, bool]
) -> tuple[Tensor | None, Tensor | None]:
    """The gradients for logits, of the smooth function, and for prior_logits; None where not needed."""
    dlogits = dprior = None
    prior = prior_logits.double()
    if needs[0]:
        wide = logits.double()
        dlogits = (grad * (wide - prior) * _slope(wide)).masked_fill(logits.isinf(), 0).to(logits.dtype)
    if needs[1]:
        dprior = (grad * (torch.sigmoid(prior) - _sampled(logits))).to(prior_logits.dtype)
    return dlogits, dprior


def gaussian_kl(mu: Tensor, sigma: Tensor, prior_mu: Tensor, prior_sigma: Tensor, logits: Logits | None) -> Tensor:
    """float64 scalar, nats: the sum of q KL(N(mu, sigma^2) || N(prior_mu, prior_sigma^2)) over weights.

    Of one shape; q = threshold / 32768 of the logits, 1 without. NaN if an input is, or a deviation is not positive.
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
    """The gradients for the five inputs in their order, for logits of the smooth function; None where not needed."""
    s, m0, s0 = sigma.double(), prior_mu.double(), prior_sigma.double()
    scale = grad if logits is None else grad * _sampled(logits)
    z, r = (mu.double() - m0) / s0, s / s0
    terms = 0 if logits is None else _gaussian_terms(mu, sigma, prior_mu, prior_sigma) * _slope(logits.double())
    grads = (scale * z / s0, scale * (r - 1 / r) / s0, -scale * z / s0, scale * (1 - r * r - z * z) / s0, grad * terms)
    inputs = (mu, sigma, prior_mu, prior_sigma, logits)
    return [g.to(t.dtype) if need and t is not None else None for g, t, need in zip(grads, inputs, needs, strict=True)]


def _sampled(logits: Tensor) -> Tensor:
    """float64: the probability with which each weight is kept, exactly."""
    return rng.threshold_from_logits(logits).to(torch.int32).double() / rng.LEVELS


def _slope(logits: Tensor) -> Tensor:
    return torch.sigmoid(logits) * torch.sigmoid(-logits)


def _gaussian_terms(mu: Tensor, sigma: Tensor, prior_mu: Tensor, prior_sigma: Tensor) -> Tensor:
    m, s, m0, s0 = (t.double() for t in (mu, sigma, prior_mu, prior_sigma))
    z, r = (m - m0) / s0, s / s0
    terms = (((r - 1) * (r + 1) + z * z) / 2 - torch.log(r)).clamp_min(0)
    return terms.masked_fill(~((s > 0) & (s0 > 0)), math.nan)
