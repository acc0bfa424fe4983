"""The pictures of a study of certificates: each learnt posterior against the prior itself, its control."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from stochprune.report.html import charts
from stochprune.report.html.accounts import CONTROL
from stochprune.report.html.parts import Figure, Panel, Table, is_number, short
from stochprune.report.summary import Paired

NUMBERS = {"bound": "certificate", "mean_loss": "mean loss of the draws", "error": "test error"}
Rows = Sequence[Mapping[str, Any]]


def is_risk(row: Mapping[str, Any]) -> bool:
    """Return True for the row of a certificate of a study."""
    return all(is_number(row.get(name)) for name in NUMBERS)


def risk_figures(rows: Rows) -> list[Figure]:
    """Return the differences of each posterior to the prior of the same run, paired by seed; none without a prior."""
    runs: dict[tuple[str, str, str, str], dict[str, dict[Any, Mapping[str, Any]]]] = {}
    for row in rows:
        family, _, objective = str(row["arm"]).rpartition(", ")
        key = (str(row["data"]), str(row["model"]), str(row["score"]), family)
        runs.setdefault(key, {}).setdefault(objective, {})[row["seed"]] = row
    differences, table = dict[str, list[dict[str, Any]]](), list[list[Any]]()
    for key, objectives in runs.items():
        control, title = objectives.pop(CONTROL, {}), short(", ".join(key))
        for objective, by_seed in objectives.items():
            for name, series in NUMBERS.items():
                paired = [float(row[name] - control[seed][name]) for seed, row in by_seed.items() if seed in control]
                if paired:
                    found = Paired.of(paired)
                    record = charts.interval(short(objective), series, found.mean, found.half_width)
                    differences.setdefault(title, []).append(record)
                    table.append([title, *record.values(), len(paired)])
    columns = ("run", "objective", "number", "difference, points", "95 % low", "95 % high", "seeds")
    about = (
        "The difference to the control, the prior itself, in percentage points and paired by seed; left of zero the "
        "learnt posterior is better. Lines: 95 % intervals over the seeds (Student), which one seed lacks."
    )
    listed = Table("Differences to the prior", columns, table)
    x = "points against the prior"
    panels = [Panel(charts.intervals(records, x), title) for title, records in differences.items()]
    title = "Learnt posteriors against the prior"
    return [Figure(title, about, panels, table=listed, wide=True)] if panels else []
