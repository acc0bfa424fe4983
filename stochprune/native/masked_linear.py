"""masked_linear on the CPU: torch's products on panels of the masked weight, a draw at a time."""

from __future__ import annotations

from torch import Tensor

from stochprune.native import panels
from stochprune.native.arrays import fresh, rows_of
from stochprune.native.masked_weight import MaskedWeight


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
    """As :func:`stochprune.reference.masked_linear`."""
    layer = MaskedWeight(weight, logits, seed, stream, estimator, temperature)
    y = x.new_empty(len(draw), x.shape[1], weight.shape[0])
    for i in range(len(draw)):
        panels.forward(layer, draw[i], x[i], bias, y[i])
    return y


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
    prior_logits: Tensor | None = None,
    kl_grad: Tensor | None = None,
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """As :func:`stochprune.reference.masked_linear_backward`."""
    layer = MaskedWeight(weight, logits, seed, stream, estimator, temperature)
    dx = (x.new_empty if len(weight) else x.new_zeros)(x.shape) if need_x else None
    dweight = fresh(tuple(weight.shape), weight.dtype) if need_weight else None
    dlogits = fresh(tuple(logits.shape), logits.dtype) if need_logits else None
    divergence = None
    if prior_logits is not None and kl_grad is not None:
        divergence = (rows_of(prior_logits), float(kl_grad))
    for i in range(len(draw)):
        dx_i = None if dx is None else dx[i]
        once = divergence if i == 0 else None
        panels.backward(layer, draw[i], grad[i], x[i], dx_i, dweight, dlogits, accumulate=i > 0, divergence=once)
    return dx, dweight, dlogits
