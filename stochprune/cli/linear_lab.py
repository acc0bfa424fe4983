"""``stochprune linear-lab``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from stochprune.cli.options import configured, options_from
from stochprune.theory.lab import LinearLabConfig, run_lab
from stochprune.theory.lab_figures import draw


@options_from({LinearLabConfig: "Linear lab"})
def linear_lab(
    *,
    out: Annotated[Path, typer.Option(help="Folder for run folders.")] = Path("runs"),
    **values: Any,
) -> None:
    """Masks of a linear model: training against its closed forms.

    Gradient flow and discrete training of the probabilities by each estimator, pruning by alignment with the labels,
    the L1 paths of masks beside the L2 paths of dropout, and PAC-Bayes certificates against the change of alignment.
    Takes seconds. Writes results.json and four pictures; docs/theory-linear.md explains them.
    """
    console = Console()
    folder, results = run_lab(configured(LinearLabConfig, values), out)
    draw(results, folder)
    console.print(_table(results))
    console.print(f"{folder}/results.json and four pictures", highlight=False, soft_wrap=True, markup=False)


def _table(results: dict[str, Any]) -> Table:
    points = results["certificates"]
    kept = results["alignment"]["orthogonal features"]
    made = Table("what", "found", title="Linear lab")
    for name, loss in results["training"]["losses"].items():
        made.add_row(f"expected loss at the end of the flow: {name}", f"{loss:.4f}")
    made.add_row("loss of the best of all masks", f"{results['training']['best']:.4f}")
    agree = sum((q > 0.5) == (part > 0.5) for q, part in zip(kept["kept"], kept["alignment"], strict=True))
    made.add_row("orthogonal weights kept or pruned as their alignment says", f"{agree} of {len(kept['kept'])}")
    made.add_row("largest KL(Q | P) over its bound by alignment", f"{max(p['kl'] / p['bound'] for p in points):.3f}")
    failed = sum(p["risk"] > p["certificate"] for p in points)
    made.add_row("certificates below the true risk", f"{failed} of {len(points)}")
    return made
