"""The view of a study, and of ``finetune-lm``, whose results are those of a study."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from stochprune.report.html import charts
from stochprune.report.html.curves import history_figure
from stochprune.report.html.parts import Figure, Panel, Table, View, flattened, is_number, short, table_of
from stochprune.report.html.risks import is_risk, risk_figures
from stochprune.report.html.sources import Source
from stochprune.report.summary import Paired, Spread

PARTS = {
    "rows": "Errors",
    "layers": "Layers",
    "distances": "Distances",
    "shedding": "Weights near zero",
    "failures": "Cells that failed",
}
Rows = Sequence[Mapping[str, Any]]


def study_view(source: Source) -> View:
    """Return the view of a study; the results of the cells in its folder add their histories."""
    content = source.content
    rows = [row for row in content["rows"] if is_number(row.get("error"))]
    perplexity = "exported" in content or any("tokens_per_second" in row for row in rows)
    unit = "perplexity" if perplexity else "error, per cent"
    if rows and all(map(is_risk, rows)):
        compared = risk_figures(rows)
    else:
        compared = [*_differences(rows, unit), *_errors(rows, unit)]
    figures = [*compared, *_costs(rows, unit), *_histories(source)]
    tables = [table_of(title, content[key]) for key, title in PARTS.items() if content.get(key)]
    facts = flattened(
        {key: content[key] for key in ("title", "hours", "exported", "configuration", "versions") if key in content}
    )
    return View(source.name, "finetune-lm" if "exported" in content else "study", facts, figures, tables)


def _groups(rows: Rows, *names: str) -> dict[tuple[Any, ...], list[Mapping[str, Any]]]:
    found: dict[tuple[Any, ...], list[Mapping[str, Any]]] = {}
    for row in rows:
        found.setdefault(tuple(row[name] for name in names), []).append(row)
    return found


def _errors(rows: Rows, unit: str) -> list[Figure]:
    """Return the errors by sparsity. The name with more values, score or arm, becomes the series."""
    pruned = [row for row in rows if row["score"] != "dense"]
    if not pruned:
        return []
    few, many = sorted(("score", "arm"), key=lambda name: len({str(row[name]) for row in pruned}))
    panels, table = [], list[list[Any]]()
    for key, group in _groups(pruned, "data", "model", few).items():
        title, records = short(", ".join(map(str, key))), []
        for (series, sparsity), same in _groups(group, many, "sparsity").items():
            spread = Spread.of([float(row["error"]) for row in same])
            records.append({"series": short(series), "x": 100 * float(sparsity), "y": spread.mean})
            table.append([title, short(series), 100 * float(sparsity), spread.mean, spread.sd, len(same)])
        x = charts.quantity("x", "weights pruned, per cent")
        panels.append(Panel(charts.lines(records, x, charts.quantity("y", unit), height=260), title))
    dense = [float(row["error"]) for row in rows if row["score"] == "dense"]
    about = "Means over seeds." + (f" The dense networks: {Spread.of(dense).mean:.4g}." if dense else "")
    columns = ("network", many, "% pruned", f"mean {unit}", "std over seeds", "seeds")
    return [Figure("Errors by sparsity", about, panels, table=Table("Errors by sparsity", columns, table))]


def _differences(rows: Rows, unit: str) -> list[Figure]:
    """Return each arm minus the first one of the same network and sparsity, paired by seed."""
    panels, table = [], list[list[Any]]()
    for key, group in _groups([row for row in rows if row["score"] != "dense"], "data", "model", "sparsity").items():
        arms = _groups(group, "score", "arm")
        control, *others = arms
        base = {row["seed"]: float(row["error"]) for row in arms[control]}
        title = f"{short(key[0])}, {short(key[1])}, {100 * float(key[2]):g} % pruned, minus {_arm(control)}"
        records = []
        for arm in others:
            paired = [float(row["error"]) - base[row["seed"]] for row in arms[arm] if row["seed"] in base]
            if not paired:
                continue
            found = Paired.of(paired)
            records.append(charts.interval(_arm(arm), "difference", found.mean, found.half_width))
            table.append([title, *records[-1].values(), len(paired)])
        if records:
            panels.append(Panel(charts.intervals(records, "difference"), title))
    if not panels:
        return []
    columns = ("control", "arm", "number", "difference", "95 % low", "95 % high", "seeds")
    about = (
        f"The difference of {unit} to the first arm of the study, paired by seed; left of zero is better. Lines: 95 % "
        "intervals (Student), which one seed lacks."
    )
    listed = Table("Differences", columns, table)
    return [Figure("Differences to the first arm", about, panels, table=listed, wide=True)]


def _arm(key: tuple[Any, ...]) -> str:
    return short(", ".join(str(part) for part in key if part not in ("none", "")))


def _costs(rows: Rows, unit: str) -> list[Figure]:
    """Return error against processor time, where the rows hold it."""
    timed = [row for row in rows if is_number(row.get("seconds"))]
    if not timed:
        return []
    records = [
        {
            "series": short(row["score"]),
            "x": row["seconds"],
            "y": row["error"],
            "label": _arm((row["arm"], row["sparsity"])),
        }
        for row in timed
    ]
    x = charts.quantity("x", "seconds of the processor", scale=charts.scale_of(records, "x"))
    spec = charts.points(records, x, charts.quantity("y", unit))
    about = "Each point is one run of an arm: what it costs and what it reaches."
    return [Figure("Error against time", about, [Panel(spec)], table=table_of("Error against time", timed))]


def _histories(source: Source) -> list[Figure]:
    histories = {}
    for path, content in source.parts("cells/*/result.json"):
        history = content["result"].get("history") if isinstance(content.get("result"), Mapping) else None
        if history:
            arm = content["configuration"].get("arm", {})
            name = arm.get("name", path.parent.name) if isinstance(arm, Mapping) else path.parent.name
            histories[f"{name}, {content['configuration'].get('sparsity', '')}"] = history
    return history_figure("Learning", "After each epoch of the arms that train.", histories)
