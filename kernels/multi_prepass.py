"""multi_prepass: the masked weights of many layers in one launch, for small layers, whose launches take the time."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from stochprune.address import Logits, Masks

from . import tiles
from .estimators import masked
from .layers import FIELDS, find_layer, layer_offsets, layers_of, load_layer, load_offsets
from .philox import load_key, uniforms
from .tiles import after, load, locate, within


@triton.jit(do_not_specialize=["temperature", "layers"])
def multi_prepass_kernel(
    table_ptr,
    starts_ptr,
    out_ptr,
    seeds_ptr,
    draws_ptr,
    temperature,
    layers,
    WEIGHT: tl.constexpr,
    LOGITS: tl.constexpr,
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
    rows, cols, group = locate(tl.program_id(0) - tl.load(starts_ptr + layer), K, shift, ROWS, GROUPS)
    inside = within(rows, cols, N, K, shift)
    at = layer_offsets(row_ptr, rows, cols, K, FILTERS)
    w = load(weight_ptr, at, inside)
    logit = load(logits_ptr, at, inside)
    k0, k1 = load_key(seeds_ptr + layer)
    draw = tl.load(draws_ptr + layer)
    u = uniforms(after(rows, first_row), after(group, first_group), k0, k1, draw, stream, GROUPS)
    z = masked(w, logit, u, temperature, ESTIMATOR)
    tl.store(out_ptr + first + at, z.to(out_ptr.dtype.element_ty), mask=inside)


def masked_weights(
    weights: Sequence[Tensor],
    logits: Sequence[Logits],
    *,
    masks: Masks,
    dtype: torch.dtype,
) -> list[Tensor]:
    """Return ``z * weight`` of many layers in ``dtype``.

    Args:
        weights, logits: [N, ...] each; all weights of one dtype, all logits of one dtype. They are contiguous or have
            the channels last, the logits like the weight, and so are the results. The trailing dimensions are
            flattened to columns.

    Raises:
        ValueError: the lists differ in length, or a tensor differs in dtype or has another memory format.
    """
    weights = [tiles.readable(weight) for weight in weights]
    layers = layers_of(weights, logits, masks)
    flat = torch.empty(layers.elements, dtype=dtype, device=weights[0].device)
    with torch.cuda.device_of(flat):
        multi_prepass_kernel[(layers.programs,)](
            layers.table,
            layers.starts,
            flat,
            masks.seeds,
            masks.draws,
            masks.temperature,
            len(weights),
            ALIGNED=layers.aligned,
            **layers.options(weights, logits, masks),
        )
    return layers.views(flat, weights)
