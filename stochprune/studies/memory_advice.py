"""Advice where a run of ``finetune-lm`` is out of memory, from the memory plan."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator
from pathlib import Path

import torch

from stochprune.language_models.model_sizes import LanguageModelSizes
from stochprune.training.memory_plan import MemoryConfig, memory_plan
from stochprune.training.out_of_memory import ROOM, is_out_of_memory, memory_of


def low_memory(config: MemoryConfig) -> MemoryConfig:
    """Return the configuration of a training with ``--low-memory``."""
    return dataclasses.replace(config, logits="bf16", optimizer="adamw8bit", in_backward=True)


@contextlib.contextmanager
def memory_advice(folder: Path, config: MemoryConfig, device: torch.device) -> Iterator[None]:
    """Turn an error of a full memory into one that says which options of ``finetune-lm`` would fit.

    Args:
        folder: of the model.
        config: of the training that runs here.

    Raises:
        ValueError: the memory was full.
    """
    try:
        yield
    except (MemoryError, RuntimeError) as error:  # torch.OutOfMemoryError is a RuntimeError
        if not is_out_of_memory(error):
            raise
        raise ValueError(f"finetune-lm: out of memory on {device}: {_advice(folder, config, device)}") from error


def _advice(folder: Path, config: MemoryConfig, device: torch.device) -> str:
    sizes, limit = LanguageModelSizes(folder), ROOM * memory_of(device)
    needed = f"the plan of a step is {memory_plan(sizes, config).peak / 1e9:.3g} GB of {limit / ROOM / 1e9:.3g}"
    for saved in dict.fromkeys((config, low_memory(config))):
        for mode in dict.fromkeys((config.mode, "frozen")):
            batch = config.batch_size if saved != config else config.batch_size // 2
            while batch:
                if memory_plan(sizes, dataclasses.replace(saved, mode=mode, batch_size=batch)).peak <= limit:
                    frozen = "" if mode == config.mode else f" --mode {mode}"
                    low = "" if saved == config else " --low-memory"
                    return f"{needed}; use --batch-size {batch}{frozen}{low}"
                batch //= 2
    return (
        f"{needed}; use a smaller --context, or see what fits with: stochprune plan {folder} --limit {limit / 1e9:.3g}"
    )
