"""Structured masks: one logit and one mask for a block of weights, a whole row (output) or a whole column (input)."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from stochprune import backends
from stochprune.address import Logits, Mask
from stochprune.functional._address import Address
from stochprune.functional._checks import check_floating, check_tensors
from stochprune.functional._inputs import by_draw, linear
from stochprune.functional._op import ADDRESS, Op, reshaped
from stochprune.functional._sharded import mask_shards
from stochprune.shards import is_dtensor

Block = tuple[int, int]


def _forward(logits: Tensor, *address: Any) -> Tensor:
    mask = Mask(*address)
    one, backend = torch.ones_like(logits), backends.resolve(logits)
    z = backend.masked_weight(one, Logits(logits), mask=mask, dtype=logits.dtype)
    return z.clone()  # z may be scratch memory


def _fake(logits: Tensor, seed: Tensor, draw: Tensor, *rest: Any) -> Tensor:
    return logits.new_empty(draw.shape[0], *logits.shape)


def _backward(grad: Tensor, logits: Tensor, *address: Any) -> Tensor:
    mask = Mask(*address)
    one, backend = torch.ones_like(logits), backends.resolve(logits)
    _, dlogits = backend.weight_grad(grad.clone(), one, Logits(logits), mask=mask, needs=(False, True))
    assert dlogits is not None
    return dlogits


def _fake_backward(grad: Tensor, logits: Tensor, *rest: Any) -> Tensor:
    return torch.empty_like(logits, memory_format=torch.contiguous_format)


def _save(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    logits, seed, draw, *ctx.options = inputs
    ctx.save_for_backward(logits, seed, draw)


def _grads(ctx: Any, backward: Callable[..., Any], grad: Tensor) -> tuple[Tensor | None, ...]:
    return backward(grad, *ctx.saved_tensors, *ctx.options), *[None] * (2 + len(ctx.options))


_SCHEMAS = f"(Tensor logits, {ADDRESS}) -> Tensor", f"(Tensor grad, Tensor logits, {ADDRESS}) -> Tensor"
_mask = Op("mask", _SCHEMAS, _forward, _backward, fakes=(_fake, _fake_backward), save=_save, grads=_grads)


def mask(
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
) -> Tensor:
    """Return the stochastic mask z itself, differentiable in its logits, to mask other things than single weights.

    Args:
        logits: [N, ...], floating; the address of an entry is its row and column in ``logits.flatten(1)``. Of a DTensor
            the mask is a DTensor split like it, for one draw.
        seed, draw, stream, estimator, temperature, samples: as in :func:`stochprune.functional.masked_linear`, which
            lists the estimators' values and slopes.
        row_offset, col_offset: global position of ``logits[0, 0]``.

    Returns:
        [N, ...] in the dtype of ``logits``; [S, N, ...] with ``samples``; [D, N, ...] with a vector of draws.

    Raises:
        TypeError, ValueError: as for masked_linear.
    """
    op = "mask"
    check_floating(op, logits=logits)
    if logits.dim() < 2:
        raise ValueError(f"{op}: logits must have at least two dimensions, got shape {tuple(logits.shape)}")
    if is_dtensor(logits) and samples is None:
        address: dict[str, Any] = {
            "seed": seed,
            "draw": draw,
            "stream": stream,
            "estimator": estimator,
            "temperature": temperature,
        }
        return mask_shards(partial(mask, **address), logits, row_offset=row_offset, col_offset=col_offset)
    at = Address(seed, draw, stream, estimator, temperature, samples, row_offset, col_offset)
    drawn = at.mask(op, logits.device, logits.shape[0], logits.shape[1:].numel())
    z: Tensor = _mask(op, logits, *drawn)
    return z if samples is not None or len(drawn.draw) != 1 else reshaped(z, logits.shape)


def expand_blocks(z: Tensor, block: Block) -> Tensor:
    """Return a mask [..., N, K] of z [..., N / rows, K / columns]: each entry is repeated over its block."""
    return z.repeat_interleave(block[0], -2).repeat_interleave(block[1], -1)


class _BlockLinear(torch.autograd.Function):
    """y [D, M, N] of x [D, M, K], weight [N, K] and z [D, N / rows, K / columns]; it saves no masked weight."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor, weight: Tensor, z: Tensor, block: Block) -> Tensor:
        return torch.stack(
            [F.linear(a, (weight * expand_blocks(b, block)).to(x.dtype)) for a, b in zip(x, z, strict=True)]
        )

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        *tensors, ctx.block = inputs
        ctx.save_for_backward(*tensors)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (grad,), (x, weight, z), block = grads, ctx.saved_tensors, ctx.block
        dx, dweight, dz = [], torch.zeros_like(weight), []
        for g, a, b in zip(grad, x, z, strict=True):
            mask = expand_blocks(b, block)
            if ctx.needs_input_grad[0]:
                dx.append(g @ (weight * mask).to(g.dtype))
            outer = (g.mT @ a).to(weight.dtype)  # [N, K]: dL/d(z * weight)
            dweight = dweight + outer * mask
            dz.append((outer * weight).view(b.shape[0], block[0], b.shape[1], block[1]).sum((1, 3)).to(b.dtype))
        return torch.stack(dx) if dx else None, dweight, torch.stack(dz), None


def masked_linear_blocks(
    x: Tensor,
    weight: Tensor,
    logits: Tensor,
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
) -> Tensor:
    """Apply a linear layer that keeps or prunes blocks: ``x (z * weight)^T + bias`` with z constant on each block.

    The shape [n, k] of ``logits`` determines the blocks, of N / n rows and K / k columns. Logits [N, 1] mask whole rows
    (outputs, without the bias), and [1, K] whole columns (inputs). Block (i, j) has the contract's mask at row i and
    column j. The gradient of its logit sums over the block's weights. Row masks multiply the outputs and column masks
    the inputs, instead of the weights.

    Args:
        x: [..., K], floating. With a vector of D draws: [D, ..., K]; slice d gets the mask of ``draw[d]``.
        weight: [N, K], floating.
        logits: [n, k], floating; n divides N and k divides K.
        bias: [N] or None.
        seed, draw, stream, estimator, temperature, samples: as in :func:`stochprune.functional.masked_linear`.
        row_offset, col_offset: global position of ``logits[0, 0]``, counted in blocks.

    Returns:
        [..., N] in x's dtype; [S, ..., N] with ``samples``; [D, ..., N] with a vector of draws.

    Raises:
        TypeError: a tensor that is not floating.
        ValueError: shapes that do not fit, devices that differ, NaN logits (on the CPU), an unknown estimator, an
            integer out of range.
    """
    op = "masked_linear_blocks"
    check_tensors(op, weight=weight, logits=logits)
    block = block_of(op, tuple(weight.shape), tuple(logits.shape))
    at = Address(seed, draw, stream, estimator, temperature, samples, row_offset, col_offset)
    given = linear(op, x, {"weight": weight}, bias, at, logits.shape)
    z: Tensor = _mask(op, logits, *given.mask)
    many = by_draw(given.x, given.mask.draw)
    narrow = z.to(many.dtype)
    if block == (1, weight.shape[1]):
        y = F.linear(many, weight.to(many.dtype)) * narrow.mT  # [D, M, N] by [D, 1, N]
    elif block == (weight.shape[0], 1):
        y = F.linear(many * narrow, weight.to(many.dtype))
    else:
        y = _BlockLinear.apply(many, weight, z, block)
    y = y if given.bias is None else y + given.bias
    return given.restore(reshaped(y, (*given.x.shape[:-1], len(weight))))


def block_shape(op: str, structure: str, weight: tuple[int, int]) -> Block:
    """Return the rows and columns of a block, for ``rows``, ``columns`` or ``RxC``, such as ``16x16``.

    Raises:
        ValueError: another structure, or blocks that do not divide the weight [N, K].
    """
    count, width = weight
    rows, x, columns = structure.partition("x") if isinstance(structure, str) else ("", "", "")
    named = {"rows": (1, width), "columns": (count, 1)}.get(structure if isinstance(structure, str) else "")
    if named is None and not (x and rows.isdecimal() and columns.isdecimal()):
        raise ValueError(f"{op}: structure must be rows, columns or RxC, such as 16x16, got {structure!r}")
    block = named or (int(rows), int(columns))
    if not all(block) or count % block[0] or width % block[1]:
        raise ValueError(
            f"{op}: blocks of {block[0]}x{block[1]} do not divide a weight of {count}x{width}; "
            f"give rows, columns, or sizes that do"
        )
    return block


def block_means(values: Tensor, block: Block) -> Tensor:
    """Return the means [N / rows, K / columns] of values [N, K] over blocks of rows and columns."""
    return values.unflatten(0, (-1, block[0])).unflatten(2, (-1, block[1])).mean((1, 3))


def block_of(op: str, weight: tuple[int, ...], logits: tuple[int, ...]) -> Block:
    """Return the rows and columns of a block of a weight [N, K] with logits [n, k]; ValueError unless these divide."""
    if len(weight) != 2 or len(logits) != 2 or any(b < 1 or a % b for a, b in zip(weight, logits, strict=True)):
        raise ValueError(f"{op}: logits {logits} do not divide weight {weight} into blocks")
    return weight[0] // logits[0], weight[1] // logits[1]
