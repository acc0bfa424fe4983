"""masked_linear_kl: masked_linear and the KL of its masks from a prior, for losses that contain both.

Forward runs the two ops in turn. Backward adds the KL's gradient in the pass that computes the logits' gradient. Two
separate ops would write the KL's gradient to memory, read it and add it, which doubles the bytes of that pass.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from stochprune import backends
from stochprune.address import KLTerm, Logits, Mask
from stochprune.functional._address import Address
from stochprune.functional._checks import explain_nan
from stochprune.functional._inputs import by_draw, linear
from stochprune.functional._op import ADDRESS, Op, reshaped
from stochprune.functional._product import rows

_OP = "masked_linear_kl"


def _forward(
    x: Tensor,
    weight: Tensor,
    logits: Tensor,
    prior_logits: Tensor,
    bias: Tensor | None,
    *address: Any,
) -> tuple[Tensor, Tensor]:
    backend, mask = backends.resolve(x, weight, logits, prior_logits), Mask(*address)
    y = backend.masked_linear(by_draw(x, mask.draw), weight, Logits(logits), bias, mask=mask)
    kl = backend.bernoulli_kl(Logits(logits), Logits(prior_logits))
    explain_nan(kl, logits=logits, prior_logits=prior_logits)
    return reshaped(y, (*x.shape[:-1], weight.shape[0])), kl


def _fake(x: Tensor, weight: Tensor, logits: Tensor, *rest: Any) -> tuple[Tensor, Tensor]:
    return x.new_empty(*x.shape[:-1], weight.shape[0]), logits.new_empty((), dtype=torch.float64)


def _backward(
    grad: Tensor,
    kl_grad: Tensor,
    x: Tensor,
    weight: Tensor,
    logits: Tensor,
    prior_logits: Tensor,
    *rest: Any,
) -> tuple[Tensor, Tensor, Tensor]:
    backend, mask = backends.resolve(x, weight, logits, prior_logits), Mask(*rest[:7])
    needs, kl = rest[7:], KLTerm(Logits(prior_logits), kl_grad)
    given = (by_draw(grad, mask.draw), by_draw(x, mask.draw), weight, Logits(logits))
    grads = backend.masked_linear_backward(*given, mask=mask, needs=needs, kl=kl)
    dx, dweight, dlogits = (t.new_empty(0) if g is None else g for g, t in zip(grads, (x, weight, logits), strict=True))
    return dx.view(x.shape) if needs[0] else dx, dweight, dlogits


def _fake_backward(grad: Tensor, kl_grad: Tensor, x: Tensor, weight: Tensor, logits: Tensor, *rest: Any) -> Any:
    needs = rest[-3:]
    dx, dweight, dlogits = (t.new_empty(t.shape if n else 0) for t, n in zip((x, weight, logits), needs, strict=True))
    return dx, dweight, dlogits


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    x, weight, logits, prior_logits, bias, seed, draw, *ctx.options = inputs
    ctx.save_for_backward(x, weight, logits, prior_logits, seed, draw)
    ctx.has_bias = bias is not None


def _grads(ctx: Any, backward: Callable[..., Any], grad: Tensor, kl_grad: Tensor) -> tuple[Tensor | None, ...]:
    needs = ctx.needs_input_grad[:3]
    grads: tuple[Tensor | None, ...] = (None, None, None)
    if any(needs):
        grads = backward(grad, kl_grad, *ctx.saved_tensors, *ctx.options, *needs)
        grads = tuple(g if need else None for g, need in zip(grads, needs, strict=True))
    dbias = rows(grad).sum(0) if ctx.has_bias and ctx.needs_input_grad[4] else None
    return *grads, None, dbias, *([None] * (2 + len(ctx.options)))


_GIVEN = "Tensor x, Tensor weight, Tensor logits, Tensor prior_logits"
_SCHEMAS = (
    f"({_GIVEN}, Tensor? bias, {ADDRESS}) -> (Tensor, Tensor)",
    f"(Tensor grad, Tensor kl_grad, {_GIVEN}, {ADDRESS}, bool need_x, bool need_weight, bool need_logits)"
    " -> (Tensor, Tensor, Tensor)",
)
_masked_linear_kl = Op(_OP, _SCHEMAS, _forward, _backward, fakes=(_fake, _fake_backward), save=_save, grads=_grads)


def masked_linear_kl(
    x: Tensor,
    weight: Tensor,
    logits: Tensor,
    prior_logits: Tensor,
    bias: Tensor | None = None,
    *,
    seed: int | Tensor,
    draw: int | Tensor,
    stream: int,
    estimator: str = "straight_through",
    temperature: float = 1.0,
    samples: int | None = None,
    row_offset: int = 0,
    col_offset: int = 0,
) -> tuple[Tensor, Tensor]:
    """Apply a linear layer under a stochastic mask, and the KL of its masks from a prior.

    The results and gradients of :func:`stochprune.functional.masked_linear` and
    :func:`stochprune.functional.bernoulli_kl`, in fewer passes over the weights.

    Args:
        prior_logits: [N, K], floating, fixed.
        x, weight, logits, bias, seed, draw, stream, estimator, temperature, samples, row_offset, col_offset: as for
            masked_linear.

    Returns:
        The layer's output, and the KL in nats: a float64 scalar.

    Raises:
        TypeError, RuntimeError: as for masked_linear.
        ValueError: as for masked_linear; a prior that requires a gradient or contains NaN.
    """
    weights: dict[str, Tensor | None] = {"weight": weight, "logits": logits, "prior_logits": prior_logits}
    at = Address(seed, draw, stream, estimator, temperature, samples, row_offset, col_offset)
    given = linear(_OP, x, weights, bias, at)
    if prior_logits.requires_grad:
        raise ValueError(f"{_OP}: the prior is fixed, but prior_logits requires a gradient; bernoulli_kl trains it")
    y, kl = _masked_linear_kl(_OP, given.x, weight, logits, prior_logits, given.bias, *given.mask)
    return given.restore(y), kl
