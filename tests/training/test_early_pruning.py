"""The early pruning indicator and the training that it ends."""

from __future__ import annotations

import copy

import pytest
import torch

from stochprune import masks, scores
from stochprune.training import PruneEarly, WeightConfig, early_pruning_indicator, train_weights
from stochprune.training.early_pruning import similarity


def test_similarity_is_one_minus_the_mean_relative_difference():
    assert similarity({"a": 10, "b": 30}, {"a": 10, "b": 10}) == pytest.approx(1 - (0 + 20 / 40) / 2)
    assert similarity({"a": 5, "b": 0}, {"a": 5, "b": 0}) == 1 and similarity({"a": 4}, {"a": 0}) == 0
    with pytest.raises(ValueError, match="a and b"):
        similarity({"a": 1}, {"b": 1})


def test_indicator_is_the_mean_over_the_window():
    kept = [{"a": n} for n in (10, 20, 30, 40)]
    assert early_pruning_indicator(kept[:3], window=3) is None
    expected = ((1 - 30 / 50) + (1 - 20 / 60) + (1 - 10 / 70)) / 3
    assert early_pruning_indicator(kept, window=3) == pytest.approx(expected)
    assert early_pruning_indicator([{"a": 3}] * 3, window=2) == 1
    with pytest.raises(ValueError, match=r"window.*got 0"):
        early_pruning_indicator(kept, window=0)


def choose(model):
    return masks.from_scores(scores.magnitude(model), 0.5)


def run(model, loader, threshold, **options):
    watcher = PruneEarly(choose, threshold, window=2)
    callbacks = [watcher, *options.pop("callbacks", [])]
    return train_weights(model, loader, WeightConfig(8, 0.05, 2), callbacks=callbacks, **options)


def test_a_training_ends_when_the_masks_are_stable(dense, loader):
    every = run(copy.deepcopy(dense), loader, 1.0)
    assert [("epi" in entry) for entry in every] == [False, False] + [True] * (len(every) - 2)
    kept = [{"a": entry["kept 0.weight"], "b": entry["kept 2.weight"]} for entry in every]
    for i, entry in enumerate(every[2:], start=3):
        assert entry["epi"] == pytest.approx(early_pruning_indicator(kept[:i], 2))
    reached = 0.9
    first = next(
        i
        for i, entry in enumerate(every)
        if entry.get("epi", 0) >= reached and all(entry["epi"] >= e.get("epi", 0) for e in every[max(0, i - 2) : i])
    )
    history = run(copy.deepcopy(dense), loader, reached)
    assert history == every[: first + 1] and first + 1 < 8


def test_a_training_that_another_callback_ends_ends(dense, loader):
    class Third:
        def on_epoch(self, state):
            state.stop = state.epoch == 3

    watcher = PruneEarly(choose, 1.0, window=2)
    assert len(train_weights(dense, loader, WeightConfig(8, 0.05), callbacks=[Third(), watcher])) == 3


def test_a_resumed_training_ends_at_the_same_epoch(dense, loader, tmp_path, recorder, stop):
    whole = run(copy.deepcopy(dense), loader, 0.9)
    with pytest.raises(stop):
        run(copy.deepcopy(dense), loader, 0.9, folder=tmp_path, callbacks=[recorder(stop=7)])
    model = copy.deepcopy(dense)
    assert run(model, loader, 0.9, folder=tmp_path) == whole
    done = [p.detach().clone() for p in model.parameters()]
    assert run(copy.deepcopy(dense), loader, 0.9, folder=tmp_path) == whole  # ended is ended
    assert all(torch.equal(a, b) for a, b in zip(done, model.parameters(), strict=True))


def test_bad_values_are_named():
    with pytest.raises(ValueError, match=r"threshold.*got 1.5"):
        PruneEarly(choose, 1.5)
    with pytest.raises(ValueError, match=r"window.*got 0"):
        PruneEarly(choose, window=0)
