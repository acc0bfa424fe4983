"""The tables of ``stochprune bench run`` and ``stochprune bench compare``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from stochprune.report.style import literal, terminal_table

if TYPE_CHECKING:
    from rich.table import Table

COLUMNS = ("contender", "part", "us", "/ dense", "95 %", "saved B/w", "peak B/w", "of roof", "bits")


def suite_tables(results: Mapping[str, Any]) -> list[Table]:
    """Return a table for each case, in the order of the file, and those of ``fast_p`` and ``slopes``."""
    cases: dict[str, list[Mapping[str, Any]]] = {}
    for row in results["rows"]:
        sizes = ", ".join(f"{name} {size}" for name, size in row["shape"].items())
        cases.setdefault(f"{row['op']}: {sizes}, {row['dtype']}, {row['mode']}", []).append(row)
    return [_case(title, rows) for title, rows in cases.items()] + _fast(results["fast_p"]) + _slopes(results["slopes"])


def _case(title: str, rows: list[Mapping[str, Any]]) -> Table:
    table = terminal_table(title, gap=1)
    for column in COLUMNS:
        table.add_column(column, justify="left" if column in ("contender", "part") else "right", no_wrap=True)
    wrong: dict[str, str] = {}
    for row in sorted(rows, key=lambda row: row["part"]):
        if row["absent"] is not None:
            continue
        if row["p50"] is None:
            table.add_row(row["contender"], row["part"], "wrong")
            wrong[row["contender"]] = row["wrong"]
            continue
        ratio = row["ratio"] is not None
        table.add_row(
            row["contender"],
            row["part"],
            f"{row['p50']:,.0f}",
            f"{row['ratio']:.2f}" if ratio else "",
            f"{row['ratio_low']:.2f}-{row['ratio_high']:.2f}" if ratio else "",
            _a_weight(row, "saved"),
            _a_weight(row, "peak"),
            "" if row["roof"] is None else f"{row['roof']:.0%}",
            "equal" if row["bits_equal"] else "",
        )
    if wrong:
        table.caption = "\n".join(literal(f"{name} is wrong: {why}") for name, why in wrong.items())
    return table


def _a_weight(row: Mapping[str, Any], name: str) -> str:
    """Return bytes divided by the number of weights."""
    return "" if row[name] is None or not row["weights"] else f"{row[name] / row['weights']:.1f}"


def _fast(found: list[Mapping[str, Any]]) -> list[Table]:
    """Return the table of how often each contender is right and p times as fast as eager; none without contenders."""
    if not found:
        return []
    table = terminal_table("Right, and at least p times as fast as plain PyTorch: share of the cases", gap=2)
    names = [name for name in found[0] if name.startswith("fast_")]
    for name in ("contender", "cases", *(f"p = {name.removeprefix('fast_')}" for name in names)):
        table.add_column(name, justify="right" if name != "contender" else "left")
    for row in found:
        table.add_row(row["contender"], str(row["cases"]), *(f"{row[name]:.0%}" for name in names))
    return [table]


def _slopes(found: list[Mapping[str, Any]]) -> list[Table]:
    """Return the table of slopes with their goal; none without cases of the group ``scaling``."""
    if not found:
        return []
    caption = "1 means proportional. Goal of ours: 0.95 to 1.05; open: the interval lies partly outside."
    table = terminal_table("Slope of log(time) against log(size)", caption, gap=2)
    for column in ("against", "from", "to", "contender", "part", "slope", "95 %", "goal"):
        table.add_column(column, justify="right" if column in ("from", "to", "slope", "95 %") else "left")
    for row in found:
        span = (f"{row['smallest']:,}", f"{row['largest']:,}")
        interval = f"{row['low']:.2f} to {row['high']:.2f}"
        table.add_row(
            row["against"], *span, row["contender"], row["part"], f"{row['slope']:.2f}", interval, row["goal"] or ""
        )
    return [table]


def comparison_table(changes: Sequence[Any]) -> Table:
    """Return a table with one line for each ``Change`` of :mod:`stochprune.bench.compare`."""
    table = terminal_table("Time of ours / time of the baseline, in run A and in run B", gap=2)
    for column in ("case", "part", "contender", "A", "B", "B / A", "95 %", "verdict"):
        table.add_column(column, justify="right" if column in ("A", "B", "B / A", "95 %") else "left", overflow="fold")
    for found in changes:
        table.add_row(
            *map(literal, (found.case.replace("/", " ").replace(",", " "), found.part, found.contender)),
            *(f"{value:.2f}" for value in (found.before, found.after, found.change)),
            f"{found.low:.2f} to {found.high:.2f}",
            found.verdict,
        )
    return table
