"""The views of the benchmark suite: one run of ``stochprune bench run``, and two runs side by side."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from stochprune.report.html import charts
from stochprune.report.html.bench import roofline
from stochprune.report.html.parts import Figure, Panel, Table, View, flattened, is_number, short, table_of
from stochprune.report.html.sources import Source

TABLES = ("rows", "fast_p", "slopes")
SCALING = "scaling"
BATCH = ("tokens", "examples", "batch")
"""Names of the size that a batch has."""
Rows = Sequence[Mapping[str, Any]]


def suite_view(source: Source) -> View:
    """Return the view of a run of the suite."""
    content = source.content
    rows = sorted(content["rows"], key=lambda row: not row["contender"].startswith("ours"))  # ours: strongest colour
    timed = [row for row in rows if is_number(row["p50"])]
    figures = [
        *_tax([row for row in timed if row["group"] != SCALING]),
        *_bytes(timed),
        *_roofline(timed, content["roof"]),
        *_fast(content["fast_p"]),
        *_slopes(content.get("slopes", [])),
        *_growth([row for row in timed if row["group"] == SCALING]),
    ]
    untimed = [row for row in rows if not is_number(row["p50"])]
    tables = [table_of("All times, in microseconds", timed), table_of("Without a time: wrong, or absent", untimed)]
    left = [f"The run is not finished: {content['left']} cases are left."] if content["left"] else []
    facts = flattened({key: value for key, value in content.items() if key not in TABLES})
    return View(source.name, "bench run", facts, figures, [table for table in tables if table], left)


def comparison_view(name: str, changes: Iterable[Any], notes: Sequence[str]) -> View:
    """Return the view of two runs.

    Args:
        changes: of :func:`stochprune.bench.compare.compare`.
        notes: what the runs do not share.
    """
    panels: dict[str, list[dict[str, Any]]] = {}
    rows = list[list[Any]]()
    for found in changes:
        ends = {"value": found.change - 1, "low": found.low - 1, "high": found.high - 1}
        record = {"label": short(found.part), "series": short(found.contender), **ends}
        panels.setdefault(_words(found.case), []).append(record)
        numbers = (found.before, found.after, found.change, found.low, found.high)
        rows.append([_words(found.case), found.part, found.contender, *numbers, found.verdict])
    charted = [
        Panel(charts.intervals(records, "ratio B / ratio A, minus 1"), title) for title, records in panels.items()
    ]
    columns = ("case", "part", "contender", "ratio A", "ratio B", "B / A", "95 % low", "95 % high", "verdict")
    about = (
        "The time of ours divided by that of the baseline, in run B against run A; right of zero B is slower. The "
        "intervals are conservative: they join the ends of both 95 % intervals."
    )
    table = Table("Changes", columns, rows)
    figures = [Figure("Run B against run A", about, charted, table=table, wide=True)] if rows else []
    return View(name, "bench compare", {}, figures, [table] if rows else [], [short(note) for note in notes])


def _words(case: str) -> str:
    """Return the name of a case with spaces, at which a line can end."""
    return short(case.replace(",", ", ").replace("/", ", "))


def _sizes(row: Mapping[str, Any], *without: str) -> str:
    return ", ".join(f"{name} {size}" for name, size in row["shape"].items() if name not in without)


def _case(row: Mapping[str, Any], *without: str) -> str:
    return short(", ".join((row["op"], _sizes(row, *without), row["dtype"], row["mode"])))


def _tax(rows: Rows) -> list[Figure]:
    panels: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        batch = next((row["shape"][name] for name in BATCH if name in row["shape"]), None)
        if row["part"] == "step" and is_number(row["ratio"]) and batch is not None:
            record = {"series": short(row["contender"]), "x": batch, "y": row["ratio"]}
            ends = {"low": row["ratio_low"], "high": row["ratio_high"]}
            panels.setdefault(_case(row, *BATCH), []).append(record | ends)
    x = charts.quantity("x", "batch", scale="log", axis={"format": "d"})
    charted = []
    for title, records in panels.items():
        spec = charts.lines(records, x, charts.quantity("y", "time / dense", scale=charts.scale_of(records, "y")))
        bar = {"y": {"field": "low", "type": "quantitative"}, "y2": {"field": "high"}, "color": charts.colour(records)}
        spec["layer"].append({"mark": {"type": "rule", "strokeWidth": 2}, "encoding": {"x": x, **bar}})
        charted.append(Panel(spec, title))
    about = (
        "The time of a forward and a backward pass divided by that of the baseline in the same round, the median; "
        "vertical lines are its 95 % interval. Both axes are logarithmic."
    )
    listed = [{"case": title, **record} for title, records in panels.items() for record in records]
    return [Figure("Tax against batch", about, charted, table=table_of("Tax", listed))] if charted else []


def _bytes(rows: Rows) -> list[Figure]:
    records = [
        {
            "series": short(row["contender"]),
            "x": row["saved"] / row["weights"],
            "y": row["ratio"],
            "label": _case(row),
        }
        for row in rows
        if row["part"] == "step" and is_number(row["saved"]) and is_number(row["ratio"]) and row["weights"] > 0
    ]
    if not records:
        return []
    x = charts.quantity("x", "saved for backward, bytes a weight", zero=True)
    y = charts.quantity("y", "time / dense", scale=charts.scale_of(records, "y"))
    about = "Each point is one case: what is stored for the backward pass beyond inputs and weights, and the time."
    table = table_of("Bytes and time", records)
    return [Figure("Bytes against time", about, [Panel(charts.points(records, x, y))], table=table)]


def _roofline(rows: Rows, roof: Mapping[str, Any]) -> list[Figure]:
    """Return rate against intensity by dtype, under the roof of the run: its bandwidth, and its best product."""
    found: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        if all(is_number(row.get(name)) and row[name] > 0 for name in ("flops", "moved", "p50")):
            record = {
                "series": short(row["contender"]),
                "x": row["flops"] / row["moved"],
                "y": row["flops"] / row["p50"] / 1e3,
                "label": f"{_case(row)}, {row['part']}",
            }
            found.setdefault(row["dtype"], []).append(record)
    roofs = {}
    for dtype, records in found.items():
        bandwidth, rate = roof["bandwidth"] / 1e9, roof["rate"][dtype] / 1e9
        ends = sorted({min(r["x"] for r in records), rate / bandwidth, max(r["x"] for r in records)})
        line = [{"x": x, "y": min(rate, bandwidth * x)} for x in ends]
        on = {name: {"field": name, "type": "quantitative"} for name in ("x", "y")}
        mark = {"type": "line", "strokeDash": [5, 4], "strokeWidth": 1.5, "color": "gray"}
        roofs[dtype] = {"data": {"values": line}, "mark": mark, "encoding": on}
    about = (
        "The rate counts the operations of the dense products only, so masks show as a lower rate. The intensity "
        "counts each operand and result once. The dashed line is the roof that this run measured: the bandwidth "
        "of a copy, and the rate of the best product. Small cases stay in the caches, so they can lie above it."
    )
    return roofline(about, found, roofs)


def _fast(found: Rows) -> list[Figure]:
    records = [
        {"series": short(row["contender"]), "x": float(name.removeprefix("fast_")), "y": 100 * share}
        for row in found
        for name, share in row.items()
        if name.startswith("fast_")
    ]
    if not records:
        return []
    x, y = charts.quantity("x", "p"), charts.quantity("y", "per cent of the cases", zero=True)
    about = (
        "How often a contender is right and at least p times as fast as plain PyTorch of the same law (fast_p). A "
        "contender that is wrong counts as slow."
    )
    return [Figure("Right and fast", about, [Panel(charts.lines(records, x, y))], table=table_of("fast_p", found))]


def _slopes(found: Rows) -> list[Figure]:
    records = [
        {
            "label": f"against {short(row['against'])}",
            "series": short(row["contender"]),
            **{name: row[field] - 1 for name, field in (("value", "slope"), ("low", "low"), ("high", "high"))},
        }
        for row in sorted(found, key=lambda row: not row["contender"].startswith("ours"))
    ]
    if not records:
        return []
    about = (
        "The slope of log(time) against log(size), minus 1: at zero the cost is proportional. Lines: 95 % intervals "
        "over the sizes (Student). The goal of ours is -0.05 to 0.05 against weights and draws."
    )
    panel = Panel(charts.intervals(records, "slope minus 1"))
    return [Figure("Scaling: slopes", about, [panel], table=table_of("Slopes", found))]


def _growth(rows: Rows) -> list[Figure]:
    """Return time against each size that varies, of the cases in which the other sizes are the same."""
    lines: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        shape = row["shape"]
        sizes = {"weights": shape["rows"] * shape["cols"], "tokens": shape["tokens"], "draws": shape["draws"]}
        for name, size in sizes.items():
            others = ", ".join(f"{other} {value:,}" for other, value in sizes.items() if other != name)
            record = {"series": short(row["contender"]), "x": size, "y": row["p50"] / 1e3}
            lines.setdefault(f"{name}; {others}", []).append(record)
    panels, listed = [], []
    for title, records in lines.items():
        if len({record["x"] for record in records}) > 2:
            x = charts.quantity("x", title.partition(";")[0], scale="log", axis={"format": "~s"})
            panels.append(Panel(charts.lines(records, x, charts.quantity("y", "ms", scale="log")), title))
            listed += [{"line": title, **record} for record in records]
    about = "The time of a step. Both axes are logarithmic, so a proportional cost is a line of slope 1."
    return [Figure("Scaling: times", about, panels, table=table_of("Times", listed))] if panels else []
