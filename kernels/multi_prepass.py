"""multi_prepass: the masked weights of many layers in one launch, where a launch each would cost more than the work."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from . import tiles
from .estimators import masked
from .mask import Mask
from .philox import load_key, uniforms
from .tiles import locate, offsets

FIELDS = tl.constexpr(6)
"""One row of the table: first address of weight, logits and result, rows, columns, stream."""


@triton.jit(do_not_specialize=["temperature", "layers"])
def multi_prepass_kernel(
    table_ptr,
    starts_ptr,
    seed_ptr,
    draw_ptr,
    temperature,
    layers,
    WEIGHT: tl.constexpr,
    LOGITS: tl.constexpr,
    OUT: tl.constexpr,
    ALIGNED: tl.constexpr,
    ESTIMATOR: tl.constexpr,
    LAYERS: tl.constexpr,
    ROWS: tl.constexpr,
    GROUPS: tl.constexpr,
):
    program = tl.program_id(0)
    index = tl.arange(0, LAYERS)
    starts = tl.load(starts_ptr + index, mask=index < layers, other=0)
    layer = tl.sum(((starts <= program) & (index < layers)).to(tl.int32)) - 1
    row = table_ptr + layer * FIELDS
    weight_ptr = tl.load(row).to(tl.pointer_type(WEIGHT))
    logits_ptr = tl.load(row + 1).to(tl.pointer_type(LOGITS))
    out_ptr = tl.load(row + 2).to(tl.pointer_type(OUT))
    N, K, stream = tl.load(row + 3), tl.load(row + 4), tl.load(row + 5)
    if ALIGNED:
        weight_ptr = tl.multiple_of(weight_ptr, 16)
        logits_ptr = tl.multiple_of(logits_ptr, 16)
        out_ptr = tl.multiple_of(out_ptr, 16)
        K = tl.multiple_of(K, 16)

    rows, cols, group = locate(program - tl.load(starts_ptr + layer), K, ROWS, GROUPS)
    inside = (rows < N)[:, None] & (cols < K)[None, :]
    at = offsets(rows, cols, K, 1)
    w = tl.load(weight_ptr + at, mask=inside, other=0.0).to(tl.float32)
    logit = tl.load(logits_ptr + at, mask=inside, other=0.0).to(tl.float32)
    k0, k1 = load_key(seed_ptr)
    u = uniforms(rows, group, k0, k1, tl.load(draw_ptr), stream, GROUPS)
    z = masked(w, logit, u, temperature, ESTIMATOR)
    tl.store(out_ptr + at, z.to(OUT), mask=inside)


class MultiPrepass:
    """Masked copies of many weights, formed anew by one launch for each draw.

    Args:
        weights: each [N, ...], contiguous, all of one dtype; trailing dimensions are flattened to columns.
        logits: the same shapes, contiguous, all of one dtype.
        streams: one for each weight.
        dtype: that of the copies.

    Raises:
        ValueError: the lists differ in length, or a tensor is not contiguous or differs in dtype.
    """

    def __init__(
        self, weights: Sequence[Tensor], logits: Sequence[Tensor], streams: Sequence[int], dtype: torch.dtype
    ) -> None:
        if not len(weights) == len(logits) == len(streams) > 0:
            raise ValueError(f"got {len(weights)} weights, {len(logits)} logits and {len(streams)} streams")
        for name, tensors in (("weights", weights), ("logits", logits)):
            if len({t.dtype for t in tensors}) > 1 or not all(t.is_contiguous() for t in tensors):
                raise ValueError(f"multi_prepass: {name} must be contiguous and of one dtype")
        self.weights, self.logits, self.streams = list(weights), list(logits), list(streams)
        self.out = [torch.empty_like(w, dtype=dtype) for w in weights]
        self._addresses: list[int] = []

    def __call__(self, mask: Mask) -> list[Tensor]:
        """The masked weights under the first draw of ``mask``, whose stream is ignored; valid until the next call."""
        self._build_table()
        with torch.cuda.device_of(self.out[0]):
            multi_prepass_kernel[(self._programs,)](
                self._table,
                self._starts,
                mask.seed,
                mask.draw,
                mask.temperature,
                len(self.out),
                WEIGHT=_DTYPES[self.weights[0].dtype],
                LOGITS=_DTYPES[self.logits[0].dtype],
                OUT=_DTYPES[self.out[0].dtype],
                ALIGNED=self._aligned,
                ESTIMATOR=mask.estimator,
                LAYERS=triton.next_power_of_2(len(self.out)),
                ROWS=tiles.ROWS,
                GROUPS=tiles.GROUPS,
                num_warps=tiles.WARPS,
                enable_fp_fusion=False,
            )
        return self.out

    def _build_table(self) -> None:
        addresses = [t.data_ptr() for ts in (self.weights, self.logits, self.out) for t in ts]
        if addresses == self._addresses:  # else a parameter moved, or this is the first call
            return
        rows, starts, programs = [], [], 0
        for w, logits, out, stream in zip(self.weights, self.logits, self.out, self.streams, strict=True):
            N, K = len(w), w[:1].numel()
            rows.append([w.data_ptr(), logits.data_ptr(), out.data_ptr(), N, K, stream])
            starts.append(programs)
            programs += tiles.count(N, K)
        device = self.out[0].device
        self._table = torch.tensor(rows, dtype=torch.int64, device=device)
        self._starts = torch.tensor(starts, dtype=torch.int32, device=device)
        self._aligned = all(value % 16 == 0 for row in rows for value in (*row[:3], row[4]))
        self._programs = programs
        self._addresses = addresses


_DTYPES = {torch.float32: tl.float32, torch.float16: tl.float16, torch.bfloat16: tl.bfloat16}
