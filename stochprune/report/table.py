"""The table of a study for the terminal: it fits 80 columns."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich import box
from rich.table import Table

from stochprune.report.summary import Spread, summarize

COLUMNS = {
    "retrained": "weights\ntrained",
    "stochastic": "random\nmasks",
    "thresholded": "cut",
    "finetuned": "cut and\ntrained",
    "shuffled": "shuffled,\ntrained",
}


def table(results: Mapping[str, Any]) -> Table:
    """Errors in per cent, mean±standard deviation over seeds; the better of two trainings of as many epochs is bold."""
    config = results["configuration"]
    masks, weights = config["finetune"]["epochs"], config["retrain_epochs"]
    dense = Spread.of([entry["error"] for entry in results["dense"]])
    made = Table(
        title=f"Error in per cent, {config['model']} on {config['data']}, mean±sd, n = {config['seeds']}; "
        f"dense {_short(dense)}",
        caption=f"Equal epochs: weights trained for {masks + weights} under the score's mask; or {masks} of "
        f"mask fine-tuning, the cut, {weights} of weights. Gain: first error minus second; up: seeds that gain.",
        box=box.SIMPLE_HEAD,
        padding=0,
        caption_justify="left",
    )
    made.add_column("score,\npruned")
    made.add_column("as\npruned", justify="right")
    for title in COLUMNS.values():
        made.add_column(title, justify="right", min_width=9)
    made.add_column("gain", justify="right", min_width=6)
    made.add_column("up", justify="right")
    score = None
    for row in summarize(results):
        if row.score != score:
            score = row.score
            made.add_row(f"[bold]{score}[/bold]")
        better = "finetuned" if row.gain.mean > 0 else "retrained"
        cells = {arm: _short(row.errors[arm]) for arm in COLUMNS}
        cells[better] = f"[bold]{cells[better]}[/bold]"
        pruned, gain = f"{row.errors['pruned'].mean:.1f}", f"{row.gain.mean:+.2f}"
        made.add_row(f"{100 * row.sparsity:g}%", pruned, *cells.values(), gain, f"{row.wins}/{row.seeds}")
    return made


def _short(spread: Spread) -> str:
    digits = 1 if spread.mean >= 10 else 2
    return f"{spread.mean:.{digits}f}±{spread.sd:.{digits}f}"
