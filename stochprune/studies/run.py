"""Run a study: every cell once, then its tables and pictures."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from stochprune import masks, models, report
from stochprune.runs.device import device_of
from stochprune.runs.folder import file_name
from stochprune.runs.progress import ProgressBar
from stochprune.runs.run import open_run, run_folder
from stochprune.runs.store import Kept, say_reused
from stochprune.studies.cells import (
    Job,
    block_config,
    certificate_cells,
    initialisation_bench,
    initialisation_cell,
    method_cells,
)
from stochprune.studies.certificates import risk_rows
from stochprune.studies.executors import Executor, run_cells
from stochprune.studies.finetune import Done, study_masks
from stochprune.studies.fraction import Fractions, fraction_row, shedding_rows
from stochprune.studies.initialisation import Cell, CellResult, InitialisationConfig, load_kept, number
from stochprune.studies.language_models import language_rows
from stochprune.studies.methods import MethodCell, Methods, method_rows, steps_of
from stochprune.studies.plan import Plan
from stochprune.studies.rows import (
    DistanceRow,
    ErrorRow,
    Failure,
    Key,
    LayerRow,
    SheddingRow,
    StudyResults,
    TrainedRow,
)

Found = tuple[StudyResults, list[Kept[Any]]]
"""The results of a study, and the stored results of its cells."""


def run(
    plan: Plan,
    *,
    data_dir: Path | None = None,
    out: Path = Path("runs"),
    device: str | torch.device = "cpu",
    executor: Executor | None = None,
) -> tuple[Path, dict[str, Any]]:
    """Run all cells that are not finished, and write tables and pictures.

    The folder of a cell is ``out/cells/<digest>`` for every study. So studies share equal cells, and the same call
    continues a run that was stopped. Cells that were made by other versions or on another device are used; one line on
    the standard error says how many they are and what made them.

    Args:
        data_dir: folder of the data set's files, or folder with one folder per data set.
        device: the device of the cells that are not finished; no folder's name depends on it.
        executor: runs them on workers, see :mod:`stochprune.studies.executors`; by default this process does.

    Returns:
        The folder ``out/<name>-<digest of the plan>``, and the content of its ``results.json``: ``title``,
        ``configuration``, ``versions``, ``hours`` (sum over the cells), ``rows`` (one per error: data, model, score,
        sparsity, arm, seed), ``layers`` (moments of kept weights), ``distances`` between cells, ``shedding`` by epoch
        and layer, and ``failures``: the cells that an error ended, such as a training that diverged, with the reason.
        Beside it: ``errors.csv``, ``layers.csv``, ``distances.csv``, ``shedding.csv``, ``failures.csv``, ``tables.md``
        and the pictures.

    Raises:
        ValueError: an unknown data set, model or device, an invalid name of a folder, or missing files.
        CheckpointError: a file of an earlier run that cannot be read, or another process is running this study. Other
            studies may run at the same time: each waits for a cell that another is running. Studies of job
            ``finetune`` that differ only in scores, sparsities or seeds share a folder; they do not wait, and raise.
        WorkerError: a cell whose workers die again and again, or which they cannot run.
    """
    device = device_of(device)
    folder = run_folder(out, file_name(plan.name, "the name of a study"), plan)
    job = Job(plan, data_dir, out, device)
    for name in () if plan.job == "language_models" else plan.data:  # raises for impossible cells before any work
        dataset = job.load(name)
        for model in plan.models:
            models.build(model, dataset.shape, dataset.num_classes, 0)
    with open_run(plan, folder) as run:
        if executor is not None:
            run_cells(executor, job, folder)
        if plan.job == "finetune":
            found, kept = _finetune(job, folder)
        elif plan.job == "fraction":
            found, kept = _fractions(job)
        elif plan.job == "initialisation":
            found, kept = _initialisation(job)
        elif plan.job == "certificates":
            found, kept = _certificates(job)
        else:
            found, kept = _methods(job)
        results = run.write(dataclasses.asdict(found), device)
        say_reused(kept, results["versions"])
        for name in ("rows", "layers", "distances", "shedding", "failures"):
            path = folder / f"{'errors' if name == 'rows' else name}.csv"
            if results[name]:
                report.write_csv(path, results[name])
            else:
                path.unlink(missing_ok=True)  # such as failures of cells that were removed and ran again
        (folder / "tables.md").write_text(report.study_markdown(results), encoding="utf-8")
        trained = any(row.error is not None for row in found.rows if row.score != "dense")
        if plan.job == "initialisation" and trained:
            report.plot_initialisation(results, folder / "errors.png")
        if plan.job == "fraction" and trained:
            report.plot_fractions(results, folder / "bounds.png")
    return folder, results


def _initialisation(job: Job) -> Found:
    settings, plan = job.plan.settings, job.plan
    assert isinstance(settings, InitialisationConfig)
    rows: list[ErrorRow] = []
    layers: list[LayerRow] = []
    distances: list[DistanceRow] = []
    failures: list[Failure] = []
    kept: list[Kept[Any]] = []
    for name in plan.data:
        cells = list(plan.cells(name))
        found: dict[Cell, CellResult] = {}
        with ProgressBar("starting") as bar:
            bench = initialisation_bench(job, name, bar)
            bar.expect(len(cells) * bench.steps(settings.weights.epochs))
            for cell in cells:
                done = initialisation_cell(job, bench, cell)
                bar.finish(bench.steps(settings.weights.epochs))
                kept.append(done)
                found[cell] = done.result
                rows.append(_row(cell, done.result))
                failures += _failed(_key(cell), done.result.diverged)
                layers += _layers(cell, done.result)
            bar.begin("distances between layers")
            distances += _distances(found, job.cells, bench.examples)
    return StudyResults(plan.title, _hours(kept), rows, layers, distances, failures=failures), kept


def _failed(key: Mapping[str, Any], reason: str | None) -> list[Failure]:
    """Return the cell of this :class:`Key` if an error ended it."""
    return [] if reason is None else [Failure(**key, reason=reason)]


def _hours(kept: list[Kept[Any]]) -> float:
    return sum(each.seconds for each in kept) / 3600


def _key(cell: Cell) -> dict[str, Any]:
    score = cell.label if cell.sparsity else "dense"
    return vars(Key(cell.data, cell.model, score, cell.sparsity, cell.ablation, cell.seed))


def _row(cell: Cell, result: CellResult) -> TrainedRow:
    loss = result.history[-1]["loss"] if result.history else None
    return TrainedRow(**_key(cell), error=result.error, loss=loss, emptied=len(result.emptied))


def _layers(cell: Cell, result: CellResult) -> list[LayerRow]:
    found = []
    for when in _times(cell.settings):
        for layer in getattr(result, when):
            values = {**vars(layer), "shape": "x".join(map(str, layer.shape))}
            found.append(LayerRow(**_key(cell), when=when, **values))
    return found


def _distances(cells: Mapping[Cell, CellResult], root: Path, examples: str) -> list[DistanceRow]:
    """Compute distances from each mask to its ablations and to a random mask, by layer, before and after training.

    Args:
        cells: the cells and their results.
        examples: the digest of the data.
    """
    rows = []
    for base, result in cells.items():
        if base.ablation != "none" or base.score == "random" or not base.sparsity:
            continue
        at = (base.data, base.model, base.sparsity, base.seed)
        others = {c.ablation: c for c in cells if c != base and dataclasses.replace(c, ablation="none") == base}
        for c in cells:
            if (c.score, c.ablation, c.data, c.model, c.sparsity, c.seed) == ("random", "none", *at):
                others["random"] = c
        kept = load_kept(root / base.folder, base, examples)
        for arm, other in others.items():
            their = load_kept(root / other.folder, other, examples)
            for when, layer in itertools.product(_times(base.settings), result.before):
                name = layer.name
                found = masks.statistics(name, kept[when][name], tuple(layer.shape), their[when][name])
                key = _key(base) | {"arm": arm}
                rows.append(
                    DistanceRow(
                        **key,
                        when=when,
                        name=name,
                        wasserstein=number(found.wasserstein),
                        wasserstein_zeros=number(found.wasserstein_zeros),
                    )
                )
    return rows


def _times(settings: InitialisationConfig) -> tuple[str, ...]:
    return ("before", "after") if settings.weights.epochs else ("before",)


def _finetune(job: Job, folder: Path) -> Found:
    plan = job.plan
    rows: list[ErrorRow] = []
    failures: list[Failure] = []
    kept: list[Kept[Any]] = []
    for name, model in itertools.product(plan.data, plan.models):
        blocks: list[Done] = []
        for block in plan.grid:
            config = block_config(plan, name, model, block)
            blocks.append(study_masks(config, job.files(name), job.out, job.device))
        kept += {cell: found for block in blocks for cell, found in block.kept.items()}.values()  # each once
        for dense in blocks[0].found.dense:
            rows.append(ErrorRow(name, model, "dense", 0.0, "none", dense.seed, dense.error))
        for cell in (cell for block in blocks for cell in block.found.cells):
            for arm, error in cell.errors.items():
                rows.append(ErrorRow(name, model, cell.score, cell.sparsity, arm, cell.seed, error))
            failures += _failed(vars(Key(name, model, cell.score, cell.sparsity, "", cell.seed)), cell.failed)
        cells = [cell for block in blocks for cell in block.content["cells"]]
        report.plot_finetune({**blocks[-1].content, "cells": cells}, folder / f"errors-{name}-{model}.png")
    return StudyResults(plan.title, _hours(kept), rows, failures=failures), kept


def _methods(job: Job) -> Found:
    kept: list[Kept[Any]] = []
    rows, failures = list[ErrorRow](), list[Failure]()
    for name in job.plan.data:
        with ProgressBar("starting") as bar, method_cells(job, name, bar) as methods:
            assert isinstance(methods, Methods)
            rows_of = language_rows if job.plan.job == "language_models" else method_rows
            rows += _arms(methods, list(job.plan.method_cells(name)), rows_of, kept, failures)
    return StudyResults(job.plan.title, _hours(kept), rows, failures=failures), kept


def _arms(
    methods: Methods,
    cells: list[MethodCell],
    rows_of: Callable[[MethodCell, Any], Sequence[ErrorRow]],
    kept: list[Kept[Any]],
    failures: list[Failure],
) -> list[ErrorRow]:
    """Run the cells of one data set; return their rows and those of the dense networks, and add to the lists."""
    bench, measured, rows = methods.bench, set(), list[ErrorRow]()
    bench.bar.expect(steps_of(cells, bench))
    for cell in cells:
        if (cell.model, cell.seed) not in measured:
            measured.add((cell.model, cell.seed))
            error = bench.error(methods.dense_of(cell))
            rows.append(ErrorRow(cell.data, cell.model, "dense", 0.0, "none", cell.seed, error))
            bench.bar.finish(bench.steps(cell.settings.dense.epochs))
        done = methods.cell(cell)
        bench.bar.finish(bench.steps(cell.epochs))
        kept.append(done)
        rows += rows_of(cell, done.result)
        failures += _failed(_arm_key(cell), done.result.diverged)
    return rows


def _arm_key(cell: MethodCell) -> dict[str, Any]:
    return vars(Key(cell.data, cell.model, cell.arm.name, cell.sparsity, "", cell.seed))


def _fractions(job: Job) -> Found:
    kept: list[Kept[Any]] = []
    rows, shedding, failures = list[ErrorRow](), list[SheddingRow](), list[Failure]()
    for name in job.plan.data:
        cells = list(job.plan.method_cells(name))
        with ProgressBar("starting") as bar, method_cells(job, name, bar) as fractions:
            assert isinstance(fractions, Fractions)
            bar.expect(steps_of(cells, fractions.bench))
            for cell in cells:
                done = fractions.cell(cell)
                bar.finish(fractions.bench.steps(cell.epochs))
                kept.append(done)
                rows.append(fraction_row(cell, done.result))
                shedding += shedding_rows(cell, done.result)
                failures += _failed(_arm_key(cell), done.result.diverged)
    return StudyResults(job.plan.title, _hours(kept), rows, shedding=shedding, failures=failures), kept


def _certificates(job: Job) -> Found:
    kept: list[Kept[Any]] = []
    rows: list[ErrorRow] = []
    for name in job.plan.data:
        cells = list(job.plan.certificate_cells(name))
        for cell, done in zip(cells, certificate_cells(job, name, cells), strict=True):
            kept.append(done)
            rows += risk_rows(cell, done.result)
    return StudyResults(job.plan.title, _hours(kept), rows), kept
