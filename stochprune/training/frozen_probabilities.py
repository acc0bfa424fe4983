"""Frozen probabilities: a control that trains weights under sampled masks whose probabilities are never learnt."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from stochprune import scores
from stochprune.masks.select import from_scores
from stochprune.nn import convert, masked_layers, sampling
from stochprune.nn.harden import cut
from stochprune.runs.config import FRACTION, PROBABILITY, option
from stochprune.training.constraint import Constraint
from stochprune.training.loop import Loader
from stochprune.training.pruning import Pruned, PruningConfig
from stochprune.training.training import Training
from stochprune.training.weights import FixedMasks, make_optimizer


@dataclass(frozen=True)
class FrozenProbabilitiesConfig(PruningConfig):
    """Weight training under sampled masks with fixed keep probabilities, then a cut by magnitude.

    It is mask fine-tuning without its learning, so it shows what the noise alone gains. With ``keep_pruned`` 0 the
    weights that the first mask prunes are 0 from the start, and the others are trained with dropout of the rate
    1 - ``keep_kept``. It is dropout of weights: Wan, Zeiler, Zhang, LeCun and Fergus 2013, "Regularization of neural
    networks using DropConnect".
    """

    score: str = option("magnitude", f"Pruning score of the first mask: {', '.join(scores.NAMES)}.")
    keep_kept: float = option(0.95, "Keep probability of the weights that the first mask keeps.", PROBABILITY)
    keep_pruned: float = option(0.05, "Keep probability of the weights that it prunes.", FRACTION)


def frozen_probabilities(
    model: nn.Module, loader: Loader, config: FrozenProbabilitiesConfig, training: Training
) -> Pruned:
    """Train under sampled masks, then keep the largest weights of all, in place."""
    scored = training.score(config.score, model, loader, config.sparsity, config.seed)
    first = from_scores(scored, config.sparsity, allow_empty=True)
    constraint = Constraint() if config.keep_pruned else FixedMasks(model, first)
    keep_pruned = config.keep_pruned or config.keep_kept  # of weights that are 0 it does not matter
    model = convert(model, first, keep_kept=config.keep_kept, keep_pruned=keep_pruned, seed=config.seed)
    for layer in masked_layers(model).values():
        layer.mask_logits.requires_grad_(False)
    with sampling(model):
        optimizer = make_optimizer(model, config, training.options)
        history = training.fit(model, loader, config, optimizer, constraint)
    masks = from_scores(scores.magnitude(model), config.sparsity, allow_empty=True)
    return Pruned(cut(model, masks), masks, history)
