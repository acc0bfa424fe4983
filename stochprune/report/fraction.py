"""The picture and the tables of a study of the pruning fraction: errors and bounds against the sparsity."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from stochprune.report.pivot import pivot
from stochprune.report.style import BLUE, GREEN, GREY, ORANGE, SKY, new_figure, save, tidy
from stochprune.report.summary import Spread, measured

COLUMNS = {
    "train_error": "training error",
    "error": "test error",
    "held_out": "bound: held-out examples alone",
    "certificate": "bound: PAC-Bayes, random masks",
    "counting": "bound: counting",
    "guha": "order of Guha et al.",
    "galanti": "order of Galanti et al.",
}
STYLES = dict(
    zip(
        COLUMNS,
        ((GREY, "o:"), ("black", "o-"), (SKY, "v-"), (BLUE, "s-"), (GREEN, "D-"), (ORANGE, "^--"), ("#CC79A7", "P--")),
        strict=True,
    )
)


def plot_fractions(results: Mapping[str, Any], path: Path) -> None:
    """Write the picture as a PNG file: a panel for each data set, model and score, in per cent on a logarithmic axis.

    Points are means over seeds; a point is left out if a seed has no value. Bounds above 100 are vacuous.
    """
    rows, names = results["rows"], {**COLUMNS, "error": measured(results["configuration"]["settings"]).lower()}
    panels = list(dict.fromkeys((row["data"], row["model"], row["score"]) for row in rows))
    figure = new_figure(1.2 + 3.6 * len(panels), 5.2)
    axes = figure.subplots(1, len(panels), sharey=True, squeeze=False)[0]
    for axis, panel in zip(axes, panels, strict=True):
        mine = [row for row in rows if (row["data"], row["model"], row["score"]) == panel]
        sparsities = sorted({row["sparsity"] for row in mine})
        for column, (colour, style) in STYLES.items():
            points = {}
            for index, sparsity in enumerate(sparsities):
                values = [row[column] for row in mine if row["sparsity"] == sparsity]
                if None not in values:
                    points[index] = Spread.of(values).mean
            label = names[column]
            axis.plot(points.keys(), points.values(), style, color=colour, label=label, markersize=4, linewidth=1.3)
        axis.axhline(100, color="black", linewidth=0.8, linestyle=":")
        axis.set_xticks(range(len(sparsities)), [f"{100 * s:g}" for s in sparsities], fontsize=8)
        axis.set(yscale="log", xlabel="weights pruned (%)")
        axis.set_title(", ".join(panel[::-1]), fontsize=9)
        tidy(axis, grid="y")
    axes[0].set_ylabel("per cent; bounds above the dotted line are vacuous")
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=len(panels) + 1, frameon=False, fontsize=8)
    figure.suptitle(results["title"], fontsize=10, parse_math=False, wrap=True)
    save(figure, path)


def fractions_markdown(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return the parts of a Markdown text.

    Args:
        rows: of one network on one data set, see :class:`stochprune.studies.rows.FractionRow`.
    """
    parts = []
    for column, name in COLUMNS.items():
        if column != "error":
            parts += [f"{name[0].upper()}{name[1:]}, in per cent.", pivot(rows, column, ("score",))]
    parts.append("Fraction of the kept weights that are near 0 after the training (weight shedding).")
    parts.append(pivot(rows, "shed", ("score",)))
    return parts
