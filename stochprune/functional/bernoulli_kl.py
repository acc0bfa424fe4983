"""bernoulli_kl: the KL of the sampled masks from those of a prior, summed over the weights.

Forward and backward each make one pass over the two inputs. Storing the gradient in forward would move as many bytes.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from stochprune import backends
from stochprune.address import Logits
from stochprune.functional._checks import check_floating, check_same_device, expand_like, explain_nan
from stochprune.functional._op import Op
from stochprune.functional._sharded import kl_shards
from stochprune.shards import is_dtensor

_OP = "bernoulli_kl"


def _forward(logits: Tensor, prior_logits: Tensor) -> Tensor:
    kl = backends.resolve(logits, prior_logits).bernoulli_kl(Logits(logits), Logits(prior_logits))
    explain_nan(kl, logits=logits, prior_logits=prior_logits)
    return kl


def _fake(logits: Tensor, prior_logits: Tensor) -> Tensor:
    return logits.new_empty((), dtype=torch.float64)


def _backward(
    grad: Tensor, logits: Tensor, prior_logits: Tensor, need_logits: bool, need_prior: bool
) -> tuple[Tensor, Tensor]:
    backend, needs = backends.resolve(logits, prior_logits), (need_logits, need_prior)
    grads = backend.bernoulli_kl_backward(grad, Logits(logits), Logits(prior_logits), needs=needs)
    dlogits, dprior = (t.new_empty(0) if g is None else g for g, t in zip(grads, (logits, prior_logits), strict=True))
    return dlogits, dprior


def _fake_backward(grad: Tensor, logits: Tensor, prior_logits: Tensor, *needs: bool) -> tuple[Tensor, Tensor]:
    dlogits, dprior = (t.new_empty(t.shape if n else 0) for t, n in zip((logits, prior_logits), needs, strict=True))
    return dlogits, dprior


def _save(ctx: Any, inputs: tuple[Tensor, Tensor], output: Tensor) -> None:
    ctx.save_for_backward(*inputs)


def _grads(ctx: Any, backward: Callable[..., Any], grad: Tensor) -> tuple[Tensor | None, ...]:
    grads = backward(grad, *ctx.saved_tensors, *ctx.needs_input_grad)
    return tuple(g if need else None for g, need in zip(grads, ctx.needs_input_grad, strict=True))


_SCHEMAS = (
    "(Tensor logits, Tensor prior_logits) -> Tensor",
    "(Tensor grad, Tensor logits, Tensor prior_logits, bool need_logits, bool need_prior) -> (Tensor, Tensor)",
)
_bernoulli_kl = Op(_OP, _SCHEMAS, _forward, _backward, fakes=(_fake, _fake_backward), save=_save, grads=_grads)


def bernoulli_kl(logits: Tensor, prior_logits: Tensor | float) -> Tensor:
    """KL(Q || P) of independent Bernoulli masks: the sum over weights of kl(q || p).

    Here ``kl(q || p) = q ln(q/p) + (1-q) ln((1-q)/(1-p))`` with ``p = sigmoid(prior_logits)`` and ``q = T / 32768``. T
    is the threshold with which the backend samples (:mod:`stochprune.rng`), so that a certificate describes exactly
    what is sampled; q lies in 1/32768 .. 32767/32768. The gradient of the logits is that of the smooth function with q
    = sigmoid(logit): ``(logit - prior_logit) sigmoid'(logit)``. The gradient of the prior's logits is ``p - q``.

    Args:
        logits: of any shape, floating. Of a DTensor every process gets the sum over all parts.
        prior_logits: floating, a shape that expands to that of ``logits``; or a number. An infinite one gives an
            infinite KL, because q is never exactly 0 or 1.

    Returns:
        float64 scalar, nats, not negative. Terms are summed in float64; the order in the compiled backends depends on
        neither threads nor scheduling.

    Raises:
        TypeError: a tensor that is not floating.
        ValueError: shapes that do not fit, devices that differ, NaN inputs (on the CPU; elsewhere the result is NaN).
        RuntimeError: if it is differentiated twice.
    """
    if is_dtensor(logits):
        return kl_shards(bernoulli_kl, logits, prior_logits)
    return divergence(_OP, logits, prior_logits)


def divergence(op: str, logits: Tensor, prior_logits: Tensor | float) -> Tensor:
    """Return :func:`bernoulli_kl` for the public function ``op``, which error messages name."""
    check_floating(op, logits=logits)
    prior = expand_like(op, "prior_logits", prior_logits, logits)
    check_same_device(op, logits=logits, prior_logits=prior)
    kl: Tensor = _bernoulli_kl(op, logits, prior)
    return kl
