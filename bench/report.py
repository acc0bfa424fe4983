"""Write docs/benchmark-cpu.md and a row of the ledger from the JSON of pytest-benchmark.

    python -m bench.report .benchmarks/cpu.json

Times are medians of one run. A tax above 1 means slower than dense; an advantage above 1 means faster than the best
other contender.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch

import stochprune
from bench.bench_masked_linear import WITHOUT_AMX

ROOT = Path(__file__).parent.parent
PAGE = ROOT / "docs" / "benchmark-cpu.md"
PAGE_TABLES = "## Tables"  # the text above this heading is written by hand
Row = dict[str, Any]


def rows_of(report: Row) -> list[Row]:
    """Return one row per benchmark: its extra_info and its median in milliseconds."""
    return [{**b["extra_info"], "ms": 1e3 * b["stats"]["median"]} for b in report["benchmarks"]]


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
    lines = []
    for (width, batch, *rest), by in cases.items():
        ours, dense = by["ours"]["ms"], by["dense"]["ms"]
        others = {name: row["ms"] for name, row in by.items() if name != "dense" and not name.startswith("ours")}
        best = min(others, key=lambda name: others[name])
        times = [f"{by[name]['ms']:.1f}" if name in by else "" for name in ("dense", "ours", WITHOUT_AMX, *others)]
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
        WITHOUT_AMX,
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


def main(path: str) -> None:
    """Write the page of tables and the ledger row beside the earlier ones."""
    report = json.loads(Path(path).read_text())
    rows = rows_of(report)
    machine, commit = report["machine_info"]["cpu"], report["commit_info"]
    about = (
        f"{machine.get('brand_raw', 'CPU')}, {torch.get_num_threads()} threads, torch {torch.__version__}, "
        f"stochprune {stochprune.__version__} at {commit['id'][:10]}, {report['datetime'][:10]}; medians, milliseconds."
    )
    text = "\n\n".join([about, steps(rows), memory(rows), sampling(rows)])
    name = f"cpu-{report['datetime'][:10]}-{commit['id'][:10]}"
    kept = {"about": about, "commit": commit["id"], "dirty": commit["dirty"], "rows": rows}
    (ROOT / "bench" / "results" / f"{name}.json").write_text(json.dumps(kept, indent=1) + "\n")
    heading = PAGE.read_text().partition(PAGE_TABLES)[0]
    PAGE.write_text(f"{heading}{PAGE_TABLES}\n\n{text}\n")
    print(text)


if __name__ == "__main__":
    main(sys.argv[1])
