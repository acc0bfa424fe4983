"""The starts of mask fine-tuning: the keep probabilities that a configuration wants for scored weights."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Literal

import torch
from torch import Tensor

from stochprune.masks.probabilities import keep_probabilities
from stochprune.masks.select import from_scores
from stochprune.training.config import FinetuneConfig

KEEP = 0.95
"""The keep probability at the start; where a mask is given, weights that it prunes start from 0.05."""


def start_masks(
    scores: Mapping[str, Tensor],
    sparsity: float,
    config: FinetuneConfig,
    *,
    scope: str = "global",
    pattern: str | None = None,
    keep: float = KEEP,
) -> dict[str, Tensor]:
    """Return the ``masks`` of :func:`stochprune.convert` for the start of a configuration.

    Args:
        scope: of the cut. If the cut or the budget is that of each layer or row, scores are standardised in each layer.
        keep: the probability of the weights that the mask keeps, of all, or of a weight of median score.

    Raises:
        ValueError: see :func:`stochprune.masks.from_scores`, of every start: a cut that cannot be made is refused
            before the training. Only a global cut of other starts may empty a layer here, because the training decides.
    """
    open_end = config.start != "mask" and scope == "global"
    mask = from_scores(scores, sparsity, scope, pattern=pattern, allow_empty=open_end)
    refuse_certain_emptiness(mask, scores, sparsity, scope, pattern)
    if config.start == "mask":
        if keep == KEEP:
            return mask  # convert has these probabilities as its defaults
        return {name: torch.where(kept, keep, 1 - keep).double() for name, kept in mask.items()}
    if config.start == "dense":
        return {
            name: torch.full(kept.shape, keep, dtype=torch.float64, device=kept.device) for name, kept in mask.items()
        }
    return keep_probabilities(scores, keep, pattern=pattern, scope=held_scope(config, scope))


def held_scope(config: FinetuneConfig, scope: str) -> Literal["global", "layer"]:
    """Return where the budget is held under a cut: in each layer, if the cut prunes each layer, or row, alike."""
    return config.budget_scope if scope == "global" else "layer"


def refuse_certain_emptiness(
    mask: Mapping[str, Tensor], scores: Mapping[str, Tensor], sparsity: float, scope: str, pattern: str | None = None
) -> None:
    """Raise if a cut to this sparsity leaves a layer without weights whatever the training does; ``mask``: one cut."""
    if sum(int(kept.sum()) for kept in mask.values()) < len(mask):
        from_scores(scores, sparsity, scope, pattern=pattern)


def at_cut(config: FinetuneConfig, sparsity: float, scope: str = "global") -> FinetuneConfig:
    """Return the configuration whose cubic budget reaches the sparsity of a cut; a constant budget needs none."""
    if config.budget_schedule == "constant":
        return config
    return dataclasses.replace(config, sparsity=sparsity, budget_scope=held_scope(config, scope))
