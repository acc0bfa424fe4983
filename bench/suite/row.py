"""A row of results, and the file of a run."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

from .case import case_name, is_eager, is_ours

Key = tuple[str, str, str]
"""Case, part and contender."""


@dataclasses.dataclass(frozen=True)
class Row:
    """One contender of a case, one part. Times are in microseconds, of one call.

    Attributes:
        group, op, shape, dtype, mode, part: of the case.
        contender: its name; those of this package begin with ``ours``.
        law: what it samples: contenders of one law compute the same distribution.
        wrong: what is wrong with its outputs or gradients; then it has no times.
        absent: why it did not take part; then it has no times.
        rounds, repeats: measurements, and calls in each of them.
        p20, p50, p80: percentiles of the times of the rounds.
        ratio, ratio_low, ratio_high: time divided by that of the baseline in the same round: the median, and its
            95 % confidence interval. None for the op that has no baseline.
        best_other: the fastest contender that is not ours among those of the same law.
        advantage: its time divided by this one, the median of rounds; only for ours.
        saved: bytes that a forward pass saves for backward, without the tensors that exist anyway.
        peak: bytes that a step allocates at most besides, gradients included.
        weights: number of weights of the case.
        flops, moved: the least work: floating-point operations of products, and bytes read and written once.
        roof: the least time of this work on this machine, divided by ``p50``; None if the work has no count.
        launches: kernels that a call launches on a GPU.
        host: microseconds of the host to queue a call on a GPU.
        bits_equal: True if all masks have the contract's bits; None for another generator.
    """

    group: str
    op: str
    shape: dict[str, int]
    dtype: str
    mode: str
    part: str
    contender: str
    law: str
    wrong: str | None = None
    absent: str | None = None
    rounds: int = 0
    repeats: int = 0
    p20: float | None = None
    p50: float | None = None
    p80: float | None = None
    ratio: float | None = None
    ratio_low: float | None = None
    ratio_high: float | None = None
    best_other: str | None = None
    advantage: float | None = None
    saved: int | None = None
    peak: int | None = None
    weights: int = 0
    flops: float | None = None
    moved: float | None = None
    roof: float | None = None
    launches: int | None = None
    host: float | None = None
    bits_equal: bool | None = None

    @property
    def case(self) -> str:
        """The name of the case, see :func:`.case.case_name`."""
        return case_name(self.group, self.op, self.shape, self.dtype, self.mode)

    @property
    def key(self) -> Key:
        """The subject of the row, the same in all runs."""
        return self.case, self.part, self.contender

    @property
    def interval(self) -> tuple[float, float, float] | None:
        """The ratio between the ends of its interval; None without times or without a baseline."""
        if self.ratio is None or self.ratio_low is None or self.ratio_high is None:
            return None
        return self.ratio_low, self.ratio, self.ratio_high


def fast_p(rows: Sequence[Row], levels: Sequence[float] = (1.0, 1.5, 2.0, 4.0)) -> list[dict[str, Any]]:
    """Return how often each contender is correct and at least p times as fast as the plain PyTorch way of its law.

    The measure is that of KernelBench (Ouyang et al. 2025): the share of all its steps, in which a contender that is
    wrong counts as slow. A case in which it is absent does not count, nor one without a right way in plain PyTorch.
    Where a case has several of one law, such as ``eager`` and ``eager, bernoulli``, the fastest is the measure: another
    choice would flatter the contenders.

    Args:
        rows: of a run; those of the part ``step`` are used, and of ``forward`` in cases that time no step.
        levels: the numbers p.
    """
    eager: dict[tuple[str, str, str], float] = {}
    for row in rows:
        if is_eager(row.contender) and row.p50 is not None:
            key = row.case, row.part, row.law
            eager[key] = min(eager.get(key, row.p50), row.p50)
    steps = {row.case for row in rows if row.part == "step"}
    counted: dict[str, list[float]] = {}
    for row in rows:
        base = eager.get((row.case, row.part, row.law))
        if base is None or row.absent is not None or is_eager(row.contender):
            continue
        if row.part == ("step" if row.case in steps else "forward"):
            counted.setdefault(row.contender, []).append(0.0 if row.p50 is None else base / row.p50)
    order = sorted(counted, key=lambda name: not is_ours(name))
    return [
        {
            "contender": name,
            "cases": len(counted[name]),
            **{f"fast_{p:g}": sum(speed >= p for speed in counted[name]) / len(counted[name]) for p in levels},
        }
        for name in order
    ]
