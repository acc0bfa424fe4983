"""Measure every gradient estimator and write the results to docs/estimators.md.

python -m bench.estimators              # about five minutes on one core
python -m bench.estimators --draws 2000 # a quick look; writes nothing
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import torch

import stochprune
from bench.estimators import bias, learning, steps
from stochprune.runs.results import versions

ROOT = Path(__file__).parents[2]
PAGE, HEADING = ROOT / "docs" / "estimators.md", "## Measured"
RESULT = ROOT / "bench" / "results" / "estimators.json"


def page(rows: list[dict[str, Any]], ms: dict[str, float], learnt: list[dict[str, Any]], draws: int) -> str:
    """Return the measured part of the page."""
    about = (
        f"The numbers come from {draws} draws ({draws // 5} for ARM and DisARM), with torch {torch.__version__} and "
        f"stochprune {stochprune.__version__}. Bias (± its standard error) and spread (of one draw) are in per cent of "
        "the norm of the exact gradient. The cosine is between the mean over the draws and the exact gradient. The "
        "number after an estimator's name is its temperature."
    )
    return "\n\n".join([about, *bias.tables(rows), *steps.tables(ms), *learning.tables(learnt)])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--draws", type=int, help="draws of each estimator; with this option nothing is written")
    draws = parser.parse_args().draws
    count = draws or 20_000
    rows, ms, learnt = bias.measure(count), steps.measure(), learning.learn()
    text = page(rows, ms, learnt, count)
    print(text)
    if draws is None:
        kept = {"versions": versions(), "seed": 0, "draws": count, "rows": rows, "ms": ms, "learnt": learnt}
        RESULT.write_text(json.dumps(kept, indent=1) + "\n")
        PAGE.write_text(f"{PAGE.read_text().partition(HEADING)[0]}{HEADING}\n\n{text}\n")


if __name__ == "__main__":
    main()
