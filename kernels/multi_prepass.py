"""multi_prepass: the masked weights of many layers in one launch, where a launch each would cost more than the work."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from . import tiles
from .estimators import masked
from .layers import DTYPES, FIELDS, find_layer, layers_of, load_layer
from .philox import load_key, uniforms
from .tiles import locate, offsets


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
    ESTIMATOR: tl.constexpr,
    LAYERS: tl.constexpr,
    ROWS: tl.constexpr,
    GROUPS: tl.constexpr,
):
    layer = find_layer(starts_ptr, layers, LAYERS)
    weight_ptr, logits_ptr, N, K, stream, first = load_layer(table_ptr + layer * FIELDS, WEIGHT, LOGITS, ALIGNED)
    rows, cols, group = locate(tl.program_id(0) - tl.load(starts_ptr + layer), K, ROWS, GROUPS)
    inside = (rows < N)[:, None] & (cols < K)[None, :]
    at = offsets(rows, cols, K, 1)
    w = tl.load(weight_ptr + at, mask=inside, other=0.0).to(tl.float32)
    logit = tl.load(logits_ptr + at, mask=inside, other=0.0).to(tl.float32)
    k0, k1 = load_key(seeds_ptr + layer)
    u = uniforms(rows, group, k0, k1, tl.load(draws_ptr + layer), stream, GROUPS)
    z = masked(w, logit, u, temperature, ESTIMATOR)
    tl.store(out_ptr + first + at, z.to(out_ptr.dtype.element_ty), mask=inside)


def masked_weights(
    weights: Sequence[Tensor],
    logits: Sequence[Tensor],
    seeds: Tensor,
    draws: Tensor,
    streams: Sequence[int],
    estimator: str,
    temperature: float,
    dtype: torch.dtype,
) -> list[Tensor]:
    """``z * weight`` of many layers in ``dtype``, in one launch.

    Args:
        weights, logits: [N, ...], contiguous, each list of one dtype; trailing dimensions are flattened to columns.
        seeds, draws: int64 [L], of each layer.
        streams: of each layer.

    Raises:
        ValueError: the lists differ in length, or a tensor is not contiguous or differs in dtype.
    """
    layers = layers_of(weights, logits, streams)
    flat = torch.empty(layers.elements, dtype=dtype, device=weights[0].device)
    with torch.cuda.device_of(flat):
        multi_prepass_kernel[(layers.programs,)](
            layers.table,
            layers.starts,
            flat,
            seeds,
            draws,
            temperature,
            len(weights),
            WEIGHT=DTYPES[weights[0].dtype],
            LOGITS=DTYPES[logits[0].dtype],
            ALIGNED=layers.aligned,
            ESTIMATOR=estimator,
            LAYERS=triton.next_power_of_2(len(weights)),
            ROWS=layers.height,
            GROUPS=tiles.GROUPS,
            num_warps=tiles.WARPS,
            enable_fp_fusion=False,
        )
    return layers.views(flat, weights)
