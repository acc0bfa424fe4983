"""Write docs/benchmark-cpu.md and a file of the ledger from a run of the suite: the second step of ``make bench``.

    python -m bench.report runs/bench-<digest>

The ledger gets the file of results byte for byte, so that ``stochprune bench compare`` and ``stochprune report`` read
it.
"""

from __future__ import annotations

import argparse
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

from bench import suite_tables
from bench.suite import KIND
from bench.tables import Row
from stochprune.runs.files import CheckpointError, read_json

ROOT = Path(__file__).parent.parent
PAGE = ROOT / "docs" / "benchmark-cpu.md"
LEDGER = ROOT / "bench" / "results"
PAGE_TABLES = "## Tables"  # the text above this heading is written by hand


def page(found: Row) -> str:
    """Return the tables of the page."""
    ops: dict[str, list[Row]] = {}
    for row in found["rows"]:
        if row["group"] != "scaling":
            ops.setdefault(row["op"], []).append(row)
    parts = [suite_tables.about(found)]
    for op, rows in ops.items():
        parts += [f"### {op}", suite_tables.times(rows)]
    parts += ["### Bytes a weight", suite_tables.memory([row for rows in ops.values() for row in rows])]
    if found["fast_p"]:
        parts += ["### Right and fast", suite_tables.fast(found["fast_p"])]
    if found["slopes"]:
        parts += ["### Scaling", suite_tables.slopes(found["slopes"])]
    if lines := suite_tables.untimed(found["rows"]):
        parts += ["### Not timed", "\n".join(lines)]
    return "\n\n".join(parts)


def results(path: Path) -> tuple[Path, Row]:
    """Return the file of results of a run, and its content.

    Raises:
        CheckpointError: it is damaged, or is no run of the suite.
        ValueError: it is not finished, or its times mean nothing.
    """
    path = path / "results.json" if path.is_dir() else path
    found = read_json(path, "result of `stochprune bench run`")
    if found.get("kind") != KIND:
        raise CheckpointError(f"{path} is not a result of `stochprune bench run`")
    if found["left"] or found["configuration"]["small"] or found["configuration"]["only"]:
        raise ValueError(
            f"{path} is unfinished, or has only some cases, or those of --small; the ledger takes whole runs"
        )
    return path, found


def main(arguments: Sequence[str] | None = None) -> int:
    """Write the ledger's file, and the page if the run was on a CPU."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", type=Path, help="a folder of `stochprune bench run`, or its results.json")
    try:
        path, found = results(parser.parse_args(arguments).run)
    except (CheckpointError, ValueError) as error:
        parser.error(str(error))
    kind = "cpu" if found["device"] == "cpu" else "suite-gpu"
    kept = LEDGER / f"{kind}-{found['date']}-{found['commit'][:10]}.json"
    shutil.copyfile(path, kept)
    print(kept)
    if kind == "cpu":
        heading = PAGE.read_text().partition(PAGE_TABLES)[0]
        PAGE.write_text(f"{heading}{PAGE_TABLES}\n\n{page(found)}\n")
        print(PAGE)
    return 0


if __name__ == "__main__":
    sys.exit(main())
