"""The tables of a study: CSV with every number, Markdown with means over seeds."""

from __future__ import annotations

import csv
import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from stochprune.report.fraction import fractions_markdown
from stochprune.report.methods import methods_markdown
from stochprune.report.pivot import pivot, spread
from stochprune.report.risks import risks_markdown
from stochprune.report.summary import cell_name, measured, unit

DISTANCES = {
    "wasserstein": "the kept weights",
    "wasserstein_zeros": "all weights, pruned ones as zeros,",
}


def write_csv(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Write one line per row; columns are in the order in which they first appear, missing values are empty."""
    columns = list(dict.fromkeys(key for row in rows for key in row))
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, columns, restval="", lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def study_markdown(results: Mapping[str, Any]) -> str:
    """Return the tables of a study: errors, and distances between the distributions of kept weights."""
    settings = results["configuration"]["settings"]
    parts, error = [f"# {results['title']}"], measured(settings)
    for data, model in dict.fromkeys((row["data"], row["model"]) for row in results["rows"]):
        rows, distances = (
            [row for row in results[name] if (row["data"], row["model"]) == (data, model)]
            for name in ("rows", "distances")
        )
        dense = [row["error"] for row in rows if row["score"] == "dense" and row["error"] is not None]
        pruned = [row for row in rows if row["score"] != "dense"]
        seeds = len({row["seed"] for row in rows})
        parts.append(f"## {model} on {data}")
        if rows and "bound" in rows[0]:
            parts += risks_markdown(rows)
            continue
        if any(row["error"] is not None for row in pruned):
            reference = f" Dense: {spread(dense)}." if dense else ""
            over = f"mean ± standard deviation of {seeds} seeds" if seeds > 1 else "one seed"
            parts.append(f"{error}{unit(settings)}, {over}.{reference}")
            parts.append(pivot(pruned, "error", ("score", "arm")))
        if timed := [row for row in pruned if row.get("seconds") is not None]:
            parts += methods_markdown(timed, error, "in percentage points, " if unit(settings) else "")
        if bounded := [row for row in pruned if "certificate" in row]:
            parts += fractions_markdown(bounded)
        for when, (column, what) in itertools.product(("before", "after"), DISTANCES.items()):
            chosen = [row for row in distances if row["when"] == when]
            if chosen:
                parts.append(
                    f"Wasserstein-1 distance of {what} to those under the score's own mask, {when} training, "
                    "mean ± standard deviation over layers and seeds."
                )
                parts.append(pivot(chosen, column, ("score", "arm")))
        failed = [row for row in results.get("failures", ()) if (row["data"], row["model"]) == (data, model)]
        if failed:
            parts.append("Cells that failed, whose missing errors the means leave out:")
            parts.append("\n".join(f"- {cell_name(row)}: {row['reason']}" for row in failed))
    return "\n\n".join(parts) + "\n"
