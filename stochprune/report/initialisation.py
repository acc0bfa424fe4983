"""The picture of a study of initialisations: error against sparsity."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from stochprune.report.style import BLUE, GREEN, GREY, ORANGE, SKY, log_errors, new_figure, save
from stochprune.report.summary import Spread

COLORS = (BLUE, ORANGE, GREEN, "#CC79A7", "#E69F00", SKY, GREY, "#000000", "#7A4B00")
MARKERS = "os^Dv<>PX"
LINES = ("-", "--", ":")  # the next style after all colours are used


def plot_initialisation(results: Mapping[str, Any], path: Path) -> None:
    """Write the picture as a PNG file: a panel for each data set, model and, if the study ablates, score.

    Points are means over seeds, bars one standard deviation; trainings that diverged are left out.
    """
    rows = [row for row in results["rows"] if row["error"] is not None]
    pruned = [row for row in rows if row["score"] != "dense"]
    ablates = len({row["arm"] for row in pruned}) > 1
    keys = ("data", "model", "score") if ablates else ("data", "model")
    random = [row for row in pruned if row["score"] == "random" and row["arm"] == "none"] if ablates else []
    scored = [row for row in pruned if row["score"] != "random"] if ablates else pruned
    panels = list(dict.fromkeys(tuple(row[k] for k in keys) for row in scored or pruned))
    one_network = len({panel[:2] for panel in panels}) == 1
    width = max(6.5, 1.2 + 3.1 * len(panels))
    figure = new_figure(width, 4.4)
    axes = figure.subplots(1, len(panels), sharey=True, squeeze=False)[0]
    for axis, panel in zip(axes, panels, strict=True):
        mine = [row for row in pruned if tuple(row[k] for k in keys) == panel]
        lines = {name: [r for r in mine if r["arm" if ablates else "score"] == name] for name in _names(mine, ablates)}
        if random:
            lines["random mask"] = [row for row in random if (row["data"], row["model"]) == panel[:2]]
        sparsities = sorted({row["sparsity"] for row in mine})
        for i, (name, line) in enumerate(lines.items()):
            points = {
                s: Spread.of([r["error"] for r in line if r["sparsity"] == s])
                for s in sparsities
                if any(r["sparsity"] == s for r in line)
            }
            axis.errorbar(
                [sparsities.index(s) for s in points],
                [spread.mean for spread in points.values()],
                [spread.sd or 0 for spread in points.values()],
                label="as scored" if name == "none" else name,
                color=COLORS[i % len(COLORS)],
                marker=MARKERS[i % len(MARKERS)],
                linestyle=LINES[i // len(COLORS) % len(LINES)],
                markersize=5,
                capsize=3,
                linewidth=1.5,
            )
        dense = [r["error"] for r in rows if r["score"] == "dense" and (r["data"], r["model"]) == panel[:2]]
        if dense:
            axis.axhline(Spread.of(dense).mean, color="black", linewidth=0.8, linestyle=":", label="dense")
        axis.set_title(", ".join(panel[2:] if ablates and one_network else panel[::-1]), fontsize=10)
        axis.set_xticks(range(len(sparsities)), [f"{100 * s:g}" for s in sparsities])
        axis.set_xlabel("weights pruned (%)")
        log_errors(axis, (1, 2, 3, 5))
    axes[0].set_ylabel("test error (%)")
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=int(width / 1.6), frameon=False, fontsize=8)
    figure.suptitle(results["title"], fontsize=11, parse_math=False)
    save(figure, path)


def _names(rows: list[Mapping[str, Any]], ablates: bool) -> list[str]:
    return list(dict.fromkeys(row["arm" if ablates else "score"] for row in rows))
