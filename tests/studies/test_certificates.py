"""Studies of certificates: rows are those of runs of certify; tables; resumption; refusals."""

from __future__ import annotations

import pytest

from stochprune import studies
from stochprune.pac_bayes import CertifyConfig, PriorConfig, RunConfig, SelfBoundConfig, load_certificate, run_certify
from stochprune.report import study_markdown
from stochprune.runs import CheckpointError
from stochprune.runs.config import digest
from stochprune.studies import certificates

TEXT = """
title: T
job: certificates
data: [digits]
models: [lenet_300_100]
seeds: 2
grid:
  - arms:
      trained: {prior_epochs: 2, objectives: kl, draw_examples: 8}
      data-free: {prior_fraction: 0, keep: 0.5, lr: 2e-1}
settings:
  posteriors: [masks]
  objectives: [classic]
  self_bound: {epochs: 1}
  certify: {draws: 30}
"""


def test_rows_are_those_of_the_command(plan, finished, tmp_path):
    rows = finished[1]["rows"]
    arms = ("trained", "masks, prior"), ("trained", "masks, kl"), ("data-free", "masks, prior")
    names = [*arms, ("data-free", "masks, classic")]
    assert [(row["score"], row["arm"], row["seed"]) for row in rows] == [(*n, seed) for seed in (0, 1) for n in names]
    config = RunConfig(
        data="digits",
        model="lenet_300_100",
        posteriors=("masks",),
        objectives=("classic",),
        seed=1,
        prior=PriorConfig(prior_fraction=0.0, keep=0.5),
        self_bound=SelfBoundConfig(epochs=1, lr=0.2),
        certify=CertifyConfig(draws=30),
    )
    _, alone = run_certify(config, out=tmp_path)
    for row, own in zip(rows[-2:], alone["rows"], strict=True):
        assert row["bound"] == pytest.approx(100 * own["bound"]) and row["kl"] == own["total_kl"]
        assert row["mean_loss"] == pytest.approx(100 * own["mean_loss"])
        assert row["error"] == pytest.approx(100 * own["test_error"]) and row["run_seconds"] > 0
    (path,) = finished[0].parent.glob(f"cells/{digest(config)}/certify-*/masks-classic.json")
    assert load_certificate(path).bound == alone["rows"][1]["bound"]


def test_tables(finished):
    folder, results = finished
    text = (folder / "tables.md").read_text()
    assert text == study_markdown(results)
    bounds = [row["bound"] for row in results["rows"] if (row["score"], row["arm"]) == ("data-free", "masks, classic")]
    (line,) = [line for line in text.splitlines() if line.startswith("| data-free | masks, classic | 2 |")]
    assert f"{sum(bounds) / 2:.2f} ± " in line and f" {max(bounds):.2f} |" in line


def test_nothing_runs_again_and_other_examples_are_refused(plan, finished, monkeypatch):
    monkeypatch.setattr(certificates, "run_certify", lambda *_, **__: pytest.fail("certified again"))
    assert studies.run(plan, out=finished[0].parent)[1]["rows"] == finished[1]["rows"]
    cell = next(plan.certificate_cells("digits"))
    with pytest.raises(CheckpointError, match="other examples"):
        certificates.run_cell(cell, "0" * 64, None, finished[0].parent / "cells", "cpu")


def test_lists_are_texts_with_commas():
    arm = certificates.CertificateArm("A", (("objectives", "kl,lambda"), ("posteriors", "masks")))
    assert arm.config(RunConfig()) == RunConfig(posteriors=("masks",), objectives=("kl", "lambda"))


@pytest.mark.parametrize("small", [False, True])
@pytest.mark.parametrize("name", ["certificates", "certificates-data-free"])
def test_the_shipped_studies(name, small):
    plan = studies.load(name, small)
    cells = list(plan.certificate_cells(plan.data[0]))
    assert len({digest(cell.config) for cell in cells}) == len(cells) == sum(map(len, plan.grid)) * plan.seeds
    assert {(cell.config.data, cell.config.model) for cell in cells} == {(*plan.data, *plan.models)}


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("prior_epochs: 2", "prior_epoch: 2", "'trained'.*'prior_epoch'"),
        ("prior_epochs: 2", "seed: 2", "'trained'.*sets seed"),
        ("keep: 0.5", "keep: 1.5", "keep.*got 1.5"),
        ("  posteriors: [masks]", "  model: pbb_fc", "certificates model must be a key of the study"),
        ("trained:", "dense:", "'dense'"),
        ("lr: 2e-1", "objective: kl", "'data-free'.*objectives"),
        ("self_bound: {epochs: 1}", "self_bound: {objective: kl}", "objective of self_bound.*objectives"),
        ("job: certificates", "job: fraction", "data-free|method"),
        ("arms:\n", "scores: [snip]\n    old:\n", "grid"),
    ],
)
def test_refusals(tmp_path, old, new, said):
    (tmp_path / "mine.yaml").write_text(TEXT.replace(old, new, 1))
    with pytest.raises(ValueError, match=said):
        studies.load(tmp_path / "mine.yaml")
