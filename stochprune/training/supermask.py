"""Supermasks: learn the probabilities of random masks over frozen weights."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from stochprune.nn import sampling
from stochprune.runs.config import POSITIVE, PROBABILITY, option
from stochprune.training.all_masked import convert_all, cut_lowest, mask_logits, share_pruned
from stochprune.training.constraint import Constraint
from stochprune.training.freezing import frozen
from stochprune.training.loop import Loader
from stochprune.training.pruning import Pruned, PruningConfig
from stochprune.training.state import State
from stochprune.training.training import Training
from stochprune.training.weights import make_optimizer


@dataclass(frozen=True)
class SupermaskConfig(PruningConfig):
    """Learnt supermasks. Zhou, Lan, Liu and Yosinski 2019, "Deconstructing lottery tickets: zeros, signs, and the
    supermask" (arXiv 1905.01067), section 5, without their rescaling of the weights.

    Each step samples a mask that keeps a weight with the probability sigmoid(logit). Only the logits are trained, with
    the straight-through estimator, so ``lr`` and ``weight_decay`` are theirs. In the paper ``keep`` and the training
    determine the sparsity; to compare at equal sparsity, the cut at the end keeps the highest logits.
    """

    lr: float = option(0.03, "Learning rate of the logits at the start.", POSITIVE)
    keep: float = option(0.5, "Probability of keeping a weight at the start.", PROBABILITY)


class _Measured(Constraint):
    """Measures the sparsity of the mask that keeps the weights with probabilities of at least one half."""

    def __init__(self, model: nn.Module) -> None:
        self.model = model

    def measure(self, state: State) -> dict[str, float]:
        return {"sparsity": share_pruned(self.model)}


def supermask(model: nn.Module, loader: Loader, config: SupermaskConfig, training: Training) -> Pruned:
    """Train the probabilities, then keep the weights of the highest probabilities of all, in place."""
    model = convert_all(model, config.keep, config.seed)
    with sampling(model), frozen(model, mask_logits(model)):
        optimizer = make_optimizer(model, config, training.options)
        history = training.fit(model, loader, config, optimizer, _Measured(model))
    return cut_lowest(model, config.sparsity, history)
