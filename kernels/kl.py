"""KL divergences of random weights from a prior, and their gradients: float64 terms, added in a fixed order.

A sum takes two launches: each program adds the terms of its own block of weights, then one program adds these sums. The
blocks depend on the number of weights alone, so the result is the same on every device and in every run.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from stochprune.address import Grads2, Logits, Needs2

from .estimators import sigmoid_slope, threshold

BLOCK = 1024
STEPS = 8
"""A program adds STEPS blocks of BLOCK weights."""
LAUNCH = {"num_warps": 4, "enable_fp_fusion": False}  # so that thresholds equal those of the kernels that sample masks


@triton.jit
def _sampled(logit):
    # The probability that a weight with this fp32 logit is kept, exact in float64.
    return threshold(logit).to(tl.float64) / 32768


@triton.jit
def _bernoulli(logit, prior):
    q, size = _sampled(logit), tl.abs(prior)
    far = size * tl.where(prior > 0, 1 - q, q)
    kl = q * tl.log(q) + (1 - q) * tl.log(1 - q) + tl.log(1 + tl.exp(-size)) + far
    return tl.where(logit != logit, float("nan"), tl.where(kl < 0, 0.0, kl))


@triton.jit
def _gaussian(mu, sigma, prior_mu, prior_sigma):
    z, r = (mu - prior_mu) / prior_sigma, sigma / prior_sigma
    kl = ((r - 1) * (r + 1) + z * z) * 0.5 - tl.log(r)
    valid = (sigma > 0) & (prior_sigma > 0)
    return tl.where(valid, tl.where(kl < 0, 0.0, kl), float("nan"))


@triton.jit
def _store(out_ptr, at, value, inside):
    # The cast goes through fp32, because float64 has no direct cast to bfloat16.
    tl.store(out_ptr + at, value.to(tl.float32).to(out_ptr.dtype.element_ty), mask=inside)


@triton.jit
def bernoulli_kl_kernel(logits_ptr, prior_ptr, partial_ptr, count, BLOCK: tl.constexpr, STEPS: tl.constexpr):
    at = tl.program_id(0).to(tl.int64) * (BLOCK * STEPS) + tl.arange(0, BLOCK)
    total = tl.zeros([BLOCK], tl.float64)
    for _ in range(STEPS):
        inside = at < count
        logit = tl.load(logits_ptr + at, mask=inside, other=0.0).to(tl.float32)
        prior = tl.load(prior_ptr + at, mask=inside, other=0.0).to(tl.float64)
        total += tl.where(inside, _bernoulli(logit, prior), 0.0)
        at += BLOCK
    tl.store(partial_ptr + tl.program_id(0), tl.sum(total))


@triton.jit
def gaussian_kl_kernel(
    mu_ptr,
    sigma_ptr,
    prior_mu_ptr,
    prior_sigma_ptr,
    logits_ptr,
    partial_ptr,
    count,
    BLOCK: tl.constexpr,
    STEPS: tl.constexpr,
):
    at = tl.program_id(0).to(tl.int64) * (BLOCK * STEPS) + tl.arange(0, BLOCK)
    total = tl.zeros([BLOCK], tl.float64)
    for _ in range(STEPS):
        inside = at < count
        mu = tl.load(mu_ptr + at, mask=inside, other=0.0).to(tl.float64)
        sigma = tl.load(sigma_ptr + at, mask=inside, other=1.0).to(tl.float64)
        prior_mu = tl.load(prior_mu_ptr + at, mask=inside, other=0.0).to(tl.float64)
        prior_sigma = tl.load(prior_sigma_ptr + at, mask=inside, other=1.0).to(tl.float64)
        kl = _gaussian(mu, sigma, prior_mu, prior_sigma)
        if logits_ptr is not None:
            logit = tl.load(logits_ptr + at, mask=inside, other=0.0).to(tl.float32)
            kl = tl.where(logit != logit, float("nan"), kl * _sampled(logit))
        total += tl.where(inside, kl, 0.0)
        at += BLOCK
    tl.store(partial_ptr + tl.program_id(0), tl.sum(total))


@triton.jit
def total_kernel(partial_ptr, out_ptr, count, BLOCK: tl.constexpr):
    at = tl.arange(0, BLOCK)
    total = tl.zeros([BLOCK], tl.float64)
    for _ in range(tl.cdiv(count, BLOCK)):
        total += tl.load(partial_ptr + at, mask=at < count, other=0.0)
        at += BLOCK
    tl.store(out_ptr, tl.sum(total))


@triton.jit
def bernoulli_kl_grad_kernel(grad_ptr, logits_ptr, prior_ptr, dlogits_ptr, dprior_ptr, count, BLOCK: tl.constexpr):
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = at < count
    scale = tl.load(grad_ptr)
    logit = tl.load(logits_ptr + at, mask=inside, other=0.0).to(tl.float32)
    prior = tl.load(prior_ptr + at, mask=inside, other=0.0).to(tl.float32)
    if dlogits_ptr is not None:
        near = tl.minimum(tl.maximum(logit, -80.0), 80.0)  # outside of this range the slope is 0 in fp32
        dlogit = scale.to(tl.float32) * (near - prior) * sigmoid_slope(near)
        _store(dlogits_ptr, at, dlogit, inside)
    if dprior_ptr is not None:  # in float64, because p and q may be close to each other
        p = 1 / (1 + tl.exp(-prior.to(tl.float64)))
        dprior = scale * (p - _sampled(logit))
        _store(dprior_ptr, at, dprior, inside)


@triton.jit
def gaussian_kl_grad_kernel(
    grad_ptr,
    mu_ptr,
    sigma_ptr,
    prior_mu_ptr,
    prior_sigma_ptr,
    logits_ptr,
    dmu_ptr,
    dsigma_ptr,
    dprior_mu_ptr,
    dprior_sigma_ptr,
    dlogits_ptr,
    count,
    BLOCK: tl.constexpr,
):
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = at < count
    scale = tl.load(grad_ptr)
    mu = tl.load(mu_ptr + at, mask=inside, other=0.0).to(tl.float64)
    sigma = tl.load(sigma_ptr + at, mask=inside, other=1.0).to(tl.float64)
    prior_mu = tl.load(prior_mu_ptr + at, mask=inside, other=0.0).to(tl.float64)
    prior_sigma = tl.load(prior_sigma_ptr + at, mask=inside, other=1.0).to(tl.float64)
    weight = scale
    if logits_ptr is not None:
        logit = tl.load(logits_ptr + at, mask=inside, other=0.0).to(tl.float32)
        weight = scale * _sampled(logit)
        if dlogits_ptr is not None:
            dlogit = scale * _gaussian(mu, sigma, prior_mu, prior_sigma) * sigmoid_slope(logit)
            _store(dlogits_ptr, at, dlogit, inside)
    inverse = 1 / prior_sigma
    z, r = (mu - prior_mu) * inverse, sigma * inverse
    weight *= inverse
    if dmu_ptr is not None:
        _store(dmu_ptr, at, weight * z, inside)
    if dsigma_ptr is not None:
        _store(dsigma_ptr, at, weight * (r - 1 / r), inside)
    if dprior_mu_ptr is not None:
        _store(dprior_mu_ptr, at, -weight * z, inside)
    if dprior_sigma_ptr is not None:
        dprior_sigma = weight * (1 - r * r - z * z)
        _store(dprior_sigma_ptr, at, dprior_sigma, inside)


def bernoulli_kl(logits: Logits, prior_logits: Logits) -> Tensor:
    """As :func:`stochprune.reference.bernoulli_kl`, with the thresholds that these kernels compute in float32."""
    return _sum(bernoulli_kl_kernel, logits, prior_logits)


def gaussian_kl(mu: Tensor, sigma: Tensor, prior_mu: Tensor, prior_sigma: Tensor, logits: Logits | None) -> Tensor:
    """As :func:`stochprune.reference.gaussian_kl`, with the thresholds that these kernels compute in float32."""
    return _sum(gaussian_kl_kernel, mu, sigma, prior_mu, prior_sigma, logits)


def bernoulli_kl_backward(grad: Tensor, logits: Logits, prior_logits: Logits, *, needs: Needs2) -> Grads2:
    """As :func:`stochprune.reference.bernoulli_kl_backward`."""
    dlogits, dprior = _grads(bernoulli_kl_grad_kernel, grad, (logits, prior_logits), needs)
    return dlogits, dprior


def gaussian_kl_backward(grad: Tensor, *inputs: Tensor | None, needs: Sequence[bool]) -> list[Tensor | None]:
    """As :func:`stochprune.reference.gaussian_kl_backward`; ``inputs`` are mu to logits in its order."""
    return _grads(gaussian_kl_grad_kernel, grad, inputs, needs)


def _dense(tensors: Sequence[Tensor | None]) -> list[Tensor | None]:
    return [None if t is None else t.contiguous() for t in tensors]


def _sum(kernel: triton.JITFunction, *inputs: Tensor | None) -> Tensor:
    first = inputs[0]
    assert first is not None
    programs = triton.cdiv(first.numel(), BLOCK * STEPS)
    out = torch.zeros((), dtype=torch.float64, device=first.device)
    if programs:
        partial = torch.empty(programs, dtype=torch.float64, device=first.device)
        with torch.cuda.device_of(first):
            kernel[(programs,)](*_dense(inputs), partial, first.numel(), BLOCK=BLOCK, STEPS=STEPS, **LAUNCH)
            total_kernel[(1,)](partial, out, programs, BLOCK=BLOCK, **LAUNCH)
    return out


def _grads(
    kernel: triton.JITFunction, grad: Tensor, inputs: Sequence[Tensor | None], needs: Sequence[bool]
) -> list[Tensor | None]:
    first = inputs[0]
    assert first is not None
    grads = [
        torch.empty(t.shape, dtype=t.dtype, device=t.device) if need and t is not None else None
        for t, need in zip(inputs, needs, strict=True)
    ]
    if first.numel():
        with torch.cuda.device_of(first):
            grid = (triton.cdiv(first.numel(), BLOCK),)
            kernel[grid](grad, *_dense(inputs), *grads, first.numel(), BLOCK=BLOCK, **LAUNCH)
    return grads
