"""The cells of a study one by one: their list, and what runs a cell, in this process or in a worker of a cluster."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import itertools
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import torch

from stochprune import data, models
from stochprune.data import Dataset, subset
from stochprune.runs.progress import ProgressBar
from stochprune.runs.store import Kept, remember
from stochprune.studies.bench import Bench
from stochprune.studies.certificates import CertificateCell, Certified
from stochprune.studies.certificates import run_cell as certify
from stochprune.studies.finetune import Mask, Study, StudyConfig, hold_out, study_data, study_folder
from stochprune.studies.fraction import FractionConfig, Fractions
from stochprune.studies.initialisation import Cell, CellResult, InitialisationConfig, run_cell
from stochprune.studies.language_models import LanguageConfig, LanguageMethods, TextBench
from stochprune.studies.methods import ImageMethodsConfig, Methods
from stochprune.studies.plan import Block, Plan
from stochprune.studies.threads import few_threads


@dataclasses.dataclass(frozen=True)
class Job:
    """A study on a device: what :func:`stochprune.studies.run` gets."""

    plan: Plan
    data_dir: Path | None
    out: Path
    device: torch.device

    def files(self, name: str) -> Path | None:
        """Return the folder of a data set's files: the folder with its name in ``data_dir``, or ``data_dir`` itself."""
        return self.data_dir / name if self.data_dir is not None and (self.data_dir / name).is_dir() else self.data_dir

    def load(self, name: str, **options: Any) -> Dataset:
        """Return a data set."""
        return data.load(name, self.files(name), **options)

    @property
    def cells(self) -> Path:
        """The folder of the cells that all studies share."""
        return self.out / "cells"


@dataclasses.dataclass(frozen=True)
class Task:
    """A cell for a worker.

    Attributes:
        data: the name of the data set.
        cell: of the study's job.
        folder: of its ``result.json``.
        title: its name in tables.
        config: of a fine-tuning study.
    """

    data: str
    cell: Any
    folder: Path
    title: str
    config: StudyConfig | None = None


def tasks(job: Job) -> list[Task]:
    """Return the cells of a study, each once. The first cells of the seeds come first, so that dense networks, which
    the cells of a seed share, are trained at the same time."""
    found: dict[Path, Task] = {}
    turns: dict[tuple[Any, ...], Iterator[int]] = {}
    turn: dict[Path, int] = {}
    for task in _listed(job):
        if task.folder not in found:
            found[task.folder] = task
            model = task.config.model if task.config else task.cell.model
            turn[task.folder] = next(turns.setdefault((task.data, model, task.cell.seed), itertools.count()))
    return sorted(found.values(), key=lambda task: turn[task.folder])


def _listed(job: Job) -> Iterator[Task]:
    plan = job.plan
    for name in plan.data:
        if plan.job == "finetune":
            for model, block in itertools.product(plan.models, plan.grid):
                config = block_config(plan, name, model, block)
                grid = itertools.product(range(config.seeds), config.scores, config.sparsities)
                for seed, score, sparsity in grid:
                    mask = Mask(score, sparsity, seed)
                    yield Task(name, mask, study_folder(config, job.out) / mask.name, f"{model} {mask.name}", config)
        else:
            cells: Iterator[Any] = plan.method_cells(name)
            if plan.job == "initialisation":
                cells = plan.cells(name)
            elif plan.job == "certificates":
                cells = plan.certificate_cells(name)
            for cell in cells:
                yield Task(name, cell, job.cells / cell.folder, cell.title)


def block_config(plan: Plan, name: str, model: str, block: Any) -> StudyConfig:
    """Return the configuration of a block of a fine-tuning study."""
    assert isinstance(plan.settings, StudyConfig) and isinstance(block, Block)
    scores = tuple(score for score, _ in block.scores)
    chosen: dict[str, Any] = {"seeds": plan.seeds, "scores": scores, "sparsities": block.sparsities}
    return dataclasses.replace(plan.settings, data=name, model=model, **chosen)


def run_task(job: Job, task: Task, bar: ProgressBar) -> None:
    """Run one cell, unless its result is stored, and store it."""
    if task.config is not None:
        dataset = study_data(task.config, job.files(task.data)).to(job.device)
        model = models.build(task.config.model, dataset.shape, dataset.num_classes, 0).to(job.device)
        with few_threads(model, dataset.train_x[: task.config.batch_size]):
            Study(task.config, dataset, study_folder(task.config, job.out), bar).cell(task.cell)
    elif isinstance(task.cell, Cell):
        initialisation_cell(job, initialisation_bench(job, task.data, bar), task.cell)
    elif isinstance(task.cell, CertificateCell):
        next(certificate_cells(job, task.data, [task.cell]))
    else:
        with method_cells(job, task.data, bar) as methods:
            methods.cell(task.cell)


def initialisation_bench(job: Job, name: str, bar: ProgressBar) -> Bench:
    """Return the bench of a study at initialisation on one data set."""
    settings = job.plan.settings
    assert isinstance(settings, InitialisationConfig)
    dataset = subset(job.load(name), settings.train_examples).to(job.device)
    return Bench(dataset, settings.batch_size, bar, settings.augment)


def initialisation_cell(job: Job, bench: Bench, cell: Cell) -> Kept[CellResult]:
    """Return the result of a cell, from its folder if it is there."""
    configuration = {**dataclasses.asdict(cell), "examples": bench.examples}
    work = functools.partial(run_cell, cell, bench)
    return remember(job.cells / cell.folder, configuration, job.device, work, CellResult)


def certificate_cells(job: Job, name: str, cells: Iterable[CertificateCell]) -> Iterator[Kept[Certified]]:
    """Yield the certificates of cells on one data set, from their folders if they are there."""
    examples = job.load(name, standardised=False).digest()
    for cell in cells:
        yield certify(cell, examples, job.files(name), job.cells, job.device)


@contextlib.contextmanager
def method_cells(job: Job, name: str, bar: ProgressBar) -> Iterator[Methods | Fractions]:
    """Open what runs the cells of jobs methods, language_models and fraction on one data set.

    Raises:
        ValueError: a language model without a folder of texts.
    """
    settings = job.plan.settings
    if isinstance(settings, LanguageConfig):
        if (path := job.files(name)) is None:
            raise ValueError(f"{name} needs data_dir, the folder of its .txt files or a folder with it")
        yield LanguageMethods(TextBench.of(path, settings, job.device, bar), job.cells)
    elif isinstance(settings, FractionConfig):
        yield Fractions.of(job.load(name, standardised=False), settings, job.device, bar, job.cells)
    else:
        assert isinstance(settings, ImageMethodsConfig)
        dataset = subset(hold_out(job.load(name), settings.validation), settings.train_examples).to(job.device)
        first = models.build(job.plan.models[0], dataset.shape, dataset.num_classes, 0).to(job.device)
        with few_threads(first, dataset.train_x[: settings.batch_size]):
            yield Methods(Bench(dataset, settings.batch_size, bar, settings.augment), job.cells)
