"""The main study: compare weight training and mask fine-tuning of a pruned network, for the same number of epochs.

For each score, sparsity and seed, from one dense network:

``pruned``       the score's mask, nothing trained (statistics of batch norm are computed again, as for ``thresholded``)
``retrained``    the score's mask, E epochs of weight training
``stochastic``   M epochs of mask fine-tuning: mean error of networks under single masks
``ensemble``     the same fine-tuning: error of the class probabilities averaged over the masks
``thresholded``  the same fine-tuning, then pruned to the sparsity: the weights of largest keep probability stay
``finetuned``    then R epochs of weight training under the new mask; M + R = E
``shuffled``     control: as ``finetuned``, but the new mask is shuffled inside layers before it prunes the fine-tuned
                 weights

Errors are on the test set, in per cent. Every training uses Adam with a constant learning rate for the weights.
"""

from __future__ import annotations

import copy
import dataclasses
import functools
import itertools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stochprune import data, masks, models, scores
from stochprune.data import HELP as DATA
from stochprune.data import Batches, Dataset
from stochprune.masks.snapshot import snapshot
from stochprune.models import HELP as MODELS
from stochprune.nn import convert, masked_layers
from stochprune.runs.config import FRACTION, Config, at_least, option
from stochprune.runs.device import device_of
from stochprune.runs.files import write_json
from stochprune.runs.progress import ProgressBar
from stochprune.runs.run import open_run, run_folder
from stochprune.runs.store import Kept, remember, say_reused
from stochprune.scores import NAMES as SCORES
from stochprune.seeding import generator
from stochprune.studies.bench import FAILURES, Bench, why_failed
from stochprune.studies.threads import few_threads
from stochprune.training.batch_norm import recompute_statistics
from stochprune.training.config import FinetuneConfig, WeightConfig
from stochprune.training.evaluate import stochastic_error
from stochprune.training.finetune import finetune
from stochprune.training.starts import at_cut, start_masks
from stochprune.training.training import Training

ARMS = ("pruned", "retrained", "stochastic", "ensemble", "thresholded", "finetuned", "shuffled")
FALLING = FinetuneConfig(epochs=18, budget_schedule="cubic")
"""The default: from the score's mask the budget falls to the number of weights to keep."""


@dataclasses.dataclass(frozen=True)
class StudyConfig(Config):
    """Configuration of the main study: train dense, prune, and compare two trainings of the same number of epochs."""

    data: str = option("digits", DATA)
    model: str = option("lenet_300_100", MODELS)
    scores: tuple[str, ...] = option(
        ("magnitude", "snip", "random"), f"Pruning scores, separated by commas: {', '.join(SCORES)}."
    )
    sparsities: tuple[float, ...] = option(
        (0.9, 0.95, 0.98), "Fractions of weights pruned, separated by commas.", FRACTION
    )
    seeds: int = option(3, "Number of seeds, each with its own weights, order of batches and masks.", at_least(1))
    dense_epochs: int = option(20, "Epochs of dense training before pruning.", at_least(1))
    retrain_epochs: int = option(6, "Epochs of weight training after pruning with the fine-tuned mask.", at_least(0))
    batch_size: int = option(64, "Examples in a batch.", at_least(1))
    train_examples: int = option(0, "Number of training examples; 0 means all.", at_least(0))
    draws: int = option(10, "Number of masks to evaluate the stochastic predictor.", at_least(1))
    validation: float = option(
        0.0, "Hold out this fraction of the training set and report on it, not on the test set.", FRACTION
    )
    finetune: FinetuneConfig = FALLING


@dataclasses.dataclass(frozen=True)
class Outcome:
    """The results of one mask.

    Attributes:
        errors: in per cent, by the names at the top of this file; None where the cell failed before.
        swapped: the fraction of the kept weights that the fine-tuned mask keeps and the score's mask pruned.
        density: densities of the score's mask and of the fine-tuned mask, by layer.
        history: the history of the fine-tuning.
        failed: the error that ended the cell, see :data:`stochprune.studies.bench.FAILURES`, or None; then there are
            only the errors that were measured before.
    """

    errors: dict[str, float | None]
    swapped: float | None
    density: dict[str, list[float]]
    history: list[dict[str, float]]
    failed: str | None = None


@dataclasses.dataclass(frozen=True)
class Mask:
    """The origin of a mask: score, sparsity and seed."""

    score: str
    sparsity: float
    seed: int

    @property
    def name(self) -> str:
        """The name of its folder."""
        return f"{self.score}-{self.sparsity!r}-seed{self.seed}"


@dataclasses.dataclass(frozen=True)
class StudyCell(Outcome, Mask):
    """A mask and its results."""


@dataclasses.dataclass(frozen=True)
class DenseError:
    """The error of a dense network, per cent."""

    seed: int
    error: float


@dataclasses.dataclass(frozen=True)
class MaskStudyResults:
    """The results of the main study.

    Attributes:
        classes: the number of classes of the data set.
    """

    classes: int
    dense: list[DenseError]
    cells: list[StudyCell]


SELECTIONS = ("scores", "sparsities", "seeds")
"""Fields that choose which cells run but do not change a cell: a run with more of them reuses finished cells."""


def run_study(
    config: StudyConfig,
    *,
    data_dir: Path | None = None,
    out: Path = Path("runs"),
    device: str | torch.device = "cpu",
) -> tuple[Path, dict[str, Any]]:
    """Run all cells that are not finished, on the CPU or a GPU; the folder does not depend on the device.

    A cell whose training diverges, or whose mask would empty a layer, is finished too: its result has the reason, and
    the study goes on.

    Returns:
        The folder, ``out/study-<data>-<digest>``, and the content of its ``results.json``: ``configuration``,
        ``versions``, ``classes``, ``dense`` and ``cells``, as in :class:`MaskStudyResults`.

    Raises:
        ValueError: an unknown data set, model, score or device.
        FloatingPointError: the training of a dense network diverged.
        CheckpointError: a file in the folder that cannot be read, or another process is using the folder.
    """
    done = study_masks(config, data_dir, out, device_of(device))
    say_reused(done.kept.values(), done.content["versions"])
    return done.folder, done.content


def study_folder(config: StudyConfig, out: Path) -> Path:
    """Return the folder of a study, which holds the folders of its cells."""
    return run_folder(out, f"study-{config.data}", config, exclude=SELECTIONS)


@dataclasses.dataclass(frozen=True)
class Done:
    """The output of :func:`run_study`.

    Attributes:
        folder: the run's folder; ``content`` is the content of its ``results.json``.
        kept: the stored result of each cell, by the name of its folder.
    """

    folder: Path
    content: dict[str, Any]
    found: MaskStudyResults
    kept: dict[str, Kept[Outcome]]


def study_masks(config: StudyConfig, data_dir: Path | None, out: Path, device: torch.device) -> Done:
    """Do the work of :func:`run_study` without output."""
    for score in config.scores:
        scores.by_name(score)  # raises for an unknown score before any work
    dataset = study_data(config, data_dir).to(device)
    model = models.build(config.model, dataset.shape, dataset.num_classes, 0).to(device)  # likewise
    folder = study_folder(config, out)
    grid = itertools.product(range(config.seeds), config.scores, config.sparsities)
    with (
        open_run(config, folder) as run,
        few_threads(model, dataset.train_x[: config.batch_size]),
        ProgressBar("starting", total=_total_steps(config, dataset)) as bar,
    ):
        study = Study(config, dataset, folder, bar)
        dense = [DenseError(seed, study.error(study.dense(seed))) for seed in range(config.seeds)]
        cells = [study.cell(Mask(score, sparsity, seed)) for seed, score, sparsity in grid]
        found = MaskStudyResults(dataset.num_classes, dense, cells)
        return Done(folder, run.write(dataclasses.asdict(found), device), found, study.kept)


class Study(Bench):
    """The steps of the main study. Each result is stored in ``folder`` when it is finished, its checkpoints until then.

    Attributes:
        kept: the stored result of each requested cell, by the name of its folder.
    """

    def __init__(self, config: StudyConfig, dataset: Dataset, folder: Path, bar: ProgressBar) -> None:
        super().__init__(dataset, config.batch_size, bar)
        self.config, self.folder = config, folder
        self.kept: dict[str, Kept[Outcome]] = {}
        self.dense = functools.cache(self._dense)

    def cell(self, mask: Mask) -> StudyCell:
        """Return the results of one mask, from its folder if they are there."""
        which = dataclasses.asdict(mask)
        name = mask.name
        configuration = {**which, "examples": self.examples}
        work = functools.partial(self._run_cell, mask)
        kept = remember(self.folder / name, configuration, self.device, work, Outcome)
        self.kept[name] = kept
        self.bar.finish(self.steps(_epochs_per_cell(self.config)))
        return StudyCell(**which, **vars(kept.result))

    def _dense(self, seed: int) -> nn.Module:
        """Return the dense network of a seed, trained or loaded from its last checkpoint."""
        model = self.build(self.config.model, seed)
        name = f"dense-seed{seed}"
        self.train(model, self.folder / name, name, seed, self._weights(self.config.dense_epochs))
        self.bar.finish(self.steps(self.config.dense_epochs))
        return model

    def _run_cell(self, wanted: Mask, folder: Path) -> Outcome:
        dense, errors = self.dense(wanted.seed), dict[str, float | None].fromkeys(ARMS)
        try:
            return self._measured(wanted, folder, dense, errors)
        except FAILURES as problem:
            return Outcome(errors, None, {}, [], why_failed(problem))

    def _measured(self, wanted: Mask, folder: Path, dense: nn.Module, errors: dict[str, float | None]) -> Outcome:
        """Return the results of a mask; each error is in ``errors`` as soon as it is known."""
        config, retrain, name = self.config, self.config.retrain_epochs, folder.name
        score, sparsity, seed = wanted.score, wanted.sparsity, wanted.seed
        checkpoints = folder / "checkpoints"
        scored = scores.compute(score, dense, F.cross_entropy, self.batches(seed), sparsity=sparsity, seed=seed)
        mask = masks.from_scores(scored, sparsity)
        errors["pruned"] = self._cut_error(_cut(dense, dense, mask), seed)

        model = _cut(dense, dense, mask)
        longer = self._weights(config.finetune.epochs + retrain)
        self.train(model, checkpoints / "retrained", f"{name}/retrained", seed, longer, mask)
        errors["retrained"] = self.error(model)

        masked = convert(copy.deepcopy(dense), start_masks(scored, sparsity, config.finetune), seed=seed)
        self.bar.begin(f"{name}/stochastic")
        tuning = at_cut(dataclasses.replace(config.finetune, seed=seed), sparsity)
        history = finetune(masked, self.batches(seed), tuning, out=checkpoints, callbacks=[self.bar]).history
        stochastic = stochastic_error(masked, self.dataset.test_x, self.dataset.test_y, config.draws)
        errors.update(stochastic=stochastic.mean, ensemble=stochastic.ensemble)

        logits = {key: layer.mask_logits.detach() for key, layer in masked_layers(masked).items()}
        tuned = masks.from_scores(logits, sparsity)
        write_json(folder / "masks.json", snapshot(logits, tuned))  # for the report
        errors["thresholded"] = self._cut_error(_cut(dense, masked, tuned), seed)
        for arm, final in (("finetuned", tuned), ("shuffled", masks.shuffle(tuned, seed))):
            model = _cut(dense, masked, final)
            self.train(model, checkpoints / arm, f"{name}/{arm}", seed, self._weights(retrain), final)
            errors[arm] = self.error(model)

        kept = sum(int(value.sum()) for value in mask.values())
        swapped = sum(int((tuned[key] & ~mask[key]).sum()) for key in mask) / kept
        density = {key: [_share(mask[key]), _share(tuned[key])] for key in mask}
        return Outcome(errors, swapped, density, history)

    def _cut_error(self, model: nn.Module, seed: int) -> float:
        """Return the test error of a network that was cut and not trained since."""
        recompute_statistics(model, self.batches(seed), Training())
        return self.error(model)

    def _weights(self, epochs: int) -> WeightConfig:
        return WeightConfig(epochs, self.config.finetune.weight_lr, self.config.finetune.checkpoint_every)


def _epochs_per_cell(config: StudyConfig) -> int:
    return 2 * config.finetune.epochs + 3 * config.retrain_epochs


def _total_steps(config: StudyConfig, dataset: Dataset) -> int:
    cells = len(config.scores) * len(config.sparsities)
    epochs = config.seeds * (config.dense_epochs + cells * _epochs_per_cell(config))
    return epochs * len(Batches(dataset.train_x, dataset.train_y, config.batch_size, 0))


def _cut(dense: nn.Module, trained: nn.Module, mask: Mapping[str, Tensor]) -> nn.Module:
    """Return a plain copy of ``trained``, which may be masked, with the architecture of ``dense``, under ``mask``."""
    model = copy.deepcopy(dense)
    state = trained.state_dict()
    model.load_state_dict({name: state[name] for name in model.state_dict()})
    masks.apply(model, mask)
    return model


def _share(mask: Tensor) -> float:
    return mask.double().mean().item()


def study_data(config: StudyConfig, data_dir: Path | None) -> Dataset:
    """Return the data set of a study, with the examples that it holds out as the test set."""
    return data.subset(hold_out(data.load(config.data, data_dir), config.validation), config.train_examples)


def hold_out(dataset: Dataset, fraction: float) -> Dataset:
    """Replace the test set by a random fraction of the training set, if the fraction is not 0."""
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
