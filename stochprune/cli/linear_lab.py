"""``stochprune linear-lab``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from stochprune.cli.options import options_from
from stochprune.runs.files import write_json
from stochprune.runs.folder import claim
from stochprune.runs.results import versions
from stochprune.theory.lab import LinearLabConfig, run
from stochprune.theory.lab_figures import draw
from stochprune.training.config import digest


@options_from({LinearLabConfig: "Linear lab"})
def linear_lab(
    *,
    out: Annotated[Path, typer.Option(help="Folder for run folders.")] = Path("runs"),
    **values: Any,
) -> None:
    """Train masks of a linear model and compare with closed forms.

    Computes the gradient flow and the discrete training of the probabilities with each estimator, pruning by alignment
    with the labels, the L1 paths of masks and the L2 paths of dropout, and PAC-Bayes certificates against the change of
    alignment. Takes seconds. Writes results.json and four pictures, which docs/theory-linear.md explains.
    """
    console = Console()
    config = LinearLabConfig(**values)
    folder = out / f"linear-lab-{digest(config)}"
    with claim(folder):
        results = run(config)
        write_json(folder / "results.json", {"versions": versions(), **results})
        draw(results, folder)
    console.print(_table(results))
    console.print(f"{folder}/results.json and four pictures", highlight=False, soft_wrap=True, markup=False)


def _table(results: dict[str, Any]) -> Table:
    points = results["certificates"]
    kept = results["alignment"]["orthogonal features"]
    made = Table("what", "found", title="Linear lab")
    for name, loss in results["training"]["losses"].items():
        made.add_row(f"expected loss at the end of the flow: {name}", f"{loss:.4f}")
    made.add_row("loss of the best mask", f"{results['training']['best']:.4f}")
    agree = sum((q > 0.5) == (part > 0.5) for q, part in zip(kept["kept"], kept["alignment"], strict=True))
    made.add_row("weights kept or pruned as their alignment predicts", f"{agree} of {len(kept['kept'])}")
    made.add_row("largest KL(Q | P) / its bound by alignment", f"{max(p['kl'] / p['bound'] for p in points):.3f}")
    failed = sum(p["risk"] > p["certificate"] for p in points)
    made.add_row("certificates below the true risk", f"{failed} of {len(points)}")
    return made
