"""Every op in plain PyTorch, a few lines each: the specification that the tests import, and the backend of last resort.

It runs on any device and in any floating dtype. It makes weight-sized temporaries and slow integer arithmetic.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from stochprune import rng

NAME = "reference"


def keep_mask(threshold: Tensor, seed: Tensor, draw: Tensor, stream: int, row_offset: int, col_offset: int) -> Tensor:
    """bool [N, K]: which weights are kept under thresholds [N, K] (integers 0 .. 32768)."""
    rows, cols = threshold.shape
    u = rng.uniform16(
        rows,
        cols,
        seed=seed,
        draw=draw,
        stream=stream,
        row_offset=row_offset,
        col_offset=col_offset,
        device=threshold.device,
    )
    return (u & 0x7FFF) < threshold.to(torch.int32)


def threshold_from_logits(logits: Tensor) -> Tensor:
    """uint16, the shape of ``logits``."""
    if logits.isnan().any():
        raise ValueError("logits contain NaN")
    return rng.threshold_from_logits(logits)


def factor(
    logits: Tensor, seed: Tensor, draw: Tensor, stream: int, estimator: str, temperature: float
) -> tuple[Tensor, Tensor]:
    """The estimator's mask z and its slope dz/dlogit, both [N, K] in at least float32.

    straight_through: z the hard mask, the slope that of its mean sigmoid(logit) (Bengio et al. 2013).
    concrete: z the binary concrete variable, its own slope (Maddison et al. 2017).
    straight_through_concrete: z the hard mask, the slope of the concrete variable of the same uniforms.
    expected: z = sigmoid(logit), its own slope.
    """
    exact = logits.to(torch.promote_types(logits.dtype, torch.float32))
    mean = torch.sigmoid(exact)
    if estimator == "expected":
        return mean, mean * (1 - mean)
    u = rng.uniform16(*logits.shape, seed=seed, draw=draw, stream=stream, device=logits.device) & 0x7FFF
    hard = (u < threshold_from_logits(logits).to(torch.int32)).to(exact.dtype)
    if estimator == "straight_through":
        return hard, mean * (1 - mean)
    v = (u.double() + 0.5) / rng.LEVELS
    soft = torch.sigmoid((exact - torch.logit(v).to(exact.dtype)) / temperature)
    return (soft if estimator == "concrete" else hard), soft * (1 - soft) / temperature


def masked_linear(
    x: Tensor,
    weight: Tensor,
    logits: Tensor,
    bias: Tensor | None,
    seed: Tensor,
    draw: Tensor,
    stream: int,
    estimator: str,
    temperature: float,
) -> Tensor:
    """y [D, M, N] of x [D, M, K], weight and logits [N, K], bias [N]; slice d under the mask of ``draw[d]``."""
    out = []
    for i in range(len(draw)):
        z, _ = factor(logits, seed, draw[i], stream, estimator, temperature)
        out.append(F.linear(x[i], (z * weight).to(x.dtype), bias))
    return torch.stack(out) if out else x.new_zeros(0, x.shape[1], weight.shape[0])


def masked_linear_backward(
    grad: Tensor,
    x: Tensor,
    weight: Tensor,
    logits: Tensor,
    seed: Tensor,
    draw: Tensor,
    stream: int,
    estimator: str,
    temperature: float,
    need_x: bool,
    need_weight: bool,
    need_logits: bool,
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """The gradients dx [D, M, K], dweight [N, K] and dlogits [N, K] of grad [D, M, N]; None where not needed."""
    wide = torch.promote_types(weight.dtype, torch.float32)
    dx = []
    dweight, dlogits = torch.zeros_like(weight, dtype=wide), torch.zeros_like(weight, dtype=wide)
    for i in range(len(draw)):
        z, slope = factor(logits, seed, draw[i], stream, estimator, temperature)
        if need_x:
            dx.append(grad[i] @ (z * weight).to(grad.dtype))
        if need_weight or need_logits:
            g = (grad[i].mT @ x[i]).to(wide)  # [N, K]: dL/d(z * weight)
            dweight += g * z
            dlogits += g * weight * slope
    return (
        (torch.stack(dx) if dx else torch.zeros_like(x)) if need_x else None,
        dweight.to(weight.dtype) if need_weight else None,
        dlogits.to(logits.dtype) if need_logits else None,
    )
