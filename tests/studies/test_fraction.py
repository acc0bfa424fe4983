"""Studies of the pruning fraction: errors and bounds of networks made by hand, weight shedding, refusals."""

from __future__ import annotations

import dataclasses
import json
import math

import pytest

from stochprune import bounds, data, models, studies
from stochprune.report import study_markdown
from stochprune.runs import read_json
from stochprune.theory import compression, norm_bounds
from stochprune.theory.subject import weights_of
from stochprune.training import (
    GradualMagnitudeConfig,
    ProgressBar,
    WeightConfig,
    WeightShedding,
    error,
    predict,
    prune,
    train_weights,
)

TEXT = """
title: T
job: fraction
data: [digits]
models: [lenet_300_100]
seeds: 1
grid:
  - sparsities: [0]
    arms:
      whole: {method: one_shot, retrain_epochs: 3}
  - sparsities: [0.5, 0.8]
    arms:
      gradual: {method: gradual_magnitude, every: 1, lr: 2e-3, retrain_epochs: 2}
settings:
  epochs: 3
  batch_size: 256
  draws: 20
  train_fraction: 0.6
  margin_share: 0.3
  dense: {epochs: 6, lr: 3e-3}
"""


@pytest.fixture(scope="module")
def by_hand(plan):
    """The split, the network pruned by 80 per cent, and the history of its last training."""
    digits = data.load("digits", standardised=False)
    parts = data.split(digits.train_x, digits.train_y, 0.6)
    model = models.build("lenet_300_100", digits.shape, 10, 0)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name.endswith("weight"))
    batches = parts.prior.batches(256)
    train_weights(model, batches, plan.settings.dense)
    found = prune(model, batches, GradualMagnitudeConfig(epochs=1, lr=2e-3, sparsity=0.8, seed=0, every=1))
    look = WeightShedding(found.masks)
    history = train_weights(found.model, batches, WeightConfig(2, lr=3e-3), masks=found.masks, callbacks=[look])
    return digits, parts, found.model, history


def test_rows_are_those_of_networks_made_by_hand(finished, by_hand):
    results = json.loads(json.dumps(finished[1]))
    assert results == read_json(finished[0] / "results.json", "results")
    rows = {(row["score"], row["sparsity"]): row for row in results["rows"]}
    assert list(rows) == [("whole", 0.0), ("gradual", 0.5), ("gradual", 0.8)]
    row, (digits, parts, model, history) = rows["gradual", 0.8], by_hand
    assert row["error"] == pytest.approx(error(predict(model, parts.scaled(digits.test_x)), digits.test_y))
    assert row["train_error"] == pytest.approx(error(predict(model, parts.prior.x), parts.prior.y))
    assert row["shed"] == history[-1]["shed"]

    weights, n = weights_of(model), len(parts.prior)
    wrong = error(predict(model, parts.certify.x), parts.certify.y) / 100
    assert row["held_out"] == pytest.approx(100 * bounds.chernoff(wrong, len(parts.certify), 0.05))
    margins = compression.margins(compression.outputs(weights, parts.prior.x), parts.prior.y).sort().values
    margin = float(margins[int(0.3 * n)])
    share = float((margins <= margin).double().mean())
    norms, radius = [norm_bounds.Norms.of(w) for w in weights.values()], parts.prior.x.flatten(1).norm(dim=1).max()
    galanti = share + norm_bounds.galanti_2023(norms, float(radius), margin, n)
    assert row["galanti"] == pytest.approx(100 * galanti, rel=1e-5)
    squares = [w.numel() * 0.2 * math.log(max(w.shape)) ** 2 for w in weights.values()]
    assert row["guha"] == pytest.approx(100 * (share + math.sqrt(sum(squares) / n)), rel=1e-3)
    coded = compression.quantise(weights, 16)
    found = float((compression.outputs(coded, parts.prior.x).argmax(1) != parts.prior.y).double().mean())
    nats = compression.code_length(coded, 16) + 2 * 64 * math.log(2)  # shift and scale of the one channel
    counting = compression.counting_bound(found, nats, n, 0.05)
    assert row["counting"] == pytest.approx(100 * counting)
    assert row["held_out"] < row["certificate"] < 100  # few draws, and masks that lose one weight in a hundred


def test_weight_shedding_by_epoch_and_layer(finished, by_hand):
    rows = finished[1]["shedding"]
    assert len(rows) == 3 * 3 + 2 * 2 * 3
    mine = {(row["epoch"], row["name"]): row["shed"] for row in rows if row["sparsity"] == 0.8}
    expected = {
        (entry["epoch"], name): entry[f"shed_{name}"]
        for entry in by_hand[3]
        for name in ("fc1.weight", "fc2.weight", "fc3.weight")
    }
    assert mine == expected and any(row["shed"] for row in rows)
    assert (finished[0] / "shedding.csv").read_text().count("\n") == 1 + len(rows)


def test_tables_and_picture(finished):
    folder, results = finished
    text = (folder / "tables.md").read_text()
    assert text == study_markdown(results)
    certificates = [row["certificate"] for row in results["rows"] if row["score"] == "gradual"]
    assert f"| gradual |  | {certificates[0]:.2f} | {certificates[1]:.2f} |" in text
    assert (folder / "bounds.png").stat().st_size > 20_000


def test_nothing_is_trained_again(plan, finished, monkeypatch):
    monkeypatch.setattr(ProgressBar, "on_step", lambda *_: pytest.fail("trained again"))
    assert studies.run(plan, out=finished[0].parent)[1]["rows"] == finished[1]["rows"]


def test_a_training_that_diverges_is_a_result(plan, tmp_path):
    settings = dataclasses.replace(plan.settings, dense=WeightConfig(2, lr=1e30))
    _, results = studies.run(dataclasses.replace(plan, grid=plan.grid[:1], settings=settings), out=tmp_path)
    (row,) = results["rows"]
    assert row["error"] is row["certificate"] is row["shed"] is None and not results["shedding"]
    assert not list(tmp_path.glob("*/bounds.png"))
    (lost,) = results["failures"]
    assert lost["score"] == row["score"] and "loss" in lost["reason"]


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("lenet_300_100", "resnet20", "'resnet20'.*lenet_300_100"),
        ("arms:\n      whole: {method: one_shot, retrain_epochs: 3}", "scores: [snip]", "arms.*fraction"),
        ("retrain_epochs: 3", "retrain_epochs: 4", "'whole'.*got 4"),
        ("train_fraction: 0.6", "train_fraction: 1.0", r"train_fraction.*1\.0"),
    ],
)
def test_refusals(tmp_path, old, new, said):
    (tmp_path / "mine.yaml").write_text(TEXT.replace(old, new, 1))
    with pytest.raises(ValueError, match=said):
        studies.run(studies.load(tmp_path / "mine.yaml"), out=tmp_path / "runs")
