"""Markdown tables with a column for each sparsity."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from stochprune.report.summary import Spread

Show = Callable[[Sequence[float | None]], str]


def line(cells: Iterable[str]) -> str:
    return f"| {' | '.join(cells)} |"


def cell(values: Sequence[float | None]) -> str:
    """Return mean and standard deviation, and the number of missing values (diverged trainings, empty layers)."""
    there = [value for value in values if value is not None]
    lost = len(values) - len(there)
    return (spread(there) if there else "") + (f" ({lost} of {len(values)} missing)" if lost else "")


def spread(values: Sequence[float]) -> str:
    found = Spread.of(values)
    digits = 2 if found.mean >= 1 else 4
    return f"{found.mean:.{digits}f}" + (f" ± {found.sd:.{digits}f}" if len(values) > 1 else "")


def pivot(rows: Sequence[Mapping[str, Any]], value: str, keys: tuple[str, ...], show: Show = cell) -> str:
    """Return a Markdown table with a line for each of the ``keys`` and a column for each sparsity.

    Args:
        show: returns the text of a cell from the values of its rows.
    """
    sparsities = sorted({row["sparsity"] for row in rows})
    lines = [
        line((*keys, *(f"{100 * sparsity:g} %" for sparsity in sparsities))),
        line(["---"] * (len(keys) + len(sparsities))),
    ]
    for which in dict.fromkeys(tuple(row[key] for key in keys) for row in rows):
        mine = [row for row in rows if tuple(row[key] for key in keys) == which]
        cells = [[row[value] for row in mine if row["sparsity"] == sparsity] for sparsity in sparsities]
        lines.append(line([*which, *(show(values) for values in cells)]))
    return "\n".join(lines)
