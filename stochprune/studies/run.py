"""Running a study: every cell once, then its tables and pictures."""

from __future__ import annotations

import dataclasses
import functools
import itertools
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from stochprune import data, masks, models, report
from stochprune.data import subset
from stochprune.runs.config import digest
from stochprune.runs.device import device_of
from stochprune.runs.files import write_json
from stochprune.runs.folder import claim, file_name
from stochprune.runs.progress import ProgressBar
from stochprune.runs.results import versions
from stochprune.studies import figures, tables
from stochprune.studies.bench import Bench
from stochprune.studies.finetune import StudyConfig, run_study
from stochprune.studies.initialisation import KINDS, Cell, InitialisationConfig, load_kept, run_cell
from stochprune.studies.plan import Plan
from stochprune.studies.store import read_result, remember

Rows = list[dict[str, Any]]


def run(
    plan: Plan, *, data_dir: Path | None = None, out: Path = Path("runs"), device: str | torch.device = "cpu"
) -> tuple[Path, dict[str, Any]]:
    """Run all cells, or what is missing of them, and write tables and pictures.

    Cells lie in ``out/cells/<digest>``, whatever study asks for them, so studies share what they have in common and a
    run that was stopped goes on when started again.

    Args:
        data_dir: folder of the data set's files, or of folders named like the data sets.
        device: where the cells that are missing are run; no folder's name depends on it.

    Returns:
        The folder ``out/<name>-<digest of the plan>``, and what is written to ``results.json`` there: ``title``,
        ``configuration``, ``versions``, ``hours`` (of the cells, summed), ``rows`` (one an error: data, model, score,
        sparsity, arm, seed), ``layers`` (moments of kept weights) and ``distances`` between cells. Beside it:
        ``errors.csv``, ``layers.csv``, ``distances.csv``, ``tables.md`` and the pictures.

    Raises:
        ValueError: an unknown data set, model or device, a name that no folder can have, or files that are not there.
        CheckpointError: a file of a former run that cannot be read, or another process is running this study. Other
            studies may run at the same time: each waits for a cell that another is running. Those of job ``finetune``
            that share a folder, as they differ in scores, sparsities or seeds alone, do not wait and are refused.
    """
    place = device_of(device)
    folder = out / f"{file_name(plan.name, 'the name of a study')}-{digest(plan)}"
    for name in plan.data:  # refuses what cannot be run before anything is made
        dataset = data.load(name, _place(data_dir, name))
        for model in plan.models:
            models.build(model, dataset.shape, dataset.num_classes, 0)
    with claim(folder):
        results = {
            "title": plan.title,
            "configuration": dataclasses.asdict(plan),
            "versions": versions(place),
            **(
                _finetune(plan, data_dir, out, folder, place)
                if plan.job == "finetune"
                else _initialisation(plan, data_dir, out, place)
            ),
        }
        write_json(folder / "results.json", results)
        for name in ("rows", "layers", "distances"):
            if results[name]:
                tables.write_csv(folder / f"{'errors' if name == 'rows' else name}.csv", results[name])
        (folder / "tables.md").write_text(tables.markdown(results), encoding="utf-8")
        if plan.job == "initialisation" and any(
            row["error"] is not None for row in results["rows"] if row["score"] != "dense"
        ):
            figures.draw(results, folder / "errors.png")
    return folder, results


def _initialisation(plan: Plan, data_dir: Path | None, out: Path, device: torch.device) -> dict[str, Any]:
    settings = plan.settings
    assert isinstance(settings, InitialisationConfig)
    rows: Rows = []
    layers: Rows = []
    distances: Rows = []
    seconds = 0.0
    for name in plan.data:
        dataset = subset(data.load(name, _place(data_dir, name)), settings.train_examples).to(device)
        cells = list(plan.cells(name))
        found: dict[Cell, Rows] = {}
        with ProgressBar("starting") as bar:
            bench = Bench(dataset, settings.batch_size, bar)
            bar.expect(len(cells) * bench.steps(settings.weights.epochs))
            for cell in cells:
                folder = out / "cells" / cell.folder
                work = functools.partial(run_cell, cell, bench)
                done = remember(folder, {**dataclasses.asdict(cell), "examples": bench.examples}, device, work, KINDS)
                bar.finish(bench.steps(settings.weights.epochs))
                seconds += done["seconds"]
                result, which = done["result"], _which(cell)
                found[cell] = result["before"]
                loss = result["history"][-1]["loss"] if result["history"] else None
                rows.append({**which, "error": result["error"], "loss": loss, "emptied": len(result["emptied"])})
                for when in _times(settings):
                    layers += [
                        {**which, "when": when, **row, "shape": "x".join(map(str, row["shape"]))}
                        for row in result[when]
                    ]
            bar.begin("distances between layers")
            distances += _distances(found, out / "cells", bench.examples)
    return {"hours": seconds / 3600, "rows": rows, "layers": layers, "distances": distances}


def _which(cell: Cell) -> dict[str, Any]:
    score = cell.label if cell.sparsity else "dense"
    return {
        "data": cell.data,
        "model": cell.model,
        "score": score,
        "sparsity": cell.sparsity,
        "arm": cell.ablation,
        "seed": cell.seed,
    }


def _distances(cells: Mapping[Cell, Rows], root: Path, examples: str) -> Rows:
    """From each mask to its ablations and to a random mask: by layer, before and after training.

    Args:
        cells: with the layers of each.
        examples: the digest of the data.
    """
    rows: Rows = []
    for base, layers in cells.items():
        if base.ablation != "none" or base.score == "random" or not base.sparsity:
            continue
        place = (base.data, base.model, base.sparsity, base.seed)
        others = {c.ablation: c for c in cells if c != base and dataclasses.replace(c, ablation="none") == base}
        for c in cells:
            if (c.score, c.ablation, c.data, c.model, c.sparsity, c.seed) == ("random", "none", *place):
                others["random"] = c
        kept = load_kept(root / base.folder, base, examples)
        for arm, other in others.items():
            their = load_kept(root / other.folder, other, examples)
            for when, layer in itertools.product(_times(base.settings), layers):
                name = layer["name"]
                found = masks.statistics(name, kept[when][name], tuple(layer["shape"]), their[when][name])
                rows.append(
                    {
                        **_which(base),
                        "arm": arm,
                        "when": when,
                        "name": name,
                        "wasserstein": _number(found.wasserstein),
                        "wasserstein_zeros": _number(found.wasserstein_zeros),
                    }
                )
    return rows


def _times(settings: InitialisationConfig) -> tuple[str, ...]:
    return ("before", "after") if settings.weights.epochs else ("before",)


def _number(value: float | None) -> float | None:
    """None for NaN: a layer of which one of the masks keeps nothing."""
    return None if value is None or math.isnan(value) else value


def _finetune(plan: Plan, data_dir: Path | None, out: Path, folder: Path, device: torch.device) -> dict[str, Any]:
    assert isinstance(plan.settings, StudyConfig)
    rows: Rows = []
    seconds = 0.0
    for name in plan.data:
        for model in plan.models:
            merged: dict[str, Any] = {}
            for block in plan.grid:
                config = dataclasses.replace(
                    plan.settings,
                    data=name,
                    model=model,
                    seeds=plan.seeds,
                    scores=tuple(score for score, _ in block.scores),
                    sparsities=block.sparsities,
                )
                place, results = run_study(config, data_dir=_place(data_dir, name), out=out, device=device)
                merged = {**results, "cells": [*merged.get("cells", []), *results["cells"]]}
            seconds += sum(read_result(path)["seconds"] for path in place.glob("*/result.json"))
            which = {"data": name, "model": model}
            for entry in merged["dense"]:
                rows.append({**which, "score": "dense", "sparsity": 0.0, "arm": "none", **entry})
            for cell in merged["cells"]:
                for arm, error in cell["errors"].items():
                    keys = {key: cell[key] for key in ("score", "sparsity")}
                    rows.append({**which, **keys, "arm": arm, "seed": cell["seed"], "error": error})
            report.draw(merged, folder / f"errors-{name}-{model}.png")
    return {"hours": seconds / 3600, "rows": rows, "layers": [], "distances": []}


def _place(data_dir: Path | None, name: str) -> Path | None:
    return data_dir / name if data_dir is not None and (data_dir / name).is_dir() else data_dir
