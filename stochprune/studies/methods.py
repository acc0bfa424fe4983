"""Compare pruning methods: each arm prunes the same trained networks in the same number of epochs.

For each arm, sparsity and seed, from one dense network:

``cut``      the error after the method, which ends with a cut to the sparsity
``trained``  the error after ``retrain_epochs`` more epochs of weight training under the mask; equal to ``cut`` without

Processor seconds are those of the arm's trainings and scores, without the dense training and the evaluations.
"""

from __future__ import annotations

import copy
import dataclasses
import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import nn

from stochprune import masks
from stochprune.runs.config import FRACTION, Config, at_least, digest, option
from stochprune.runs.store import Kept, remember
from stochprune.studies.bench import FAILURES, AugmentConfig, Bench, why_failed
from stochprune.studies.processor_time import ProcessorTime
from stochprune.studies.rows import Key, MethodRow
from stochprune.training.config import WeightConfig
from stochprune.training.methods import config_type, make_config, prune
from stochprune.training.pruning import Pruned
from stochprune.training.weights import train_weights


@dataclasses.dataclass(frozen=True)
class MethodsConfig(Config):
    """Configuration that all arms of a study share."""

    dense: WeightConfig = dataclasses.field(default_factory=WeightConfig)
    epochs: int = option(10, "Epochs of every arm: the method and the weight training after its cut.", at_least(1))
    validation: float = option(
        0.0, "Report on this fraction of the training set, held out, not on the test set.", FRACTION
    )
    batch_size: int = option(256, "Examples in a batch.", at_least(1))
    train_examples: int = option(0, "Number of training examples; 0 means all.", at_least(0))


@dataclasses.dataclass(frozen=True)
class ImageMethodsConfig(MethodsConfig):
    """Configuration of a study of methods on images."""

    augment: AugmentConfig = dataclasses.field(default_factory=AugmentConfig)


@dataclasses.dataclass(frozen=True)
class Arm:
    """A way to prune.

    Attributes:
        name: in the tables.
        method: a name of :data:`stochprune.training.methods.METHODS`; ``options`` are fields of its configuration.
        retrain_epochs: epochs of weight training after the method's cut, part of the epochs of the arm.
        epochs: of the arm, where it shall differ from the other arms (equal time instead of equal epochs); 0: as they.

    Raises:
        ValueError: an unknown method or option.
    """

    name: str
    method: str
    options: tuple[tuple[str, Any], ...] = ()
    retrain_epochs: int = 0
    epochs: int = 0

    def __post_init__(self) -> None:
        for field in ("retrain_epochs", "epochs"):
            at_least(0).require(self, field)
        if self.name == "dense":
            raise ValueError("an arm cannot have the name 'dense': the tables give it to the network before pruning")
        if own := sorted({"epochs", "sparsity", "seed"} & {key for key, _ in self.options}):
            raise ValueError(f"arm {self.name!r}: the study sets {own[0]}")
        config_type(self.method, dict(self.options))

    def length(self, epochs: int) -> int:
        """Return the epochs of the arm in a study whose arms have ``epochs`` epochs."""
        return self.epochs or epochs

    def config(self, epochs: int, sparsity: float, seed: int) -> Config:
        """Return the configuration of the method in a study whose arms have ``epochs`` epochs.

        Raises:
            ValueError: an option outside its range, or an arm that is too long.
        """
        length = self.length(epochs)
        left = length - self.retrain_epochs
        if left < 0:
            raise ValueError(f"arm {self.name!r}: retrain_epochs must be at most {length}, got {self.retrain_epochs}")
        return make_config(self.method, {**dict(self.options), "epochs": left, "sparsity": sparsity, "seed": seed})


@dataclasses.dataclass(frozen=True)
class ArmBlock:
    """A product of arms and sparsities.

    Raises:
        ValueError: a sparsity outside [0, 1), no sparsity, or no arm.
    """

    arms: tuple[Arm, ...]
    sparsities: tuple[float, ...]

    def __post_init__(self) -> None:
        FRACTION.require(self, "sparsities")
        for name in ("arms", "sparsities"):
            if not getattr(self, name):
                raise ValueError(f"{name} must name at least one")

    def __len__(self) -> int:
        return len(self.arms) * len(self.sparsities)


@dataclasses.dataclass(frozen=True)
class MethodCell:
    """One arm at one sparsity, from one dense network."""

    data: str
    model: str
    arm: Arm
    sparsity: float
    seed: int
    settings: MethodsConfig

    @property
    def folder(self) -> str:
        """The name of the cell's folder, which depends on its whole configuration."""
        return digest(self)

    @property
    def title(self) -> str:
        """The name of the cell in the progress bar."""
        return f"{self.model} {self.arm.name} {100 * self.sparsity:g}% seed {self.seed}"

    @property
    def epochs(self) -> int:
        """The epochs of the arm."""
        return self.arm.length(self.settings.epochs)

    @property
    def config(self) -> Config:
        return self.arm.config(self.settings.epochs, self.sparsity, self.seed)

    def dense(self, examples: str) -> DenseCell:
        """Return the dense network from which the cell starts, trained on these examples."""
        settings = self.settings
        return DenseCell(self.data, self.model, self.seed, settings.batch_size, settings.dense, examples)


@dataclasses.dataclass(frozen=True)
class DenseCell:
    """A dense network, from which all arms start; ``examples`` is the digest of the data."""

    data: str
    model: str
    seed: int
    batch_size: int
    dense: WeightConfig
    examples: str


@dataclasses.dataclass(frozen=True)
class MethodResult:
    """The result of an arm.

    Attributes:
        cut, trained: errors in per cent; None if the arm failed before.
        sparsity: the fraction of the prunable weights that is pruned.
        seconds: processor seconds, see the top of this file.
        diverged: the error that ended the arm, see :data:`stochprune.studies.bench.FAILURES`, or None.
        history: of the method.
    """

    cut: float | None
    trained: float | None
    sparsity: float | None
    seconds: float
    diverged: str | None
    history: list[dict[str, float]]


class Methods:
    """The cells of a study of methods on one data set, in the folder ``root``."""

    def __init__(self, bench: Bench, root: Path) -> None:
        self.bench, self.root = bench, root
        self.dense = functools.lru_cache(maxsize=1)(self._dense)  # cells come seed by seed

    def _dense(self, which: DenseCell) -> nn.Module:
        """Return a dense network, trained or loaded from its last checkpoint."""
        model = self.bench.build(which.model, which.seed)
        title = f"{which.model} dense seed {which.seed}"
        self.bench.train(model, self.root / f"dense-{digest(which)}", title, which.seed, which.dense)
        return model

    def dense_of(self, cell: MethodCell) -> nn.Module:
        """Return the dense network from which a cell starts."""
        return self.dense(cell.dense(self.bench.examples))

    result: type[MethodResult] = MethodResult
    failures: tuple[type[Exception], ...] = FAILURES

    def cell(self, cell: MethodCell) -> Kept[Any]:
        """Return the result of a cell, from its folder if it is there."""
        configuration = {**dataclasses.asdict(cell), "examples": self.bench.examples}
        work = functools.partial(self._run, cell)
        return remember(self.root / cell.folder, configuration, self.bench.device, work, self.result)

    def loop(self, cell: MethodCell) -> dict[str, Any]:
        """Return the loss and the options of a cell's trainings."""
        return self.bench.loop

    def keep(self, cell: MethodCell, found: Pruned, folder: Path) -> None:
        """Store what is wanted of a cell besides its result, in its folder."""

    def _run(self, cell: MethodCell, folder: Path, watch: Sequence[object] = ()) -> MethodResult:
        bench, arm, clock, loop = self.bench, cell.arm, ProcessorTime(), self.loop(cell)
        model, checkpoints = copy.deepcopy(self.dense_of(cell)), folder / "checkpoints"
        cut = trained = sparsity = diverged = None
        history: list[dict[str, float]] = []
        callbacks = [bench.bar, clock, *watch]
        bench.bar.begin(cell.title)
        try:
            with clock:
                batches, before = bench.batches(cell.seed), checkpoints / "method"
                found = prune(model, batches, cell.config, folder=before, callbacks=callbacks, **loop)
            history, sparsity = found.history, masks.sparsity(found.masks)
            cut = trained = bench.error(found.model)
            if arm.retrain_epochs:
                again = dataclasses.replace(cell.settings.dense, epochs=arm.retrain_epochs)
                batches, after = bench.batches(cell.seed), checkpoints / "trained"
                with clock:
                    train_weights(
                        found.model, batches, again, masks=found.masks, folder=after, callbacks=callbacks, **loop
                    )
                trained = bench.error(found.model)
            self.keep(cell, found, folder)
        except self.failures as problem:
            trained, diverged = None, why_failed(problem)
        return MethodResult(cut, trained, sparsity, round(clock.seconds, 2), diverged, history)


def steps_of(cells: list[MethodCell], bench: Bench) -> int:
    """Return the number of optimiser steps of these cells and of their dense networks."""
    dense = {(cell.model, cell.seed): cell.settings.dense.epochs for cell in cells}
    return sum(map(bench.steps, dense.values())) + sum(bench.steps(cell.epochs) for cell in cells)


def method_rows(cell: MethodCell, result: MethodResult) -> list[MethodRow]:
    """Return the rows of a cell: after the cut of its method, and after the weight training that follows."""
    key = vars(Key(cell.data, cell.model, cell.arm.name, cell.sparsity, "", cell.seed))
    return [
        MethodRow(**{**key, "arm": when}, error=getattr(result, when), seconds=result.seconds)
        for when in ("cut", "trained")
    ]
