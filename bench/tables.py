"""Markdown tables of the ledger's rows. This file needs no torch: the documentation site makes its tables with it.

A tax above 1 means slower than dense; an advantage above 1 means faster than the best other contender.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

Row = dict[str, Any]
WITHOUT_AMX = "ours without AMX"  # bfloat16 where the processor has it


def table(header: Iterable[str], lines: Iterable[Iterable[str]]) -> str:
    """Return a Markdown table."""
    head = list(header)
    rows = [head, ["---"] * len(head), *(list(line) for line in lines)]
    return "\n".join("| " + " | ".join(row) + " |" for row in rows)


def steps(rows: list[Row]) -> str:
    """Return the table of masking tax and advantage by size, dtype, mode and part."""
    cases: dict[tuple[Any, ...], dict[str, Row]] = {}
    for row in rows:
        if "contender" in row:
            name = (row["width"], row["batch"], row["dtype"], row["mode"], row["part"])
            cases.setdefault(name, {})[row["contender"]] = row
    without_amx = [WITHOUT_AMX] if any(WITHOUT_AMX in by for by in cases.values()) else []
    lines = []
    for (width, batch, *rest), by in cases.items():
        ours, dense = by["ours"]["ms"], by["dense"]["ms"]
        others = {name: row["ms"] for name, row in by.items() if name != "dense" and not name.startswith("ours")}
        best = min(others, key=lambda name: others[name])
        times = [f"{by[name]['ms']:.1f}" if name in by else "" for name in ("dense", "ours", *without_amx, *others)]
        lines.append(
            [f"{width}², {batch}", *rest, *times, f"**{ours / dense:.2f}**", f"{others[best] / ours:.1f}x ({best})"]
        )
    names = [name for name in next(iter(cases.values())) if name != "dense" and not name.startswith("ours")]
    head = [
        "weight, batch",
        "dtype",
        "mode",
        "part",
        "dense",
        "ours",
        *without_amx,
        *names,
        "tax",
        "faster than the best other",
    ]
    return table(head, lines)


def memory(rows: list[Row]) -> str:
    """Return the table of bytes per weight by contender, at the largest size of each dtype."""
    lines = []
    for row in rows:
        if row.get("part") == "step" and row["width"] == 4096 and row["batch"] == 128:
            lines.append([row["contender"], row["dtype"], row["mode"], f"{row['saved']:.1f}", f"{row['peak']:.1f}"])
    return table(["contender", "dtype", "mode", "saved for backward", "peak of a step, gradients included"], lines)


def sampling(rows: list[Row]) -> str:
    """Return the table of sampling and masking times beside the time of a copy."""
    by = {row["what"]: row["ms"] for row in rows if "what" in row}
    lines = [[what, f"{ms:.2f}", f"{1e6 * ms / 4096**2:.3f}", f"{ms / by['copy']:.2f}"] for what, ms in by.items()]
    return table(["4096², fp32", "ms", "ns per weight", "times a copy"], lines)
