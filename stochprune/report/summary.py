"""Means and standard deviations over seeds."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Spread:
    """Mean and sample standard deviation (0 for a single value)."""

    mean: float
    sd: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        return cls(statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else 0.0)


@dataclass(frozen=True)
class Row:
    """One score at one sparsity, over ``seeds`` seeds.

    Attributes:
        errors: in per cent, by arm.
        gain: error of ``retrained`` minus that of ``finetuned``, paired by seed, in percentage points; positive if the
            fine-tuned mask is better.
        wins: number of seeds on which the fine-tuned mask is better.
    """

    score: str
    sparsity: float
    seeds: int
    errors: dict[str, Spread]
    gain: Spread
    wins: int


def summarize(results: Mapping[str, Any]) -> list[Row]:
    """Return the rows of a study, in the order of its cells."""
    groups: dict[tuple[str, float], list[dict[str, float]]] = {}
    for cell in results["cells"]:
        groups.setdefault((cell["score"], cell["sparsity"]), []).append(cell["errors"])
    rows = []
    for (score, sparsity), errors in groups.items():
        gains = [error["retrained"] - error["finetuned"] for error in errors]
        spreads = {arm: Spread.of([error[arm] for error in errors]) for arm in errors[0]}
        rows.append(Row(score, sparsity, len(errors), spreads, Spread.of(gains), sum(gain > 0 for gain in gains)))
    return rows
