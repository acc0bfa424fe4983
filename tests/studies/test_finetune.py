"""The main job on a tiny setting: resuming, caching, the shuffled control."""

from __future__ import annotations

import copy
import dataclasses
import json

import pytest
import torch

import stochprune as sp
from stochprune import models
from stochprune.runs import read_json
from stochprune.studies import bench
from stochprune.studies import finetune as study
from stochprune.studies.finetune import StudyConfig, run_study
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
