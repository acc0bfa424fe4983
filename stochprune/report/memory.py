"""The tables of ``stochprune plan``."""

from __future__ import annotations

from typing import TYPE_CHECKING

from stochprune.report.style import terminal_table

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from rich.table import Table


def memory_table(name: str, parts: Mapping[str, float], masked: int, peak: float) -> Table:
    """Return the table of a memory plan: for each part GB, and bytes for each masked weight."""
    made = terminal_table(
        f"{name}: {masked:,} masked weights",
        "1 GB is 10^9 bytes. Without accumulation, only the larger of gradients and activations counts for the peak.",
    )
    made.add_column("part")
    for column in ("GB", "bytes a weight"):
        made.add_column(column, justify="right")
    for part, size in {**parts, "peak": peak}.items():
        if part == "peak":
            made.add_section()
        made.add_row(part, f"{size / 1e9:.2f}", f"{size / masked:.2f}")
    return made


def scaling_table(name: str, rows: Sequence[tuple[int, float, Mapping[str, float], int]]) -> Table:
    """Return the table of a model on several GPUs: their number, the peak of one, what it sends in a step by
    collective, both in bytes, and the sequences of a step over all GPUs."""
    made = terminal_table(name, "GB of one GPU, 10^9 bytes; sent: in a step, as rings send it.")
    kinds = list(dict.fromkeys(kind for _, _, sent, _ in rows for kind in sent))
    for column in ("GPUs", "memory", *kinds, "sent", "sequences"):
        made.add_column(column, justify="right")
    for ranks, peak, sent, sequences in rows:
        sizes = (peak, *(sent.get(kind, 0.0) for kind in kinds), sum(sent.values()))
        made.add_row(str(ranks), *(f"{size / 1e9:.1f}" for size in sizes), str(sequences))
    return made
