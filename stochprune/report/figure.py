"""The picture of a study: error against sparsity, a panel for each score."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter, ScalarFormatter

from stochprune.report.summary import Spread, summarize

LINES = {  # arm: label, colour (readable with colour blindness: Okabe and Ito), line style, marker
    "retrained": ("score's mask, weights trained", "#0072B2", "-", "o"),
    "finetuned": ("fine-tuned mask, weights trained", "#D55E00", "-", "s"),
    "shuffled": ("fine-tuned mask shuffled in layers", "#999999", "--", "^"),
    "stochastic": ("random masks, before the cut", "#009E73", ":", "D"),
}


def draw(results: Mapping[str, Any], path: Path) -> None:
    """Write the picture as a PNG file. Points are means over seeds, bars one standard deviation."""
    rows = summarize(results)
    config = results["configuration"]
    dense = Spread.of([entry["error"] for entry in results["dense"]]).mean
    names = list(dict.fromkeys(row.score for row in rows))
    figure = Figure(figsize=(1.2 + 3.1 * len(names), 3.9), layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(1, len(names), sharey=True, squeeze=False)[0]
    for panel, name in zip(panels, names, strict=True):
        mine = sorted((row for row in rows if row.score == name), key=lambda row: row.sparsity)
        places = range(len(mine))
        panel.axhline(dense, color="black", linewidth=0.8, label="dense")
        for arm, (label, color, style, marker) in LINES.items():
            spreads = [row.errors[arm] for row in mine]
            panel.errorbar(
                places,
                [spread.mean for spread in spreads],
                [spread.sd for spread in spreads],
                label=label,
                color=color,
                linestyle=style,
                marker=marker,
                markersize=5,
                capsize=3,
                linewidth=1.5,
            )
        panel.set_title(name, fontsize=10)
        panel.set_xticks(places, [f"{100 * row.sparsity:g}" for row in mine])
        panel.set_xlabel("weights pruned (%)")
        panel.set_yscale("log")
        panel.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        panel.yaxis.set_major_formatter(ScalarFormatter())
        panel.yaxis.set_minor_formatter(NullFormatter())
        panel.grid(axis="y", linewidth=0.3)
        panel.spines[["top", "right"]].set_visible(False)
    panels[0].set_ylabel("test error (%)")
    handles, labels = panels[0].get_legend_handles_labels()
    columns = min(len(labels), 2 * len(names) - 1)
    figure.legend(handles, labels, loc="outside lower center", ncols=columns, frameon=False, fontsize=8)
    figure.suptitle(f"{config['model']} on {config['data']}, mean ± sd over seeds (n = {config['seeds']})", fontsize=11)
    figure.savefig(path, dpi=140, metadata={"Software": None})
