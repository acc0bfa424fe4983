"""Run a study: every cell once, then its tables and pictures."""

from __future__ import annotations

import dataclasses
import functools
import itertools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from stochprune import data, masks, models, report
from stochprune.data import subset
from stochprune.runs.device import device_of
from stochprune.runs.folder import file_name
from stochprune.runs.progress import ProgressBar
from stochprune.runs.run import open_run, run_folder
from stochprune.runs.store import Kept, remember, say_reused
from stochprune.runs.threads import few_threads
from stochprune.studies.bench import Bench
from stochprune.studies.certificates import risk_rows
from stochprune.studies.certificates import run_cell as certify_cell
from stochprune.studies.finetune import Done, StudyConfig, hold_out, study_masks
from stochprune.studies.fraction import FractionConfig, Fractions, fraction_row, shedding_rows
from stochprune.studies.initialisation import Cell, CellResult, InitialisationConfig, load_kept, number, run_cell
from stochprune.studies.language_models import LanguageConfig, LanguageMethods, TextBench, language_rows
from stochprune.studies.methods import ImageMethodsConfig, MethodCell, Methods, method_rows, steps_of
from stochprune.studies.plan import Block, Plan
from stochprune.studies.rows import (
    DistanceRow,
    ErrorRow,
    Key,
    LayerRow,
    SheddingRow,
    StudyResults,
    TrainedRow,
)

Found = tuple[StudyResults, list[Kept[Any]]]
"""The results of a study, and the stored results of its cells."""


def run(
    plan: Plan, *, data_dir: Path | None = None, out: Path = Path("runs"), device: str | torch.device = "cpu"
) -> tuple[Path, dict[str, Any]]:
    """Run all cells that are not finished, and write tables and pictures.

    The folder of a cell is ``out/cells/<digest>`` for every study. So studies share equal cells, and the same call
    continues a run that was stopped. Cells that were made by other versions or on another device are used; one line on
    the standard error says how many they are and what made them.

    Args:
        data_dir: folder of the data set's files, or folder with one folder per data set.
        device: the device of the cells that are not finished; no folder's name depends on it.

    Returns:
        The folder ``out/<name>-<digest of the plan>``, and the content of its ``results.json``: ``title``,
        ``configuration``, ``versions``, ``hours`` (sum over the cells), ``rows`` (one per error: data, model, score,
        sparsity, arm, seed), ``layers`` (moments of kept weights), ``distances`` between cells, and ``shedding`` by
        epoch and layer. Beside it: ``errors.csv``, ``layers.csv``, ``distances.csv``, ``shedding.csv``, ``tables.md``
        and the pictures.

    Raises:
        ValueError: an unknown data set, model or device, an invalid name of a folder, or missing files.
        CheckpointError: a file of an earlier run that cannot be read, or another process is running this study. Other
            studies may run at the same time: each waits for a cell that another is running. Studies of job
            ``finetune`` that differ only in scores, sparsities or seeds share a folder; they do not wait, and raise.
    """
    device = device_of(device)
    folder = run_folder(out, file_name(plan.name, "the name of a study"), plan)
    for name in () if plan.job == "language_models" else plan.data:  # raises for impossible cells before any work
        dataset = data.load(name, _files(data_dir, name))
        for model in plan.models:
            models.build(model, dataset.shape, dataset.num_classes, 0)
    with open_run(plan, folder) as run:
        if plan.job == "finetune":
            found, kept = _finetune(plan, data_dir, out, folder, device)
        elif plan.job == "methods":
            found, kept = _methods(plan, data_dir, out, device)
        elif plan.job == "language_models":
            found, kept = _language_models(plan, data_dir, out, device)
        elif plan.job == "fraction":
            found, kept = _fractions(plan, data_dir, out, device)
        elif plan.job == "certificates":
            found, kept = _certificates(plan, data_dir, out, device)
        else:
            found, kept = _initialisation(plan, data_dir, out, device)
        results = run.write(dataclasses.asdict(found), device)
        say_reused(kept, results["versions"])
        for name in ("rows", "layers", "distances", "shedding"):
            if results[name]:
                report.write_csv(folder / f"{'errors' if name == 'rows' else name}.csv", results[name])
        (folder / "tables.md").write_text(report.study_markdown(results), encoding="utf-8")
        trained = any(row.error is not None for row in found.rows if row.score != "dense")
        if plan.job == "initialisation" and trained:
            report.plot_initialisation(results, folder / "errors.png")
        if plan.job == "fraction" and trained:
            report.plot_fractions(results, folder / "bounds.png")
    return folder, results


def _initialisation(plan: Plan, data_dir: Path | None, out: Path, device: torch.device) -> Found:
    settings = plan.settings
    assert isinstance(settings, InitialisationConfig)
    rows: list[ErrorRow] = []
    layers: list[LayerRow] = []
    distances: list[DistanceRow] = []
    kept: list[Kept[Any]] = []
    for name in plan.data:
        dataset = subset(data.load(name, _files(data_dir, name)), settings.train_examples).to(device)
        cells = list(plan.cells(name))
        found: dict[Cell, CellResult] = {}
        with ProgressBar("starting") as bar:
            bench = Bench(dataset, settings.batch_size, bar, settings.augment)
            bar.expect(len(cells) * bench.steps(settings.weights.epochs))
            for cell in cells:
                configuration = {**dataclasses.asdict(cell), "examples": bench.examples}
                work = functools.partial(run_cell, cell, bench)
                done = remember(out / "cells" / cell.folder, configuration, device, work, CellResult)
                bar.finish(bench.steps(settings.weights.epochs))
                kept.append(done)
                found[cell] = done.result
                rows.append(_row(cell, done.result))
                layers += _layers(cell, done.result)
            bar.begin("distances between layers")
            distances += _distances(found, out / "cells", bench.examples)
    return StudyResults(plan.title, _hours(kept), rows, layers, distances), kept


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


def _finetune(plan: Plan, data_dir: Path | None, out: Path, folder: Path, device: torch.device) -> Found:
    assert isinstance(plan.settings, StudyConfig)
    rows: list[ErrorRow] = []
    kept: list[Kept[Any]] = []
    for name, model in itertools.product(plan.data, plan.models):
        blocks: list[Done] = []
        for block in plan.grid:
            assert isinstance(block, Block)
            config = dataclasses.replace(
                plan.settings,
                data=name,
                model=model,
                seeds=plan.seeds,
                scores=tuple(score for score, _ in block.scores),
                sparsities=block.sparsities,
            )
            blocks.append(study_masks(config, _files(data_dir, name), out, device))
        kept += {cell: found for block in blocks for cell, found in block.kept.items()}.values()  # each once
        for dense in blocks[0].found.dense:
            rows.append(ErrorRow(name, model, "dense", 0.0, "none", dense.seed, dense.error))
        for cell in (cell for block in blocks for cell in block.found.cells):
            for arm, error in cell.errors.items():
                rows.append(ErrorRow(name, model, cell.score, cell.sparsity, arm, cell.seed, error))
        cells = [cell for block in blocks for cell in block.content["cells"]]
        report.plot_finetune({**blocks[-1].content, "cells": cells}, folder / f"errors-{name}-{model}.png")
    return StudyResults(plan.title, _hours(kept), rows), kept


def _methods(plan: Plan, data_dir: Path | None, out: Path, device: torch.device) -> Found:
    kept: list[Kept[Any]] = []
    settings, rows = plan.settings, list[ErrorRow]()
    assert isinstance(settings, ImageMethodsConfig)
    for name in plan.data:
        dataset = hold_out(data.load(name, _files(data_dir, name)), settings.validation)
        dataset = subset(dataset, settings.train_examples).to(device)
        cells = list(plan.method_cells(name))
        first = models.build(plan.models[0], dataset.shape, dataset.num_classes, 0).to(device)
        with (
            few_threads(first, dataset.train_x[: settings.batch_size]),
            ProgressBar("starting") as bar,
        ):
            bench = Bench(dataset, settings.batch_size, bar, settings.augment)
            rows += _arms(Methods(bench, out / "cells"), cells, method_rows, kept)
    return StudyResults(plan.title, _hours(kept), rows), kept


def _arms(
    methods: Methods,
    cells: list[MethodCell],
    rows_of: Callable[[MethodCell, Any], Sequence[ErrorRow]],
    kept: list[Kept[Any]],
) -> list[ErrorRow]:
    """Run the cells of one data set; return their rows and those of the dense networks, and add to ``kept``."""
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
    return rows


def _language_models(plan: Plan, data_dir: Path | None, out: Path, device: torch.device) -> Found:
    kept: list[Kept[Any]] = []
    settings, rows = plan.settings, list[ErrorRow]()
    assert isinstance(settings, LanguageConfig)
    for name in plan.data:
        if (path := _files(data_dir, name)) is None:
            raise ValueError(f"{name} needs data_dir, the folder of its .txt files or a folder with it")
        with ProgressBar("starting") as bar:
            bench = TextBench.of(path, settings, device, bar)
            cells = list(plan.method_cells(name))
            rows += _arms(LanguageMethods(bench, out / "cells"), cells, language_rows, kept)
    return StudyResults(plan.title, _hours(kept), rows), kept


def _fractions(plan: Plan, data_dir: Path | None, out: Path, device: torch.device) -> Found:
    kept: list[Kept[Any]] = []
    settings, rows, shedding = plan.settings, list[ErrorRow](), list[SheddingRow]()
    assert isinstance(settings, FractionConfig)
    for name in plan.data:
        dataset = data.load(name, _files(data_dir, name), standardised=False)
        cells = list(plan.method_cells(name))
        with ProgressBar("starting") as bar:
            fractions = Fractions.of(dataset, settings, device, bar, out / "cells")
            bar.expect(steps_of(cells, fractions.bench))
            for cell in cells:
                done = fractions.cell(cell)
                bar.finish(fractions.bench.steps(cell.epochs))
                kept.append(done)
                rows.append(fraction_row(cell, done.result))
                shedding += shedding_rows(cell, done.result)
    return StudyResults(plan.title, _hours(kept), rows, shedding=shedding), kept


def _certificates(plan: Plan, data_dir: Path | None, out: Path, device: torch.device) -> Found:
    kept: list[Kept[Any]] = []
    rows: list[ErrorRow] = []
    for name in plan.data:
        files = _files(data_dir, name)
        examples = data.load(name, files, standardised=False).digest()
        for cell in plan.certificate_cells(name):
            done = certify_cell(cell, examples, files, out / "cells", device)
            kept.append(done)
            rows += risk_rows(cell, done.result)
    return StudyResults(plan.title, _hours(kept), rows), kept


def _files(data_dir: Path | None, name: str) -> Path | None:
    """Return the folder of a data set's files: the folder with its name in ``data_dir``, or ``data_dir`` itself."""
    return data_dir / name if data_dir is not None and (data_dir / name).is_dir() else data_dir
