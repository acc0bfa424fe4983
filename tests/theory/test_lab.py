"""The experiments of the linear lab find what the closed forms say."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from stochprune.cli import app
from stochprune.seeding import generator
from stochprune.theory import lab, lab_data
from stochprune.theory.lab import LinearLabConfig

SMALL = LinearLabConfig(examples=40, features=7, steps=60, pairs=5)


@pytest.fixture(scope="module")
def training():
    return lab.training(SMALL)


def test_exact_descent_follows_the_closed_form(training):
    """A step of 1/2 stays within the error of Euler's method, which is of the size of the step."""
    trained, flow = (np.array(getattr(training, name)["exact"]) for name in ("trained", "flows"))
    steps = np.linspace(0, 60, 101)
    at = np.array([np.interp(steps, np.arange(61), path) for path in trained.T]).T
    assert np.abs(at - flow).max() < 0.02


def test_each_estimator_goes_where_its_own_flow_goes(training):
    for name in ("straight_through", "concrete"):
        trained, own, exact = (
            np.array(getattr(training, key)[which])[-1]
            for key, which in (("trained", name), ("flows", name), ("flows", "exact"))
        )
        assert np.abs(trained - own).mean() < 0.1
        assert 0.005 < np.abs(own - exact).mean() < 0.2


def test_the_best_mask_is_never_beaten(training):
    assert all(loss >= training.best for loss in training.losses.values())


def test_weights_are_pruned_by_alignment():
    found = lab.alignment(SMALL)
    orthogonal = found["orthogonal features"]
    assert [q > 0.5 for q in orthogonal.kept] == [part > 0.5 for part in orthogonal.alignment]
    for problem in found.values():
        for part, q in zip(problem.residual_alignment, problem.kept, strict=True):
            assert abs(q - 0.5) < 0.45 or (q > 0.5) == (part > 0.5)


def test_masks_have_a_path_of_whole_weights_and_dropout_a_smooth_one():
    for found in lab.paths(SMALL).values():
        masks, sizes = np.abs(found.mask_weights), np.array(found.sizes)[:, None]
        assert (np.isclose(masks, 0) | np.isclose(masks, sizes)).all()
        assert (masks[-1] > 0).sum() < (masks[0] > 0).sum()
        dropout = np.abs(found.dropout_weights)
        assert (dropout[1:] > 0).all() and dropout[0].max() < 0.1 * dropout[-1].max()


def test_certificates_hold_and_the_kl_stays_below_its_bound():
    for point in lab.certificates(SMALL):
        assert point.risk <= point.certificate
        # q is rounded to 1/32768: for q and p in 1/100 .. 99/100 a KL moves by less than this
        assert point.kl <= point.bound + 1e-4


def test_the_features_of_cells_are_orthogonal_and_risks_are_exact():
    cells = lab_data.Cells.make(3, 5)
    sample = cells.sample(generator(0, "test"), 20_000)
    gram = sample.x.mT @ sample.x
    assert torch.equal(gram, torch.diag(gram.diag())) and sample.sizes.sum() == pytest.approx(5 * 20_000)
    q = torch.linspace(0.1, 0.9, 5, dtype=torch.float64)
    draws = torch.from_numpy(generator(1, "test").random((4000, 5))) < q
    outputs = sample.predict(draws.double())[:, :500]  # the first 500 examples
    errors = torch.where(outputs == 0, 0.5, (outputs.sign() != sample.y[:500]).double()).mean()
    part = lab_data.LinearModel(sample.x[:500], sample.y[:500], sample.w)
    assert lab_data.empirical_risk(part, q) == pytest.approx(errors.item(), abs=0.01)
    assert lab_data.empirical_risk(sample, q) == pytest.approx(cells.risk(q.numpy()), abs=0.01)


def test_command(tmp_path):
    options = ["--examples", "20", "--features", "4", "--steps", "10", "--pairs", "2", "--out", str(tmp_path)]
    run = CliRunner().invoke(app, ["linear-lab", *options])
    assert run.exit_code == 0, run.output
    assert "certificates below the true risk" in run.output
    (folder,) = tmp_path.iterdir()
    assert len(list(folder.glob("linear-lab-*.png"))) == 4
    results = json.loads((folder / "results.json").read_text())
    assert results["configuration"]["features"] == 4 and "torch" in results["versions"]


@pytest.mark.parametrize(
    "change, message",
    [
        ({"features": 17}, "features.*16.*got 17"),
        ({"examples": 5}, "features.*got"),
        ({"delta": 1.0}, "delta.*got 1.0"),
        ({"rate": 0.0}, "rate.*got 0.0"),
    ],
)
def test_bad_configuration(change, message):
    with pytest.raises(ValueError, match=message):
        LinearLabConfig(**change)
