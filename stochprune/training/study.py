"""The main job: what as many epochs make of a pruning mask, by weight training and by probabilistic fine-tuning.

For each score, sparsity and seed, from one dense network:

``pruned``       the score's mask, nothing trained
``retrained``    the score's mask, E epochs of weight training
``stochastic``   M epochs of mask fine-tuning: mean error of networks under single draws of the mask
``ensemble``     the same: error of the mean class probabilities over the draws
``thresholded``  the same, cut to the sparsity: the weights of largest keep probability stay
``finetuned``    then R epochs of weight training under the new mask; M + R = E
``shuffled``     control: as ``finetuned``, but the new mask is shuffled inside layers before it cuts the fine-tuned
                 weights

Errors are on the test set in per cent; every training is Adam at one constant rate for the weights.
"""

from __future__ import annotations

import copy
import dataclasses
import functools
import itertools
import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stochprune import data, masks, models, scores
from stochprune.data import Batches, Dataset
from stochprune.nn import convert, masked_layers
from stochprune.seeding import generator
from stochprune.training.checkpoint import CheckpointError
from stochprune.training.config import StudyConfig, WeightConfig, digest
from stochprune.training.evaluate import error, predict, stochastic_error
from stochprune.training.finetune import finetune
from stochprune.training.progress import ProgressBar
from stochprune.training.results import versions, write_json
from stochprune.training.weights import train_weights

SELECTIONS = ("scores", "sparsities", "seeds")
"""Fields that choose which cells are run but change none of them: a run with more of them reuses what is there."""


def run_study(
    config: StudyConfig, *, data_dir: Path | None = None, out: Path = Path("runs")
) -> tuple[Path, dict[str, Any]]:
    """Run all cells, or what is missing of them.

    Returns:
        The folder, ``out/study-<data>-<digest>``, and what is written to ``results.json`` there: ``configuration``,
        ``versions``, ``dense`` (seed and error of each dense network) and ``cells`` (see :meth:`Study.cell`).

    Raises:
        ValueError: an unknown data set, model or score, or a mask that would empty a layer.
        CheckpointError: a file in the folder that cannot be read.
    """
    for score in config.scores:
        scores.by_name(score)  # refuses an unknown one before any work
    dataset = _hold_out(data.load(config.data, data_dir), config.validation)
    folder = out / f"study-{config.data}-{digest(config, exclude=SELECTIONS)}"
    folder.mkdir(parents=True, exist_ok=True)
    cells = itertools.product(range(config.seeds), config.scores, config.sparsities)
    with ProgressBar("starting", total=_total_steps(config, dataset)) as bar:
        study = Study(config, dataset, folder, bar)
        results = {
            "configuration": dataclasses.asdict(config),
            "versions": versions(),
            "dense": [{"seed": seed, "error": study.error(study.dense(seed))} for seed in range(config.seeds)],
            "cells": [study.cell(score, sparsity, seed) for seed, score, sparsity in cells],
        }
    write_json(folder / "results.json", results)
    return folder, results


class Study:
    """The pieces of the main job; each is kept in ``folder`` as soon as it is done, and its checkpoints until then."""

    def __init__(self, config: StudyConfig, dataset: Dataset, folder: Path, bar: ProgressBar) -> None:
        self.config, self.dataset, self.folder, self.bar = config, dataset, folder, bar
        self.dense = functools.cache(self._dense)
        self._done = 0

    def error(self, model: nn.Module) -> float:
        """Test error in per cent."""
        return error(predict(model, self.dataset.test_x), self.dataset.test_y)

    def cell(self, score: str, sparsity: float, seed: int) -> dict[str, Any]:
        """One score, sparsity and seed, from its file if it is there.

        Returns:
            ``score``, ``sparsity``, ``seed``, ``errors`` (by the names above, per cent), ``swapped`` (the share of the
            kept weights that the fine-tuned mask took in for others), ``density`` (by layer, of the score's mask and
            the fine-tuned one) and the fine-tuning's ``history``.
        """
        name = f"{score}-{sparsity:g}-seed{seed}"
        path = self.folder / f"{name}.json"
        if path.exists():
            self._advance(_epochs_per_cell(self.config))
            return _read_json(path)
        result = {"score": score, "sparsity": sparsity, "seed": seed, **self._run_cell(name, score, sparsity, seed)}
        write_json(path, result)
        shutil.rmtree(self.folder / name)
        return result

    def _dense(self, seed: int) -> nn.Module:
        """The dense network of a seed, trained or taken from its last checkpoint."""
        model = models.build(self.config.model, self.dataset.shape, self.dataset.num_classes, seed)
        self._train(model, f"dense-seed{seed}", seed, self.config.dense_epochs, None)
        return model

    def _run_cell(self, name: str, score: str, sparsity: float, seed: int) -> dict[str, Any]:
        config, dense, retrain = self.config, self.dense(seed), self.config.retrain_epochs
        options = {"seed": seed} if score == "random" else {}
        scored = scores.by_name(score)(dense, F.cross_entropy, self._batches(seed), **options)
        mask = masks.from_scores(scored, sparsity)
        errors = {"pruned": self.error(_cut(dense, dense, mask))}

        model = _cut(dense, dense, mask)
        self._train(model, f"{name}/retrained", seed, config.finetune.epochs + retrain, mask)
        errors["retrained"] = self.error(model)

        masked = convert(copy.deepcopy(dense), mask, seed=seed)
        self.bar.begin(f"{name}/stochastic")
        tuning = dataclasses.replace(config.finetune, seed=seed)
        history = finetune(masked, self._batches(seed), tuning, out=self.folder / name, callbacks=[self.bar]).history
        self._advance(config.finetune.epochs)
        stochastic = stochastic_error(masked, self.dataset.test_x, self.dataset.test_y, config.draws)
        errors |= {"stochastic": stochastic.mean, "ensemble": stochastic.ensemble}

        logits = {key: layer.mask_logits.detach() for key, layer in masked_layers(masked).items()}
        tuned = masks.from_scores(logits, sparsity)
        errors["thresholded"] = self.error(_cut(dense, masked, tuned))
        for arm, final in (("finetuned", tuned), ("shuffled", masks.shuffle(tuned, seed))):
            model = _cut(dense, masked, final)
            self._train(model, f"{name}/{arm}", seed, retrain, final)
            errors[arm] = self.error(model)

        kept = sum(int(value.sum()) for value in mask.values())
        swapped = sum(int((tuned[key] & ~mask[key]).sum()) for key in mask) / kept
        density = {key: [_share(mask[key]), _share(tuned[key])] for key in mask}
        return {"errors": errors, "swapped": swapped, "density": density, "history": history}

    def _train(self, model: nn.Module, stage: str, seed: int, epochs: int, mask: Mapping[str, Tensor] | None) -> None:
        self.bar.begin(stage)
        tuning = self.config.finetune
        config = WeightConfig(epochs, tuning.weight_lr, tuning.checkpoint_every)
        folder = self.folder / stage
        train_weights(model, self._batches(seed), config, masks=mask, folder=folder, callbacks=[self.bar])
        self._advance(epochs)

    def _batches(self, seed: int) -> Batches:
        return Batches(self.dataset.train_x, self.dataset.train_y, self.config.batch_size, seed)

    def _advance(self, epochs: int) -> None:
        self._done += epochs * len(self._batches(0))
        self.bar.reach(self._done)


def _epochs_per_cell(config: StudyConfig) -> int:
    return 2 * config.finetune.epochs + 3 * config.retrain_epochs


def _total_steps(config: StudyConfig, dataset: Dataset) -> int:
    cells = len(config.scores) * len(config.sparsities)
    epochs = config.seeds * (config.dense_epochs + cells * _epochs_per_cell(config))
    return epochs * len(Batches(dataset.train_x, dataset.train_y, config.batch_size, 0))


def _cut(dense: nn.Module, trained: nn.Module, mask: Mapping[str, Tensor]) -> nn.Module:
    """A plain copy of ``trained``, which may be masked, with the architecture of ``dense``, under ``mask``."""
    model = copy.deepcopy(dense)
    state = trained.state_dict()
    model.load_state_dict({name: state[name] for name in model.state_dict()})
    masks.apply(model, mask)
    return model


def _share(mask: Tensor) -> float:
    return mask.double().mean().item()


def _hold_out(dataset: Dataset, fraction: float) -> Dataset:
    """With a fraction, the data set whose test set is that share of the training set, drawn at random."""
    if fraction == 0:
        return dataset
    count = round(fraction * len(dataset.train_y))
    order = torch.from_numpy(generator(0, "validation").permutation(len(dataset.train_y)))
    held, rest = order[:count], order[count:]
    return dataclasses.replace(
        dataset,
        train_x=dataset.train_x[rest],
        train_y=dataset.train_y[rest],
        test_x=dataset.train_x[held],
        test_y=dataset.train_y[held],
    )


def _read_json(path: Path) -> dict[str, Any]:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise CheckpointError(f"{path} is truncated or not JSON. Move it away to run this cell again.") from error
