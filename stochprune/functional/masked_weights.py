"""masked_weights: the masked weights of many layers at once, in one launch on a GPU, and one more for all gradients."""

from __future__ import annotations

from collections.abc import Sequence
from types import ModuleType
from typing import Any, NamedTuple

import torch
from torch import Tensor

from stochprune import backends, rng
from stochprune.functional._autograd import reshaped
from stochprune.functional._checks import (
    FLOATING,
    check_estimator,
    check_floating,
    check_same_device,
    check_tensor,
    named,
)

_OP = "masked_weights"


class _Masks(NamedTuple):
    """Which masks: the arguments of a backend's functions after weights and logits."""

    seeds: Tensor  # int64 [L]
    draws: Tensor  # int64 [L]
    streams: Sequence[int]
    estimator: str
    temperature: float

    def one(self, i: int) -> tuple[Tensor, Tensor, int, str, float]:
        """Those of the i-th layer."""
        return self.seeds[i : i + 1], self.draws[i : i + 1], self.streams[i], self.estimator, self.temperature


def _form(backend: ModuleType, weights: list[Tensor], logits: list[Tensor], masks: _Masks, dtype: torch.dtype) -> Any:
    if hasattr(backend, "masked_weights"):
        formed = backend.masked_weights(weights, logits, *masks, dtype)  # views of one piece of memory
        return [reshaped(z, z.shape) for z in formed]
    layers = enumerate(zip(weights, logits, strict=True))
    return [backend.masked_weight(w, t, *masks.one(i), dtype)[0].clone() for i, (w, t) in layers]


class _MaskedWeights(torch.autograd.Function):
    """One node for all layers: its backward runs when the gradients of all of them are there."""

    @staticmethod
    def forward(ctx: Any, masks: _Masks, dtype: torch.dtype, *tensors: Tensor) -> tuple[Tensor, ...]:
        weights, logits = [*tensors[: len(tensors) // 2]], [*tensors[len(tensors) // 2 :]]
        ctx.save_for_backward(*tensors)
        ctx.masks = masks
        results = tensors[0].new_empty(0, dtype=dtype)  # the backend is to write these as well
        return tuple(_form(backends.resolve(*tensors, results), weights, logits, masks, dtype))

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        tensors, count = ctx.saved_tensors, len(grads)
        weights, logits = [*tensors[:count]], [*tensors[count:]]
        backend = backends.resolve(*tensors, *grads)
        needs = any(ctx.needs_input_grad[2 : 2 + count]), any(ctx.needs_input_grad[2 + count :])
        if hasattr(backend, "weight_grads"):
            found = backend.weight_grads(grads, weights, logits, *ctx.masks, *needs)
        else:
            layers = enumerate(zip(grads, weights, logits, strict=True))
            pairs = [backend.weight_grad(g[None].clone(), w, t, *ctx.masks.one(i), *needs) for i, (g, w, t) in layers]
            found = zip(*pairs, strict=True)
        dweights, dlogits = ([None] * count if part is None else part for part in found)
        return None, None, *dweights, *dlogits


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
) -> list[Tensor]:
    """``z * weight`` of many layers as tensors for torch's own products, differentiable in weights and logits.

    Where a model has many small layers, a launch for each costs more than its work: the Triton backend masks all of
    them in one launch and forms all of their gradients in one more. Other backends take one layer after the other.

    Args:
        weights, logits: [N, ...] each, floating; the mask's rows and columns as for the masked convolutions. The Triton
            backend needs them contiguous and of one dtype each.
        seeds, draws: int64 [L], of each layer: the bits of its seed, and which mask.
        streams: 0 .. 2^31 - 1, of each layer.
        estimator, temperature: see :func:`stochprune.functional.masked_linear`.
        dtype: of the results; default that of the weights.

    Raises:
        TypeError: a tensor that is not floating.
        ValueError: lists that differ in length, shapes that do not fit, devices that differ, NaN logits (on the CPU),
            an unknown estimator, an integer out of range.
        RuntimeError: on differentiating twice.
    """
    check_estimator(_OP, estimator, temperature)
    for name, given in (("weights", weights), ("logits", logits), ("streams", streams)):
        if isinstance(given, Tensor) or not hasattr(given, "__len__"):
            raise TypeError(f"{_OP}: {name} must be a list, one for each layer, got {type(given).__name__}")
    for name, numbers in (("seeds", seeds), ("draws", draws)):
        check_tensor(_OP, name, numbers)
        if numbers.dtype != torch.int64:
            raise TypeError(f"{_OP}: {name} must be an int64 tensor, got {numbers.dtype}")
    if dtype is not None and dtype not in FLOATING:
        raise TypeError(f"{_OP}: dtype must be one of {', '.join(map(str, FLOATING))}, got {dtype}")
    count = len(weights)
    if not count or not count == len(logits) == len(streams) == seeds.numel() == draws.numel():
        lengths = f"{count}, {len(logits)}, {len(streams)}, {seeds.numel()} and {draws.numel()}"
        raise ValueError(f"{_OP}: weights, logits, streams, seeds and draws must be as many, got {lengths}")
    for i, (weight, logit, stream) in enumerate(zip(weights, logits, streams, strict=True)):
        check_floating(_OP, **{f"weights[{i}]": weight, f"logits[{i}]": logit})
        check_same_device(_OP, **{"weights[0]": weights[0], f"weights[{i}]": weight, f"logits[{i}]": logit})
        if weight.dim() < 2 or logit.shape != weight.shape:
            raise ValueError(
                f"{_OP}: weights[{i}] {tuple(weight.shape)} and logits[{i}] {tuple(logit.shape)} must be of one shape, "
                "of two and more dimensions"
            )
        rng.check_address(_OP, stream=stream, rows=weight.shape[0], cols=weight.shape[1:].numel())
    seeds, draws = seeds.flatten(), draws.flatten()
    rng.check_address(_OP, draw=draws)
    check_same_device(_OP, **{"weights[0]": weights[0]}, seeds=seeds, draws=draws)
    masks = _Masks(seeds, draws, tuple(int(stream) for stream in streams), estimator, temperature)
    return [*named(_OP, _MaskedWeights.apply, masks, dtype or weights[0].dtype, *weights, *logits)]
