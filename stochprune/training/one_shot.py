"""One-shot pruning: the mask of a score, or layer-wise pruning, then training of the weights that are left."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from torch import nn

from stochprune import patterns
from stochprune.masks.select import from_scores
from stochprune.runs.config import at_least, option
from stochprune.scores import Sparsity, admm_prune, by_output, sparsegpt_prune
from stochprune.training.loop import Loader
from stochprune.training.pruning import EXCLUDE, PATTERN, ChoiceConfig, Pruned, PruningConfig, check_pattern
from stochprune.training.training import Training, first_batches
from stochprune.training.weights import FixedMasks, make_optimizer


@dataclass(frozen=True)
class OneShotConfig(ChoiceConfig, PruningConfig):
    """One-shot pruning by a score, such as magnitude, then weight training."""


@dataclass(frozen=True)
class LayerWiseConfig(PruningConfig):
    """Layer-wise pruning of linear layers, which adjusts the weights that are left, then weight training.

    Each layer is pruned to the sparsity: SparseGPT within blocks of 128 columns, ADMM within the layer. See
    :func:`stochprune.scores.sparsegpt_prune` and :func:`stochprune.scores.admm_prune`.
    """

    rule: Literal["sparsegpt", "admm"] = option("sparsegpt", "Which rule prunes a layer and adjusts its weights.")
    pattern: str = option("", PATTERN)
    exclude: str = option("", EXCLUDE)
    calibration: int = option(8, "Batches of the first epoch that the rule sees; 0 means all.", at_least(0))

    def __post_init__(self) -> None:
        super().__post_init__()
        check_pattern(self)


def one_shot(model: nn.Module, loader: Loader, config: OneShotConfig, training: Training) -> Pruned:
    """Prune by the score, over all weights together unless a scope says otherwise, and train in place."""
    scored = by_output(model, training.chosen(config, model, loader))
    cut = from_scores(scored, config.sparsity, config.scope, pattern=config.pattern or None, allow_empty=True)
    masks = by_output(model, cut)
    constraint = FixedMasks(model, masks)
    optimizer = make_optimizer(model, config, training.options)
    return Pruned(model, masks, training.fit(model, loader, config, optimizer, constraint))


def layer_wise(model: nn.Module, loader: Loader, config: LayerWiseConfig, training: Training) -> Pruned:
    """Prune layer by layer, and train in place."""
    batches = first_batches(loader, config.calibration)
    prune = sparsegpt_prune if config.rule == "sparsegpt" else admm_prune
    masks = prune(model, batches, _sparsity(config), loss_fn=training.batch_loss, exclude=config.exclude or None)
    constraint = FixedMasks(model, masks)
    optimizer = make_optimizer(model, config, training.options)
    return Pruned(model, masks, training.fit(model, loader, config, optimizer, constraint))


def _sparsity(config: LayerWiseConfig) -> Sparsity:
    """Return the sparsity as layer-wise pruning takes it."""
    if not config.pattern:
        return config.sparsity
    n, m = patterns.parse(config.pattern, "layer_wise")
    return m - n, m
