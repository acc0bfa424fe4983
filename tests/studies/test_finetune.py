"""The main job on a tiny setting: resuming, caching, the shuffled control."""

from __future__ import annotations

import copy
import dataclasses
import json
import shutil

import pytest
import torch

import stochprune as sp
from stochprune import models, studies
from stochprune.report.html.sources import read_source
from stochprune.report.html.study import study_view
from stochprune.runs import read_json
from stochprune.runs.files import write_json
from stochprune.studies import bench
from stochprune.studies import finetune as study
from stochprune.studies.finetune import StudyConfig, run_study
from stochprune.studies.plan import Block
from stochprune.training import CheckpointError, FinetuneConfig
from tests.runs.owners import TINY_STUDY

TINY = dataclasses.replace(TINY_STUDY, scores=("magnitude", "random"), dense_epochs=2, batch_size=256)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    return run_study(TINY, out=tmp_path_factory.mktemp("runs"))


def test_results(finished):
    folder, results = finished
    assert read_json(folder / "results.json", "results") == json.loads(json.dumps(results))
    assert [(cell["score"], cell["sparsity"], cell["seed"]) for cell in results["cells"]] == [
        ("magnitude", 0.9, 0),
        ("random", 0.9, 0),
    ]
    for cell in results["cells"]:
        arms = {"pruned", "retrained", "stochastic", "ensemble", "thresholded", "finetuned", "shuffled"}
        assert set(cell["errors"]) == arms
        assert all(0 <= value <= 100 for value in cell["errors"].values())
        assert 0 <= cell["swapped"] <= 1
        assert abs(cell["history"][-1]["budget_error"]) < 1e-6
    assert results["configuration"]["finetune"]["epochs"] == 1


def test_killed_and_resumed_gives_the_same(finished, tmp_path, monkeypatch):
    class Killed(Exception):
        pass

    steps = 0

    def on_step(self, state):
        nonlocal steps
        steps += 1
        if steps in (3, 20, 33):
            raise Killed

    monkeypatch.setattr(study.ProgressBar, "on_step", on_step)
    for _ in range(3):
        with pytest.raises(Killed):
            run_study(TINY, out=tmp_path)
    folder, results = run_study(TINY, out=tmp_path)
    assert (folder.name, results) == (finished[0].name, finished[1])
    assert sorted(path.name for path in folder.iterdir()) == [
        "dense-seed0",
        "magnitude-0.9-seed0",
        "random-0.9-seed0",
        "results.json",
    ]


def test_done_cells_are_not_run_again(finished, monkeypatch):
    monkeypatch.setattr(study.Study, "_run_cell", lambda *_: pytest.fail("run again"))
    folder, results = run_study(TINY, out=finished[0].parent)
    assert (folder, results) == finished


def diverging(monkeypatch):
    """Let the mask fine-tuning of each cell with random scores diverge."""
    original = study.finetune

    def finetune(model, loader, config, *, out, callbacks):
        if "random" in str(out):
            raise FloatingPointError("the loss is nan")
        return original(model, loader, config, out=out, callbacks=callbacks)

    monkeypatch.setattr(study, "finetune", finetune)


def test_a_cell_that_diverges_is_a_result(finished, tmp_path, monkeypatch):
    diverging(monkeypatch)
    config = dataclasses.replace(TINY, scores=("random", "magnitude"))
    folder, results = run_study(config, out=tmp_path)
    lost, other = results["cells"]
    assert other == finished[1]["cells"][0] and other["failed"] is None
    measured = finished[1]["cells"][1]["errors"]
    assert lost["failed"] == "the loss is nan" and lost["history"] == [] and lost["swapped"] is None
    assert lost["errors"] == {
        arm: measured[arm] if arm in ("pruned", "retrained") else None for arm in measured
    }  # what was measured before the loss was not finite
    monkeypatch.setattr(study.Study, "_run_cell", lambda *_: pytest.fail("run again"))
    assert run_study(config, out=tmp_path) == (folder, results)


def test_a_mask_without_a_weight_in_a_layer_is_a_result(tmp_path):
    config = dataclasses.replace(TINY, scores=("magnitude",), sparsities=(0.9995, 0.9))
    _, results = run_study(config, out=tmp_path)
    empty, other = results["cells"]
    assert "sparsity 0.9995" in empty["failed"] and "fc2.weight" in empty["failed"]
    assert "scope" not in empty["failed"]  # which a study of this job does not have
    assert set(empty["errors"].values()) == {None}
    assert other["failed"] is None and None not in other["errors"].values()


def test_a_dense_network_that_diverges_ends_the_study(tmp_path):
    """No cell has a start then."""
    config = dataclasses.replace(TINY, finetune=dataclasses.replace(TINY.finetune, weight_lr=1e30))
    with pytest.raises(FloatingPointError, match=r"nan|inf"):
        run_study(config, out=tmp_path)


def test_failed_cells_are_in_the_tables_and_on_the_page_of_a_study(tmp_path, monkeypatch):
    diverging(monkeypatch)
    settings = dataclasses.replace(TINY, data="digits", scores=("magnitude",))
    grid = (Block((("random", ()), ("magnitude", ())), (0.9,)),)
    plan = studies.Plan("tiny", "Tiny", "finetune", ("digits",), ("lenet_300_100",), 1, grid, settings)
    folder, results = studies.run(plan, out=tmp_path)
    (lost,) = results["failures"]
    assert (lost["score"], lost["sparsity"], lost["seed"], lost["reason"]) == ("random", 0.9, 0, "the loss is nan")
    text = (folder / "tables.md").read_text()
    assert "random, 90 %, seed 0: the loss is nan" in text
    assert [line for line in text.splitlines() if line.startswith("| random | finetuned |") and "1 missing" in line]
    assert "the loss is nan" in (folder / "failures.csv").read_text()
    (table,) = (table for table in study_view(read_source(folder)).tables if "failed" in table.title)
    assert "the loss is nan" in table.rows[0]
    monkeypatch.undo()
    (cell,) = tmp_path.glob("study-*/random-*")
    shutil.rmtree(cell)
    assert not studies.run(plan, out=tmp_path)[1]["failures"] and not (folder / "failures.csv").exists()


def test_results_of_earlier_versions_are_read(finished, tmp_path):
    """They do not say that they did not fail."""
    path = finished[0] / "random-0.9-seed0" / "result.json"
    content = read_json(path, "result")
    assert content["result"].pop("failed", "none") is None
    shutil.copytree(finished[0], tmp_path / finished[0].name)
    write_json(tmp_path / finished[0].name / "random-0.9-seed0" / "result.json", content)
    assert run_study(TINY, out=tmp_path)[1]["cells"] == finished[1]["cells"]


def test_a_truncated_cell_is_named(tmp_path):
    folder, _ = run_study(TINY, out=tmp_path)
    path = folder / "random-0.9-seed0" / "result.json"
    path.write_text(path.read_text()[:50])
    with pytest.raises(CheckpointError, match=r"random-0\.9-seed0/result\.json"):
        run_study(TINY, out=tmp_path)


def test_shuffled_control_is_another_mask_at_the_same_densities(monkeypatch, tmp_path):
    cuts = []
    original = bench.train_weights

    def spy(model, loader, config, *, masks=None, **options):
        cuts.append(masks)
        return original(model, loader, config, masks=masks, **options)

    monkeypatch.setattr(bench, "train_weights", spy)
    tuning = FinetuneConfig(epochs=1, logit_lr=2.0)
    run_study(dataclasses.replace(TINY, scores=("magnitude",), finetune=tuning), out=tmp_path)
    _, retrained, finetuned, shuffled = cuts
    for name in finetuned:
        assert finetuned[name].sum() == shuffled[name].sum()
    assert any(not torch.equal(finetuned[name], shuffled[name]) for name in finetuned)
    assert any(not torch.equal(finetuned[name], retrained[name]) for name in finetuned)


def test_validation_holds_out_training_examples(tmp_path):
    dataset = study.data.load("digits", None)
    held = study.hold_out(dataset, 0.25)
    assert len(held.test_y) == round(0.25 * len(dataset.train_y))
    assert len(held.test_y) + len(held.train_y) == len(dataset.train_y)
    rows = {tuple(row.tolist()) for row in dataset.train_x.flatten(1)}
    assert all(tuple(row.tolist()) in rows for row in held.test_x.flatten(1))


def test_unknown_score(tmp_path):
    with pytest.raises(ValueError, match=r"score 'grad'.*magnitude, random, snip"):
        run_study(StudyConfig(scores=("grad",)), out=tmp_path)


def test_cut_is_harden():
    """The masked network cut by its logits is what the public function makes of it."""
    dataset = study.data.load("digits", None)
    dense = models.build("lenet_300_100", dataset.shape, 10, 0)
    generator = torch.Generator().manual_seed(3)
    mask = {
        name: torch.rand(parameter.shape, generator=generator) < 0.3
        for name, parameter in dense.named_parameters()
        if parameter.dim() == 2
    }
    masked = sp.convert(copy.deepcopy(dense), mask)
    batches = [(dataset.train_x[:64], dataset.train_y[:64])]
    sp.training.finetune(masked, batches, FinetuneConfig(epochs=2, logit_lr=0.5))
    logits = {name: layer.mask_logits.detach() for name, layer in sp.nn.masked_layers(masked).items()}
    cut = study._cut(dense, masked, sp.masks.from_scores(logits, 0.8)).state_dict()
    hardened = sp.harden(copy.deepcopy(masked), 0.8).state_dict()
    assert cut.keys() == hardened.keys()
    assert all(torch.equal(cut[name], hardened[name]) for name in cut)
    assert sum(int((cut[name] == 0).sum()) for name in mask) == round(0.8 * sum(m.numel() for m in mask.values()))
