"""Studies of pruning methods: arms, equal epochs, processor seconds, resumption, tables."""

from __future__ import annotations

import json
import time

import pytest
import torch

from stochprune import data, models, studies
from stochprune.report import study_markdown
from stochprune.report.summary import Paired
from stochprune.runs import read_json
from stochprune.studies.methods import Arm, ArmBlock, MethodsConfig
from stochprune.studies.processor_time import ProcessorTime
from stochprune.training import GradualMagnitudeConfig, ProgressBar, WeightConfig, error, predict, prune, train_weights

TEXT = """
title: T
job: methods
data: [digits]
models: [lenet_300_100]
seeds: 2
grid:
  - sparsities: [0.8]
    arms:
      gradual: {method: gradual_magnitude, every: 1, lr: 2e-3}
      longer: {method: gradual_magnitude, epochs: 3}
      falling: {method: mask_finetuning, budget_schedule: cubic, start: score, retrain_epochs: 1, logit_lr: 0.5}
settings:
  epochs: 2
  batch_size: 512
  validation: 0.2
  dense: {epochs: 1}
"""
pytestmark = pytest.mark.filterwarnings("ignore::stochprune.training.StuckMaskWarning")


def test_a_file_names_arms(plan):
    assert isinstance(plan.settings, MethodsConfig) and len(plan.grid[0]) == 3
    gradual, longer, falling = plan.grid[0].arms
    assert gradual == Arm("gradual", "gradual_magnitude", (("every", 1), ("lr", 2e-3)))
    assert (longer.epochs, falling.retrain_epochs) == (3, 1)
    config = GradualMagnitudeConfig(epochs=2, lr=2e-3, sparsity=0.8, seed=1, every=1)
    assert gradual.config(2, 0.8, 1) == config
    assert longer.config(2, 0.8, 0).epochs == 3 and falling.config(2, 0.8, 0).epochs == 1


def test_rows_are_those_of_the_methods(finished):
    results = json.loads(json.dumps(finished[1]))
    assert results == read_json(finished[0] / "results.json", "results")
    rows = {(row["score"], row["arm"], row["seed"]): row for row in results["rows"]}
    assert len(rows) == len(results["rows"]) == 2 + 2 * 3 * 2
    dataset = data.digits()
    held = studies.finetune.hold_out(dataset, 0.2)
    assert len(held.test_y) == round(0.2 * len(dataset.train_y))
    model = models.build("lenet_300_100", dataset.shape, 10, 1)
    batches = data.Batches(held.train_x, held.train_y, 512, 1)
    train_weights(model, batches, WeightConfig(1))
    assert rows["dense", "none", 1]["error"] == error(predict(model, held.test_x), held.test_y)
    prune(model, batches, GradualMagnitudeConfig(epochs=2, lr=2e-3, sparsity=0.8, seed=1, every=1))
    found = error(predict(model, held.test_x), held.test_y)
    assert rows["gradual", "cut", 1]["error"] == rows["gradual", "trained", 1]["error"] == found
    assert all(row["seconds"] > 0 for key, row in rows.items() if key[0] != "dense")


def test_each_arm_has_its_epochs(finished):
    found = [read_json(path, "result") for path in finished[0].parent.glob("cells/*/result.json")]
    epochs = {cell["configuration"]["arm"]["name"]: len(cell["result"]["history"]) for cell in found}
    assert epochs == {"gradual": 2, "longer": 3, "falling": 1}
    assert all(cell["result"]["sparsity"] == pytest.approx(0.8, abs=1e-4) for cell in found)


def test_killed_and_resumed_gives_the_same(plan, finished, tmp_path, monkeypatch):
    made = []

    def interrupt(self, state):
        made.append(state.step)
        if len(made) in (2, 7, 13, 20):
            raise KeyboardInterrupt

    monkeypatch.setattr(ProgressBar, "on_step", interrupt)
    for _ in range(4):
        with pytest.raises(KeyboardInterrupt):
            studies.run(plan, out=tmp_path)
    _, results = studies.run(plan, out=tmp_path)
    assert [{**row, "seconds": 0} for row in results["rows"]] == [{**row, "seconds": 0} for row in finished[1]["rows"]]
    before = len(made)
    assert studies.run(plan, out=tmp_path)[1]["rows"] == results["rows"] and len(made) == before


def test_tables_have_paired_differences_and_seconds(finished):
    folder, results = finished
    text = (folder / "tables.md").read_text()
    assert text == study_markdown(results)
    by = {(row["score"], row["seed"]): row for row in results["rows"] if row["arm"] == "trained"}
    found = Paired.of([by["falling", seed]["error"] - by["gradual", seed]["error"] for seed in (0, 1)])
    assert f"| falling | {found.mean:+.2f} ± {found.half_width:.2f} |" in text
    assert "Processor seconds" in text and "| gradual | trained |" in text
    assert "Validation error in per cent" in text and "Test error" not in text


def test_arms_from_random_weights_and_a_dense_one(tmp_path):
    """Untrained networks, and a block of sparsity 0, whose arm has no partner to compare with."""
    arms = """
      edge-popup: {method: edge_popup}
      rewinding: {method: iterative_magnitude, cycles: 1, dense_epochs: 1, retraining: wr}
  - {sparsities: [0.0], arms: {"dense, as long": {method: one_shot}}}
settings:"""
    start, end = TEXT.index("\n      gradual"), TEXT.index("\nsettings:")
    path = tmp_path / "mine.yaml"
    path.write_text(
        (TEXT[:start] + arms + TEXT[end + len("\nsettings:") :]).replace("dense: {epochs: 1}", "dense: {epochs: 0}")
    )
    folder, results = studies.run(studies.load(path), out=tmp_path)
    rows = {(row["score"], row["arm"], row["seed"]): row for row in results["rows"]}
    dataset = data.digits()
    held = studies.finetune.hold_out(dataset, 0.2)
    model = models.build("lenet_300_100", dataset.shape, 10, 0)
    assert rows["dense", "none", 0]["error"] == error(predict(model, held.test_x), held.test_y) > 60
    train_weights(model, data.Batches(held.train_x, held.train_y, 512, 0), WeightConfig(2))
    assert rows["dense, as long", "trained", 0]["error"] == error(predict(model, held.test_x), held.test_y)
    differences = (folder / "tables.md").read_text().split("minus that of")[1]
    assert "| rewinding | " in differences and "dense, as long" not in differences


def test_an_arm_whose_start_empties_a_layer_is_a_result(tmp_path):
    text = TEXT.replace("seeds: 2", "seeds: 1").replace("[0.8]", "[0.9995]").replace("start: score", "start: mask")
    (tmp_path / "mine.yaml").write_text(text)
    folder, results = studies.run(studies.load(tmp_path / "mine.yaml"), out=tmp_path)
    (lost,) = results["failures"]
    assert lost["score"] == "falling" and "sparsity 0.9995" in lost["reason"]
    errors = {(row["score"], row["arm"]): row["error"] for row in results["rows"]}
    assert [name for name, error in errors.items() if error is None] == [("falling", "cut"), ("falling", "trained")]
    assert "- falling, 99.95 %, seed 0: sparsity 0.9995 of all" in (folder / "tables.md").read_text()


def test_the_interval_is_student_s():
    found = Paired.of([1.0, 2.0, 3.0, 4.0, 5.0])  # the quantile of 4 degrees of freedom is 2.776
    assert (found.mean, found.half_width) == (3.0, pytest.approx(2.776 * 1.5811 / 5**0.5, rel=1e-3))
    assert Paired.of([2.0]) == Paired(2.0, None)


def test_processor_time_counts_the_time_before_a_checkpoint(tmp_path):
    def train(clock, stop=None):
        class Busy:
            def on_step(self, state):
                begun = time.process_time()
                while time.process_time() - begun < 0.02:
                    pass
                if state.step == stop:
                    raise KeyboardInterrupt

        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            model = torch.nn.Linear(4, 2)
        batches = [(torch.ones(8, 4), torch.zeros(8, dtype=torch.int64))] * 10
        config = WeightConfig(1, checkpoint_every=1)
        with clock:
            train_weights(model, batches, config, folder=tmp_path, callbacks=[clock, Busy()])
        return clock.seconds

    with pytest.raises(KeyboardInterrupt):
        train(ProcessorTime(), stop=6)
    resumed = train(ProcessorTime())
    assert resumed >= 0.02 * 9  # step 6 was in the checkpoint before it was busy
    assert train(ProcessorTime()) >= resumed - 0.05


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("gradual_magnitude, every: 1", "gradual, every: 1"), r"unknown method 'gradual'.*gradual_magnitude"),
        (("every: 1", "evry: 1"), r"no option 'evry'.*every"),
        (("every: 1", "every: 0"), r"every.*got 0"),
        (("every: 1", "sparsity: 0.5"), r"'gradual'.*sparsity"),
        (("retrain_epochs: 1", "retrain_epochs: 3"), r"'falling'.*at most 2, got 3"),
        (("retrain_epochs: 1", "retrain_epochs: -1"), r"retrain_epochs.*got -1"),
        (("{method: gradual_magnitude, epochs: 3}", "3"), r"'longer'.*got 3"),
        (("method: gradual_magnitude, epochs: 3", "epochs: 3"), "method is missing"),
        (("longer: {", "dense: {"), "'dense'.*before pruning"),
        (("job: methods", "job: initialisation"), "mine: "),
        (("epochs: 2", "epoch: 2"), r"'epoch'.*epochs"),
    ],
)
def test_bad_files_are_refused(tmp_path, change, message):
    path = tmp_path / "mine.yaml"
    path.write_text(TEXT.replace(*change, 1))
    with pytest.raises(ValueError, match=message):
        studies.load(path)


def test_grids_of_other_jobs_are_refused(plan):
    with pytest.raises(ValueError, match="arms"):
        studies.Plan(**{**vars(studies.load("immune")), "grid": plan.grid})
    with pytest.raises(ValueError, match="arms"):
        studies.Plan(**{**vars(plan), "grid": studies.load("immune").grid})
    with pytest.raises(ValueError, match="arms"):
        ArmBlock((), (0.5,))
