"""N:M masks in closed form: the mask itself, its inclusion probabilities, and the KL between two of them."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor

from stochprune import backends, patterns
from stochprune.address import Logits
from stochprune.functional._address import Address
from stochprune.functional._checks import check_floating, check_same_device, expand_like, named
from stochprune.functional._op import Op, reshaped
from stochprune.functional._sharded import kl_shards, mask_shards
from stochprune.shards import is_dtensor

_GROUPS_AT_ONCE = 1 << 15  # with 70 patterns in float64, these take 18 MB


def _matrix(op: str, pattern: str, logits: Tensor) -> tuple[int, int]:
    check_floating(op, logits=logits)
    if logits.dim() != 2:
        raise ValueError(f"{op}: logits must be a matrix [N, K], got shape {tuple(logits.shape)}")
    n, m = patterns.parse(pattern, op)
    patterns.check(op, n, m, logits.shape[1])
    return n, m


def nm_keep_mask(
    logits: Tensor,
    *,
    pattern: str,
    seed: int | Tensor,
    draw: int | Tensor,
    stream: int,
    row_offset: int = 0,
    col_offset: int = 0,
) -> Tensor:
    """Return which weights an N:M mask keeps, for inspection; training never forms this mask.

    Args:
        logits: [N, K], floating.
        pattern: ``"n:m"``, see :func:`stochprune.functional.masked_linear_nm`.
        seed, draw, stream: the address, with one draw.
        row_offset, col_offset: global position of ``logits[0, 0]`` if it is a shard; m divides ``col_offset``.

    Returns:
        bool [N, K]; exactly n of every m neighbours in a row are True.

    Raises:
        TypeError, ValueError: as for masked_linear_nm.
    """
    op = "nm_keep_mask"
    if is_dtensor(logits):
        one_part = partial(nm_keep_mask, pattern=pattern, seed=seed, draw=draw, stream=stream)
        return mask_shards(one_part, logits, row_offset=row_offset, col_offset=col_offset)
    n, m = _matrix(op, pattern, logits)
    at = Address(seed, draw, stream, row_offset=row_offset, col_offset=col_offset)
    mask = at.one_draw(op, logits.device, logits.shape[0], logits.shape[1])
    patterns.check_offset(op, m, mask.col)
    backend, one = backends.resolve(logits), torch.ones_like(logits)
    return named(op, backend.nm_masked_weight, one, Logits(logits), (n, m), mask=mask, dtype=logits.dtype)[0] != 0


def nm_inclusion(logits: Tensor, pattern: str) -> Tensor:
    """Return the probability that an N:M mask keeps each weight, before quantisation; they sum to n in each group.

    Args:
        logits: [N, K], floating.
        pattern: ``"n:m"``.

    Returns:
        [N, K] in at least float32; differentiable. The Jacobian is the covariance of a group's mask.

    Raises:
        TypeError, ValueError: as for :func:`stochprune.functional.masked_linear_nm`.
    """
    inclusion = patterns.inclusion(logits, *_matrix("nm_inclusion", pattern, logits))
    return reshaped(inclusion, logits.shape)


def _chunks(logits: Tensor, prior: Tensor, m: int) -> Iterator[tuple[slice, Tensor, Tensor]]:
    flat, against = logits.detach().reshape(-1, m), prior.detach().reshape(-1, m)
    for start in range(0, len(flat), _GROUPS_AT_ONCE):
        part = slice(start, start + _GROUPS_AT_ONCE)
        yield part, flat[part].double(), against[part].double()


def _kl(logits: Tensor, prior_logits: Tensor, n: int, m: int) -> Tensor:
    total = logits.new_zeros((), dtype=torch.float64)
    for _, own, prior in _chunks(logits, prior_logits, m):
        q = patterns.probabilities(own, n).masked_fill(own.isnan().any(-1, keepdim=True), math.nan)
        total += (torch.special.xlogy(q, q) - q * patterns.log_probabilities(prior, n)).sum()
    if total.device.type == "cpu" and bool(total.isnan()):
        raise ValueError("logits or prior_logits contain NaN")
    return total


def _fake(logits: Tensor, prior_logits: Tensor, n: int, m: int) -> Tensor:
    return logits.new_empty((), dtype=torch.float64)


def _kl_backward(grad: Tensor, logits: Tensor, prior_logits: Tensor, n: int, m: int) -> tuple[Tensor, Tensor]:
    dlogits, dprior = (torch.empty_like(t, memory_format=torch.contiguous_format) for t in (logits, prior_logits))
    for part, own, prior in _chunks(logits, prior_logits, m):
        log_q, log_p = patterns.log_probabilities(own, n), patterns.log_probabilities(prior, n)
        table, q = patterns.kept(n, m, own), log_q.exp()
        centred = log_q - log_p - (q * (log_q - log_p)).sum(-1, keepdim=True)
        dlogits.view(-1, m)[part] = (grad * (q * centred) @ table).to(dlogits.dtype)
        dprior.view(-1, m)[part] = (grad * (log_p.exp() - patterns.probabilities(own, n)) @ table).to(dprior.dtype)
    return dlogits, dprior


def _fake_backward(grad: Tensor, logits: Tensor, prior_logits: Tensor, n: int, m: int) -> tuple[Tensor, Tensor]:
    return logits.new_empty(logits.shape), prior_logits.new_empty(prior_logits.shape)


def _save(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs[:2])
    ctx.pattern = inputs[2:]


def _grads(ctx: Any, backward: Callable[..., Any], grad: Tensor) -> tuple[Tensor | None, ...]:
    grads = backward(grad, *ctx.saved_tensors, *ctx.pattern)
    return *(g if need else None for g, need in zip(grads, ctx.needs_input_grad, strict=False)), None, None


_GIVEN = "Tensor logits, Tensor prior_logits, int n, int m"
_SCHEMAS = f"({_GIVEN}) -> Tensor", f"(Tensor grad, {_GIVEN}) -> (Tensor, Tensor)"
_nm_kl = Op("nm_kl", _SCHEMAS, _kl, _kl_backward, fakes=(_fake, _fake_backward), save=_save, grads=_grads)


def nm_kl(logits: Tensor, prior_logits: Tensor | float, pattern: str) -> Tensor:
    """KL(Q || P) of two N:M masks: the sum over groups of ``sum_patterns q ln(q / p)``, exact by enumeration.

    q are the probabilities with which the patterns are sampled, multiples of 1/65536, so that a certificate describes
    exactly what is sampled. p are the probabilities of the prior's logits, which are not quantised. The gradient of the
    logits is that of the smooth q. The gradient of the prior's logits is the difference of the inclusion probabilities.

    Args:
        logits: [N, K], floating.
        prior_logits: like ``logits``, or a number: then all logits are equal, and all patterns are equally likely.
        pattern: ``"n:m"``.

    Returns:
        float64 scalar, nats.

    Raises:
        TypeError: logits that are not floating.
        ValueError: shapes or a pattern that do not fit, or NaN.
    """
    op = "nm_kl"
    if is_dtensor(logits):
        return kl_shards(partial(nm_kl, pattern=pattern), logits, prior_logits)
    n, m = _matrix(op, pattern, logits)
    prior = expand_like(op, "prior_logits", prior_logits, logits)
    check_same_device(op, logits=logits, prior_logits=prior)
    kl: Tensor = _nm_kl(op, logits, prior, n, m)
    return kl
