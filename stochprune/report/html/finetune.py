"""The view of a run of ``finetune``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from stochprune.report.html import charts
from stochprune.report.html.curves import history_figure
from stochprune.report.html.masks import mask_figures
from stochprune.report.html.parts import (
    Cell,
    Figure,
    Panel,
    Table,
    View,
    flattened,
    is_number,
    short,
    table_of,
)
from stochprune.report.html.sources import Source
from stochprune.report.summary import Paired, Spread, differences, failures, spread_of

ARMS = {
    "retrained": "score's mask, weights trained",
    "finetuned": "fine-tuned mask, weights trained",
    "shuffled": "fine-tuned mask, shuffled",
    "stochastic": "random masks, before pruning",
}
AGAINST = {"retrained": "fine-tuned - score's mask", "shuffled": "fine-tuned - shuffled"}
Groups = Mapping[tuple[str, float], list[Mapping[str, Any]]]


def finetune_view(source: Source) -> View:
    """Return the view of a run of ``finetune``; the masks that its cells stored add to it."""
    content, groups = source.content, dict[tuple[str, float], list[Mapping[str, Any]]]()
    for cell in content["cells"]:
        groups.setdefault((short(cell["score"]), float(cell["sparsity"])), []).append(cell)
    histories = {_name(key): _mean_history([cell["history"] for cell in cells]) for key, cells in groups.items()}
    snapshots = {path.parent.name: found for path, found in source.parts("*-seed0/masks.json")}
    notes = []
    if not snapshots:
        notes.append(
            "The run stores no masks beside its results, so their pictures and histograms are missing. "
            "Runs of this version store them; name the run's folder."
        )
    figures = [
        _gains(groups),
        _errors(groups, Spread.of([float(entry["error"]) for entry in content["dense"]]).mean),
        *history_figure("Learning", "The mean over seeds after each epoch of mask fine-tuning.", histories),
        _densities(groups),
        *mask_figures(snapshots),
    ]
    cells = [{**cell, "density": None, "history": None} for cell in content["cells"]]
    listed = [{key: value for key, value in cell.items() if value is not None} for cell in cells]
    facts = flattened({"configuration": content["configuration"], "versions": content.get("versions", {})})
    tables = [table_of("Errors of each seed, per cent", listed)]
    notes += [f"A cell failed, and the means leave out what it lacks: {short(line)}" for line in failures(content)]
    return View(source.name, "finetune", facts, figures, tables, notes)


def _name(key: tuple[str, float]) -> str:
    return f"{key[0]}, {100 * key[1]:g} % pruned"


def _mean_history(histories: Sequence[Sequence[Mapping[str, Any]]]) -> list[dict[str, float]]:
    """Return the mean over seeds of each number after each epoch."""
    mean = []
    for entries in zip(*filter(None, histories), strict=False):  # a cell that failed has none
        fields = [name for name in entries[0] if all(is_number(entry.get(name)) for entry in entries)]
        mean.append({name: sum(entry[name] for entry in entries) / len(entries) for name in fields})
    return mean


def _gains(groups: Groups) -> Figure:
    records = []
    for key, cells in groups.items():
        for other, series in AGAINST.items():
            if not (gains := differences([cell["errors"] for cell in cells], "finetuned", other)):
                continue
            paired = Paired.of(gains)
            records.append(charts.interval(_name(key), series, paired.mean, paired.half_width))
    listed: list[list[Cell]] = [list(record.values()) for record in records]
    return Figure(
        "Mask fine-tuning against its controls",
        "The difference of errors, paired by seed, in percentage points; left of zero the fine-tuned mask is better. "
        "Both trainings have the same number of epochs. Lines: 95 % intervals (Student), which one seed lacks.",
        [Panel(charts.intervals(records, "difference, percentage points"))],
        table=Table("Differences", ("mask", "difference", "points", "95 % low", "95 % high"), listed),
    )


def _errors(groups: Groups, dense: float) -> Figure:
    scores: dict[str, list[dict[str, Any]]] = {}
    rows: list[list[Any]] = []
    for (score, sparsity), cells in groups.items():
        for arm, label in ARMS.items():
            if (spread := spread_of([cell["errors"][arm] for cell in cells])) is None:
                continue
            record = {"series": label, "x": 100 * sparsity, "y": spread.mean}
            scores.setdefault(score, []).append(record)
            rows.append([score, 100 * sparsity, label, spread.mean, spread.sd])
    x = charts.quantity("x", "weights pruned, per cent")
    return Figure(
        "Errors by sparsity",
        f"Means over seeds. The dense networks: {dense:.2f} per cent. The axis is logarithmic.",
        [Panel(charts.lines(records, x, _error(records)), score) for score, records in scores.items()],
        table=Table("Errors by sparsity", ("score", "% pruned", "arm", "mean error", "std over seeds"), rows),
    )


def _error(records: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    return charts.quantity("y", "error, per cent", scale=charts.scale_of(records, "y"))


def _densities(groups: Groups) -> Figure:
    panels, rows = [], list[list[Any]]()
    for key, cells in groups.items():
        records = []
        densities = [cell["density"] for cell in cells if cell["density"]]
        for layer in densities[0] if densities else ():
            before, after = zip(*(density[layer] for density in densities), strict=True)
            for series, values in (("score's mask", before), ("fine-tuned mask", after)):
                share = 100 * sum(map(float, values)) / len(values)
                records.append({"label": short(layer), "series": series, "x": share})
                rows.append([_name(key), short(layer), series, share])
        if not records:
            continue
        x = charts.quantity("x", "weights kept, per cent", scale=charts.scale_of(records, "x"))
        y = charts.category("label", axis={"labelLimit": 160})
        panels.append(Panel(charts.points(records, x, y, height=max(80, 15 * len(records))), _name(key)))
    return Figure(
        "Density by layer",
        "The share of weights that each mask keeps, the mean over seeds: fine-tuning moves weights between layers.",
        panels,
        table=Table("Density by layer", ("mask", "layer", "of", "% kept"), rows),
    )
