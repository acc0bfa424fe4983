"""``stochprune bounds`` on the digits: every number follows from the network, and complete bounds hold on it."""

from __future__ import annotations

import dataclasses
import json
import math

import pytest
import torch
from typer.testing import CliRunner

from stochprune import data, models
from stochprune.cli import app
from stochprune.data.splits import split
from stochprune.pac_bayes import CertifyConfig
from stochprune.runs import read_json
from stochprune.theory import compression, measure, norm_bounds
from stochprune.theory.bounds_config import BoundsConfig
from stochprune.theory.compare import run_bounds
from stochprune.theory.mask_certificate import mask_certificate
from stochprune.theory.subject import Subject, next_mask

SMALL = BoundsConfig(
    layers=2,
    epochs=8,
    lr=5e-3,
    rounds=2,
    round_epochs=1,
    draws=40,
    scales=(0.1, 2.0),
    margin_share=0.3,
    cushion_examples=3,
    sketch_sizes=(12,),
    sketch_trials=1,
)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    out = tmp_path_factory.mktemp("bounds")
    return out, *run_bounds(SMALL, out=out)


def test_results(run):
    _, folder, results = run
    assert read_json(folder / "results.json", "results") == json.loads(json.dumps(results))
    assert results["sizes"] == [64, 64, 10] and results["examples"] == 1150
    assert results["test_error"] < 0.3 and results["margin"] > 0


def test_a_run_that_is_there_is_not_made_again(run, monkeypatch):
    out, _, results = run
    monkeypatch.setattr("torch.optim.Adam.step", lambda *_: pytest.fail("trained again"))
    _, again = run_bounds(SMALL, out=out)
    assert again == results


def test_compression_rows(run):
    for row in run[2]["compression"]:
        assert row["kept"] == pytest.approx(row["predicted_kept"], abs=0.02)
        assert 0 < row["error"] <= row["output_change"]


def test_every_bound_is_there_and_the_norm_based_ones_are_vacuous(run):
    rows = {row["name"]: row for row in run[2]["bounds"]}
    assert list(rows) == [
        "Neyshabur 2015",
        "Bartlett 2017",
        "Neyshabur 2017",
        "Galanti 2023",
        "Arora 2018",
        "Guha 2023",
        "counting",
        "PAC-Bayes certificate",
        "held-out examples alone",
    ]
    for name, row in rows.items():
        assert row["complete"] == (name in ("counting", "PAC-Bayes certificate", "held-out examples alone"))
        assert math.isfinite(row["value"]) and (row["complete"] or row["value"] > 1)
        if row["complete"]:
            assert row["error"] < row["value"] <= 1
    assert rows["held-out examples alone"]["value"] < 0.4


def test_the_next_mask_keeps_the_largest_of_those_kept():
    weights = {"a": torch.tensor([[1.0, -5.0, 2.0]]), "b": torch.tensor([[4.0, 9.0]])}
    kept = {"a": torch.tensor([[True, True, True]]), "b": torch.tensor([[True, False]])}
    found = next_mask(weights, kept, 0.5)
    assert found["a"].tolist() == [[False, True, False]] and found["b"].tolist() == [[True, False]]


def test_rounds_keep_nine_tenths_each(run):
    assert [row["kept"] for row in run[2]["iterative"]] == pytest.approx([0.9, 0.81], abs=1e-3)
    assert all(row["sparse_norms"] > 1 for row in run[2]["iterative"])


def test_the_scale_whose_margin_is_the_measured_one(run):
    results = run[2]
    (found,) = [row for row in results["bounds"] if row["name"] == "Guha 2023"]
    parts = split(*(getattr(data.digits(), name) for name in ("train_x", "train_y")), SMALL.train_fraction, SMALL.seed)
    model = models.mlp(results["sizes"], seed=SMALL.seed)
    saved = torch.load(run[1] / "dense" / "checkpoint.pt", weights_only=False)
    model.load_state_dict(saved["model"])
    subject = Subject.of(model, parts.prior, parts.certify, parts.certify.x, parts.certify.y, SMALL.margin_share)
    assert subject.margin == pytest.approx(results["margin"])
    row = measure.compressed(subject, found["scale"], SMALL.seed)  # from proved norms
    assert 0.8 * subject.margin <= row.paper_margin <= subject.margin  # masks change by whole weights
    assert row.paper_margin == pytest.approx(found["margin"])
    found = norm_bounds.cushions(subject.weights, parts.prior.x[:3])
    arora = norm_bounds.arora_2018(found, subject.margin, 1150) + subject.margin_loss
    assert arora == pytest.approx(next(r["value"] for r in results["bounds"] if r["name"] == "Arora 2018"))
    assert compression.kept(subject.weights) == 1


def test_training_on_other_data_is_no_start(tmp_path, monkeypatch):
    """The same configuration on files that have changed: the examples held out now may have been trained on then."""
    config = dataclasses.replace(SMALL, epochs=1, lr=1e-7)
    digits = data.digits()
    for dataset in (
        digits,
        dataclasses.replace(digits, train_x=digits.train_x.flip(0), train_y=digits.train_y.flip(0)),
    ):
        monkeypatch.setattr(data, "load", lambda *_, dataset=dataset, **__: dataset)
        with pytest.raises(ValueError, match="margin"):
            run_bounds(config, out=tmp_path)
    states = [torch.load(path, weights_only=True) for path in tmp_path.glob("*/dense/checkpoint.pt")]
    assert len(states) == 2
    first, second = (state["model"]["fc1.weight"] for state in states)
    assert not torch.equal(first, second)


def test_a_network_that_knows_nothing_is_refused(tmp_path):
    config = dataclasses.replace(SMALL, epochs=1, lr=1e-7)
    with pytest.raises(ValueError, match=r"0\.3 of the training examples .*margin.* -"):
        run_bounds(config, out=tmp_path)


def test_the_certificate_of_a_network_under_random_masks(tmp_path):
    digits = data.load("digits", standardised=False)
    model = models.mlp((64, 16, 10), seed=0)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    parts, plan = data.split(digits.train_x, digits.train_y, 0.5), CertifyConfig(draws=30)
    found = mask_certificate(model, parts, plan, keep=0.9, seed=0, folder=tmp_path)
    assert found.mean_loss < found.bound <= 1 and 0 <= found.total_kl < 1e-3
    assert all(torch.equal(p, before[name]) for name, p in model.named_parameters())
    with pytest.raises(ValueError, match=r"mask_certificate: parts .*no prior"):
        mask_certificate(model, dataclasses.replace(parts, prior=None), plan, keep=0.9, seed=0, folder=tmp_path)


def test_hidden_layers_of_another_width(tmp_path):
    config = dataclasses.replace(SMALL, layers=3, width=32, rounds=0, draws=2, margin_share=0.5)
    _, results = run_bounds(config, out=tmp_path)
    assert results["sizes"] == [64, 32, 32, 10]
    assert [layer["width"] for layer in results["norms"]] == [64, 32, 32]


def test_command(run):
    out, _, results = run
    options = [f"--{field.name.replace('_', '-')}" for field in dataclasses.fields(SMALL)]
    values = dataclasses.astuple(SMALL)
    pairs = [
        (o, ",".join(map(str, v)) if isinstance(v, tuple) else str(v)) for o, v in zip(options, values, strict=True)
    ]
    done = CliRunner().invoke(app, ["bounds", "--out", str(out), *(word for pair in pairs for word in pair)])
    assert done.exit_code == 0, done.output
    assert "vacuous" in done.output and "non-vacuous" in done.output
    assert next(out.iterdir()).joinpath("results.png").stat().st_size > 10_000
    assert results["configuration"]["scales"] == (0.1, 2.0)


@pytest.mark.parametrize(
    "change, message",
    [
        ({"keep": 1.0}, "keep.*got 1.0"),
        ({"scales": ()}, "scales.*got none"),
        ({"scales": (1.0, -1.0)}, r"scales.*got -1\.0"),
        ({"sketch_sizes": (12, 3)}, r"sketch_sizes.*got 3"),
        ({"layers": 1}, "layers.*got 1"),
    ],
)
def test_bad_configuration(change, message):
    with pytest.raises(ValueError, match=message):
        BoundsConfig(**change)
