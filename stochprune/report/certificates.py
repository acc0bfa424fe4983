"""The certificates of a run: a table for the terminal, and pictures of the bounds and of the divergence by layer."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from rich import box
from rich.table import Table


def certificate_table(results: Mapping[str, Any]) -> Table:
    """One row a certificate, in per cent; the best of each family is bold. The objective ``prior`` is the control."""
    config = results["configuration"]
    rows = results["rows"]
    sure = config["certify"]["delta"] + config["certify"]["delta_draws"]
    best = {family: min(r["bound"] for r in rows if r["family"] == family) for family in config["posteriors"]}
    made = Table(
        title=f"Certified {config['certify']['loss']} risk in per cent, {config['model']} on {config['data']}",
        caption=f"All hold at once with probability {1 - sure:.4g}, over {rows[0]['m']} examples that the prior has "
        f"not seen and {rows[0]['draws']} draws each. prior: nothing learnt, the control. "
        "draws: their mean loss; bounded: the posterior's on these examples, with the draws allowed for; KL in nats; "
        "test: error on the test set.",
        box=box.SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
        caption_justify="left",
    )
    made.add_column("posterior")
    made.add_column("objective")
    for title in ("certificate", "draws", "bounded", "KL", "test"):
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


def draw_certificates(results: Mapping[str, Any], path: Path) -> None:
    """Write a PNG file: on the left certificates, risks and test errors, on the right KL by layer over the epochs."""
    rows, config = results["rows"], results["configuration"]
    learnt = [row for row in rows if row["history"]]
    figure = Figure(figsize=(4.6 + 2.6 * len(learnt), 3.9), layout="constrained")
    FigureCanvasAgg(figure)
    widths = {"width_ratios": [1.6] + [1.0] * len(learnt)}
    panels = figure.subplots(1, 1 + len(learnt), squeeze=False, gridspec_kw=widths)[0]
    places = range(len(rows))
    for key, label, color, marker in (
        ("bound", "certificate", "#D55E00", "s"),
        ("empirical_risk", "empirical risk, bounded", "#0072B2", "o"),
        ("mean_loss", "mean of the draws", "#56B4E9", "v"),
        ("test_error", "test error", "#000000", "x"),
    ):
        panels[0].plot(places, [100 * row[key] for row in rows], marker, color=color, label=label)
    panels[0].set_xticks(
        places, [f"{row['family']}\n{row['objective']}" for row in rows], rotation=60, fontsize=7, ha="right"
    )
    panels[0].set_ylabel("per cent")
    panels[0].set_ylim(bottom=0)
    panels[0].grid(axis="y", linewidth=0.3)
    panels[0].legend(frameon=False, fontsize=7)
    for panel, row in zip(panels[1:], learnt, strict=True):
        epochs = [entry["epoch"] for entry in row["history"]]
        for name in row["kl"]:
            panel.plot(
                epochs, [entry[f"kl {name}"] for entry in row["history"]], ".-", label=name.removesuffix(".weight")
            )
        panel.set_title(f"{row['family']}, {row['objective']}", fontsize=8)
        panel.set_xlabel("epoch")
        panel.xaxis.set_major_locator(MaxNLocator(integer=True))
        panel.set_ylim(bottom=0)
        panel.legend(frameon=False, fontsize=6)
    if learnt:
        panels[1].set_ylabel("KL by layer (nats)")
    for panel in panels:
        panel.spines[["top", "right"]].set_visible(False)
    figure.suptitle(f"{config['model']} on {config['data']}", fontsize=11)
    figure.savefig(path, dpi=140, metadata={"Software": None})
