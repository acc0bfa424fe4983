"""Callbacks that look: the moving average, validation, early stopping, the loggers."""

from __future__ import annotations

import copy
import csv
import math
import sys
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F

import stochprune as sp
from stochprune.extras import MissingExtraError
from stochprune.nn import masked_layers
from stochprune.training import (
    EMA,
    CSVLogger,
    EarlyStopping,
    FinetuneConfig,
    LoopOptions,
    TensorBoard,
    Validation,
    WeightConfig,
    error,
    finetune,
    predict,
    train_weights,
)

pytestmark = pytest.mark.filterwarnings("ignore::stochprune.training.StuckMaskWarning")


def test_the_average_is_that_of_the_definition(dense, loader, recorder):
    seen = recorder(lambda: [parameter.detach().clone() for parameter in dense.parameters()])
    train_weights(dense, loader, WeightConfig(2, lr=0.02), callbacks=[EMA(0.8), seen])
    for index, parameter in enumerate(dense.parameters()):
        average = seen.seen[0][index]
        for values in seen.seen[1:]:
            average = 0.8 * average + 0.2 * values[index]
        torch.testing.assert_close(parameter, average)


def test_the_average_of_logits_holds_the_budget(masked, loader):
    model = masked()
    kept = sp.Budget(model).kept()
    finetune(model, loader, FinetuneConfig(4, logit_lr=0.5), callbacks=[EMA(0.9)])
    assert sp.Budget(model).kept() == pytest.approx(kept, rel=1e-6)


def test_pruned_weights_stay_zero_in_the_average(dense, loader):
    masks = {name: weight.abs() > 0.3 for name, weight in sp.scores.prunable_weights(dense).items()}
    train_weights(dense, loader, WeightConfig(1), masks=masks, callbacks=[EMA(0.9)])
    assert all(bool((dense.get_parameter(name)[~mask] == 0).all()) for name, mask in masks.items())


def test_validation_measures_the_mask_that_harden_cuts(masked, loader, problem):
    model = masked()
    plain = masked()
    metrics = {"error": error}
    history = finetune(model, loader, FinetuneConfig(2), callbacks=[Validation(loader, metrics)]).history
    assert history[-1]["validation_error"] == pytest.approx(error(predict(model, problem[0]), problem[1]))
    expected = F.cross_entropy(predict(model, problem[0]), problem[1]).item()
    assert history[-1]["validation_loss"] == pytest.approx(expected, rel=1e-5)
    finetune(plain, loader, FinetuneConfig(2))  # looking changes nothing
    assert all(torch.equal(a, b) for a, b in zip(model.state_dict().values(), plain.state_dict().values(), strict=True))
    assert all(layer.sample is None for layer in masked_layers(model).values())


def test_validation_measures_the_average(dense, loader, problem):
    train_weights(dense, loader, WeightConfig(2, lr=0.1), callbacks=[EMA(0.9), watch := Validation([problem])])
    found = train_weights(copy.deepcopy(dense), loader, WeightConfig(1, lr=1e-9), callbacks=[watch])
    again = train_weights(copy.deepcopy(dense), loader, WeightConfig(1, lr=1e-9), callbacks=[EMA(0.0), watch])
    assert found[0]["validation_loss"] == pytest.approx(again[0]["validation_loss"], rel=1e-6)


def test_validation_of_mappings_and_hooks(dense, problem):
    x, y = problem
    batch = {"x": x, "y": y}

    def with_outputs(model, batch):
        outputs = model(batch["x"])
        return F.cross_entropy(outputs, batch["y"]), outputs

    metrics = {"error": lambda outputs, batch: error(outputs, batch["y"])}
    options = LoopOptions(forward_loss=with_outputs)
    history = train_weights(dense, [batch], WeightConfig(1), options=options, callbacks=[Validation([batch], metrics)])
    assert history[0]["validation_error"] == pytest.approx(error(predict(dense, x), y))
    loss_alone = LoopOptions(forward_loss=lambda model, batch: with_outputs(model, batch)[0])
    assert (
        "validation_loss"
        in train_weights(dense, [batch], WeightConfig(1), options=loss_alone, callbacks=[Validation([batch])])[0]
    )
    with pytest.raises(ValueError, match="forward_loss"):
        train_weights(dense, [batch], WeightConfig(1), options=loss_alone, callbacks=[Validation([batch], metrics)])


def test_validation_weighs_mappings_by_their_examples(dense, problem):
    """Positions [1, T] come first and are the same for all examples."""
    x, y = problem
    parts = [
        {"positions": torch.arange(6)[None], "input_ids": a, "labels": b}
        for a, b in ((x[:50], y[:50]), (x[50:], y[50:]))
    ]

    class Named(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.network = dense

        def forward(self, positions, input_ids, labels):
            return {"loss": F.cross_entropy(self.network(input_ids), labels)}

    history = train_weights(Named(), parts, WeightConfig(1), callbacks=[Validation(parts)])
    assert history[0]["validation_loss"] == pytest.approx(F.cross_entropy(predict(dense, x), y).item(), rel=1e-5)


def test_validation_without_batches(dense, loader):
    with pytest.raises(ValueError, match="no batches"):
        train_weights(dense, loader, WeightConfig(1), callbacks=[Validation([])])


@pytest.mark.parametrize(
    "values, patience, mode, stops_after",
    [
        ([3, 2, 1, 1, 1], 2, "min", 5),
        ([3, 4, 5, 1, 1], 2, "min", 3),
        ([1, 2, 3, 3, 2], 1, "max", 4),
        ([1, 2], 3, "max", None),
        ([math.nan, 3, 2, 1], 2, "min", None),
        ([math.nan, math.nan, 1, math.nan, 0], 2, "max", 5),
    ],
)
def test_early_stopping_counts_epochs_without_a_better_value(values, patience, mode, stops_after):
    callback, state = EarlyStopping("value", patience, mode), SimpleNamespace(history=[], stop=False)
    for value in values:
        state.history.append({"value": value})
        callback.on_epoch(state)
        if state.stop:
            break
    assert (len(state.history) if state.stop else None) == stops_after


def test_one_of_several_callbacks_stops_a_training(dense, loader):
    class Constant:
        def on_epoch(self, state):
            state.history[-1]["constant"] = 1.0

    first, second = EarlyStopping("constant", 2), EarlyStopping("loss", 9)
    for order in ([first, second], [second, first]):
        callbacks = [Constant(), *order]
        assert len(train_weights(copy.deepcopy(dense), loader, WeightConfig(5), callbacks=callbacks)) == 3


def test_a_stopped_training_stays_stopped(masked, loader, recorder, stop, tmp_path):
    """Its loss is a constant, which never improves; killed in the last epoch it stops at the same one."""

    class Constant:
        def on_epoch(self, state):
            state.history[-1]["constant"] = 1.0

    def whole(out=None, *more):
        model = masked()
        config = FinetuneConfig(9, checkpoint_every=2)
        callbacks = [Constant(), EarlyStopping("constant", 2), *more]
        return finetune(model, loader, config, out=out, callbacks=callbacks).history, model

    expected, model = whole()
    assert len(expected) == 3
    with pytest.raises(stop):
        whole(tmp_path, recorder(stop=11))
    for _ in range(2):  # resumed, then finished
        history, again = whole(tmp_path)
        assert history == expected
        assert all(torch.equal(a, b) for a, b in zip(model.parameters(), again.parameters(), strict=True))


def test_a_number_that_nobody_measures(masked, loader):
    with pytest.raises(ValueError, match=r"validation_loss.*mean_keep"):
        finetune(masked(), loader, FinetuneConfig(1), callbacks=[EarlyStopping()])


@pytest.mark.parametrize(
    "make, named",
    [
        (lambda: EMA(1.0), "decay.*1.0"),
        (lambda: EarlyStopping(patience=0), "patience.*0"),
        (lambda: EarlyStopping(mode="up"), "mode.*up"),
    ],
)
def test_impossible_callbacks_are_named(make, named):
    with pytest.raises(ValueError, match=named):
        make()


def test_the_csv_file_has_each_epoch_once_after_a_kill(masked, loader, recorder, stop, tmp_path):
    config, logger = FinetuneConfig(3, checkpoint_every=1), CSVLogger(tmp_path / "log")
    with pytest.raises(stop):
        finetune(masked(), loader, config, out=tmp_path, callbacks=[logger, recorder(stop=6)])
    history = finetune(masked(), loader, config, out=tmp_path, callbacks=[logger]).history
    with (tmp_path / "log" / "mask.csv").open() as file:
        rows = [*csv.DictReader(file)]
    assert [{name: float(value) for name, value in row.items()} for row in rows] == history


def test_tensorboard_has_steps_rates_and_epochs(masked, loader, tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    history = finetune(masked(), loader, FinetuneConfig(2), callbacks=[TensorBoard(tmp_path)]).history
    events = EventAccumulator(str(tmp_path / "mask")).Reload()
    assert [event.step for event in events.Scalars("step/loss")] == [*range(1, 9)]
    assert [event.value for event in events.Scalars("lr/logits")] == pytest.approx([0.1] * 8)
    assert [event.value for event in events.Scalars("epoch/loss")] == pytest.approx([e["loss"] for e in history])


def test_a_missing_tensorboard_is_named_with_its_extra(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "tensorboard", None)
    monkeypatch.delitem(sys.modules, "torch.utils.tensorboard", raising=False)
    with pytest.raises(MissingExtraError, match=r"TensorBoard.*tensorboard.*\[loops\]"):
        TensorBoard(tmp_path)
