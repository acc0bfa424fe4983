"""The certificates of a run: a table for the terminal, and pictures of the bounds and of the KL by layer."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stochprune.extras import extra
from stochprune.report.style import BLUE, ORANGE, SKY, new_figure, save, terminal_table, tidy

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from rich.table import Table


def certificate_table(results: Mapping[str, Any]) -> Table:
    """Return one row per certificate, in per cent; the best of each family is bold. ``prior`` is the control."""
    config = results["configuration"]
    rows = results["rows"]
    sure = config["certify"]["delta"] + config["certify"]["delta_draws"]
    best = {family: min(r["bound"] for r in rows if r["family"] == family) for family in config["posteriors"]}
    made = terminal_table(
        f"Certified {config['certify']['loss']} risk in per cent, {config['model']} on {config['data']}",
        f"All certificates hold at once with probability {1 - sure:.4g}. They use {rows[0]['m']} examples that the "
        f"prior has not seen, and {rows[0]['draws']} sampled networks each. Objective prior: the prior itself. "
        "sampled: mean loss of the sampled networks. empirical: upper bound on the mean loss of all networks of the "
        "posterior on these examples. KL: in nats. test: error on the test set.",
        gap=1,
    )
    made.add_column("posterior")
    made.add_column("objective")
    for title in ("certificate", "sampled", "empirical", "KL", "test"):
        made.add_column(title, justify="right")
    for row in rows:
        bound = f"{100 * row['bound']:.3f}"
        made.add_row(
            row["family"],
            row["objective"],
            f"[bold]{bound}[/bold]" if row["bound"] == best[row["family"]] else bound,
            f"{100 * row['mean_loss']:.3f}",
            f"{100 * row['empirical_risk']:.3f}",
            f"{row['total_kl']:.4g}",
            f"{100 * row['test_error']:.3f}",
        )
    return made


def plot_certificates(results: Mapping[str, Any], path: Path) -> None:
    """Write a PNG file: on the left certificates, risks and test errors, on the right KL by layer over the epochs."""
    rows, config = results["rows"], results["configuration"]
    learnt = [row for row in rows if row["history"]]
    columns = min(4, len(learnt))
    lines = math.ceil(len(learnt) / max(1, columns))
    width = 3.2 + 0.25 * len(rows)
    figure = new_figure(width + 2.6 * columns, max(3.9, 2.7 * lines))
    left, *right = figure.subfigures(
        1, 2 if learnt else 1, squeeze=False, width_ratios=[width, 2.6 * columns][: 1 + bool(learnt)]
    )[0]
    _plot_risks(left.subplots(), rows)
    for side in right:
        grid = side.subplots(lines, columns, squeeze=False, sharex=True)
        for panel, row in zip(grid.flat, learnt, strict=False):
            _plot_divergences(panel, row)
        for panel in grid.flat[len(learnt) :]:
            panel.set_visible(False)
        for panel in grid[:, 0]:
            panel.set_ylabel("KL by layer (nats)", fontsize=8)
        for panel in grid[-1]:
            panel.set_xlabel("epoch")
    figure.suptitle(f"{config['model']} on {config['data']}", fontsize=11)
    save(figure, path)


def _plot_risks(panel: Axes, rows: Sequence[Mapping[str, Any]]) -> None:
    positions = range(len(rows))
    for key, label, color, marker in (
        ("bound", "certificate", ORANGE, "s"),
        ("empirical_risk", "empirical risk, upper bound", BLUE, "o"),
        ("mean_loss", "mean of the sampled networks", SKY, "v"),
        ("test_error", "test error", "#000000", "x"),
    ):
        panel.plot(positions, [100 * row[key] for row in rows], marker, color=color, label=label)
    names = [f"{row['family']}, {row['objective']}" for row in rows]
    panel.set_xticks(positions, names, rotation=60, fontsize=7, ha="right", rotation_mode="anchor")
    panel.set_ylabel("per cent")
    panel.set_ylim(bottom=0)
    tidy(panel, grid="y")
    panel.legend(frameon=False, fontsize=7)


def _plot_divergences(panel: Axes, row: Mapping[str, Any]) -> None:
    with extra("studies", "a plot"):
        from matplotlib.ticker import MaxNLocator
    epochs = [entry["epoch"] for entry in row["history"]]
    for name in row["kl"]:
        panel.plot(epochs, [entry[f"kl {name}"] for entry in row["history"]], ".-", label=name.removesuffix(".weight"))
    panel.set_title(f"{row['family']}, {row['objective']}", fontsize=8)
    panel.xaxis.set_major_locator(MaxNLocator(integer=True))
    panel.set_ylim(bottom=0)
    panel.legend(frameon=False, fontsize=6)
    panel.spines[["top", "right"]].set_visible(False)
