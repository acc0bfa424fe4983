"""Small real runs, and results of strangers, for the tests of the page."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from stochprune.pac_bayes import CertifyConfig, PriorConfig, RunConfig, SelfBoundConfig, run_certify
from stochprune.studies.finetune import run_study
from tests.runs.owners import TINY_STUDY, run_initialisation

HOSTILE = "</script><img src=x onerror=alert(1)><!--{{ 7*7 }}"
CERTIFY = RunConfig(
    posteriors=("masks", "gaussian"),
    objectives=("quadratic",),
    prior=PriorConfig(prior_epochs=1),
    self_bound=SelfBoundConfig(epochs=2),
    tried_priors=3,
    tried_certificates=5,
    certify=CertifyConfig(draws=20, draw_examples=16),
)
LEDGERS = Path(__file__).parents[2] / "bench" / "results"


def make_runs(out: Path) -> list[Path]:
    """Run finetune, certify and a study on the digits; return their folders and the ledgers of the benchmarks."""
    finetuned = run_study(TINY_STUDY, out=out)[0]
    certified = run_certify(CERTIFY, out=out)[0]
    run_initialisation(out)
    (study,) = (path.parent for path in out.glob("tiny-*/results.json"))
    return [finetuned, certified, study, *sorted(LEDGERS.glob("*.json"))]


def hostile(value: Any) -> Any:
    """Return a copy of results in which every text, and every name of a layer, ends like an attack."""
    if isinstance(value, dict):
        return {key + HOSTILE if "." in key else key: hostile(item) for key, item in value.items()}
    if isinstance(value, list):
        return [hostile(item) for item in value]
    return value + HOSTILE if isinstance(value, str) else value


def write(path: Path, content: Any) -> Path:
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return path
