"""What backends share that mask weights into transient tensors, for products that torch makes.

A backend has two passes over a weight matrix, one that masks it and one that takes gradients through the mask; what is
built on them here takes them as arguments.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor


class Mask(NamedTuple):
    """The masks of one layer, one for each element of ``draw``; the numbers stay on the device."""

    seed: Tensor  # int64 [1], the bits of a uint64
    draw: Tensor  # int64 [D], 0 .. 2^32 - 1
    stream: int
    estimator: str
    temperature: float

    def part(self, draws: slice) -> Mask:
        """The masks of some draws."""
        return self._replace(draw=self.draw[draws])

    def one(self, index: int) -> Mask:
        """The mask of one draw."""
        return self.part(slice(index, index + 1))


class Divergence(NamedTuple):
    """KL from a prior's masks, whose gradient is added to that of the logits."""

    prior: Tensor  # logits [N, K]
    grad: Tensor  # float64, one element: dL/dKL

    @staticmethod
    def arguments(divergence: Divergence | None) -> tuple[Tensor | None, Tensor | None, int, int]:
        """The two tensors and the prior's strides."""
        if divergence is None:
            return None, None, 0, 0
        return divergence.prior, divergence.grad, divergence.prior.stride(0), divergence.prior.stride(1)


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


def weight_grads(
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


def weight_ops(mask_weight: Callable[..., Tensor], through_mask: Callable[..., None]) -> tuple[Any, Any]:
    """A backend's ``masked_weight`` and ``weight_grad``, see :mod:`stochprune.reference`, from its two passes.

    Args:
        mask_weight: ``(weight [N, K], logits, mask, dtype, rows)``, gives ``z * weight`` [D, N, K] of the mask's draws.
        through_mask: ``(grad [N, K], weight, logits, mask, dweight, dlogits, add, rows)``, of one draw: writes, or adds
            to, dweight and dlogits; either may be None, or grad itself.
    """

    def masked_weight(
        weight: Tensor,
        logits: Tensor,
        seed: Tensor,
        draw: Tensor,
        stream: int,
        estimator: str,
        temperature: float,
        dtype: torch.dtype,
        rows: Tensor | None = None,
        memo: list[Tensor] | None = None,  # drawing again costs less here than keeping bits
    ) -> Tensor:
        mask = Mask(seed, draw, stream, estimator, temperature)
        out = mask_weight(weight.flatten(1), logits.flatten(1), mask, dtype, rows)
        return out.view(*out.shape[:2], *weight.shape[1:])

    def weight_grad(
        grad: Tensor,
        weight: Tensor,
        logits: Tensor,
        seed: Tensor,
        draw: Tensor,
        stream: int,
        estimator: str,
        temperature: float,
        need_weight: bool,
        need_logits: bool,
        rows: Tensor | None = None,
        memo: list[Tensor] | None = None,
    ) -> tuple[Tensor | None, Tensor | None]:
        mask = Mask(seed, draw, stream, estimator, temperature)
        flat, levels = weight.flatten(1), logits.flatten(1)

        def epilogue(i: int, g: Tensor, dweight: Tensor | None, dlogits: Tensor | None, add: bool) -> None:
            through_mask(g, flat, levels, mask.one(i), dweight, dlogits, add, rows)

        def outer(i: int, dtype: torch.dtype) -> Tensor:
            return grad[i].flatten(1).contiguous()

        needs = (need_weight, need_logits)
        grads = weight_grads(epilogue, outer, (flat, levels), grad.shape[1], len(grad), needs)
        dweight, dlogits = (None if g is None else g.view(grad.shape[1:]) for g in grads)
        return dweight, dlogits

    return masked_weight, weight_grad
