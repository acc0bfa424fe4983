"""Helpers for backends that write masked weights to temporary memory and multiply with torch.

Such a backend has two passes over a weight matrix: one masks it, the other computes gradients through the mask. The
functions here take these passes as arguments.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from stochprune.address import Grads2, Grads3, KLTerm, Logits, Mask, Masks, Memo, Needs2, Needs3, Rows
from stochprune.memory_format import channels_last, in_format_of

BUDGET = 256 << 20
"""Bytes of temporary memory. As many draws share a launch as fit into it, but at least one."""


def compute_dtype(dtype: torch.dtype) -> torch.dtype:
    """Return the dtype in which weights of ``dtype`` are computed with: bfloat16 for float8_e4m3fn, which it contains.

    torch's arithmetic does not accept eight bits.
    """
    return torch.bfloat16 if dtype is torch.float8_e4m3fn else dtype


def readable(weight: Tensor) -> Tensor:
    """Return a weight in its :func:`compute_dtype`: usually the weight itself."""
    return weight.to(torch.bfloat16) if weight.dtype is torch.float8_e4m3fn else weight


def chunks(draws: int, bytes_each: int) -> Iterator[slice]:
    """Return slices of the draws, each with as many draws as the budget allows."""
    step = max(1, BUDGET // max(1, bytes_each))
    return (slice(start, min(start + step, draws)) for start in range(0, draws, step))


def product(
    masked: Callable[[slice], Tensor], weight: Tensor, x: Tensor, bias: Tensor | None, transpose: bool = False
) -> Tensor:
    """Return x (z * W)^T + b [D, M, N], or x (z * W) [D, M, K] with ``transpose``.

    Args:
        masked: returns ``z * weight`` [d, N, K] in x's dtype, for the d draws of a slice.
        weight: [N, K]; only its shape is used.
        x: [D, M, K], or [D, M, N] with ``transpose``.
        bias: [N] in x's dtype, or None.
    """
    out = x.new_empty(*x.shape[:2], weight.shape[1 if transpose else 0])
    for draws in chunks(len(x), weight.numel() * x.element_size()):
        w, y = masked(draws), out[draws]
        w = w if transpose else w.mT
        if len(w) == 1:
            torch.addmm(y[0] if bias is None else bias, x[draws.start], w[0], beta=bias is not None, out=y[0])
        else:
            torch.baddbmm(y if bias is None else bias, x[draws], w, beta=bias is not None, out=y)
    return out


class Gradients(NamedTuple):
    """The results of a backward pass over a weight matrix, contiguous [N, K]; each may be None.

    Those of filters [N, C, P] have the channels last in memory.
    """

    dweight: Tensor | None
    dlogits: Tensor | None
    add: bool = False  # add to the present values, which must then be float32, instead of overwriting them
    masked: Tensor | None = None  # z * weight, also contiguous [N, K]


def sum_over_draws(
    epilogue: Callable[[int, Tensor, Gradients], None],
    outer: Callable[[int, torch.dtype], Tensor],
    like: tuple[Tensor, Tensor],
    rows: int,
    draws: int,
    needs: Needs2,
) -> Grads2:
    """Return dweight and dlogits [R, K], summed over the draws; None where not needed.

    Args:
        epilogue: writes the gradients of one draw; called with its index, G = dL/d(z * W) [R, K] and the results, of
            which one may be G itself.
        outer: returns G of a draw, in memory that may be overwritten, and in the given dtype if it has the choice.
        like: weight and logits [N, K], or filters [N, C, P], from :func:`flattened`.
        rows: R.
    """
    wanted = [t if need else None for t, need in zip(like, needs, strict=True)]
    results: list[Tensor | None]
    if draws == 1:
        g = outer(0, torch.promote_types(compute_dtype(like[0].dtype), like[1].dtype))
        spare = {g.dtype: g}  # the first gradient with this dtype overwrites G
        results = [None if t is None else spare.pop(t.dtype, None) for t in wanted]
        results = [
            torch.empty_like(g, dtype=t.dtype) if r is None and t is not None else r
            for r, t in zip(results, wanted, strict=True)
        ]
        epilogue(0, g, Gradients(results[0], results[1]))
        return results[0], results[1]
    sums = [t if t is None else _zeros(t, rows) for t in wanted]
    for i in range(draws):
        epilogue(i, outer(i, torch.float32), Gradients(sums[0], sums[1], add=True))
    dweight, dlogits = (None if r is None else r.to(t.dtype) for r, t in zip(sums, like, strict=True))
    return dweight, dlogits


def _zeros(like: Tensor, rows: int) -> Tensor:
    """Return zeros for sums [rows, K], float32; for filters in their shape and memory format."""
    if like.dim() == 2:
        return like.new_zeros(rows, like.shape[1], dtype=torch.float32)
    return torch.zeros_like(like, dtype=torch.float32)


def outer(grad: Tensor, x: Tensor, i: int, dtype: torch.dtype) -> Tensor:
    """Return G = grad[i]^T x[i] [N, K] in ``dtype``, summed in float32 or wider."""
    if grad.dtype == dtype:
        return torch.mm(grad[i].mT, x[i])
    if grad.is_cuda and grad.dtype.itemsize == 2:
        return torch.mm(grad[i].mT, x[i], out_dtype=torch.float32).to(dtype)  # cuBLAS offers no other dtype here
    wide = torch.promote_types(grad.dtype, dtype)
    return torch.mm(grad[i].mT.to(wide), x[i].to(wide)).to(dtype)


class MaskWeight(Protocol):
    """The pass that masks: returns ``z * weight`` [D, N, K] for all draws, or [D, R, K] with rows (int64 [R]).

    For filters [N, C, P] from :func:`flattened` it returns [D, N, C, P], also with the channels last in memory.
    """

    def __call__(
        self, weight: Tensor, logits: Logits, *, mask: Mask, dtype: torch.dtype, rows: Rows = None
    ) -> Tensor: ...


class MaskBackward(Protocol):
    """The pass through the mask of one draw: writes the gradients of weight and logits.

    Args:
        grad: dL/d(z * weight) under the first draw of ``mask``, contiguous [N, K]; for filters like the weight.
        to: the results; one of them may be ``grad`` itself.
        rows: int64 [R]: grad and the results hold these rows only, [R, K].
        kl: its gradient is added to dlogits.
    """

    def __call__(
        self,
        grad: Tensor,
        weight: Tensor,
        logits: Logits,
        *,
        mask: Mask,
        to: Gradients,
        rows: Rows,
        kl: KLTerm | None,
    ) -> None: ...


def flattened(weight: Tensor, logits: Logits, filters: bool) -> tuple[Tensor, Logits]:
    """Return weight and logits as matrices [N, K], or as filters [N, C, P] with the channels last in memory.

    Such filters have no view as a matrix. The column of channel c at kernel position p is c * P + p.

    Args:
        filters: whether the pass takes filters; otherwise they are copied.
    """
    if filters and channels_last(weight):
        return weight.flatten(2), Logits(in_format_of(weight, logits).flatten(2))
    return weight.flatten(1), Logits(logits.flatten(1))


def masked_weight(
    mask_weight: MaskWeight,
    weight: Tensor,
    logits: Logits,
    *,
    mask: Mask,
    dtype: torch.dtype,
    rows: Rows = None,
    memo: Memo = None,
    filters: bool = False,
) -> Tensor:
    """Return a backend's ``masked_weight`` (see :mod:`stochprune.reference`) from its pass that masks.

    ``memo`` stays empty: it is for backends that keep intermediate results for the other pass. ``filters`` as for
    :func:`flattened`; with ``rows`` the weight is a matrix.
    """
    out = mask_weight(*flattened(weight, logits, filters), mask=mask, dtype=dtype, rows=rows)
    return in_format_of(weight, out.view(*out.shape[:2], *weight.shape[1:]))


def weight_grad(
    mask_backward: MaskBackward,
    grad: Tensor,
    weight: Tensor,
    logits: Logits,
    *,
    mask: Mask,
    needs: Needs2,
    rows: Rows = None,
    memo: Memo = None,
    filters: bool = False,
) -> Grads2:
    """Return a backend's ``weight_grad`` (see :mod:`stochprune.reference`) from its pass through the mask.

    ``filters`` as for :func:`flattened`; with ``rows`` the weight is a matrix.
    """
    flat, levels = flattened(weight, logits, filters)

    def epilogue(i: int, g: Tensor, to: Gradients) -> None:
        mask_backward(g, flat, levels, mask=mask.one(i), to=to, rows=rows, kl=None)

    def outer(i: int, dtype: torch.dtype) -> Tensor:
        return in_format_of(weight, grad[i]).flatten(2) if flat.dim() == 3 else grad[i].flatten(1).contiguous()

    grads = sum_over_draws(epilogue, outer, (flat, levels), grad.shape[1], len(grad), needs)
    dweight, dlogits = (None if g is None else g.view(grad.shape[1:]) for g in grads)
    return dweight, dlogits


def product_grads(
    mask_backward: MaskBackward,
    grad: Tensor,
    x: Tensor,
    weight: Tensor,
    logits: Logits,
    *,
    mask: Mask,
    needs: Needs3,
    kl: KLTerm | None,
) -> Grads3:
    """Return dx [D, M, K], dweight and dlogits [N, K] from grad [D, M, N] and x [D, M, K]; None where not needed.

    The gradient of ``kl`` is added to dlogits. dx can be computed for one draw only: its ``z * W`` is written in the
    same pass. The pass then reads G, W and the logits and writes three results: with 16 bits each, 12 bytes a weight,
    and 18 with the mask of the forward pass. Two passes would read W and the logits again: 22 bytes.
    """
    masked = torch.empty(weight.shape, dtype=grad.dtype, device=weight.device) if needs[0] else None

    def epilogue(i: int, g: Tensor, to: Gradients) -> None:
        mask_backward(
            g, weight, logits, mask=mask.one(i), to=to._replace(masked=masked), rows=None, kl=None if i else kl
        )

    grads = sum_over_draws(epilogue, partial(outer, grad, x), (weight, logits), len(weight), len(x), needs[1:])
    return None if masked is None else torch.mm(grad[0], masked)[None], *grads


def masked_weights(
    masked_weight: Callable[..., Tensor],
    weights: Sequence[Tensor],
    logits: Sequence[Logits],
    *,
    masks: Masks,
    dtype: torch.dtype,
) -> list[Tensor]:
    """Return a backend's ``masked_weights``: its ``masked_weight`` of one layer after the other."""
    layers = enumerate(zip(weights, logits, strict=True))
    return [masked_weight(w, t, mask=masks.one(i), dtype=dtype)[0].clone() for i, (w, t) in layers]


def multi_layer_grads(
    weight_grad: Callable[..., Grads2],
    grads: Sequence[Tensor],
    weights: Sequence[Tensor],
    logits: Sequence[Logits],
    *,
    masks: Masks,
    needs: Needs2,
) -> tuple[list[Tensor] | None, list[Tensor] | None]:
    """Return a backend's ``multi_layer_grads``: its ``weight_grad`` of one layer after the other."""
    layers = enumerate(zip(grads, weights, logits, strict=True))
    # Clones, because weight_grad may overwrite its argument.
    pairs = [weight_grad(g[None].clone(), w, t, mask=masks.one(i), needs=needs) for i, (g, w, t) in layers]
    dweights, dlogits = (None if not need else [p[at] for p in pairs] for at, need in enumerate(needs))
    return dweights, dlogits  # type: ignore[return-value]  # a gradient that is needed is not None
