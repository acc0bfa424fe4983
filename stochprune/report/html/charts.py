"""Vega-Lite specifications of the kinds of charts that a page has.

Texts from result files are values of data only, never names of fields, titles or expressions. Colours, fonts and the
width come from the page, so that one specification serves light and dark.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal

Record = Mapping[str, Any]
Scale = Literal["linear", "log"]
SCHEMA = "https://vega.github.io/schema/vega-lite/v6.json"  # a name; nothing is loaded
SERIES = "series"
MOST_POINTS, MOST_NAMES = 5000, 80


def chart(
    data: Sequence[Record], layers: Sequence[Mapping[str, Any]], *, height: int = 240, most: int = MOST_POINTS
) -> dict[str, Any]:
    """Return a specification of layers over one set of records, as wide as its box; a title says what is cut."""
    cut = {"title": f"The first {most:,} of {len(data):,} records"} if len(data) > most else {}
    return {
        "$schema": SCHEMA,
        **cut,
        "data": {"values": data[:most]},
        "width": "container",
        "height": height,
        "layer": list(layers),
    }


def quantity(field: str, title: str, *, scale: Scale = "linear", zero: bool = False, **more: Any) -> dict[str, Any]:
    """Return the channel of a number."""
    how = {"type": scale, "nice": False, "padding": 12} if scale == "log" else {"zero": zero, "nice": True}
    return {"field": field, "type": "quantitative", "title": title, "scale": how, "axis": {"format": ".4~g"}, **more}


def scale_of(data: Iterable[Record], field: str) -> Scale:
    """Return the logarithmic scale if all values are positive."""
    return "log" if all(record[field] > 0 for record in data) else "linear"


def category(field: str, title: str | None = None, **more: Any) -> dict[str, Any]:
    """Return the channel of a name, in the order of the records."""
    return {"field": field, "type": "nominal", "title": title, "sort": None, **more}


def colour(data: Iterable[Record]) -> dict[str, Any]:
    """Return the colour of the series, with a legend below the chart if there are several."""
    names = list(dict.fromkeys(record[SERIES] for record in data))
    columns = 2 if all(len(name) <= 14 for name in names) else 1  # two long names do not fit into a phone
    legend = {"orient": "bottom", "columns": columns, "labelLimit": 250}
    return category(SERIES, legend=legend if len(names) > 1 else None, scale={"domain": names})


def lines(data: Sequence[Record], x: Mapping[str, Any], y: Mapping[str, Any], *, height: int = 240) -> dict[str, Any]:
    """Return a chart of a line with points for each series; a click on its legend fades the others.

    Args:
        data: records with ``series``, and the fields of x and y.
    """
    chosen = {"name": "chosen", "select": {"type": "point", "fields": [SERIES]}, "bind": "legend"}
    fade = {"condition": {"param": "chosen", "value": 1}, "value": 0.12}
    encoding = {"x": x, "y": y, "color": colour(data), "opacity": fade, "tooltip": tooltip(SERIES, x, y)}
    marks = [{"type": "line", "strokeWidth": 2}, {"type": "point", "filled": True, "size": 45}]
    layers = [{"mark": mark, "encoding": encoding} for mark in marks]
    layers[1]["params"] = [chosen]
    return chart(data, layers, height=height)


def points(data: Sequence[Record], x: Mapping[str, Any], y: Mapping[str, Any], *, height: int = 300) -> dict[str, Any]:
    """Return a scatter plot whose series differ by colour and shape."""
    encoding = {"x": x, "y": y, "color": colour(data), "shape": colour(data), "tooltip": tooltip(SERIES, x, y, "label")}
    return chart(
        data, [{"mark": {"type": "point", "size": 70, "strokeWidth": 1.8}, "encoding": encoding}], height=height
    )


def interval(label: str, series: str, value: float, half_width: float | None) -> dict[str, Any]:
    """Return the record of a difference and its interval, for :func:`intervals`."""
    low, high = (None, None) if half_width is None else (value - half_width, value + half_width)
    return {"label": label, "series": series, "value": value, "low": low, "high": high}


def intervals(data: Sequence[Record], title: str) -> dict[str, Any]:
    """Return a point and an interval for each record of :func:`interval`, one below another, and a line at zero."""
    y = category("label", sort=list(dict.fromkeys(record["label"] for record in data)))
    x = quantity("value", title, zero=True)
    zero = {"mark": {"type": "rule", "strokeDash": [4, 3]}, "encoding": {"x": {"datum": 0}}}
    across = {"y": y, "yOffset": category(SERIES), "color": colour(data)}
    bar = {  # shown only where there are intervals: Vega warns of an axis without numbers
        "mark": {"type": "rule", "strokeWidth": 2},
        "encoding": {**across, "x": {"field": "low", "type": "quantitative", "title": title}, "x2": {"field": "high"}},
        "transform": [{"filter": "isValid(datum.low)"}],
    }
    mark = {"type": "point", "filled": True, "size": 70}
    point = {"mark": mark, "encoding": {**across, "x": x, "tooltip": tooltip(SERIES, y, x, "low", "high")}}
    known = [bar] if any(record["low"] is not None for record in data) else []
    return chart(data, [zero, *known, point], height=_height(data, 90), most=MOST_NAMES)


def bars(data: Sequence[Record], x: Mapping[str, Any], y: Mapping[str, Any]) -> dict[str, Any]:
    """Return horizontal bars, one for each record."""
    encoding = {"x": x, "y": y, "tooltip": tooltip(y, x)}
    return chart(data, [{"mark": "bar", "encoding": encoding}], height=_height(data, 80), most=MOST_NAMES)


def _height(data: Sequence[Record], least: int) -> int:
    return max(least, 24 * min(len(data), MOST_NAMES))


def tooltip(*fields: Mapping[str, Any] | str) -> list[dict[str, Any]]:
    """Return the tooltip of channels, with their titles, and of fields."""
    found = []
    for field in fields:
        if isinstance(field, str):
            found.append({"field": field, "type": "nominal"})
        else:
            kind = {key: field[key] for key in ("field", "type") if key in field}
            more = {"title": field["title"]} if field.get("title") else {}
            number = {"format": ".4~g"} if field.get("type") == "quantitative" else {}
            found.append({**kind, **more, **number})
    return found
