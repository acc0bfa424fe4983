"""Small real runs, and results of strangers, for the tests of the page."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from stochprune.bench import KIND, cases
from stochprune.bench import run as suite_run
from stochprune.bench.case import Case
from stochprune.bench.ops import OPS
from stochprune.pac_bayes import CertifyConfig, PriorConfig, RunConfig, SelfBoundConfig, run_certify
from stochprune.report.html.sources import read_content
from stochprune.studies.finetune import run_study
from tests.bench.suite.test_run import Few
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
    """Run finetune, certify and a study on the digits, and the suite; return their folders and the old ledgers."""
    finetuned = run_study(TINY_STUDY, out=out)[0]
    certified = run_certify(CERTIFY, out=out)[0]
    run_initialisation(out)
    (study,) = (path.parent for path in out.glob("tiny-*/results.json"))
    ledgers = [path for path in sorted(LEDGERS.glob("*.json")) if read_content(path).get("kind") != KIND]
    return [finetuned, certified, study, *ledgers, run_suite(out)]


def run_suite(out: Path, seconds: float = 0.01) -> Path:
    """Run tiny cases of the benchmark suite; return the folder."""
    sizes = {"rows": 24, "cols": 40}
    linear = [Case("ops", "linear", {**sizes, "tokens": tokens}) for tokens in (2, 6)]
    scaled = [
        Case("scaling", "linear_scaled", {**sizes, "tokens": 3, "draws": draws}, parts=("step",))
        for draws in (1, 2, 4, 8)
    ]
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(OPS, "linear", Few())
        patch.setattr(cases, "GROUPS", {"ops": linear, "scaling": scaled})
        patch.setattr("stochprune.bench.roof.COPIED", 1 << 16)
        return suite_run.run(suite_run.SuiteConfig(("ops", "scaling"), seconds=seconds), out=out, device="cpu")[0]


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
