"""The table and the picture of ``stochprune bounds``: compression, sketches and iterative pruning."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import cycle
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from stochprune.report.style import BLUE, GREEN, GREY, ORANGE, new_figure, save, terminal_table, tidy

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from rich.table import Table


ABOUT = {
    "Neyshabur 2015": "Frobenius norms",
    "Bartlett 2017": "spectral and (2,1) norms",
    "Neyshabur 2017": "spectral and Frobenius norms",
    "Galanti 2023": "row norms and inputs of the units",
    "Arora 2018": "cushions, on a few examples",
    "Guha 2023": "sketch of the compressed layers",
    "counting": "code of a compressed network",
    "PAC-Bayes certificate": "random masks of the same weights",
    "held-out examples alone": "the network itself",
}


def bounds_table(results: Mapping[str, Any]) -> Table:
    """Return the table of bounds on the risk. A bound of 1 or more is vacuous."""
    made = terminal_table(
        f"Bounds on the risk; test error {results['test_error']:.4f}, training error "
        f"{results['train_error']:.4f}, margin {results['margin']:.3g}",
        "Complete: the bound holds with its probability, exactly as computed. Order: constants and logarithms "
        "are left out, so only a value far from 1 means something. Vacuous: 1 or more.",
    )
    for name, justify in (("bound", "left"), ("by", "left"), ("value", "right"), ("", "left"), ("", "left")):
        made.add_column(name, justify=justify)  # type: ignore[arg-type]
    for row in results["bounds"]:
        value = row["value"]
        said = "[red]vacuous[/red]" if value >= 1 else "[green]non-vacuous[/green]"
        shown = f"{value:.4f}" if value < 10 else f"{value:.3g}"
        made.add_row(row["name"], ABOUT[row["name"]], shown, "complete" if row["complete"] else "order", said)
    return made


def plot_bounds(results: Mapping[str, Any], path: Path) -> None:
    """Write the picture as a PNG file."""
    figure = new_figure(9.6, 6.2)
    (a, b), (c, d) = figure.subplots(2, 2)
    for axis in (a, b, c, d):
        tidy(axis)
    _plot_errors(a, results["compression"])
    _plot_kept(b, results["compression"])
    _plot_sketches(c, results["sketch"])
    _plot_rounds(d, results["iterative"])
    sizes = "-".join(map(str, results["sizes"]))
    figure.suptitle(f"{sizes} on {results['configuration']['data']}, {results['examples']} examples", fontsize=11)
    save(figure, path)


def _plot_errors(axis: Axes, rows: list[Mapping[str, float]]) -> None:
    scales = [row["scale"] for row in rows]
    for name, label, colour, style in (
        ("output_change", "proved bound", ORANGE, "s-"),
        ("paper_margin", "paper's margin", GREY, "^--"),
        ("error", "measured, largest over examples", BLUE, "o-"),
    ):
        axis.plot(scales, [row[name] for row in rows], style, color=colour, label=label, markersize=4)
    axis.set(xscale="log", yscale="log", xlabel="scale d", ylabel="change of the outputs", title="Pruning error")
    axis.legend(fontsize=7)


def _plot_kept(axis: Axes, rows: list[Mapping[str, float]]) -> None:
    scales = np.geomspace(rows[0]["scale"], rows[-1]["scale"], 100)
    axis.plot(scales, 1 - np.sqrt(scales / (scales + 2)), color="black", linewidth=0.8, label="predicted: Gaussian")
    axis.plot([row["scale"] for row in rows], [row["kept"] for row in rows], "o", color=BLUE, label="kept")
    axis.set(xscale="log", xlabel="scale d", ylabel="fraction of weights", ylim=(0, 1), title="Non-zeros")
    axis.legend(fontsize=7)


def _plot_sketches(axis: Axes, points: list[Mapping[str, float]]) -> None:
    styles = {1: "o", 2: "s", 3: "^"}
    colours = dict(zip(sorted({point["p"] for point in points}), cycle((GREEN, BLUE, ORANGE, GREY)), strict=False))
    for p, per_line in sorted({(point["p"], point["per_line"]) for point in points}):
        mine = [point for point in points if (point["p"], point["per_line"]) == (p, per_line)]
        share = [point["rows"] / point["predicted"] for point in mine]
        label = f"p = {p:g}, {per_line:g} a line"
        style = f"{styles[int(per_line)]}-"
        axis.plot(share, [point["success"] for point in mine], style, color=colours[p], label=label, markersize=4)
    axis.set(xlabel="rows of the sketch / (sqrt(j p) ln p)", ylabel="recovered", title="Sketch and l1 recovery")
    axis.legend(fontsize=7)


def _plot_rounds(axis: Axes, rows: list[Mapping[str, float]]) -> None:
    kept = [row["kept"] for row in rows]
    axis.plot(kept, [row["complexity"] for row in rows], "s-", color=ORANGE, markersize=4, label="Guha's complexity")
    norms = [np.nan if row["sparse_norms"] is None else row["sparse_norms"] for row in rows]
    axis.plot(kept, norms, "^-", color=GREEN, markersize=4, label="norms of the units")
    axis.plot(kept, [row["test_error"] for row in rows], "o-", color=BLUE, markersize=4, label="test error")
    axis.axhline(1, color="black", linewidth=0.8, linestyle="--", label="vacuous above")
    axis.set(yscale="log", xlabel="fraction of weights kept", title="Iterative pruning")
    axis.invert_xaxis()
    axis.legend(fontsize=7)
