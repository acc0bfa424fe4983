"""Autograd for all ops: results that own their memory, what a product saves, and that backward is last."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor


def reshaped(result: Tensor, shape: Sequence[int]) -> Tensor:
    """A fresh ``result`` in another shape over the same memory, which autograd does not take for a view.

    A view made inside an operator refuses in-place changes (``ReLU(inplace=True)``), and one made outside pays two
    copies of the gradient for them. The caller must drop ``result``: the two tensors share no version counter.

    Args:
        result: a tensor that nobody else holds, as saved for backward or as an input.
        shape: one that a view of ``result`` can have.
    """
    return torch.ops.aten._unsafe_view(result, shape)


def differentiable_once(backward: Any, message: str) -> None:
    """Make differentiating through the operator ``backward`` a ``RuntimeError`` with this message."""

    def refuse(ctx: Any, *grads: Tensor) -> None:
        raise RuntimeError(message)

    backward.register_autograd(refuse)


def masked_product(forward: Any, backward: Callable[..., Any], trained: int = 3) -> None:
    """Register the autograd rule of a product ``forward(*tensors, bias, seed, draw, *options)``.

    Args:
        forward: the operator; its result [D, M, N, ...] takes one bias a column of the third dimension.
        backward: of ``(grad, *tensors, seed, draw, *options, *needs)``, gives the gradients of the tensors.
        trained: the number of tensors; a tensor may be None.
    """

    def save(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        tensors, (bias, seed, draw, *options) = inputs[:trained], inputs[trained:]
        ctx.save_for_backward(*tensors, seed, draw)
        ctx.options, ctx.has_bias = options, bias is not None

    def differentiate(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        needs = ctx.needs_input_grad[:trained]
        grads: tuple[Tensor | None, ...] = (None,) * trained
        if any(needs):
            found = backward(grad, *ctx.saved_tensors, *ctx.options, *needs)
            grads = tuple(g if need else None for g, need in zip(found, needs, strict=True))
        dbias = grad.sum((0, 1, *range(3, grad.dim()))) if ctx.has_bias and ctx.needs_input_grad[trained] else None
        return *grads, dbias, *([None] * (2 + len(ctx.options)))

    forward.register_autograd(differentiate, setup_context=save)
