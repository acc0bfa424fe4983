"""What a study finds, row by row: each is a line of a table in ``results.json`` and in a CSV file."""

from __future__ import annotations

import dataclasses


@dataclasses.dataclass(frozen=True)
class Key:
    """Which network a row is about.

    Attributes:
        score: with its options; ``dense`` for a network that is not pruned.
        arm: the ablation, or what was trained.
    """

    data: str
    model: str
    score: str
    sparsity: float
    arm: str
    seed: int


@dataclasses.dataclass(frozen=True)
class ErrorRow(Key):
    """A test error in per cent; None if the training diverged or had no epochs."""

    error: float | None


@dataclasses.dataclass(frozen=True)
class TrainedRow(ErrorRow):
    """The same of a network pruned at initialisation.

    Attributes:
        loss: of the last epoch; None without one.
        emptied: number of layers of which nothing is kept.
    """

    loss: float | None
    emptied: int


@dataclasses.dataclass(frozen=True)
class Moments:
    """The kept weights of a layer, see :class:`stochprune.masks.LayerStatistics`; None where it keeps too few."""

    kept: int
    density: float
    mean: float | None
    std: float | None
    skewness: float | None
    kurtosis: float | None


@dataclasses.dataclass(frozen=True)
class LayerKey(Key):
    """Which layer a row is about, ``before`` or ``after`` training."""

    when: str
    name: str


@dataclasses.dataclass(frozen=True)
class ShapeKey(LayerKey):
    """The same, with a shape such as ``300x64``."""

    shape: str


@dataclasses.dataclass(frozen=True)
class LayerRow(Moments, ShapeKey):
    """The kept weights of one layer."""


@dataclasses.dataclass(frozen=True)
class DistanceRow(LayerKey):
    """How far the kept weights of one layer lie from those under the score's own mask; None if there are none."""

    wasserstein: float | None
    wasserstein_zeros: float | None


@dataclasses.dataclass(frozen=True)
class StudyResults:
    """What a whole study found; ``hours`` is the time of its cells, summed."""

    title: str
    hours: float
    rows: list[ErrorRow]
    layers: list[LayerRow] = dataclasses.field(default_factory=list)
    distances: list[DistanceRow] = dataclasses.field(default_factory=list)
