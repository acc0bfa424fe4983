"""Mask fine-tuning of one language model, beside one-shot methods at the same sparsity: the work of ``finetune-lm``.

It is a study of methods (:mod:`stochprune.studies.language_models`) whose dense model comes from a folder. The arms:
mask fine-tuning, whose model is exported, and one-shot methods, without training.
"""

from __future__ import annotations

import copy
import dataclasses
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

from stochprune import patterns, report
from stochprune.language_models import export, load_language_model, read_text, text_data
from stochprune.language_models.loading import without_dropout
from stochprune.nn.masked_transposed import is_transformers_conv1d
from stochprune.runs import ranks
from stochprune.runs.config import FRACTION, POSITIVE, PROBABILITY, Config, at_least, option
from stochprune.runs.device import device_of
from stochprune.runs.digests import fingerprint
from stochprune.runs.progress import ProgressBar
from stochprune.runs.run import open_run, run_folder
from stochprune.studies.language_models import LanguageArm, LanguageConfig, LanguageMethods, TextBench, language_rows
from stochprune.studies.memory_advice import low_memory, memory_advice
from stochprune.studies.methods import MethodCell
from stochprune.studies.rows import ErrorRow, StudyResults
from stochprune.training.config import WeightConfig
from stochprune.training.memory_plan import MemoryConfig
from stochprune.training.pruning import Pruned

MASKS = "mask fine-tuning"


@dataclasses.dataclass(frozen=True)
class FinetuneLMConfig(Config):
    """Configuration of the command. The batch size counts blocks of ``context`` tokens."""

    pattern: str = option("", "n:m, such as 2:4; empty for single weights.")
    sparsity: float = option(0.5, "Fraction of weights pruned; with a pattern, that of the pattern.", FRACTION)
    mode: Literal["joint", "frozen"] = option(
        "joint", "joint: train weights and keep probabilities; frozen: the probabilities alone."
    )
    epochs: int = option(4, "Epochs of the arm: mask fine-tuning, and the weight training that follows.", at_least(1))
    retrain_epochs: int = option(0, "Epochs of weight training after the cut (joint mode), part of them.", at_least(0))
    parts: int = option(1, "Epochs in a pass over the text.", at_least(1))
    context: int = option(128, "Tokens in a block.", at_least(1))
    batch_size: int = option(8, "Blocks in a batch.", at_least(1))
    held_out: float = option(0.1, "Fraction of the text, its end, that is held out.", PROBABILITY)
    weight_lr: float = option(1e-4, "Adam's learning rate for the weights.", POSITIVE)
    logit_lr: float = option(0.2, "Adam's learning rate for the logits of the keep probabilities.", POSITIVE)
    estimator: Literal["expected", "straight_through"] = option(
        "expected", "Gradient of the logits of single weights: by mean weights, or straight through sampled masks."
    )
    score: Literal["magnitude", "wanda", "sparsegpt"] = option("wanda", "Score of the first mask.")
    calibration: int = option(16, "Batches that scores and one-shot methods see.", at_least(1))
    distillation: float = option(0.0, "Strength of self-distillation from the dense model, below 1; 0: none.", FRACTION)
    clip_norm: float = option(1.0, "The largest norm of the gradient.", POSITIVE)
    low_memory: bool = option(
        False, "4 bytes for each logit, 4 instead of 12 besides each trained weight, no clipping (extra lowbit)."
    )
    checkpoint_every: int = option(100, "Optimiser steps between checkpoints.", at_least(1))
    seed: int = option(0, "Seed of masks and of the order of the text.", at_least(0))

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.pattern:
            n, m = patterns.parse(self.pattern, "finetune-lm")
            patterns.check("finetune-lm", n, m, m)
            if not math.isclose(self.sparsity, needed := 1 - n / m):
                raise ValueError(f"finetune-lm: pattern {self.pattern} needs sparsity {needed:g}, got {self.sparsity}")
        if self.retrain_epochs > self.epochs:
            raise ValueError(
                f"finetune-lm: retrain_epochs must be at most epochs {self.epochs}, got {self.retrain_epochs}"
            )

    def settings(self) -> LanguageConfig:
        """Return the settings of the study; nothing is trained before the arms."""
        return LanguageConfig(
            dense=WeightConfig(0, self.weight_lr, self.checkpoint_every, schedule="cosine"),
            epochs=self.epochs,
            batch_size=self.batch_size,
            context=self.context,
            held_out=self.held_out,
            parts=self.parts,
            clip_norm=self.clip_norm,
        )

    def arms(self, head: str, transposed: bool) -> list[LanguageArm]:
        """Return mask fine-tuning and the one-shot methods.

        Args:
            head: shell pattern on the name of the output layer's weight, which stays dense.
            transposed: layers store [in, out], so that a score cannot be compared within outputs.
        """
        shared = {"exclude": head, "pattern": self.pattern}
        scored = {**shared, "calibration": self.calibration}
        rows = {"scope": "layer" if transposed else "row"}
        retrained = self.retrain_epochs if self.mode == "joint" else 0
        own: dict[str, Any] = {"budget": "none", "start": "mask", "logit_lr": self.logit_lr / 2}
        if not self.pattern:
            own = {"budget_schedule": "cubic", "start": "score", "keep": 0.995, "ramp": 0.5}
            own |= {"estimator": self.estimator, "logit_lr": self.logit_lr}
        own |= {
            "mode": self.mode,
            "weight_lr": self.weight_lr,
            "schedule": "cosine",
            "checkpoint_every": self.checkpoint_every,
        }
        own |= {**scored, "score": self.score, **({"low_memory": True} if self.low_memory else {})}
        wanda = scored if self.pattern else {**scored, **rows}
        magnitude = shared if self.pattern else {**shared, "scope": "layer"}
        return [
            LanguageArm(MASKS, "mask_finetuning", _sorted(own), retrained, distillation=self.distillation),
            OneShotArm("magnitude", "one_shot", _sorted(magnitude)),
            OneShotArm("wanda", "one_shot", _sorted({**wanda, "score": "wanda"})),
            OneShotArm("sparsegpt", "layer_wise", _sorted({**scored, "rule": "sparsegpt"})),
            OneShotArm("admm", "layer_wise", _sorted({**scored, "rule": "admm"})),
        ]


def _sorted(options: Mapping[str, Any]) -> tuple[tuple[str, Any], ...]:
    return tuple(sorted(options.items()))


class OneShotArm(LanguageArm):
    """An arm that trains nothing."""

    def length(self, epochs: int) -> int:
        return 0


class PretrainedBench(TextBench):
    """A text, and one dense model from a folder."""

    def __init__(self, model: nn.Module, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.model = model
        self.examples += fingerprint(model)

    def build(self, name: str, seed: int) -> nn.Module:
        return copy.deepcopy(self.model)


class _Exporting(LanguageMethods):
    """Exports the model of mask fine-tuning into the folder of its cell.

    Attributes:
        tokenizer, pattern: of the export.
    """

    tokenizer: Any = None
    pattern: str | None = None
    failures = (FloatingPointError,)  # a cut that cannot be made ends the command

    def keep(self, cell: MethodCell, found: Pruned, folder: Path) -> None:
        if cell.arm.name == MASKS and ranks.is_first():
            export(found.model, folder / "model", pattern=self.pattern, tokenizer=self.tokenizer)


@dataclasses.dataclass(frozen=True)
class Origin:
    """The origin of a run: its configuration, and digests of the model and the text."""

    config: FinetuneLMConfig
    settings: LanguageConfig
    model: str
    text: str


def finetune_lm(
    folder: Path, text: Path, config: FinetuneLMConfig, *, out: Path = Path("runs"), device: str | torch.device = "cpu"
) -> tuple[Path, dict[str, Any]]:
    """Fine-tune masks of a language model, prune it, and compare the perplexity with one-shot methods.

    The same call continues a run that was stopped. The model trains without dropout: masks are its noise.

    Args:
        folder: of a causal model of transformers and its tokeniser.
        text: a UTF-8 file, or a folder of ``.txt`` files.

    Returns:
        The folder of the run, with ``results.json`` and ``tables.md``, and the content of ``results.json``; its
        ``exported`` is the folder of the pruned model, inside it.

    Raises:
        ValueError: a model or a text that cannot be used, a layer that the pattern does not fit, or a memory that is
            too small; the message says which options would fit, and finished work is kept.
        FloatingPointError: the loss of the fine-tuning is not finite.
        CheckpointError: a file of an earlier run that cannot be read.
    """
    device = device_of(device)
    model, tokenizer = load_language_model(folder)
    without_dropout(model)
    longest = getattr(model.config, "max_position_embeddings", None) or config.context
    if config.context > longest:
        raise ValueError(
            f"finetune-lm: context must be at most {longest}, the positions of the model, got {config.context}"
        )
    data = text_data(read_text(text), tokenizer, config.context, config.held_out).to(device)
    head = next((name for name, module in model.named_modules() if module is model.get_output_embeddings()), "lm_head")
    transposed = any(is_transformers_conv1d(module) for module in model.modules())
    settings = config.settings()
    origin = Origin(config, settings, fingerprint(model), data.digest())
    target = run_folder(out, "finetune-lm", origin)
    memory = MemoryConfig(weights="fp32", mode=config.mode, batch_size=config.batch_size, sequence=config.context)
    memory = low_memory(memory) if config.low_memory else memory
    with memory_advice(folder, memory, device), open_run(origin, target) as run, ProgressBar("starting") as bar:
        bench = PretrainedBench(model.to(device), data, settings, bar)
        methods = _Exporting(bench, target / "cells")
        methods.tokenizer, methods.pattern = tokenizer, config.pattern or None
        arms = config.arms(f"{head}.*", transposed)
        cells = [MethodCell(text.name, folder.name, arm, config.sparsity, config.seed, settings) for arm in arms]
        bar.expect(sum(bench.steps(cell.epochs) for cell in cells))
        rows = [ErrorRow(text.name, folder.name, "dense", 0.0, "none", config.seed, bench.error(bench.model))]
        kept = [methods.cell(cell) for cell in cells]
        for cell, done in zip(cells, kept, strict=True):
            rows += language_rows(cell, done.result)
        if (reason := kept[0].result.diverged) is not None:
            raise FloatingPointError(f"finetune-lm: {reason}")
        found = StudyResults(f"{folder.name} pruned", sum(each.seconds for each in kept) / 3600, rows)
        exported = Path("cells", cells[0].folder, "model")
        results = run.write({**dataclasses.asdict(found), "exported": str(exported)}, device)
    if ranks.is_first():
        (target / "tables.md").write_text(report.study_markdown(results), encoding="utf-8")
    return target, results
