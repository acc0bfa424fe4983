"""The tables of a study: CSV with every number, Markdown with means over seeds."""

from __future__ import annotations

import csv
import itertools
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from stochprune.report.summary import Spread

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
    """Return the tables of a study: test errors, and distances between the distributions of kept weights."""
    parts = [f"# {results['title']}"]
    for data, model in dict.fromkeys((row["data"], row["model"]) for row in results["rows"]):
        rows, distances = (
            [row for row in results[name] if (row["data"], row["model"]) == (data, model)]
            for name in ("rows", "distances")
        )
        dense = [row["error"] for row in rows if row["score"] == "dense" and row["error"] is not None]
        pruned = [row for row in rows if row["score"] != "dense"]
        seeds = len({row["seed"] for row in rows})
        parts.append(f"## {model} on {data}")
        if any(row["error"] is not None for row in pruned):
            reference = f" Dense: {_spread(dense)}." if dense else ""
            over = f"mean ± standard deviation of {seeds} seeds" if seeds > 1 else "one seed"
            parts.append(f"Test error in per cent, {over}.{reference}")
            parts.append(_pivot(pruned, "error", ("score", "arm")))
        for when, (column, what) in itertools.product(("before", "after"), DISTANCES.items()):
            chosen = [row for row in distances if row["when"] == when]
            if chosen:
                parts.append(
                    f"Wasserstein-1 distance of {what} to those under the score's own mask, {when} training, "
                    "mean ± standard deviation over layers and seeds."
                )
                parts.append(_pivot(chosen, column, ("score", "arm")))
    return "\n\n".join(parts) + "\n"


def _pivot(rows: Sequence[Mapping[str, Any]], value: str, keys: tuple[str, ...]) -> str:
    """Return a Markdown table with a line for each of the ``keys`` and a column for each sparsity."""
    sparsities = sorted({row["sparsity"] for row in rows})
    lines = [
        _line((*keys, *(f"{100 * sparsity:g} %" for sparsity in sparsities))),
        _line(["---"] * (len(keys) + len(sparsities))),
    ]
    for which in dict.fromkeys(tuple(row[key] for key in keys) for row in rows):
        mine = [row for row in rows if tuple(row[key] for key in keys) == which]
        cells = [[row[value] for row in mine if row["sparsity"] == sparsity] for sparsity in sparsities]
        lines.append(_line([*which, *(_cell(values) for values in cells)]))
    return "\n".join(lines)


def _line(cells: Iterable[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _cell(values: Sequence[float | None]) -> str:
    """Return mean and standard deviation, and the number of missing values (diverged trainings, empty layers)."""
    there = [value for value in values if value is not None]
    lost = len(values) - len(there)
    return (_spread(there) if there else "") + (f" ({lost} of {len(values)} missing)" if lost else "")


def _spread(values: Sequence[float]) -> str:
    spread = Spread.of(values)
    digits = 2 if spread.mean >= 1 else 4
    return f"{spread.mean:.{digits}f}" + (f" ± {spread.sd:.{digits}f}" if len(values) > 1 else "")
