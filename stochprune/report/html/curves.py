"""Learning curves: the numbers of a history by epoch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from stochprune.report.html import charts
from stochprune.report.html.parts import MOST_SERIES, Figure, Panel, Table, is_number, short

MOST_FIELDS = 12
AXES = ("epoch", "step")
History = Sequence[Mapping[str, Any]]


def history_figure(title: str, about: str, histories: Mapping[str, History]) -> list[Figure]:
    """Return a figure of one chart for each number of the histories, over epochs or steps; none without curves.

    Args:
        histories: entries with ``epoch`` or ``step``, by series.
    """
    by_field: dict[str, list[dict[str, Any]]] = {}
    axis = next((a for a in AXES for history in histories.values() for entry in history if a in entry), AXES[0])
    rows: list[list[Any]] = []
    for series, history in histories.items():
        for index, entry in enumerate(history):
            at = entry.get(axis, index + 1)
            for field, value in entry.items():
                if field != axis and is_number(value) and is_number(at):
                    by_field.setdefault(field, []).append({"series": short(series), "x": at, "y": value})
                    rows.append([short(series), at, short(field), value])
    shown = list(histories)[:MOST_SERIES]
    panels = []
    for field, records in list(by_field.items())[:MOST_FIELDS]:
        kept = [record for record in records if record["series"] in map(short, shown)]
        span = max(record["x"] for record in kept) - min(record["x"] for record in kept) if kept else 0
        ticks = {"tickCount": max(1, min(5, int(span))), "tickMinStep": 1}  # more ticks would repeat whole numbers
        x = charts.quantity("x", axis, axis={**ticks, "format": "d"})
        panels.append(Panel(charts.lines(kept, x, charts.quantity("y", "value"), height=170), short(field)))
    if not panels or max(map(len, histories.values())) < 2:  # one entry is no curve
        return []
    if len(histories) > len(shown):
        about += f" The charts show the first {len(shown)} of {len(histories)} series."
    if len(by_field) > MOST_FIELDS:
        about += f" They show the first {MOST_FIELDS} of {len(by_field)} numbers."
    table = Table(title, ("series", axis, "number", "value"), rows)
    return [Figure(title, about, panels, table=table)]
