"""The views of benchmarks: of layers (``make bench``), and of whole networks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from stochprune.report.html import charts
from stochprune.report.html.parts import Figure, Panel, View, flattened, is_number, short, table_of
from stochprune.report.html.sources import Source

CASE = ("width", "batch", "dtype", "mode", "part")
PRODUCTS = {"forward": 1, "backward": 2, "step": 3}
OURS = "ours"
BYTES = {"fp32": 4, "bf16": 2, "fp16": 2}
SAVED = "saved for backward beyond dense, bytes a weight"
Rows = Sequence[Mapping[str, Any]]


def is_layers(row: Mapping[str, Any]) -> bool:
    """Return True for the row of a benchmark of layers."""
    return all(name in row for name in (*CASE, "contender", "ms"))


def is_networks(row: Mapping[str, Any]) -> bool:
    """Return True for the row of a benchmark of networks."""
    return all(isinstance(row.get(name), Mapping) for name in ("ms", "tax")) and "network" in row


def layers_view(source: Source) -> View:
    """Return the view of a benchmark of masked linear layers."""
    rows = [row for row in source.content["rows"] if isinstance(row, Mapping) and is_layers(row)]
    rows.sort(key=lambda row: row["contender"] != OURS)  # the first series has the strongest colour
    others = [row for row in source.content["rows"] if isinstance(row, Mapping) and not is_layers(row)]
    dense = {tuple(row[name] for name in CASE): row["ms"] for row in rows if row["contender"] == "dense"}
    taxed = [{**row, "tax": row["ms"] / dense[key]} for row in rows if (key := tuple(row[n] for n in CASE)) in dense]
    figures = [*_tax(taxed), *_bytes(taxed), *_roofline(rows)]
    tables = [table_of("All times", taxed), *([table_of("Other times", others)] if others else [])]
    return View(
        source.name, "bench", flattened({k: v for k, v in source.content.items() if k != "rows"}), figures, tables
    )


def networks_view(source: Source) -> View:
    """Return the view of a benchmark of whole networks."""
    rows = [row for row in source.content["rows"] if isinstance(row, Mapping) and is_networks(row)]
    times = [
        {
            "network": short(row["network"]),
            "batch": row.get("batch"),
            "way": short(way),
            "ms": ms,
            "tax": row["tax"].get(way),
            "saved": row.get(SAVED, {}).get(way),
        }
        for row in rows
        for way, ms in row["ms"].items()
    ]
    networks: dict[str, list[dict[str, Any]]] = {}
    for time in times:
        if is_number(time["tax"]) and time["way"] != "dense":
            record = charts.interval(time["way"], "tax", time["tax"] - 1, None)
            networks.setdefault(f"{time['network']}, batch {time['batch']}", []).append(record)
    panels = [
        Panel(charts.intervals(records, "time of a step / dense step, minus 1"), name)
        for name, records in networks.items()
    ]
    figures = []
    if panels:
        about = "What masks add to the time of a training step of the dense network, as a fraction of it."
        figures.append(Figure("Tax of whole networks", about, panels, table=table_of("Times", times)))
    figures += _bytes([{**time, "contender": time["way"], "part": "step"} for time in times if time["tax"]])
    facts = flattened({k: v for k, v in source.content.items() if k != "rows"})
    return View(source.name, "bench", facts, figures, [table_of("Times", times)])


def _tax(rows: Rows) -> list[Figure]:
    panels: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        if row["part"] == "step":
            record = {"series": short(row["contender"]), "x": row["batch"], "y": row["tax"]}
            panels.setdefault(f"{row['width']} x {row['width']}, {row['dtype']}, {row['mode']}", []).append(record)
    x = charts.quantity("x", "batch", scale="log", axis={"format": "d"})
    x["scale"]["base"] = 2
    y = charts.quantity("y", "time / dense", scale="log")
    about = (
        "The time of a forward and a backward pass against the dense layer of the same run. Both axes are logarithmic."
    )
    charted = [Panel(charts.lines(records, x, y), title) for title, records in panels.items()]
    return [Figure("Tax against batch", about, charted, table=table_of("Tax", rows))] if charted else []


def _bytes(rows: Rows) -> list[Figure]:
    records = [
        {
            "series": short(row["contender"]),
            "x": row["saved"],
            "y": row["tax"],
            "label": short(", ".join(str(row[n]) for n in ("network", *CASE[:-1]) if row.get(n) is not None)),
        }
        for row in rows
        if row["part"] == "step" and is_number(row.get("saved")) and is_number(row["tax"])
    ]
    if not records:
        return []
    x = charts.quantity("x", "saved for the backward pass, bytes a weight", zero=True)
    y = charts.quantity("y", "time / dense", scale="log")
    about = "Each point is one case: what is stored for the backward pass beyond the dense layer, and the time."
    return [
        Figure(
            "Bytes against time",
            about,
            [Panel(charts.points(records, x, y))],
            table=table_of("Bytes and time", records),
        )
    ]


def _roofline(rows: Rows) -> list[Figure]:
    """Return rate against intensity by dtype; the roof is the best dense product of the run."""
    records: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        products, size = PRODUCTS.get(row["part"]), BYTES.get(row["dtype"])
        if products is None or size is None:
            continue
        width, batch = row["width"], row["batch"]
        operations = 2 * products * batch * width * width
        moved = products * size * (width * width + 2 * batch * width)
        record = {
            "series": short(row["contender"]),
            "x": operations / moved,
            "y": operations / row["ms"] / 1e6,
            "label": f"{width} x {width}, batch {batch}, {row['mode']}, {row['part']}",
        }
        records.setdefault(row["dtype"], []).append(record)
    roofs = {}
    for dtype, found in records.items():
        if dense := [record["y"] for record in found if record["series"] == "dense"]:
            level = {"y": {"datum": max(dense)}}
            roofs[dtype] = {"mark": {"type": "rule", "strokeDash": [5, 4]}, "encoding": level}
    about = (
        "The rate counts the operations of the dense products only, so masks show as a lower rate. The intensity "
        "counts each operand and result once. The dashed line is the best dense rate of the run; the run "
        "does not measure the bandwidth, so the slope of the roof is missing."
    )
    return roofline(about, records, roofs)


def roofline(
    about: str, records: Mapping[str, list[dict[str, Any]]], roofs: Mapping[str, Mapping[str, Any]]
) -> list[Figure]:
    """Return the figure of rates against intensities, with a panel for each dtype.

    Args:
        records: by dtype, of points; x is the intensity, y the rate in GFLOP/s.
        roofs: by dtype, the layer of the roof.
    """
    panels = []
    for dtype, found in records.items():
        x = charts.quantity("x", "operations a byte of operands and results", scale="log")
        spec = charts.points(found, x, charts.quantity("y", "GFLOP/s of the dense product", scale="log"))
        spec["layer"] += [roofs[dtype]] if dtype in roofs else []
        panels.append(Panel(spec, dtype))
    table = table_of("Rates", [{"dtype": dtype, **record} for dtype, found in records.items() for record in found])
    return [Figure("Roofline", about, panels, table=table)] if panels else []
