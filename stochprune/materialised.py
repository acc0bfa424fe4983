"""Helpers of backends that write masked weights to transient memory, for products that torch makes.

A backend has two passes over a weight matrix: one masks it, one takes gradients through the mask. The functions here
take these passes as arguments.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, Protocol

import torch
from torch import Tensor

from stochprune.address import KLTerm, Logits, Mask, Masks

BUDGET = 256 << 20
"""Bytes of transient memory: as many draws share a launch as fit, at least one."""


def chunks(draws: int, bytes_each: int) -> Iterator[slice]:
    """The draws, as many at a time as the budget holds."""
    step = max(1, BUDGET // max(1, bytes_each))
    return (slice(start, min(start + step, draws)) for start in range(0, draws, step))


def product(
    masked: Callable[[slice], Tensor], weight: Tensor, x: Tensor, bias: Tensor | None, transpose: bool = False
) -> Tensor:
    """x (z * W)^T + b [D, M, N], or x (z * W) [D, M, K] with ``transpose``.

    Args:
        masked: gives ``z * weight`` [d, N, K] in x's dtype, for the d draws of a slice.
        weight: [N, K], whose shape and device count.
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


def sum_over_draws(
    epilogue: Callable[[int, Tensor, Tensor | None, Tensor | None, bool], None],
    outer: Callable[[int, torch.dtype], Tensor],
    like: tuple[Tensor, Tensor],
    rows: int,
    draws: int,
    needs: tuple[bool, bool],
) -> tuple[Tensor | None, Tensor | None]:
    """dweight and dlogits [R, K], summed over the draws; None where not needed.

    Args:
        epilogue: called with a draw's index, its G = dL/d(z * W) [R, K], dweight, dlogits (either may be None, or G
            itself) and whether to add to them.
        outer: G of a draw, memory that may be overwritten; in the dtype asked for if it can be chosen.
        like: weight and logits [N, K].
        rows: R.
    """
    wanted = [t if need else None for t, need in zip(like, needs, strict=True)]
    results: list[Tensor | None]
    if draws == 1:
        g = outer(0, torch.promote_types(like[0].dtype, like[1].dtype))
        spare = {g.dtype: g}  # the first gradient of this dtype overwrites G
        results = [None if t is None else spare.pop(t.dtype, None) for t in wanted]
        results = [
            torch.empty_like(g, dtype=t.dtype) if r is None and t is not None else r
            for r, t in zip(results, wanted, strict=True)
        ]
        epilogue(0, g, results[0], results[1], False)
        return results[0], results[1]
    sums = [None if t is None else t.new_zeros(rows, t.shape[1], dtype=torch.float32) for t in wanted]
    for i in range(draws):
        epilogue(i, outer(i, torch.float32), sums[0], sums[1], True)
    dweight, dlogits = (None if r is None else r.to(t.dtype) for r, t in zip(sums, like, strict=True))
    return dweight, dlogits


def outer(grad: Tensor, x: Tensor, i: int, dtype: torch.dtype) -> Tensor:
    """G = grad[i]^T x[i] [N, K] in ``dtype``, summed in float32 whatever the inputs."""
    if grad.dtype == dtype:
        return torch.mm(grad[i].mT, x[i])
    if grad.is_cuda and grad.dtype.itemsize == 2:
        return torch.mm(grad[i].mT, x[i], out_dtype=torch.float32).to(dtype)  # cuBLAS gives no other dtype of these
    wide = torch.promote_types(grad.dtype, dtype)
    return torch.mm(grad[i].mT.to(wide), x[i].to(wide)).to(dtype)


class MaskWeight(Protocol):
    """The pass that masks: ``z * weight`` [D, N, K] of the mask's draws; with rows (int64 [R]) [D, R, K]."""

    def __call__(
        self, weight: Tensor, logits: Logits, *, mask: Mask, dtype: torch.dtype, rows: Tensor | None = None
    ) -> Tensor: ...


class MaskBackward(Protocol):
    """The pass through the mask of one draw: writes, or adds to, dweight and dlogits [N, K].

    grad is [N, K]; either result may be None, or grad itself. With rows (int64 [R]) all three are [R, K].
    The gradient of ``kl`` is added to dlogits.
    """

    def __call__(
        self,
        grad: Tensor,
        weight: Tensor,
        logits: Logits,
        *,
        mask: Mask,
        dweight: Tensor | None,
        dlogits: Tensor | None,
        add: bool,
        rows: Tensor | None = None,
        kl: KLTerm | None = None,
    ) -> None: ...


def masked_weight(
    mask_weight: MaskWeight,
    weight: Tensor,
    logits: Logits,
    *,
    mask: Mask,
    dtype: torch.dtype,
    rows: Tensor | None = None,
    memo: list[Any] | None = None,
) -> Tensor:
    """A backend's ``masked_weight``, see :mod:`stochprune.reference`, from its pass that masks.

    ``memo`` is for backends that save some work between the passes; here it stays empty.
    """
    out = mask_weight(weight.flatten(1), Logits(logits.flatten(1)), mask=mask, dtype=dtype, rows=rows)
    return out.view(*out.shape[:2], *weight.shape[1:])


def weight_grad(
    mask_backward: MaskBackward,
    grad: Tensor,
    weight: Tensor,
    logits: Logits,
    *,
    mask: Mask,
    needs: tuple[bool, bool],
    rows: Tensor | None = None,
    memo: list[Any] | None = None,
) -> tuple[Tensor | None, Tensor | None]:
    """A backend's ``weight_grad``, see :mod:`stochprune.reference`, from its pass through the mask."""
    flat, levels = weight.flatten(1), Logits(logits.flatten(1))

    def epilogue(i: int, g: Tensor, dweight: Tensor | None, dlogits: Tensor | None, add: bool) -> None:
        one = mask.one(i)
        mask_backward(g, flat, levels, mask=one, dweight=dweight, dlogits=dlogits, add=add, rows=rows)

    def outer(i: int, dtype: torch.dtype) -> Tensor:
        return grad[i].flatten(1).contiguous()

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
    needs: tuple[bool, bool],
    kl: KLTerm | None,
) -> tuple[Tensor | None, Tensor | None]:
    """dweight and dlogits [N, K] of grad [D, M, N] and x [D, M, K]; None where not needed.

    The gradient of ``kl`` is added to dlogits.
    """

    def epilogue(i: int, g: Tensor, dweight: Tensor | None, dlogits: Tensor | None, add: bool) -> None:
        once = None if i else kl
        mask_backward(g, weight, logits, mask=mask.one(i), dweight=dweight, dlogits=dlogits, add=add, kl=once)

    return sum_over_draws(epilogue, partial(outer, grad, x), (weight, logits), len(weight), len(x), needs)


def masked_weights(
    masked_weight: Callable[..., Tensor],
    weights: Sequence[Tensor],
    logits: Sequence[Logits],
    *,
    masks: Masks,
    dtype: torch.dtype,
) -> list[Tensor]:
    """A backend's ``masked_weights`` from its ``masked_weight``, one layer after the other."""
    layers = enumerate(zip(weights, logits, strict=True))
    return [masked_weight(w, t, mask=masks.one(i), dtype=dtype)[0].clone() for i, (w, t) in layers]


def multi_layer_grads(
    weight_grad: Callable[..., tuple[Tensor | None, Tensor | None]],
    grads: Sequence[Tensor],
    weights: Sequence[Tensor],
    logits: Sequence[Logits],
    *,
    masks: Masks,
    needs: tuple[bool, bool],
) -> tuple[list[Tensor] | None, list[Tensor] | None]:
    """A backend's ``multi_layer_grads`` from its ``weight_grad``, one layer after the other."""
    layers = enumerate(zip(grads, weights, logits, strict=True))
    # Cloned: weight_grad may overwrite what it is given.
    pairs = [weight_grad(g[None].clone(), w, t, mask=masks.one(i), needs=needs) for i, (g, w, t) in layers]
    dweights, dlogits = (None if not need else [p[at] for p in pairs] for at, need in enumerate(needs))
    return dweights, dlogits  # type: ignore[return-value]  # no gradient is None where it is needed
