"""Pruning at initialisation: one mask from one score, possibly ablated, then training of the kept weights."""

from __future__ import annotations

import copy
import dataclasses
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stochprune import masks, scores
from stochprune.data import Batches, per_class
from stochprune.runs.config import Config, at_least, digest, option
from stochprune.runs.files import CheckpointError, load_tensors, require, save_tensors
from stochprune.studies.bench import AugmentConfig, Bench
from stochprune.studies.rows import Moments
from stochprune.training.config import WeightConfig

ABLATIONS = ("none", "invert", "shuffle", "reinitialise", "rescale")


@dataclasses.dataclass(frozen=True)
class InitialisationConfig(Config):
    """Configuration that all cells of a study share."""

    per_class: int = option(10, "Training examples of each class that the scores use.", at_least(1))
    score_batch_size: int = option(100, "Examples in a batch of the scores.", at_least(1))
    batch_size: int = option(128, "Examples in a batch of the training.", at_least(1))
    train_examples: int = option(0, "Number of training examples; 0 means all.", at_least(0))
    augment: AugmentConfig = dataclasses.field(default_factory=AugmentConfig)
    weights: WeightConfig = dataclasses.field(default_factory=WeightConfig)


@dataclasses.dataclass(frozen=True)
class Cell:
    """The configuration of one training of one pruned network.

    Attributes:
        score: a name in :mod:`stochprune.scores`; ``options`` are its options.
        ablation: one of ABLATIONS, or several joined by ``+``: ``invert`` changes the sign of the scores, ``shuffle``
            permutes the mask within its layers, ``reinitialise`` samples new weights under it, ``rescale`` restores the
            variance of each layer.

    Raises:
        ValueError: an unknown score, option or ablation, or a sparsity outside [0, 1).
    """

    data: str
    model: str
    score: str
    sparsity: float
    seed: int
    settings: InitialisationConfig
    ablation: str = "none"
    options: tuple[tuple[str, Any], ...] = ()

    def __post_init__(self) -> None:
        scores.check_options(self.score, dict(self.options))
        if not 0 <= self.sparsity < 1:
            raise ValueError(f"sparsity must lie in [0, 1), got {self.sparsity}")
        for part in self.ablation.split("+"):
            if part not in ABLATIONS:
                raise ValueError(f"unknown ablation {part!r}; known are: {', '.join(ABLATIONS)}, joined by +")

    @property
    def label(self) -> str:
        """The score with its options."""
        return " ".join([self.score, *(f"{key}={value}" for key, value in self.options)])

    @property
    def folder(self) -> str:
        """The name of the cell's folder, which depends on its whole configuration."""
        return digest(self)

    @property
    def title(self) -> str:
        """The name of the cell in the progress bar."""
        return f"{self.model} {self.label} {100 * self.sparsity:g}% {self.ablation} seed {self.seed}"


def pruned(cell: Cell, bench: Bench) -> tuple[nn.Module, dict[str, Tensor]]:
    """Return the network of a cell before training, and its masks, which may empty layers."""
    settings, parts = cell.settings, cell.ablation.split("+")
    model = bench.build(cell.model, cell.seed)
    examples = per_class(bench.dataset, settings.per_class, cell.seed)
    batches = Batches(*examples, settings.score_batch_size, shuffle=False)
    scored = scores.compute(
        cell.score, model, F.cross_entropy, batches, sparsity=cell.sparsity, seed=cell.seed, **dict(cell.options)
    )
    if "invert" in parts:
        scored = masks.invert(scored)
    mask = masks.from_scores(scored, cell.sparsity, allow_empty=True)
    if "shuffle" in parts:
        mask = masks.shuffle(mask, cell.seed)
    if "reinitialise" in parts:
        masks.reinitialize(model, mask, cell.seed)
    if "rescale" in parts:
        masks.rescale(model, mask)
    return masks.apply(model, mask), mask


@dataclasses.dataclass(frozen=True)
class Layer:
    """A layer's weight."""

    name: str
    shape: list[int]


@dataclasses.dataclass(frozen=True)
class KeptWeights(Moments, Layer):
    """Statistics of the weights that a layer keeps."""


@dataclasses.dataclass(frozen=True)
class CellResult:
    """The result of a cell.

    Attributes:
        error: test error in per cent after training; None if the training diverged or had 0 epochs.
        diverged: the error that was raised, or None.
        history: the history of the training.
        emptied: layers of which nothing is kept.
        before, after: the kept weights of each layer, before and after training.
    """

    error: float | None
    diverged: str | None
    history: list[dict[str, float]]
    emptied: list[str]
    before: list[KeptWeights]
    after: list[KeptWeights]


def run_cell(cell: Cell, bench: Bench, folder: Path) -> CellResult:
    """Prune, train and measure.

    The kept weights of each layer, before and after training, go to ``kept.pt`` in ``folder``, for distances between
    cells (see :func:`load_kept`).
    """
    model, mask = pruned(cell, bench)
    start = copy.deepcopy(model)
    diverged: str | None = None
    history: list[dict[str, float]] = []
    error: float | None = None
    try:
        history = bench.train(model, folder / "checkpoints", cell.title, cell.seed, cell.settings.weights, mask)
        error = bench.error(model) if history else None
    except FloatingPointError as problem:
        diverged = str(problem)
    kept = {when: masks.kept_weights(network, mask) for when, network in (("before", start), ("after", model))}
    tensors = {
        when: {name: torch.from_numpy(values.astype(np.float32)) for name, values in by.items()}
        for when, by in kept.items()
    }
    save_tensors(folder / "kept.pt", {"cell": cell.folder, "examples": bench.examples, **tensors})
    emptied = [name for name, value in mask.items() if not value.any()]
    return CellResult(error, diverged, history, emptied, _layers(kept["before"], mask), _layers(kept["after"], mask))


def load_kept(folder: Path, cell: Cell, examples: str) -> dict[str, dict[str, np.ndarray]]:
    """Read the kept weights of a finished cell, by ``before`` and ``after`` and by layer, float32 [kept].

    Args:
        examples: the digest of the data.

    Raises:
        CheckpointError: the file is damaged, or of another cell or other data.
    """
    path = folder / "kept.pt"
    content = require(load_tensors(path, "cell"), {"cell": str, "examples": str, "before": dict, "after": dict}, path)
    if (content["cell"], content["examples"]) != (cell.folder, examples):
        raise CheckpointError(
            f"{path} belongs to another cell or to other data ({content['cell']}, {content['examples']:.12}). Move the "
            "folder away to run this one."
        )
    return {when: {name: values.numpy() for name, values in content[when].items()} for when in ("before", "after")}


def _layers(kept: Mapping[str, np.ndarray], mask: Mapping[str, Tensor]) -> list[KeptWeights]:
    layers = []
    for name, values in kept.items():
        found = masks.statistics(name, values, tuple(mask[name].shape))
        moments = map(number, (found.mean, found.std, found.skewness, found.kurtosis))
        layers.append(KeptWeights(name, list(found.shape), found.kept, found.density, *moments))
    return layers


def number(value: float | None) -> float | None:
    """Return None for NaN, which JSON cannot hold: the moment of a layer that keeps nothing."""
    return None if value is None or math.isnan(value) else value
