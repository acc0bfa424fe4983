"""Iterative magnitude pruning: cycles, retraining rates, resumption."""

from __future__ import annotations

import copy
import csv
import math

import pytest
import torch

from stochprune import masks, scores
from stochprune.training import CSVLogger, IMPConfig, WeightConfig, imp, train_weights
from stochprune.training.imp import RETRAINING, discount
from stochprune.training.schedules import SCHEDULES


@pytest.mark.parametrize(
    ("name", "rates"),
    [  # of an original of 8 epochs in steps, retrained for 4: at progress 0, 0.4 and 0.5
        ("ft", [0.01, 0.01, 0.01]),
        ("lrw", [0.1, 0.1, 0.01]),
        ("wr", [0.1, 0.1, 0.01]),
        ("slr", [1.0, 1.0, 0.1]),
        ("clr", [1.0, (1 + math.cos(0.4 * math.pi)) / 2, 0.5]),
        ("llr", [1.0, 0.6, 0.5]),
        ("allr", [0.7, 0.42, 0.35]),
    ],
)
def test_retraining_rates(name, rates):
    schedule = RETRAINING[name](SCHEDULES["steps"], 0.5, 0.7)
    assert [schedule(progress) for progress in (0.0, 0.4, 0.5)] == pytest.approx(rates)


def test_discount_is_the_relative_loss_of_norm_by_the_share_removed():
    before = {"a": torch.tensor([3.0, 4.0, 0.0]), "b": torch.tensor([1.0, 2.0])}
    after = {"a": torch.tensor([3.0, 4.0, 0.0]), "b": torch.tensor([0.0, 2.0])}
    # one of the four weights that are not 0 goes: |lost|^2 = 1, |w|^2 = 30
    assert discount(before, after, 0.1) == pytest.approx(math.sqrt(1 / 30 / (1 / 4)))
    assert discount(before, after, 0.9) == 0.9 and discount(before, after, 5.0) == 1.0
    assert discount(before, before, 0.2) == 0.2


def test_a_layer_that_must_become_empty_is_refused_before_the_training(dense, loader, recorder):
    watch = recorder()
    with pytest.raises(ValueError, match=r"sparsity 0\.99 .*weight"):
        imp(dense, loader, IMPConfig(sparsity=0.99), callbacks=[watch])
    assert watch.seen == []


def test_a_layer_that_the_training_empties_ends_no_run(dense, loader):
    """Whether a cut over all layers empties one of them depends on the training, as with the other methods."""
    dense[2].weight.detach().mul_(1e-6)
    config = IMPConfig(sparsity=0.8, cycles=1, retrain_epochs=1, dense=WeightConfig(1, 1e-9, optimizer="sgd"))
    found, _ = imp(dense, loader, config)
    assert not found["2.weight"].any() and int(found["0.weight"].sum()) == 18


@pytest.mark.parametrize("retraining", ["slr", "allr"])
def test_cycles_prune_and_retrain(dense, loader, retraining):
    first = WeightConfig(2, 0.1, optimizer="sgd", schedule="cosine")
    config = IMPConfig(sparsity=0.75, cycles=2, retrain_epochs=1, retraining=retraining, dense=first)
    by_hand, model = copy.deepcopy(dense), dense
    found, rounds = imp(model, loader, config)
    train_weights(by_hand, loader, first)
    again = WeightConfig(1, 0.1, optimizer="sgd")
    for sparsity in (0.5, 0.75):
        before = {name: weight.detach().clone() for name, weight in scores.prunable_weights(by_hand).items()}
        mask = masks.from_scores(scores.magnitude(by_hand), sparsity)
        masks.apply(by_hand, mask)
        factor = discount(before, {name: before[name] * mask[name] for name in before}, 0.5)
        schedule = SCHEDULES["cosine"] if retraining == "slr" else lambda p, factor=factor: factor * (1 - p)
        train_weights(by_hand, loader, again, masks=mask, schedule=schedule)
    assert all(torch.equal(found[name], mask[name]) for name in mask)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), by_hand.parameters(), strict=True))
    assert [entry.sparsity for entry in rounds] == pytest.approx([0.0, 0.5, 0.75])
    assert [entry.discount is None for entry in rounds] == [True, retraining != "allr", retraining != "allr"]
    assert masks.sparsity(found) == pytest.approx(0.75, abs=0.01)
    for name, value in found.items():
        assert not bool(model.get_parameter(name)[~value].any())


@pytest.mark.parametrize(("retraining", "stopped_at"), [("allr", 3), ("wr", 5), ("wr", 7), ("wr", 10), ("wr", 14)])
def test_resumed_is_bit_for_bit_the_uninterrupted(dense, loader, tmp_path, killer, stop, retraining, stopped_at):
    """The dense training has 8 steps, and each cycle 4; weight rewinding keeps the weights after step 4."""
    config = IMPConfig(0.6, cycles=2, retrain_epochs=1, retraining=retraining, dense=WeightConfig(2, 0.01, 2))
    whole = copy.deepcopy(dense)
    expected, rounds = imp(whole, loader, config, out=tmp_path / "whole")
    with pytest.raises(stop):
        imp(copy.deepcopy(dense), loader, config, out=tmp_path / "part", callbacks=[killer(stopped_at)])
    part = copy.deepcopy(dense)
    found, again = imp(part, loader, config, out=tmp_path / "part")
    assert again == rounds and all(torch.equal(found[name], expected[name]) for name in found)
    assert all(torch.equal(a, b) for a, b in zip(whole.parameters(), part.parameters(), strict=True))


class StopsAfter:
    """Ends the dense training after some epochs, as EarlyStopping does."""

    def __init__(self, epochs):
        self.epochs = epochs

    def on_epoch(self, state):
        state.stop |= state.part == "dense" and state.epoch >= self.epochs


def test_a_dense_training_that_ends_before_the_epoch_of_rewinding(dense, loader, tmp_path, recorder):
    """The error leaves the model as it was trained, and a checkpoint from which the same call continues."""
    config = IMPConfig(0.6, cycles=2, retrain_epochs=1, retraining="wr", dense=WeightConfig(4, 0.01, 3))
    whole, stopped, alone = copy.deepcopy(dense), copy.deepcopy(dense), copy.deepcopy(dense)
    imp(whole, loader, config)
    with pytest.raises(ValueError, match=r"imp: retraining 'wr'.* epoch 3.* epoch 2.*'lrw'"):
        imp(stopped, loader, config, out=tmp_path, callbacks=[StopsAfter(2)])
    train_weights(alone, loader, WeightConfig(2, 0.01))
    assert all(torch.equal(a, b) for a, b in zip(stopped.parameters(), alone.parameters(), strict=True))
    watch = recorder()
    _, rounds = imp(dense, loader, config, out=tmp_path, callbacks=[watch])
    assert len(rounds[0].history) == 4 and len(watch.seen) == 10 + 8  # without the first 6 of 16 steps
    assert all(torch.equal(a, b) for a, b in zip(dense.parameters(), whole.parameters(), strict=True))


def test_a_dense_training_that_ends_at_the_epoch_of_rewinding(dense, loader):
    config = IMPConfig(0.6, cycles=1, retrain_epochs=2, retraining="wr", dense=WeightConfig(4, 0.01))
    _, rounds = imp(dense, loader, config, callbacks=[StopsAfter(2)])
    assert [len(each.history) for each in rounds] == [2, 2]


def test_bad_values_are_named():
    with pytest.raises(ValueError, match=r"retraining.*got 'adam'"):
        IMPConfig(retraining="adam")
    with pytest.raises(ValueError, match=r"cycles.*got 0"):
        IMPConfig(cycles=0)
    with pytest.raises(ValueError, match=r"sparsity.*got 1.0"):
        IMPConfig(sparsity=1.0)
    with pytest.raises(ValueError, match=r"retrain_epochs.*2 epochs.*got 3"):
        IMPConfig(retraining="wr", retrain_epochs=3, dense=WeightConfig(2))


def test_loggers_keep_every_training(dense, loader, tmp_path):
    config = IMPConfig(sparsity=0.5, cycles=2, retrain_epochs=2, dense=WeightConfig(3))
    _, rounds = imp(dense, loader, config, callbacks=[CSVLogger(tmp_path)])
    names = ("weights-dense", "weights-cycle1", "weights-cycle2")
    assert sorted(path.stem for path in tmp_path.iterdir()) == sorted(names)
    for name, each in zip(names, rounds, strict=True):
        with (tmp_path / f"{name}.csv").open() as file:
            rows = [{key: float(value) for key, value in row.items()} for row in csv.DictReader(file)]
        assert rows == each.history and len(rows) == (3 if name == "weights-dense" else 2)
