"""The bench of a study's cells: changed training images."""

from __future__ import annotations

import pytest
import torch

from stochprune import data, studies
from stochprune.data.augment import Augmented
from stochprune.runs.progress import ProgressBar
from stochprune.studies.bench import AugmentConfig, Bench
from stochprune.training import WeightConfig, error, predict, train_weights

GRIDS = {
    "methods": "sparsities: [0.5]\n    arms: {cut: {method: one_shot}}",
    "initialisation": "scores: [magnitude]\n    sparsities: [0.5]",
}
SETTINGS = {"methods": "epochs: 1\n  dense: {epochs: 1}", "initialisation": "weights: {epochs: 1}"}


def plan(tmp_path, job, augment):
    path = tmp_path / f"{job}.yaml"
    path.write_text(
        f"title: T\njob: {job}\ndata: [digits]\nmodels: [small_cnn]\nseeds: 1\ngrid:\n  - {GRIDS[job]}\n"
        f"settings:\n  batch_size: 512\n  train_examples: 600\n  augment: {augment}\n  {SETTINGS[job]}\n"
    )
    return studies.load(str(path))


@pytest.mark.parametrize("job", GRIDS)
def test_a_study_trains_on_changed_images(job, tmp_path):
    found = {}
    for augment in ("{shift: 2, flip: true}", "{}"):
        _, results = studies.run(plan(tmp_path, job, augment), out=tmp_path / "runs")
        found[augment] = next(row["error"] for row in results["rows"] if row["score"] == "dense")
    dataset = data.subset(data.digits(), 600)
    with ProgressBar("test") as bar:
        model = Bench(dataset, 512, bar).build("small_cnn", 0)
    changed = Augmented(data.Batches(dataset.train_x, dataset.train_y, 512, 0), 2, True)
    train_weights(model, changed, WeightConfig(1))
    assert found["{shift: 2, flip: true}"] == error(predict(model, dataset.test_x), dataset.test_y)
    assert found["{shift: 2, flip: true}"] != found["{}"]


def test_cells_of_other_changes_are_others():
    with ProgressBar("test") as bar:
        benches = [Bench(data.digits(), 512, bar, AugmentConfig(*each)) for each in ((), (1,), (2,), (2, True))]
    assert len({bench.examples for bench in benches}) == 4
    first, again = (next(iter(benches[2].batches(0)))[0] for _ in range(2))
    assert torch.equal(first, again)


def test_images_that_cannot_be_shifted_are_refused_before_training(tmp_path):
    with pytest.raises(ValueError, match="8 pixels"):
        studies.run(plan(tmp_path, "methods", "{shift: 8}"), out=tmp_path / "runs")
