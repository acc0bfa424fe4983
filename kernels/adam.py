"""adamw: a step of AdamW for many parameters in one launch, which also writes the packed thresholds of mask logits.

For the parameter p at its step t, with the gradient g (Loshchilov and Hutter 2019, arXiv 1711.05101)::

    m = beta1 m + (1 - beta1) g
    v = beta2 v + (1 - beta2) g^2
    p = (1 - lr weight_decay) p - lr / (1 - beta1^t) * m / (sqrt(v / (1 - beta2^t)) + eps)

A float32 weight needs 28 bytes, 16 read and 12 written. Thresholds need 2 more, and no pass of their own over the
logits.
"""

from __future__ import annotations

import functools
import math
from collections import defaultdict
from collections.abc import Sequence
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from stochprune.address import Logits

from . import tiles
from .layers import DTYPES, addresses_of, find_layer, keep_if_captured
from .pairs import raised_pairs
from .philox import GROUP
from .thresholds import cache
from .tiles import load, locate, offsets, within

FIELDS = tl.constexpr(7)
"""Length of a row of the table, which holds for one parameter: the addresses of its value, both moments, the step and
the thresholds (0: none), and the numbers of rows and columns."""
ROWS = 16
"""Rows of a tile: 8 weights a thread, whose four tensors are read before the first one is written."""


class Parameter(NamedTuple):
    """A parameter and its state. The first four tensors have one dtype, shape and memory format, without gaps."""

    value: Tensor
    grad: Tensor
    exp_avg: Tensor
    exp_avg_sq: Tensor
    step: Tensor  # float32 [], the number of this step
    thresholds: Tensor | None  # int32 [N, 32 * ceil(K / 64)] of contiguous logits [N, ...]

    @property
    def matrix(self) -> tuple[int, int]:
        """Return the rows and columns. Without thresholds all elements are one row."""
        elements = self.value.numel()
        return (1, elements) if self.thresholds is None else (len(self.value), elements // len(self.value))

    @property
    def addresses(self) -> tuple[int, ...]:
        """Return the addresses in the table. The gradient's is not among them, because it is new at each step."""
        levels = 0 if self.thresholds is None else self.thresholds.data_ptr()
        return (*(t.data_ptr() for t in (self.value, self.exp_avg, self.exp_avg_sq, self.step)), levels)

    @property
    def kind(self) -> tuple[torch.device, torch.dtype, bool, bool]:
        """Return what the parameters of one launch share: device, dtype, with thresholds, with wide loads."""
        wide = (*self.addresses, self.grad.data_ptr(), self.matrix[1])
        aligned = all(number % 16 == 0 for at, number in enumerate(wide) if at != 3)  # 3: the step, a scalar
        return self.value.device, self.value.dtype, self.thresholds is not None, aligned


def adamw(
    parameters: Sequence[Parameter],
    *,
    lr: float | Tensor,
    betas: tuple[float, float],
    eps: float,
    weight_decay: float,
) -> None:
    """Write the values, both moments and the thresholds of a step, in one launch for each dtype and alignment.

    Masked products with these logits read the thresholds from now on, until something else changes the logits.

    Args:
        parameters: on one device; their steps already count this step.
        lr: a number, or a tensor [] on the device, which a CUDA graph reads at each replay.
    """
    launches: dict[tuple[torch.device, torch.dtype, bool, bool], list[Parameter]] = defaultdict(list)
    for parameter in parameters:
        if parameter.value.numel():
            launches[parameter.kind].append(parameter)
    for (device, dtype, thresholds, aligned), together in launches.items():
        rows = tuple((*each.addresses, *each.matrix) for each in together)
        table, starts, programs = _table(rows, thresholds, device)
        keep_if_captured(table, starts)
        with torch.cuda.device_of(table):
            adamw_kernel[(programs,)](
                table,
                starts,
                addresses_of([each.grad for each in together]),
                lr,
                weight_decay,
                *betas,
                *(1 - beta for beta in betas),
                *(math.log(max(beta, 1e-38)) for beta in betas),
                eps,
                len(together),
                DTYPE=DTYPES[dtype],
                THRESHOLDS=thresholds,
                ALIGNED=aligned,
                LR_TENSOR=isinstance(lr, Tensor),
                LAYERS=triton.next_power_of_2(len(together)),
                ROWS=ROWS,
                **tiles.LAUNCH,
            )
    torch.autograd.graph.increment_version([each.value for each in parameters])
    for each in parameters:
        if each.thresholds is not None:
            cache.maintain(Logits(each.value), each.thresholds)


def empty_thresholds(logits: Logits) -> Tensor:
    """Return memory for the packed thresholds of logits [N, ...], int32 [N, 32 * ceil(K / 64)]."""
    words = triton.cdiv(math.prod(logits.shape[1:]), GROUP.value) * (GROUP.value // 2)
    return torch.empty(len(logits), words, dtype=torch.int32, device=logits.device)


@functools.lru_cache(maxsize=16)
def _table(rows: tuple[tuple[int, ...], ...], thresholds: bool, device: torch.device) -> tuple[Tensor, Tensor, int]:
    """Return the table, int64 [L, FIELDS], each parameter's first program, int32 [L], and the number of programs."""
    starts, programs = [], 0
    for *_, n, k in rows:
        starts.append(programs)
        programs += tiles.count(n, k, ROWS) if thresholds else triton.cdiv(k, ROWS * tiles.GROUPS * GROUP.value)
    table = torch.tensor(rows, dtype=torch.int64, device=device)
    return table, torch.tensor(starts, dtype=torch.int32, device=device), programs


NUMBERS = ["weight_decay", "beta1", "beta2", "rate1", "rate2", "log_beta1", "log_beta2", "eps", "layers"]


@triton.jit(do_not_specialize=NUMBERS)
def adamw_kernel(
    table_ptr,
    starts_ptr,
    grads_ptr,
    lr,  # or its address
    weight_decay,
    beta1,
    beta2,
    rate1,  # 1 - beta1, rounded after the subtraction
    rate2,
    log_beta1,
    log_beta2,
    eps,
    layers,
    DTYPE: tl.constexpr,
    THRESHOLDS: tl.constexpr,
    ALIGNED: tl.constexpr,
    LR_TENSOR: tl.constexpr,
    LAYERS: tl.constexpr,
    ROWS: tl.constexpr,
    GROUPS: tl.constexpr,
):
    layer = find_layer(starts_ptr, layers, LAYERS)
    row_ptr = table_ptr + layer * FIELDS
    tile = tl.program_id(0) - tl.load(starts_ptr + layer)
    value_ptr, exp_avg_ptr = _pointer(row_ptr, DTYPE, ALIGNED), _pointer(row_ptr + 1, DTYPE, ALIGNED)
    exp_avg_sq_ptr, grad_ptr = _pointer(row_ptr + 2, DTYPE, ALIGNED), _pointer(grads_ptr + layer, DTYPE, ALIGNED)
    step = tl.load(tl.load(row_ptr + 3).to(tl.pointer_type(tl.float32)))
    N, K = tl.load(row_ptr + 5), tl.load(row_ptr + 6)
    if ALIGNED:
        K = tl.multiple_of(K, 16)
    if LR_TENSOR:
        lr = tl.load(lr).to(tl.float32)
    size = lr / _one_minus_exp(step * log_beta1)
    scale = 1.0 / tl.sqrt(_one_minus_exp(step * log_beta2))
    if THRESHOLDS:
        rows, cols, group = locate(tile, K, None, ROWS, GROUPS)
        at, inside = offsets(rows, cols, K, 1), within(rows, cols, N, K, None)
    else:
        COUNT: tl.constexpr = ROWS * GROUPS * GROUP
        at = tile.to(tl.int64) * COUNT + tl.arange(0, COUNT)
        inside = at < K
    g, p = load(grad_ptr, at, inside), load(value_ptr, at, inside)
    m, v = load(exp_avg_ptr, at, inside), load(exp_avg_sq_ptr, at, inside)
    m = beta1 * m + rate1 * g
    v = beta2 * v + rate2 * (g * g)
    p = (p * (1.0 - lr * weight_decay) - size * m / (tl.sqrt(v) * scale + eps)).to(DTYPE)
    tl.store(value_ptr + at, p, mask=inside)
    tl.store(exp_avg_ptr + at, m.to(DTYPE), mask=inside)
    tl.store(exp_avg_sq_ptr + at, v.to(DTYPE), mask=inside)
    if THRESHOLDS:
        words = tl.cdiv(K, GROUP) * (GROUP // 2)
        pairs = group * (GROUP // 2) + tl.arange(0, GROUPS * GROUP // 2)
        levels_ptr = _pointer(row_ptr + 4, tl.int32, ALIGNED)
        logit = tl.where(inside, p.to(tl.float32), 0.0)  # the same padding as of packed_thresholds, also if eps is 0
        tl.store(
            levels_ptr + offsets(rows, pairs, words, 1),
            raised_pairs(logit).to(tl.int32, bitcast=True),
            mask=within(rows, pairs, N, words, None),
        )


@triton.jit
def _pointer(address_ptr, DTYPE: tl.constexpr, ALIGNED: tl.constexpr):
    """Return the pointer whose address is at ``address_ptr``."""
    pointer = tl.load(address_ptr).to(tl.pointer_type(DTYPE))
    if ALIGNED:
        pointer = tl.multiple_of(pointer, 16)
    return pointer


@triton.jit
def _one_minus_exp(x):
    """Return ``1 - exp(x)`` of a number x <= 0 in fp32, by its series near 0, where the difference would cancel."""
    near = tl.maximum(x, -0.5)
    series = 1.0
    for n in tl.static_range(9, 1, -1):
        series = 1.0 + series * near / n
    return tl.where(x < near, 1.0 - tl.exp(x), -near * series)
