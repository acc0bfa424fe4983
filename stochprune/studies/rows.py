"""The rows of a study's results: each is a line of a table in ``results.json`` and in a CSV file."""

from __future__ import annotations

import dataclasses


@dataclasses.dataclass(frozen=True)
class Key:
    """The network that a row describes.

    Attributes:
        score: the score with its options; ``dense`` for a network that is not pruned.
        arm: the ablation, or the kind of training.
    """

    data: str
    model: str
    score: str
    sparsity: float
    arm: str
    seed: int


@dataclasses.dataclass(frozen=True)
class ErrorRow(Key):
    """A test error in per cent; None if the cell failed before, or the training had no epochs."""

    error: float | None


@dataclasses.dataclass(frozen=True)
class Failure(Key):
    """A cell that an error ended, such as a training that diverged; ``reason`` is its message."""

    reason: str


@dataclasses.dataclass(frozen=True)
class TrainedRow(ErrorRow):
    """The test error of a network pruned at initialisation.

    Attributes:
        loss: the loss of the last epoch; None without epochs.
        emptied: number of layers of which nothing is kept.
    """

    loss: float | None
    emptied: int


@dataclasses.dataclass(frozen=True)
class MethodRow(ErrorRow):
    """The error of an arm of a study of methods; ``seconds`` of the processor are those of the whole arm."""

    seconds: float


@dataclasses.dataclass(frozen=True)
class LanguageRow(MethodRow):
    """The perplexity of an arm of a study of language models.

    Attributes:
        tokens_per_second: tokens of the arm's trainings for each second of the processor.
        bytes_a_weight: see :class:`stochprune.studies.language_models.LanguageResult`.
    """

    tokens_per_second: float
    bytes_a_weight: float


@dataclasses.dataclass(frozen=True)
class FractionRow(ErrorRow):
    """Bounds on the risk of a pruned network, see :class:`stochprune.studies.fraction.FractionResult`.

    Attributes:
        shed: the fraction of the kept weights near 0 after the training; None without epochs.
    """

    train_error: float | None
    held_out: float | None
    certificate: float | None
    counting: float | None
    guha: float | None
    galanti: float | None
    shed: float | None


@dataclasses.dataclass(frozen=True)
class RiskRow(ErrorRow):
    """A certificate, in per cent; ``score`` is the arm of the study, ``arm`` the posterior and its objective.

    Attributes:
        bound: the certificate.
        mean_loss: mean of the Monte Carlo draws.
        kl: nats.
        run_seconds: of the processor, for the whole run with all its certificates.
    """

    bound: float
    mean_loss: float
    kl: float
    run_seconds: float


@dataclasses.dataclass(frozen=True)
class SheddingRow(Key):
    """The fraction of a layer's kept weights near 0 after an epoch, see :class:`stochprune.training.WeightShedding`."""

    epoch: int
    name: str
    shed: float


@dataclasses.dataclass(frozen=True)
class Moments:
    """Moments of a layer's kept weights, see :class:`stochprune.masks.LayerStatistics`; None if too few are kept."""

    kept: int
    density: float
    mean: float | None
    std: float | None
    skewness: float | None
    kurtosis: float | None


@dataclasses.dataclass(frozen=True)
class LayerKey(Key):
    """The layer that a row describes, ``before`` or ``after`` training."""

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
    """The distance of a layer's kept weights from those under the score's own mask; None if none are kept."""

    wasserstein: float | None
    wasserstein_zeros: float | None


@dataclasses.dataclass(frozen=True)
class StudyResults:
    """The results of a whole study; ``hours`` is the sum of the times of its cells."""

    title: str
    hours: float
    rows: list[ErrorRow]
    layers: list[LayerRow] = dataclasses.field(default_factory=list)
    distances: list[DistanceRow] = dataclasses.field(default_factory=list)
    shedding: list[SheddingRow] = dataclasses.field(default_factory=list)
    failures: list[Failure] = dataclasses.field(default_factory=list)
