"""masked_weights: the masked weights of many layers: on a GPU one launch forms them and one launch all gradients."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from stochprune import backends, rng
from stochprune.address import Logits, Masks
from stochprune.functional._address import check_estimator
from stochprune.functional._checks import FLOATING, FROZEN, check_floating, check_same_device, check_tensor, named
from stochprune.functional._op import reshaped

_OP = "masked_weights"


class _MaskedWeights(torch.autograd.Function):
    """One autograd node for all layers, so that backward has the gradients of all of them at once."""

    @staticmethod
    def forward(ctx: Any, masks: Masks, dtype: torch.dtype, *tensors: Tensor) -> tuple[Tensor, ...]:
        weights, logits = _halves(tensors)
        ctx.save_for_backward(*tensors)
        ctx.masks = masks
        results = tensors[0].new_empty(0, dtype=dtype)  # the backend must support this dtype too
        formed = backends.resolve(*tensors, results).masked_weights(weights, logits, masks=masks, dtype=dtype)
        return tuple(reshaped(z, z.shape) for z in formed)  # they may be views of one tensor

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        tensors, count = ctx.saved_tensors, len(grads)
        weights, logits = _halves(tensors)
        backend = backends.resolve(*tensors, *grads)
        needs = any(ctx.needs_input_grad[2 : 2 + count]), any(ctx.needs_input_grad[2 + count :])
        found = backend.multi_layer_grads(grads, weights, logits, masks=ctx.masks, needs=needs)
        dweights, dlogits = ([None] * count if part is None else part for part in found)
        return None, None, *dweights, *dlogits


def _halves(tensors: Sequence[Tensor]) -> tuple[Sequence[Tensor], list[Logits]]:
    count = len(tensors) // 2
    return tensors[:count], [Logits(t) for t in tensors[count:]]


def masked_weights(
    weights: Sequence[Tensor],
    logits: Sequence[Tensor],
    *,
    seeds: Tensor,
    draws: Tensor,
    streams: Sequence[int],
    estimator: str = "straight_through",
    temperature: float = 1.0,
    dtype: torch.dtype | None = None,
    row_offsets: Sequence[int] | None = None,
    col_offsets: Sequence[int] | None = None,
) -> list[Tensor]:
    """Return ``z * weight`` of many layers, for torch's own products; differentiable in weights and logits.

    In a model with many small layers, the launch for each layer costs more than its work. The Triton backend masks all
    layers in one launch and computes all gradients in another one. Other backends process the layers in turn.

    Args:
        weights, logits: L tensors [N, ...] each, floating; the mask's rows and columns are those of the masked
            convolutions. Weights without a gradient may be float8_e4m3fn. The Triton backend needs one dtype for all
            weights and one for all logits. Its tensors are contiguous or have the channels last in memory, the logits
            of a layer like its weight.
        seeds, draws: int64 [L], for each layer the bits of its seed, and its draw.
        streams: for each layer 0 .. 2^31 - 1.
        estimator, temperature: see :func:`stochprune.functional.masked_linear`.
        dtype: the dtype of the results; default: that of the weights, if it is not float8_e4m3fn.
        row_offsets, col_offsets: for each layer the global position of its first weight; 0 unless it is a shard.

    Returns:
        The masked weights, one for each layer, in the shapes of ``weights``.

    Raises:
        TypeError: a tensor that is not floating.
        ValueError: lists that differ in length, shapes that do not fit, devices that differ, NaN logits (on the CPU),
            an eight-bit weight that requires a gradient or has no ``dtype`` beside it, an unknown estimator, an integer
            out of range.
        RuntimeError: if it is differentiated twice.
    """
    check_estimator(_OP, estimator, temperature)
    lists = {"weights": weights, "logits": logits, "streams": streams}
    lists |= {"row_offsets": row_offsets} if row_offsets is not None else {}
    lists |= {"col_offsets": col_offsets} if col_offsets is not None else {}
    for name, given in lists.items():
        if isinstance(given, Tensor) or not hasattr(given, "__len__"):
            raise TypeError(f"{_OP}: {name} must be a list, one for each layer, got {type(given).__name__}")
    for name, numbers in (("seeds", seeds), ("draws", draws)):
        check_tensor(_OP, name, numbers)
        if numbers.dtype != torch.int64:
            raise TypeError(f"{_OP}: {name} must be an int64 tensor, got {numbers.dtype}")
    if dtype is not None and dtype not in FLOATING:
        raise TypeError(f"{_OP}: dtype must be one of {', '.join(map(str, FLOATING))}, got {dtype}")
    count = len(weights)
    lengths = {name: len(given) for name, given in lists.items()} | {"seeds": seeds.numel(), "draws": draws.numel()}
    if not count or {*lengths.values()} != {count}:
        raise ValueError(f"{_OP}: {', '.join(lengths)} must be as many, got {', '.join(map(str, lengths.values()))}")
    rows, cols = row_offsets or [0] * count, col_offsets or [0] * count
    for i, (weight, logit, stream) in enumerate(zip(weights, logits, streams, strict=True)):
        check_floating(_OP, **{f"weights[{i}]": weight, f"logits[{i}]": logit})
        check_same_device(_OP, **{"weights[0]": weights[0], f"weights[{i}]": weight, f"logits[{i}]": logit})
        if weight.dim() < 2 or logit.shape != weight.shape:
            raise ValueError(
                f"{_OP}: weights[{i}] {tuple(weight.shape)} and logits[{i}] {tuple(logit.shape)} must be of one shape, "
                "of two and more dimensions"
            )
        size = {"rows": weight.shape[0], "cols": weight.shape[1:].numel()}
        rng.check_address(_OP, stream=stream, **size, row_offset=rows[i], col_offset=cols[i])
    if dtype is None and weights[0].dtype == FROZEN:
        raise ValueError(f"{_OP}: dtype must be given, because weights[0] is {FROZEN}")
    seeds, draws = seeds.flatten(), draws.flatten()
    rng.check_address(_OP, draw=draws)
    check_same_device(_OP, **{"weights[0]": weights[0]}, seeds=seeds, draws=draws)
    whole = [tuple(int(number) for number in each) for each in (streams, rows, cols)]
    masks = Masks(seeds, draws, whole[0], estimator, temperature, whole[1], whole[2])
    return [*named(_OP, _MaskedWeights.apply, masks, dtype or weights[0].dtype, *weights, *logits)]
