"""The effect of the pruning fraction: networks pruned to many sparsities, with their errors and bounds on their risk.

The training set is split. On the first part a fully connected network without biases is trained, and each arm prunes it
as in a study of methods (:mod:`stochprune.studies.methods`). The other part certifies. All errors and bounds are in per
cent.
"""

from __future__ import annotations

import copy
import dataclasses
import functools
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from stochprune import bounds
from stochprune.data import Dataset, subset
from stochprune.data.splits import Split, split
from stochprune.pac_bayes.config import CertifyConfig
from stochprune.runs.config import PROBABILITY, at_least, digest, option
from stochprune.runs.progress import ProgressBar
from stochprune.runs.store import Kept, remember
from stochprune.studies.bench import FAILURES, Bench, why_failed
from stochprune.studies.finetune import hold_out
from stochprune.studies.methods import DenseCell, MethodCell, MethodsConfig
from stochprune.studies.rows import FractionRow, Key, SheddingRow
from stochprune.theory import compression
from stochprune.theory.mask_certificate import mask_certificate
from stochprune.theory.measure import pruned_network
from stochprune.theory.subject import Subject, weights_of
from stochprune.training.methods import prune
from stochprune.training.shedding import WeightShedding

History = list[dict[str, float]]


@dataclasses.dataclass(frozen=True)
class FractionConfig(MethodsConfig):
    """Configuration that all cells of a study share."""

    train_fraction: float = option(
        0.5, "Fraction of the training set that trains the networks; the rest certifies.", PROBABILITY
    )
    margin_share: float = option(
        0.1, "Fraction of the examples whose margin may be smaller than the margin in the bounds.", PROBABILITY
    )
    levels: int = option(16, "Number of values per layer to which the counting bound rounds the weights.", at_least(1))
    keep: float = option(0.99, "Probability of keeping a weight in the PAC-Bayes certificate.", PROBABILITY)
    draws: int = option(2000, "Monte Carlo draws of the certificate.", at_least(1))
    delta: float = option(0.05, "Probability with which a complete bound may fail.", PROBABILITY)


@dataclasses.dataclass(frozen=True)
class FractionResult:
    """Errors of a pruned network and bounds on its risk, in per cent.

    Attributes:
        error, train_error: on the test set and on the part that trained.
        held_out: the bound from the error on the certifying part, complete.
        certificate: under random masks of the kept weights, complete.
        counting: from the length of a code for the pruned network, complete.
        guha, galanti: of Guha et al. and of :func:`stochprune.theory.norm_bounds.galanti_2023`, without constants and
            logarithms; None if the margin is not positive.
        history: of the weight training after the cut, with :class:`stochprune.training.WeightShedding`.
        diverged: the error that a training raised; then there is nothing else.
    """

    error: float | None = None
    train_error: float | None = None
    held_out: float | None = None
    certificate: float | None = None
    counting: float | None = None
    guha: float | None = None
    galanti: float | None = None
    history: History = dataclasses.field(default_factory=list)
    diverged: str | None = None


class Fractions:
    """The cells of a study on one data set, in the folder ``root``.

    Args:
        parts: the split of the training set.
        bench: with the part that trains, and the test set scaled like it.
    """

    def __init__(self, parts: Split, bench: Bench, root: Path) -> None:
        self.parts, self.bench, self.root = parts, bench, root
        self.dense = functools.lru_cache(maxsize=1)(self._dense)  # cells come seed by seed

    @classmethod
    def of(
        cls, dataset: Dataset, settings: FractionConfig, device: torch.device, bar: ProgressBar, root: Path
    ) -> Fractions:
        """Split a data set that is not standardised."""
        dataset = subset(hold_out(dataset, settings.validation), settings.train_examples)
        parts = split(dataset.train_x, dataset.train_y, settings.train_fraction)
        assert parts.prior is not None
        test_x = parts.scaled(dataset.test_x)
        seen = dataclasses.replace(dataset, train_x=parts.prior.x, train_y=parts.prior.y, test_x=test_x)
        return cls(parts, Bench(seen.to(device), settings.batch_size, bar), root)

    def cell(self, cell: MethodCell) -> Kept[FractionResult]:
        """Return the result of a cell, from its folder if it is there."""
        examples = {"examples": self.bench.examples, "certify": self.parts.certify.digest}
        work = functools.partial(self._run, cell)
        configuration = {**dataclasses.asdict(cell), **examples}
        return remember(self.root / cell.folder, configuration, self.bench.device, work, FractionResult)

    def _dense(self, which: DenseCell) -> nn.Module:
        """Return a dense network, trained or loaded from its last checkpoint.

        Raises:
            ValueError: a model that is not a chain of linear layers with ReLU.
        """
        model = self.bench.build(which.model, which.seed)
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(name.endswith("weight"))  # biases start at 0 and stay there
        if not _is_chain(model, self.bench.dataset.train_x[:4]):
            raise ValueError(f"model {which.model!r} is not a chain of linear layers with ReLU: take lenet_300_100")
        title = f"{which.model} dense seed {which.seed}"
        self.bench.train(model, self.root / f"unbiased-{digest(which)}", title, which.seed, which.dense)
        return model

    def _run(self, cell: MethodCell, folder: Path) -> FractionResult:
        settings, bench, arm = cell.settings, self.bench, cell.arm
        checkpoints, history = folder / "checkpoints", History()
        try:
            model = copy.deepcopy(self.dense(cell.dense(bench.examples)))
            bench.bar.begin(cell.title)
            found = prune(
                model, bench.batches(cell.seed), cell.config, folder=checkpoints / "method", callbacks=[bench.bar]
            )
            if arm.retrain_epochs:
                again = dataclasses.replace(settings.dense, epochs=arm.retrain_epochs)
                look = [WeightShedding(found.masks)]
                after = checkpoints / "trained"
                history = bench.train(found.model, after, cell.title, cell.seed, again, found.masks, look)
        except FAILURES as problem:
            return FractionResult(diverged=why_failed(problem))
        return self._measured(cell, found.model, history, checkpoints)

    def _measured(self, cell: MethodCell, model: nn.Module, history: History, folder: Path) -> FractionResult:
        settings, parts, bench = cell.settings, self.parts, self.bench
        assert isinstance(settings, FractionConfig) and parts.prior is not None
        plan = CertifyConfig(delta=0.8 * settings.delta, delta_draws=0.2 * settings.delta, draws=settings.draws)
        certificate = mask_certificate(
            model, parts, plan, keep=settings.keep, seed=cell.seed, folder=folder / "certificate"
        )
        test_x, test_y = bench.dataset.test_x.cpu(), bench.dataset.test_y.cpu()
        subject = Subject.of(model.cpu(), parts.prior, parts.certify, test_x, test_y, settings.margin_share)
        found = pruned_network(subject, settings.levels, settings.delta)
        wrong = subject.held_out_error(subject.weights)
        positive = found.sparse_norms is not None
        return FractionResult(
            error=100 * found.test_error,
            train_error=100 * found.train_error,
            held_out=100 * bounds.chernoff(wrong, len(parts.certify), settings.delta),
            certificate=100 * certificate.bound,
            counting=100 * found.counting,
            guha=100 * (subject.margin_loss + found.complexity) if positive else None,
            galanti=None if found.sparse_norms is None else 100 * (subject.margin_loss + found.sparse_norms),
            history=history,
        )


def fraction_row(cell: MethodCell, result: FractionResult) -> FractionRow:
    """Return the line of a cell in the table of errors and bounds."""
    own = {field.name for field in dataclasses.fields(FractionRow)} - {"shed"}
    values = {name: value for name, value in vars(result).items() if name in own}
    return FractionRow(**_key(cell), **values, shed=result.history[-1]["shed"] if result.history else None)


def shedding_rows(cell: MethodCell, result: FractionResult) -> list[SheddingRow]:
    """Return a line for each epoch after the cut and each layer."""
    return [
        SheddingRow(**_key(cell), epoch=int(entry["epoch"]), name=name.removeprefix("shed_"), shed=value)
        for entry in result.history
        for name, value in entry.items()
        if name.startswith("shed_")
    ]


def _key(cell: MethodCell) -> dict[str, Any]:
    return vars(Key(cell.data, cell.model, cell.arm.name, cell.sparsity, "trained", cell.seed))


def _is_chain(model: nn.Module, x: Tensor) -> bool:
    """Return True if the network is its weights with ReLU between them."""
    weights, expected = weights_of(model), model(x)
    if any(w.ndim != 2 for w in weights.values()):
        return False
    try:
        found = compression.outputs(weights, x)
    except RuntimeError:  # shapes that do not fit
        return False
    return found.shape == expected.shape and bool(found.isclose(expected, rtol=1e-4, atol=1e-5).all())
