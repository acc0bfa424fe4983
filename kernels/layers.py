"""Many layers in one launch: each program finds its layer and its tile in a table in device memory."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from stochprune.address import Logits, Masks
from stochprune.memory_format import channels_last

from . import tiles
from .philox import GROUP
from .tiles import offsets

FIELDS = tl.constexpr(9)
"""Length of a row of the table, which holds for one layer: the addresses of weight and logits, the numbers of rows and
columns, the stream, the first element of the results, the offsets of its shard (row and column), and the number of
kernel positions if its filters have the channels last in memory, else 1."""
ALIGNMENT = 16  # elements; a layer's results start at a multiple of it, for 16-byte loads and stores
ROWS = 32
"""Rows of a tile. With more, the gradients of float32 weights leave room for one program on a multiprocessor."""
DTYPES = {torch.float32: tl.float32, torch.float16: tl.float16, torch.bfloat16: tl.bfloat16}
DTYPES |= {torch.float8_e4m3fn: tl.float8e4nv}


class Layers(NamedTuple):
    """The table of some layers. Their results are parts of one flat tensor, one after the other."""

    table: Tensor  # int64 [L, FIELDS]
    starts: Tensor  # int32 [L]: the first program of each layer
    programs: int
    offsets: tuple[int, ...]  # the first element of each layer's results
    elements: int  # of the flat tensor
    aligned: bool  # every row of every layer starts at a multiple of 16 bytes
    sharded: bool  # some layer is a shard whose first row or column is not 0
    filters: bool  # some layer has filters with the channels last in memory

    def options(self, weights: Sequence[Tensor], logits: Sequence[Logits], masks: Masks) -> dict[str, Any]:
        """Return the constants with which a kernel for these layers is launched."""
        return {
            "WEIGHT": DTYPES[weights[0].dtype],
            "LOGITS": DTYPES[logits[0].dtype],
            "SHARDED": self.sharded,
            "FILTERS": self.filters,
            "ESTIMATOR": masks.estimator,
            "LAYERS": triton.next_power_of_2(len(weights)),
            "ROWS": ROWS,
            **tiles.LAUNCH,
        }

    def views(self, flat: Tensor, like: Sequence[Tensor]) -> list[Tensor]:
        """Return each layer's part of a flat tensor, in the shape and the memory format of its weight."""
        return [_view(flat[at : at + t.numel()], t) for at, t in zip(self.offsets, like, strict=True)]


def _view(flat: Tensor, like: Tensor) -> Tensor:
    if not channels_last(like):
        return flat.view(like.shape)
    return flat.view(like.movedim(1, -1).shape).movedim(-1, 1)


def _positions(t: Tensor) -> int:
    """Return the kernel positions of a filter with the channels last, 1 of a contiguous tensor, 0 of any other."""
    return 1 if t.is_contiguous() else t.shape[2:].numel() if channels_last(t) else 0


def layers_of(weights: Sequence[Tensor], logits: Sequence[Logits], masks: Masks) -> Layers:
    """Return the table of some layers, from a cache unless a parameter has moved in memory.

    Args:
        weights, logits: [N, ...] each; the trailing dimensions are flattened to columns.

    Raises:
        ValueError: the lists differ in length, or a tensor differs in dtype or has another memory format.
    """
    if not len(weights) == len(logits) == len(masks.streams) > 0:
        raise ValueError(f"got {len(weights)} weights, {len(logits)} logits and {len(masks.streams)} streams")
    formats = [_positions(t) for t in weights]
    for name, tensors in (("weights", weights), ("logits", logits)):
        if len({t.dtype for t in tensors}) > 1 or 0 in formats or [_positions(t) for t in tensors] != formats:
            raise ValueError(
                f"many layers in one launch: {name} must be of one dtype, and contiguous or with the channels last in "
                "memory, logits like the weights"
            )
    addresses = tuple((w.data_ptr(), t.data_ptr()) for w, t in zip(weights, logits, strict=True))
    device = weights[0].device
    shapes = tuple((len(w), w[:1].numel(), positions) for w, positions in zip(weights, formats, strict=True))
    keys = tuple(zip(masks.streams, masks.rows, masks.cols, strict=True))
    layers = _layers(addresses, shapes, keys, device)
    keep_if_captured(layers.table, layers.starts)
    return layers


_captured: dict[int, tuple[Tensor, ...]] = {}
"""Tables that CUDA graphs read at each replay. They are never freed, because we do not know when a graph is deleted."""


def keep_if_captured(*tables: Tensor) -> None:
    """Keep the tables of a launch for ever if a CUDA graph records it."""
    if capturing(tables[0].device):
        _captured[tables[0].data_ptr()] = tables


def capturing(device: torch.device) -> bool:
    """Return True while a CUDA graph records launches on this device."""
    if device.type != "cuda":
        return False
    with torch.cuda.device(device):  # torch asks the current stream of the current device
        return torch.cuda.is_current_stream_capturing()


def addresses_of(tensors: Sequence[Tensor]) -> Tensor:
    """Return the addresses of L tensors, int64 [L] on their device, without a synchronisation."""
    addresses, device = [t.data_ptr() for t in tensors], tensors[0].device
    if capturing(device):
        # A graph would repeat the copy at each replay, when the pinned memory may already be in other use. A fill keeps
        # its number in the graph.
        return torch.stack([torch.full((), address, dtype=torch.int64, device=device) for address in addresses])
    pinned = torch.tensor(addresses, dtype=torch.int64, pin_memory=device.type == "cuda")
    return pinned.to(device, non_blocking=True)


@functools.lru_cache(maxsize=16)
def _layers(
    addresses: tuple[tuple[int, int], ...],
    shapes: tuple[tuple[int, int, int], ...],  # rows, columns and kernel positions
    keys: tuple[tuple[int, int, int], ...],  # stream, first row and first column
    device: torch.device,
) -> Layers:
    rows, starts, programs, elements = [], [], 0, 0
    multiples = zip(addresses, shapes, keys, strict=True)
    filters = any(positions > 1 for *_, positions in shapes)
    aligned = not filters and all(
        value % 16 == 0 for pair, (_, k, _), (*_, col) in multiples for value in (*pair, k, col)
    )
    for (weight, logits), (n, k, positions), (stream, row, col) in zip(addresses, shapes, keys, strict=True):
        rows.append([weight, logits, n, k, stream, elements, row, col, positions])
        starts.append(programs)
        programs += tiles.count(n, k + col % GROUP.value, ROWS)
        elements += triton.cdiv(n * k, ALIGNMENT) * ALIGNMENT
    return Layers(
        torch.tensor(rows, dtype=torch.int64, device=device),
        torch.tensor(starts, dtype=torch.int32, device=device),
        programs,
        tuple(row[5] for row in rows),
        elements,
        aligned,
        any(row or col for _, row, col in keys),
        filters,
    )


@triton.jit
def find_layer(starts_ptr, layers, LAYERS: tl.constexpr):
    """Return the index of this program's layer."""
    index = tl.arange(0, LAYERS)
    starts = tl.load(starts_ptr + index, mask=index < layers, other=0)
    return tl.sum(((starts <= tl.program_id(0)) & (index < layers)).to(tl.int32)) - 1


@triton.jit
def load_layer(row_ptr, WEIGHT: tl.constexpr, LOGITS: tl.constexpr, ALIGNED: tl.constexpr):
    """Return pointers to weight and logits, rows, columns, stream and the first element of the results."""
    weight_ptr = tl.load(row_ptr).to(tl.pointer_type(WEIGHT))
    logits_ptr = tl.load(row_ptr + 1).to(tl.pointer_type(LOGITS))
    N, K, stream, first = tl.load(row_ptr + 2), tl.load(row_ptr + 3), tl.load(row_ptr + 4), tl.load(row_ptr + 5)
    if ALIGNED:
        weight_ptr = tl.multiple_of(weight_ptr, 16)
        logits_ptr = tl.multiple_of(logits_ptr, 16)
        K = tl.multiple_of(K, 16)
    return weight_ptr, logits_ptr, N, K, stream, tl.multiple_of(first, 16)


@triton.jit
def load_offsets(row_ptr, ALIGNED: tl.constexpr):
    """Return the shard's first row and group, and how many columns of that group lie before it (``shift``)."""
    row, col = tl.load(row_ptr + 6), tl.load(row_ptr + 7)
    shift = col % GROUP
    if ALIGNED:
        shift = tl.multiple_of(shift, 16)
    return row, col // GROUP, shift


@triton.jit
def layer_offsets(row_ptr, rows, cols, K, FILTERS: tl.constexpr):
    """Return the offsets [R, C] of a layer's weights, logits and results, which have one memory format.

    Column k of a filter with the channels last is channel k // P at kernel position k % P.
    """
    if FILTERS:
        positions, k = tl.load(row_ptr + 8).to(tl.int32), cols.to(tl.int32)  # 32 bits, since this divides at run time
        cols = k // positions + (k % positions) * (K // positions)
    return offsets(rows, cols, K, 1)
