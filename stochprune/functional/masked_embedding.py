"""masked_embedding: rows of a table under a stochastic mask; only the rows that are looked up are masked.

Only the indices, weight, logits and the address are saved for backward, which samples the mask again.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from stochprune import backends, rng
from stochprune.address import Logits, Mask
from stochprune.functional._address import Address
from stochprune.functional._checks import check_floating, check_same_device, check_tensor
from stochprune.functional._op import ADDRESS, Op, reshaped
from stochprune.functional._sharded import embedding_shards
from stochprune.shards import is_dtensor

_OP = "masked_embedding"


def _forward(indices: Tensor, weight: Tensor, logits: Tensor, *rest: Any) -> Tensor:
    """Return y [D, T, K] of int64 indices [D, T]; slice d gets the mask of ``draw[d]``."""
    if indices.numel() and indices.device.type == "cpu":  # on a GPU, the host would have to wait
        low, high = (int(value) for value in indices.aminmax())
        if low < 0 or high >= len(weight):
            raise IndexError(f"{_OP}: indices must lie in 0 .. {len(weight) - 1}, got {low if low < 0 else high}")
    backend, mask = backends.resolve(weight, logits), Mask(*rest[:7])
    y = weight.new_empty(*indices.shape, weight.shape[1])
    for d, rows in enumerate(indices):
        y[d] = backend.masked_weight(weight, Logits(logits), mask=mask.one(d), dtype=weight.dtype, rows=rows)[0]
    return y


def _fake(indices: Tensor, weight: Tensor, *rest: Any) -> Tensor:
    return weight.new_empty(*indices.shape, weight.shape[1])


def _backward(grad: Tensor, indices: Tensor, weight: Tensor, logits: Tensor, *rest: Any) -> tuple[Tensor, Tensor]:
    backend, mask, padding_idx, needs = backends.resolve(weight, logits), Mask(*rest[:7]), rest[7], rest[8:]
    wide = torch.promote_types(weight.dtype, torch.float32)
    sums = [
        like.new_zeros(like.shape if need else 0, dtype=wide)
        for like, need in zip((weight, logits), needs, strict=True)
    ]
    for d, rows in enumerate(indices):
        g = grad[d].masked_fill((rows == padding_idx).unsqueeze(1), 0)  # a copy, which the backend may overwrite
        parts = backend.weight_grad(g[None], weight, Logits(logits), mask=mask.one(d), needs=needs, rows=rows)
        for total, part in zip(sums, parts, strict=True):
            if part is not None:
                total.index_add_(0, rows, part.to(wide))
    return sums[0].to(weight.dtype), sums[1].to(logits.dtype)


def _fake_backward(grad: Tensor, indices: Tensor, weight: Tensor, logits: Tensor, *rest: Any) -> tuple[Tensor, Tensor]:
    need_weight, need_logits = rest[-2:]
    return weight.new_empty(weight.shape if need_weight else 0), logits.new_empty(logits.shape if need_logits else 0)


def _save(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    indices, weight, logits, seed, draw, *ctx.options = inputs
    ctx.save_for_backward(indices, weight, logits, seed, draw)


def _grads(ctx: Any, backward: Callable[..., Any], grad: Tensor) -> tuple[Tensor | None, ...]:
    needs = ctx.needs_input_grad[1:3]
    grads = backward(grad, *ctx.saved_tensors, *ctx.options, *needs)
    return None, *(g if need else None for g, need in zip(grads, needs, strict=True)), *[None] * (2 + len(ctx.options))


def _over_indices(apply: Any, info: Any, in_dims: tuple[Any, ...], indices: Tensor, *rest: Any) -> Any:
    """vmap over the indices only: one call looks up all of them."""
    if in_dims[0] is None or any(isinstance(dim, int) for dim in in_dims[1:]):
        return NotImplemented
    batched = indices.movedim(in_dims[0], 1)  # [D, B, T]: the draws stay outermost
    y = apply(batched.flatten(1, 2), *rest)
    return y.unflatten(1, batched.shape[1:3]), 1


_GIVEN = f"Tensor indices, Tensor weight, Tensor logits, {ADDRESS}, SymInt padding_idx"
_SCHEMAS = (
    f"({_GIVEN}) -> Tensor",
    f"(Tensor grad, {_GIVEN}, bool need_weight, bool need_logits) -> (Tensor, Tensor)",
)
_masked_embedding = Op(
    _OP, _SCHEMAS, _forward, _backward, fakes=(_fake, _fake_backward), save=_save, grads=_grads, vmap=_over_indices
)


def masked_embedding(
    indices: Tensor,
    weight: Tensor,
    logits: Tensor,
    *,
    seed: int | Tensor,
    draw: int | Tensor,
    stream: int,
    estimator: str = "straight_through",
    temperature: float = 1.0,
    samples: int | None = None,
    row_offset: int = 0,
    col_offset: int = 0,
    padding_idx: int | None = None,
) -> Tensor:
    """Look up rows of a table under a stochastic mask: ``(z * weight)[indices]``.

    The mask z, its estimators and the gradients are those of :func:`stochprune.functional.masked_linear`. Only the rows
    that are looked up are masked. A token that occurs twice has one mask.

    Args:
        indices: [...], int64 or int32. With a vector of D draws: [D, ...]; slice d gets the mask of ``draw[d]``.
        weight: [N, K], floating.
        logits: [N, K], floating; the probability of keeping is sigmoid(logits).
        seed, draw, stream, estimator, temperature: as for masked_linear.
        samples: S masks for the same indices, with the draws draw .. draw + S - 1.
        row_offset, col_offset: as for masked_linear; the indices refer to the rows of ``weight`` itself.
        padding_idx: a row that gets no gradient, -N .. N - 1.

    Returns:
        [..., K] in the weight's dtype; [S, ..., K] with ``samples``, [D, ..., K] with a vector of draws. The gradients
        are dense.

    Raises:
        TypeError: indices that are not integers, a weight or logits that are not floating.
        IndexError: an index outside 0 .. N - 1 (on the CPU).
        ValueError: shapes that do not fit, devices that differ, NaN logits in the rows looked up (on the CPU), an
            unknown estimator, an integer out of range.
        RuntimeError: if it is differentiated twice.
    """
    if is_dtensor(weight):
        at = Address(seed, draw, stream, estimator, temperature, samples, row_offset, col_offset)
        return embedding_shards(masked_embedding, indices, (weight, logits), padding_idx=padding_idx, **at._asdict())
    check_tensor(_OP, "indices", indices)
    check_floating(_OP, weight=weight, logits=logits)
    check_same_device(_OP, indices=indices, weight=weight, logits=logits)
    if indices.dtype not in (torch.int64, torch.int32):
        raise TypeError(f"{_OP}: indices must be int64 or int32, got {indices.dtype}")
    if weight.dim() != 2:
        raise ValueError(f"{_OP}: weight must be a matrix [N, K], got shape {tuple(weight.shape)}")
    if logits.shape != weight.shape:
        raise ValueError(f"{_OP}: logits {tuple(logits.shape)} and weight {tuple(weight.shape)} differ in shape")
    at = Address(seed, draw, stream, estimator, temperature, samples, row_offset, col_offset)
    mask = at.mask(_OP, indices.device, *weight.shape)
    padding = _padding_row(padding_idx, len(weight))

    draws = len(mask.draw)
    many = samples is not None or draws != 1
    if many and samples is None:
        if indices.dim() < 1 or indices.shape[0] != draws:
            raise ValueError(
                f"{_OP}: indices {tuple(indices.shape)} have no leading dimension of {draws}, one for each draw"
            )
        inner = indices.shape[1:]
        slices = indices.reshape(draws, inner.numel())
    else:
        inner = indices.shape
        slices = indices.reshape(1, inner.numel()).expand(draws, -1)
    y = _masked_embedding(_OP, slices.long(), weight, logits, *mask, padding)
    return reshaped(y, (*((draws,) if many else ()), *inner, weight.shape[1]))


def _padding_row(padding_idx: int | None, rows: int) -> int:
    """Return the row as 0 .. N - 1; -1 if there is none."""
    if padding_idx is None:
        return -1
    padding_idx = rng.integer(_OP, "padding_idx", padding_idx)
    if not -rows <= padding_idx < rows:
        raise ValueError(f"{_OP}: padding_idx must lie in {-rows} .. {rows - 1}, got {padding_idx}")
    return padding_idx % rows
