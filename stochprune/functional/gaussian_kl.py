"""gaussian_kl and spike_and_slab_kl: the KL of random weights from a prior, summed over the weights.

Both use one op. If logits are given, it multiplies each weight's term by the probability of keeping the weight. Forward
and backward each make one pass over the inputs.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from stochprune import backends
from stochprune.address import Logits
from stochprune.functional._checks import check_floating, check_same_device, expand_like, explain_nan
from stochprune.functional._op import Op
from stochprune.functional.bernoulli_kl import divergence

_OP = "gaussian_kl"


def _serving(*inputs: Tensor | None) -> tuple[backends.Backend, Logits | None]:
    """Return the backend for these tensors, and the last one of them, which may be None, as logits."""
    logits = inputs[-1]
    return backends.resolve(*(t for t in inputs if t is not None)), None if logits is None else Logits(logits)


def _forward(mu: Tensor, sigma: Tensor, prior_mu: Tensor, prior_sigma: Tensor, logits: Tensor | None) -> Tensor:
    backend, levels = _serving(mu, sigma, prior_mu, prior_sigma, logits)
    kl = backend.gaussian_kl(mu, sigma, prior_mu, prior_sigma, levels)
    explain_nan(kl, mu=mu, prior_mu=prior_mu, logits=logits, sigma=sigma, prior_sigma=prior_sigma)
    return kl


def _fake(mu: Tensor, *rest: Any) -> Tensor:
    return mu.new_empty((), dtype=torch.float64)


def _backward(
    grad: Tensor,
    mu: Tensor,
    sigma: Tensor,
    prior_mu: Tensor,
    prior_sigma: Tensor,
    logits: Tensor | None,
    needs: Sequence[bool],
) -> tuple[Tensor, ...]:
    backend, levels = _serving(mu, sigma, prior_mu, prior_sigma, logits)
    grads = backend.gaussian_kl_backward(grad, mu, sigma, prior_mu, prior_sigma, levels, needs=needs)
    return tuple(mu.new_empty(0) if g is None else g for g in grads)


def _fake_backward(grad: Tensor, *args: Any) -> tuple[Tensor, ...]:
    *inputs, needs = args
    return tuple(
        grad.new_empty(0) if t is None else t.new_empty(t.shape if n else 0) for t, n in zip(inputs, needs, strict=True)
    )


def _save(ctx: Any, inputs: tuple[Tensor | None, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs)


def _grads(ctx: Any, backward: Callable[..., Any], grad: Tensor) -> tuple[Tensor | None, ...]:
    grads = backward(grad, *ctx.saved_tensors, list(ctx.needs_input_grad))
    return tuple(g if need else None for g, need in zip(grads, ctx.needs_input_grad, strict=True))


_GIVEN = "Tensor mu, Tensor sigma, Tensor prior_mu, Tensor prior_sigma, Tensor? logits"
_SCHEMAS = (
    f"({_GIVEN}) -> Tensor",
    f"(Tensor grad, {_GIVEN}, bool[] needs) -> (Tensor, Tensor, Tensor, Tensor, Tensor)",
)
_gaussian_kl = Op(_OP, _SCHEMAS, _forward, _backward, fakes=(_fake, _fake_backward), save=_save, grads=_grads)


def _gaussian(
    op: str, mu: Tensor, sigma: Tensor, prior_mu: Tensor | float, prior_sigma: Tensor | float, logits: Tensor | None
) -> Tensor:
    check_floating(op, mu=mu)
    sigma = expand_like(op, "sigma", sigma, mu)
    prior_mu, prior_sigma = expand_like(op, "prior_mu", prior_mu, mu), expand_like(op, "prior_sigma", prior_sigma, mu)
    check_same_device(op, mu=mu, sigma=sigma, prior_mu=prior_mu, prior_sigma=prior_sigma, logits=logits)
    kl: Tensor = _gaussian_kl(op, mu, sigma, prior_mu, prior_sigma, logits)
    return kl


def gaussian_kl(mu: Tensor, sigma: Tensor, prior_mu: Tensor | float, prior_sigma: Tensor | float) -> Tensor:
    """KL(Q || P) of independent Gaussian weights: the sum of KL(N(mu, sigma^2) || N(prior_mu, prior_sigma^2)).

    Each weight adds ``ln(s0/s) + (s^2 + (m - m0)^2) / (2 s0^2) - 1/2``. Differentiable in all four arguments.

    Args:
        mu: means, floating, of any shape.
        sigma: standard deviations, positive; a shape that expands to that of ``mu``.
        prior_mu, prior_sigma: the same of the prior, or numbers.

    Returns:
        float64 scalar, nats, not negative; summed as by :func:`bernoulli_kl`.

    Raises:
        TypeError: a tensor that is not floating.
        ValueError: shapes that do not fit, devices that differ; on the CPU NaN inputs or standard deviations that
            are not positive and finite (elsewhere the result is NaN).
        RuntimeError: if it is differentiated twice.
    """
    return _gaussian(_OP, mu, sigma, prior_mu, prior_sigma, None)


def spike_and_slab_kl(
    logits: Tensor,
    mu: Tensor,
    sigma: Tensor,
    prior_logits: Tensor | float,
    prior_mu: Tensor | float,
    prior_sigma: Tensor | float,
) -> Tensor:
    """KL(Q || P) of independent weights that are Gaussian if they are kept, and exactly 0 otherwise.

    For ``Q = q N(m, s^2) + (1-q) delta_0`` and ``P = p N(m0, s0^2) + (1-p) delta_0``, each weight adds exactly
    ``kl(q || p) + q KL(N(m, s^2) || N(m0, s0^2))``: a continuous weight is never exactly 0, so that the weight
    determines its mask. As in :func:`bernoulli_kl`, q is quantised, and the logits' gradient is smooth.

    Args:
        logits: of any shape, floating; kept with probability sigmoid(logits).
        mu, sigma: as in :func:`gaussian_kl`; mu has the shape of ``logits``, and sigma expands to it.
        prior_logits, prior_mu, prior_sigma: shapes that expand to it, or numbers.

    Returns:
        float64 scalar, nats, not negative; summed as by :func:`bernoulli_kl`.

    Raises:
        TypeError, ValueError, RuntimeError: as :func:`bernoulli_kl` and :func:`gaussian_kl`.
    """
    op = "spike_and_slab_kl"
    check_floating(op, logits=logits, mu=mu)
    if logits.shape != mu.shape:
        raise ValueError(f"{op}: logits {tuple(logits.shape)} and mu {tuple(mu.shape)} differ in shape")
    return divergence(op, logits, prior_logits) + _gaussian(op, mu, sigma, prior_mu, prior_sigma, logits)
