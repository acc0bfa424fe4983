"""Write docs/benchmark-cpu.md and a row of the ledger from the JSON of pytest-benchmark.

    python -m bench.report .benchmarks/cpu.json

Times are medians of one run. A tax above 1 means slower than dense; an advantage above 1 means faster than the best
other contender.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch

import stochprune
from bench.tables import Row, memory, sampling, steps

ROOT = Path(__file__).parent.parent
PAGE = ROOT / "docs" / "benchmark-cpu.md"
PAGE_TABLES = "## Tables"  # the text above this heading is written by hand


def rows_of(report: Row) -> list[Row]:
    """Return one row per benchmark: its extra_info and its median in milliseconds."""
    return [{**b["extra_info"], "ms": 1e3 * b["stats"]["median"]} for b in report["benchmarks"]]


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
