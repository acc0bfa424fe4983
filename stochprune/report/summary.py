"""Means and standard deviations over seeds."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from stochprune.extras import extra


@dataclass(frozen=True)
class Spread:
    """Mean and sample standard deviation, which a single value does not have."""

    mean: float
    sd: float | None

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        return cls(statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else None)


@dataclass(frozen=True)
class Paired:
    """The mean of paired differences, and the half width of its 95 % confidence interval, which one pair lacks.

    The interval is Student's: it assumes differences that are independent and nearly normal.
    """

    mean: float
    half_width: float | None

    @classmethod
    def of(cls, differences: Sequence[float]) -> Paired:
        spread, n = Spread.of(differences), len(differences)
        if spread.sd is None:
            return cls(spread.mean, None)
        with extra("studies", "Paired"):  # here: scipy takes a second to import
            from scipy.stats import t
        return cls(spread.mean, float(t.ppf(0.975, n - 1)) * spread.sd / math.sqrt(n))


def measured(settings: Mapping[str, Any]) -> str:
    """Return what errors of these settings are: on the test set, or on training examples that were held out."""
    if "vocabulary" in settings:
        return "Perplexity on held-out text"
    return "Validation error" if settings.get("validation") else "Test error"


def unit(settings: Mapping[str, Any]) -> str:
    """Return the unit of the errors of these settings, as it follows :func:`measured` in a text."""
    return "" if "vocabulary" in settings else " in per cent"


@dataclass(frozen=True)
class Row:
    """One score at one sparsity.

    Attributes:
        seeds: number of seeds on which both trainings have an error.
        errors: in per cent, by arm, over the seeds that have one; None if none has.
        gain: error of ``retrained`` minus that of ``finetuned``, paired by seed, in percentage points; positive if the
            fine-tuned mask is better. None if the baseline, ``retrained``, does not train: its mean error is nearer to
            that of guessing than to that of the dense networks, or no seed has both errors.
        wins: number of seeds on which the fine-tuned mask is better.
    """

    score: str
    sparsity: float
    seeds: int
    errors: dict[str, Spread | None]
    gain: Spread | None
    wins: int


def summarize(results: Mapping[str, Any]) -> list[Row]:
    """Return the rows of a study, in the order of its cells."""
    dense = Spread.of([entry["error"] for entry in results["dense"]]).mean
    guessing = 100 * (1 - 1 / results.get("classes", 10))
    groups: dict[tuple[str, float], list[dict[str, float | None]]] = {}
    for cell in results["cells"]:
        groups.setdefault((cell["score"], cell["sparsity"]), []).append(cell["errors"])
    rows = []
    for (score, sparsity), errors in groups.items():
        gains = differences(errors, "retrained", "finetuned")
        spreads = {arm: spread_of([error[arm] for error in errors]) for arm in errors[0]}
        base = spreads["retrained"]
        trains = base is not None and base.mean < (dense + guessing) / 2
        gain = spread_of(gains) if trains else None
        rows.append(Row(score, sparsity, len(gains), spreads, gain, sum(gain > 0 for gain in gains)))
    return rows


def spread_of(values: Sequence[float | None]) -> Spread | None:
    """Return the spread of the values that are there; None if none is."""
    there = [float(value) for value in values if value is not None]
    return Spread.of(there) if there else None


def differences(errors: Sequence[Mapping[str, float | None]], arm: str, other: str) -> list[float]:
    """Return the error of ``arm`` minus that of ``other`` in each cell that has both."""
    pairs = [(error[arm], error[other]) for error in errors]
    return [float(one - two) for one, two in pairs if one is not None and two is not None]


def cell_name(cell: Mapping[str, Any]) -> str:
    """Return the name of a cell or of one of its rows: score, arm if it has one, sparsity and seed."""
    arm = [cell["arm"]] if cell.get("arm", "none") not in ("none", "") else []
    return ", ".join([cell["score"], *arm, f"{100 * cell['sparsity']:g} %", f"seed {cell['seed']}"])


def failures(results: Mapping[str, Any]) -> list[str]:
    """Return a line for each cell of a study of fine-tuning that failed: its mask, and the reason."""
    return [f"{cell_name(cell)}: {cell['failed']}" for cell in results["cells"] if cell.get("failed") is not None]
