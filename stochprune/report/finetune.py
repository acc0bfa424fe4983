"""The table and the picture of a study of fine-tuning."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stochprune.report.style import BLUE, GREEN, GREY, ORANGE, literal, log_errors, new_figure, save, terminal_table
from stochprune.report.summary import Spread, failures, measured, summarize

if TYPE_CHECKING:
    from rich.table import Table

LINES = {  # arm: label, colour, line style, marker
    "retrained": ("score's mask, weights trained", BLUE, "-", "o"),
    "finetuned": ("fine-tuned mask, weights trained", ORANGE, "-", "s"),
    "shuffled": ("fine-tuned mask shuffled in layers", GREY, "--", "^"),
    "stochastic": ("random masks, before pruning", GREEN, ":", "D"),
}
COLUMNS = {
    "retrained": "weights\ntrained",
    "stochastic": "random\nmasks",
    "thresholded": "pruned",
    "finetuned": "pruned,\ntrained",
    "shuffled": "shuffled,\ntrained",
}


def finetune_table(results: Mapping[str, Any]) -> Table:
    """Return errors in per cent; the better of two trainings of equal length is bold.

    With several seeds a cell shows mean±standard deviation over the seeds.
    """
    config = results["configuration"]
    masks, weights = config["finetune"]["epochs"], config["retrain_epochs"]
    dense = Spread.of([entry["error"] for entry in results["dense"]])
    rows = summarize(results)
    caption = (
        f"weights trained: {masks + weights} epochs of weight training under the score's mask. pruned, trained: "
        f"{masks} epochs of mask fine-tuning, pruning to the same sparsity, {weights} epochs of weight training. "
        "gain: error of the first minus that of the second. wins: seeds with a gain."
    )
    if any(row.gain is None and row.seeds for row in rows):
        caption += " -: no gain is reported, because weight training alone hardly improves on guessing."
    if failed := failures(results):
        caption += f" Cells that failed, whose missing errors the means leave out: {literal('; '.join(failed))}."
    made = terminal_table(
        f"{measured(config)} in per cent, {config['model']} on {config['data']}, {_seeds(config['seeds'])}; "
        f"dense {_short(dense)}",
        caption,
        gap=0,
    )
    made.add_column("score,\npruned")
    made.add_column("as\npruned", justify="right")
    for title in COLUMNS.values():
        made.add_column(title, justify="right", min_width=9)
    made.add_column("gain", justify="right", min_width=6)
    made.add_column("wins", justify="right")
    score = None
    for row in rows:
        if row.score != score:
            score = row.score
            made.add_row(f"[bold]{score}[/bold]")
        cells = {arm: _short(row.errors[arm]) for arm in COLUMNS}
        means = {arm: _mean(row.errors[arm]) for arm in ("retrained", "finetuned")}
        if row.seeds:
            better = min(means, key=means.__getitem__)
            cells[better] = f"[bold]{cells[better]}[/bold]"
        gain = ("-", "-") if row.gain is None else (f"{row.gain.mean:+.2f}", f"{row.wins}/{row.seeds}")
        pruned = row.errors["pruned"]
        first = "-" if pruned is None else f"{pruned.mean:.1f}"
        made.add_row(f"{100 * row.sparsity:g}%", first, *cells.values(), *gain)
    return made


def _seeds(count: int) -> str:
    return "one seed" if count == 1 else f"mean±std of {count} seeds"


def _mean(spread: Spread | None) -> float:
    return math.nan if spread is None else spread.mean


def _short(spread: Spread | None) -> str:
    if spread is None:
        return "-"
    digits = 1 if spread.mean >= 10 else 2
    deviation = "" if spread.sd is None else f"±{spread.sd:.{digits}f}"
    return f"{spread.mean:.{digits}f}{deviation}"


def plot_finetune(results: Mapping[str, Any], path: Path) -> None:
    """Write the picture as a PNG file. Points are means over seeds, bars one standard deviation.

    With one seed there are no bars.
    """
    rows = summarize(results)
    config = results["configuration"]
    dense = Spread.of([entry["error"] for entry in results["dense"]]).mean
    names = list(dict.fromkeys(row.score for row in rows))
    figure = new_figure(1.2 + 3.1 * len(names), 3.9)
    panels = figure.subplots(1, len(names), sharey=True, squeeze=False)[0]
    for panel, name in zip(panels, names, strict=True):
        mine = sorted((row for row in rows if row.score == name), key=lambda row: row.sparsity)
        positions = range(len(mine))
        panel.axhline(dense, color="black", linewidth=0.8, label="dense")
        for arm, (label, color, style, marker) in LINES.items():
            spreads = [row.errors[arm] for row in mine]
            panel.errorbar(
                positions,
                [_mean(spread) for spread in spreads],
                [(spread and spread.sd) or 0 for spread in spreads],
                label=label,
                color=color,
                linestyle=style,
                marker=marker,
                markersize=5,
                capsize=3,
                linewidth=1.5,
            )
        panel.set_title(name, fontsize=10)
        panel.set_xticks(positions, [f"{100 * row.sparsity:g}" for row in mine])
        panel.set_xlabel("weights pruned (%)")
        log_errors(panel, (1, 2, 5))
    panels[0].set_ylabel(f"{measured(config).lower()} (%)")
    handles, labels = panels[0].get_legend_handles_labels()
    columns = min(len(labels), 2 * len(names) - 1)
    figure.legend(handles, labels, loc="outside lower center", ncols=columns, frameon=False, fontsize=8)
    figure.suptitle(f"{config['model']} on {config['data']}, {_seeds(config['seeds'])}", fontsize=11)
    save(figure, path)
