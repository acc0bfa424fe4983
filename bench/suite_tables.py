"""Markdown tables of a run of the benchmark suite. This file needs no torch: the documentation site uses it, too."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from bench.tables import Row, table


def about(found: Row) -> str:
    """Return the machine, the versions and the commit of a run."""
    versions = found["versions"]
    return (
        f"{found['machine']} ({found['device']}), {found['threads']} threads, torch {versions['torch']}, "
        f"stochprune {versions['stochprune']} at {found['commit'][:10]}, {found['date']}; load of the machine at the "
        f"beginning {found['load'][0]:.1f}; medians of one run, milliseconds."
    )


def times(rows: Iterable[Row]) -> str:
    """Return the table of the times of one op: a line for each case and part, a column for each contender."""
    lines: dict[tuple[str, ...], dict[str, Row]] = {}
    for row in rows:
        lines.setdefault((_sizes(row), row["dtype"], row["mode"], row["part"]), {})[row["contender"]] = row
    present = {name: row["law"] for by in lines.values() for name, row in by.items() if row["absent"] is None}
    names = sorted(present, key=lambda name: (present[name] != "none", not name.startswith("ours")))
    body = []
    for case, by in lines.items():
        ours = next((row for name, row in by.items() if name.partition(",")[0] == "ours"), {})  # "ours" comes first
        tax = advantage = ""
        if ours.get("ratio") is not None:
            tax = f"**{ours['ratio']:.2f}** ({ours['ratio_low']:.2f} to {ours['ratio_high']:.2f})"
        if ours.get("advantage") is not None:
            advantage = f"{ours['advantage']:.1f}x ({ours['best_other']})"
        body.append([*case, *(_milliseconds(by.get(name)) for name in names), tax, advantage])
    return table(["sizes", "dtype", "mode", "part", *names, "tax, 95 %", "faster than the best other"], body)


def memory(rows: Iterable[Row]) -> str:
    """Return the table of bytes a weight of a step, of the largest case of each op, dtype and mode."""
    steps = [row for row in rows if row["part"] == "step" and row["p50"] is not None and row["weights"]]
    largest: dict[tuple[str, ...], list[int]] = {}
    for row in steps:
        key = (row["op"], row["dtype"], row["mode"])
        size = [row["weights"], -sum(row["shape"].values())]  # of equal weights, that of the smallest batch
        largest[key] = max(largest.get(key, size), size)
    kept = [r for r in steps if [r["weights"], -sum(r["shape"].values())] == largest[r["op"], r["dtype"], r["mode"]]]
    lines = [
        [
            row["op"],
            _sizes(row),
            row["dtype"],
            row["mode"],
            row["contender"],
            _a_weight(row, "saved"),
            _a_weight(row, "peak"),
        ]
        for row in kept
    ]
    return table(
        ["op", "sizes", "dtype", "mode", "contender", "saved for backward", "peak of a step, gradients included"], lines
    )


def fast(found: Iterable[Row]) -> str:
    """Return the table of ``fast_p``."""
    rows = list(found)
    levels = [name for name in rows[0] if name.startswith("fast_")] if rows else []
    lines = [[row["contender"], str(row["cases"]), *(f"{100 * row[name]:.0f} %" for name in levels)] for row in rows]
    return table(["contender", "cases", *(f"p = {name.removeprefix('fast_')}" for name in levels)], lines)


def slopes(found: Iterable[Row]) -> str:
    """Return the table of slopes; a goal that was missed is bold."""
    lines = []
    for row in found:
        goal = "**missed**" if row["goal"] == "missed" else row["goal"] or ""
        others = ", ".join(f"{name} {size:,}" for name, size in row["fixed"].items())
        sizes = f"{row['smallest']:,} to {row['largest']:,}"
        interval = f"{row['slope']:.2f} ({row['low']:.2f} to {row['high']:.2f})"
        lines.append([row["against"], sizes, others, row["contender"], interval, goal])
    return table(["against", "sizes", "the others", "contender", "slope, 95 %", "goal 0.95 to 1.05"], lines)


def untimed(rows: Iterable[Row]) -> list[str]:
    """Return a line for each contender that was wrong or absent, with its reason."""
    said: dict[str, None] = {}
    for row in rows:
        for what in ("wrong", "absent"):
            if row[what] is not None:
                said[f"- {row['op']}, {row['dtype']}: `{row['contender']}` {what}: {' '.join(row[what].split())}"] = (
                    None
                )
    return list(said)


def _sizes(row: Row) -> str:
    return ", ".join(f"{name} {size}" for name, size in row["shape"].items())


def _milliseconds(row: Any) -> str:
    if row is None or row["absent"] is not None:
        return ""
    return "wrong" if row["p50"] is None else f"{row['p50'] / 1e3:.3g}"


def _a_weight(row: Row, name: str) -> str:
    return "" if row[name] is None else f"{row[name] / row['weights']:.1f}"
