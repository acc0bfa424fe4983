"""multi_layer_grads: the gradients of many layers' weights and logits from G = dL/d(z * W), in one launch."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from stochprune.address import Logits, Masks, Needs2
from stochprune.memory_format import in_format_of

from . import tiles
from .estimators import slope
from .layers import DTYPES, FIELDS, addresses_of, find_layer, layer_offsets, layers_of, load_layer, load_offsets
from .pairs import masked_tile
from .philox import load_key, singles, uniform_pairs
from .tiles import after, load, locate, within


@triton.jit(do_not_specialize=["temperature", "layers"])
def multi_layer_grads_kernel(
    table_ptr,
    starts_ptr,
    grads_ptr,
    dweight_ptr,
    dlogits_ptr,
    seeds_ptr,
    draws_ptr,
    temperature,
    layers,
    WEIGHT: tl.constexpr,
    LOGITS: tl.constexpr,
    GRAD: tl.constexpr,
    ALIGNED: tl.constexpr,
    SHARDED: tl.constexpr,
    FILTERS: tl.constexpr,
    ESTIMATOR: tl.constexpr,
    LAYERS: tl.constexpr,
    ROWS: tl.constexpr,
    GROUPS: tl.constexpr,
):
    layer = find_layer(starts_ptr, layers, LAYERS)
    row_ptr = table_ptr + layer * FIELDS
    weight_ptr, logits_ptr, N, K, stream, first = load_layer(row_ptr, WEIGHT, LOGITS, ALIGNED)
    first_row, first_group, shift = None, None, None
    if SHARDED:
        first_row, first_group, shift = load_offsets(row_ptr, ALIGNED)
    grad_ptr = tl.load(grads_ptr + layer).to(tl.pointer_type(GRAD))
    if ALIGNED:
        grad_ptr = tl.multiple_of(grad_ptr, 16)
    rows, cols, group = locate(tl.program_id(0) - tl.load(starts_ptr + layer), K, shift, ROWS, GROUPS)
    inside = within(rows, cols, N, K, shift)
    at = layer_offsets(row_ptr, rows, cols, K, FILTERS)
    g = load(grad_ptr, at, inside)
    logit = load(logits_ptr, at, inside)
    k0, k1 = load_key(seeds_ptr + layer)
    draw = tl.load(draws_ptr + layer)
    u = uniform_pairs(after(rows, first_row), after(group, first_group), k0, k1, draw, stream, GROUPS)
    if dlogits_ptr is not None:
        w = load(weight_ptr, at, inside)
        dlogit = g * w * slope(logit, singles(u), temperature, ESTIMATOR)
        tl.store(dlogits_ptr + first + at, dlogit.to(dlogits_ptr.dtype.element_ty), mask=inside)
    if dweight_ptr is not None:
        dweight = masked_tile(g, logit, u, temperature, ESTIMATOR, dweight_ptr.dtype.element_ty)
        tl.store(dweight_ptr + first + at, dweight, mask=inside)


def multi_layer_grads(
    grads: Sequence[Tensor], weights: Sequence[Tensor], logits: Sequence[Logits], *, masks: Masks, needs: Needs2
) -> tuple[list[Tensor] | None, list[Tensor] | None]:
    """Return the gradients of many layers' weights and logits; None where not needed.

    Args:
        grads: dL/d(z * weight) of each layer, all of one dtype.
        weights, logits, masks: as for :func:`.multi_prepass.masked_weights`.
    """
    weights = [tiles.readable(weight) for weight in weights]
    layers = layers_of(weights, logits, masks)
    device = weights[0].device
    grads = [in_format_of(w, g) for w, g in zip(weights, grads, strict=True)]
    dweight, dlogits = (
        torch.empty(layers.elements, dtype=like[0].dtype, device=device) if need else None
        for need, like in zip(needs, (weights, logits), strict=True)
    )
    with torch.cuda.device_of(weights[0]):
        multi_layer_grads_kernel[(layers.programs,)](
            layers.table,
            layers.starts,
            addresses_of(grads),  # the gradients have new addresses in each step
            dweight,
            dlogits,
            masks.seeds,
            masks.draws,
            masks.temperature,
            len(weights),
            GRAD=DTYPES[grads[0].dtype],
            ALIGNED=layers.aligned and all(g.data_ptr() % 16 == 0 for g in grads),
            **layers.options(weights, logits, masks),
        )
    return tuple(None if flat is None else layers.views(flat, weights) for flat in (dweight, dlogits))
