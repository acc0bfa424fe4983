"""The table of ``stochprune bench``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from stochprune.report.style import terminal_table

if TYPE_CHECKING:
    from rich.table import Table


def timing_table(title: str, times: Mapping[int, tuple[Sequence[float], Sequence[float]]]) -> Table:
    """One row for each number of tokens.

    Args:
        times: by number of tokens, milliseconds of the dense layer and of the masked one, each of (forward, step).
    """
    made = terminal_table(title)
    for column in ("tokens", "dense", "masked", "tax", "dense step", "masked step", "tax"):
        made.add_column(column, justify="right")
    for count, (dense, masked) in times.items():
        cells = [cell for d, m in zip(dense, masked, strict=True) for cell in (f"{d:.3f}", f"{m:.3f}", f"{m / d:.2f}")]
        made.add_row(str(count), *cells)
    return made
