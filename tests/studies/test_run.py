"""A whole study on digits: what is written, shared and resumed, and what the ablations do."""

from __future__ import annotations

import csv
import dataclasses
import json

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from stochprune import data, masks, models, scores, studies
from stochprune.runs import read_json
from stochprune.studies import bench as bench_module
from stochprune.studies import initialisation
from stochprune.studies.bench import Bench
from stochprune.studies.plan import Block
from stochprune.training import CheckpointError, ProgressBar, WeightConfig

SETTINGS = studies.InitialisationConfig(
    per_class=3, score_batch_size=10, batch_size=512, weights=WeightConfig(epochs=1, checkpoint_every=2)
)
PLAN = studies.Plan(
    name="tiny",
    title="A tiny study",
    job="initialisation",
    data=("digits",),
    models=("lenet_300_100",),
    seeds=2,
    grid=(Block((("snip", ()),), (0.9,), ("none", "shuffle", "reinitialise")), Block((("random", ()),), (0.9,))),
    settings=SETTINGS,
)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    return studies.run(PLAN, out=tmp_path_factory.mktemp("runs"))


@pytest.fixture(scope="module")
def bench():
    with ProgressBar("test") as bar:
        yield Bench(data.digits(), 512, bar)


def cell(**changes):
    return dataclasses.replace(studies.Cell("digits", "lenet_300_100", "snip", 0.9, 0, SETTINGS), **changes)


def test_rows_tables_and_pictures(finished):
    folder, results = finished
    assert read_json(folder / "results.json", "results") == json.loads(json.dumps(results))
    assert [(row["score"], row["arm"]) for row in results["rows"] if row["seed"] == 0] == [
        ("dense", "none"),
        ("snip", "none"),
        ("snip", "shuffle"),
        ("snip", "reinitialise"),
        ("random", "none"),
    ]
    assert all(0 <= row["error"] <= 100 and row["loss"] > 0 and row["emptied"] == 0 for row in results["rows"])
    with (folder / "errors.csv").open() as file:
        assert [float(row["error"]) for row in csv.DictReader(file)] == [row["error"] for row in results["rows"]]
    text = (folder / "tables.md").read_text()
    mean = np.mean([row["error"] for row in results["rows"] if row["arm"] == "shuffle"])
    assert f"| snip | shuffle | {mean:.2f} ±" in text and "A tiny study" in text
    assert (folder / "errors.png").read_bytes().startswith(b"\x89PNG")
    assert results["configuration"]["settings"]["weights"]["epochs"] == 1 and results["versions"]["torch"]


def test_statistics_before_and_after_training(finished):
    _, results = finished
    layers = {(r["score"], r["arm"], r["seed"], r["when"], r["name"]): r for r in results["layers"]}
    assert len(layers) == 2 * 5 * 2 * 3
    key = ("snip", "none", 0)
    assert (
        layers[(*key, "before", "fc1.weight")]["kept"] == layers[("snip", "shuffle", 0, "after", "fc1.weight")]["kept"]
    )
    assert layers[(*key, "before", "fc1.weight")]["std"] != layers[(*key, "after", "fc1.weight")]["std"]
    arms = {row["arm"] for row in results["distances"]}
    assert arms == {"shuffle", "reinitialise", "random"} and all(row["wasserstein"] > 0 for row in results["distances"])


def test_distances_are_those_between_the_cells(finished):
    """The statistics are recomputed from the untrained networks."""
    _, results = finished
    dataset = data.digits()
    model = models.build("lenet_300_100", dataset.shape, 10, 0)
    x, y = data.per_class(dataset, 3, 0)
    mask = masks.from_scores(scores.snip(model, F.cross_entropy, [(x, y)]), 0.9, allow_empty=True)
    again = masks.reinitialize(models.build("lenet_300_100", dataset.shape, 10, 0), mask, 0)
    expected = {row.name: row for row in masks.layer_statistics(model, mask, mask, again)}
    for row in results["distances"]:
        if (row["seed"], row["arm"], row["when"]) == (0, "reinitialise", "before"):
            assert row["wasserstein"] == pytest.approx(expected[row["name"]].wasserstein, rel=1e-5)
            assert row["wasserstein_zeros"] == pytest.approx(expected[row["name"]].wasserstein_zeros, rel=1e-5)


def test_done_cells_are_shared_and_not_run_again(finished, monkeypatch):
    folder, results = finished
    monkeypatch.setattr(initialisation, "pruned", None)
    part = dataclasses.replace(PLAN, name="part", grid=PLAN.grid[1:])
    other, shared = studies.run(part, out=folder.parent)
    assert other != folder and shared["rows"] == [r for r in results["rows"] if r["score"] in ("dense", "random")]
    assert studies.run(PLAN, out=folder.parent) == finished


def test_killed_and_resumed_gives_the_same(finished, tmp_path, monkeypatch):
    class Killed(Exception):
        pass

    steps, original = 0, ProgressBar.on_step

    def on_step(self, state):
        nonlocal steps
        steps += 1
        if steps in (3, 8):
            raise Killed
        original(self, state)

    monkeypatch.setattr(ProgressBar, "on_step", on_step)
    for _ in range(2):
        with pytest.raises(Killed):
            studies.run(PLAN, out=tmp_path)
    assert list(tmp_path.glob("cells/*/checkpoints"))
    folder, results = studies.run(PLAN, out=tmp_path)
    assert folder.name == finished[0].name and not list(tmp_path.glob("cells/*/checkpoints"))
    for name in ("rows", "layers", "distances"):
        assert results[name] == finished[1][name]


def test_a_truncated_cell_is_named(tmp_path):
    plan = dataclasses.replace(PLAN, seeds=1, grid=PLAN.grid[1:])
    studies.run(plan, out=tmp_path)
    path = next(tmp_path.glob("cells/*/result.json"))
    path.write_text(path.read_text()[:50])
    with pytest.raises(CheckpointError, match=r"result\.json"):
        studies.run(plan, out=tmp_path)


@pytest.mark.parametrize("score", ["magnitude", "snip", "grasp", "synflow", "force", "prospr", "random"])
@pytest.mark.parametrize("ablation", ["shuffle", "reinitialise", "invert", "shuffle+reinitialise", "rescale"])
def test_ablations_cross_every_score(bench, score, ablation):
    options = (("rounds", 2),) if score in ("synflow", "force") else ()
    base, mask = initialisation.pruned(cell(score=score, options=options), bench)
    model, other = initialisation.pruned(cell(score=score, options=options, ablation=ablation), bench)
    for name in mask:
        weight, original = (network.get_parameter(name).detach() for network in (model, base))
        assert torch.equal(weight != 0, other[name])
        moved = not torch.equal(other[name], mask[name])
        assert moved == ("shuffle" in ablation or ablation == "invert")
        if ablation != "invert":
            assert other[name].sum() == mask[name].sum()
        if ablation == "rescale":
            whole = models.build("lenet_300_100", (1, 8, 8), 10, 0).get_parameter(name)
            assert weight.square().sum().item() == pytest.approx(whole.square().sum().item(), rel=1e-5)
        if ablation in ("reinitialise", "shuffle+reinitialise"):
            both = other[name] & mask[name]
            assert not bool((weight == original)[both].any())
    assert masks.sparsity(other) == masks.sparsity(mask)


def test_inverted_scores_keep_what_was_lowest(bench):
    _, top = initialisation.pruned(cell(sparsity=0.5), bench)
    _, bottom = initialisation.pruned(cell(sparsity=0.5, ablation="invert"), bench)
    assert all(torch.equal(bottom[name], ~top[name]) for name in top)  # halves of distinct scores


def test_a_training_that_diverges_is_a_result(bench, tmp_path, monkeypatch):
    def diverge(*arguments, **options):
        raise FloatingPointError("the loss is nan")

    monkeypatch.setattr(bench_module, "train_weights", diverge)
    result = initialisation.run_cell(cell(), bench, tmp_path)
    assert result.error is None and result.diverged == "the loss is nan"


def test_a_fine_tuning_study(tmp_path):
    plan = dataclasses.replace(
        studies.load("finetune", small=True),
        grid=(Block((("magnitude", ()),), (0.9,)), Block((("random", ()),), (0.8,))),
        settings=studies.StudyConfig(dense_epochs=1, retrain_epochs=1, batch_size=512, draws=2),
    )
    plan = dataclasses.replace(
        plan,
        settings=dataclasses.replace(plan.settings, finetune=dataclasses.replace(plan.settings.finetune, epochs=1)),
    )
    folder, results = studies.run(plan, out=tmp_path)
    arms = ("pruned", "retrained", "stochastic", "ensemble", "thresholded", "finetuned", "shuffled")
    assert [(r["score"], r["sparsity"], r["arm"]) for r in results["rows"]] == [
        ("dense", 0.0, "none"),
        *(("magnitude", 0.9, arm) for arm in arms),
        *(("random", 0.8, arm) for arm in arms),
    ]
    assert (folder / "errors-digits-lenet_300_100.png").exists() and "finetuned" in (folder / "tables.md").read_text()
    seconds = {
        path.parent.name: read_json(path, "result")["seconds"] for path in tmp_path.glob("study-*/*/result.json")
    }
    assert len(seconds) == 2 and results["hours"] == pytest.approx(sum(seconds.values()) / 3600)
    _, part = studies.run(dataclasses.replace(plan, name="part", grid=plan.grid[:1]), out=tmp_path)
    assert part["hours"] == seconds["magnitude-0.9-seed0"] / 3600  # of its own cells, in a folder that holds more


def test_without_training_there_are_distributions_and_no_errors(tmp_path):
    untrained = dataclasses.replace(SETTINGS, weights=WeightConfig(epochs=0))
    folder, results = studies.run(dataclasses.replace(PLAN, seeds=1, settings=untrained), out=tmp_path)
    assert all(row["error"] is None for row in results["rows"]) and not (folder / "errors.png").exists()
    assert {row["when"] for row in results["layers"] + results["distances"]} == {"before"}
    text = (folder / "tables.md").read_text()
    assert "Test error" not in text and "before training" in text and "pruned ones as zeros" in text


@pytest.mark.parametrize("name", ["immune", "prospr"])
def test_shipped_small_studies_run(name, tmp_path):
    """Run the shipped grids unchanged, with one seed and one epoch."""
    plan = studies.load(name, small=True)
    settings = dataclasses.replace(plan.settings, batch_size=512, weights=WeightConfig(epochs=1))
    _, results = studies.run(dataclasses.replace(plan, seeds=1, settings=settings), out=tmp_path)
    assert len(results["rows"]) == len({row["score"] for row in results["rows"]}) + (6 if name == "immune" else 0)
    assert all(row["error"] < 100 for row in results["rows"])
