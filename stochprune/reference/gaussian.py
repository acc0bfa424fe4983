"""Random weights: mean and variance of masked and Gaussian weights, Gaussian samples, and their gradients."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from stochprune.address import Logits, Mask


def moments(weight: Tensor, logits: Logits | None, rho: Tensor | None, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Return mean q w and variance q (1 - q) w^2 + q softplus(rho)^2, both [N, K], in ``dtype``; q = sigmoid(logits).

    q is 1 without logits. The last term is 0 without rho.
    """
    w, q, slope, sigma = _random(weight, logits, rho)
    return (q * w).to(dtype), (slope * w.square() + q * sigma.square()).to(dtype)


def moments_grad(
    dmean: Tensor, dvariance: Tensor, weight: Tensor, logits: Logits | None, rho: Tensor | None
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """Return dweight, dlogits and drho [N, K] (None without the input) from the gradients of mean and variance."""
    w, q, slope, sigma = _random(weight, logits, rho)
    dweight = dmean * q + dvariance * 2 * slope * w
    dlogits = (dmean * w + dvariance * ((1 - 2 * q) * w.square() + sigma.square())) * slope
    drho = None if rho is None else (dvariance * q * 2 * sigma * torch.sigmoid(rho.to(w.dtype))).to(rho.dtype)
    return dweight.to(weight.dtype), None if logits is None else dlogits.to(logits.dtype), drho


def _random(weight: Tensor, logits: Logits | None, rho: Tensor | None) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return w, q, q (1 - q) and sigma, in float32 or wider."""
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
    """Return the contract's normals of each draw, float64 [D, rows, cols], on the draw's device."""
    each = [mask.one(i).normal(rows, cols) for i in range(len(mask.draw))]
    return torch.stack(each) if each else torch.empty(0, rows, cols, dtype=torch.float64, device=mask.draw.device)


def normal(rows: int, cols: int, *, mask: Mask) -> Tensor:
    """Return the contract's normals of each draw, float32 [D, rows, cols], on the draw's device."""
    return normals(rows, cols, mask).float()


def gaussian_weight(mu: Tensor, rho: Tensor, *, mask: Mask, dtype: torch.dtype) -> Tensor:
    """Return mu + softplus(rho) e [D, N, K] in ``dtype``; mu and rho [N, K], e the contract's normals of each draw."""
    wide = torch.promote_types(mu.dtype, torch.float32)
    sigma = F.softplus(rho.to(wide), threshold=80)
    return (mu.to(wide) + sigma * normals(mu.shape[0], mu.shape[1], mask).to(wide)).to(dtype)


def gaussian_grad(grad: Tensor, rho: Tensor, *, mask: Mask) -> Tensor:
    """Return drho [N, K] from grad [D, N, K] = dL/d(mu + softplus(rho) e), summed over draws."""
    wide = torch.promote_types(rho.dtype, torch.float32)
    total = (grad * normals(rho.shape[0], rho.shape[1], mask).to(wide)).sum(0)
    return (total * torch.sigmoid(rho.to(wide))).to(rho.dtype)
