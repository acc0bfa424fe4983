"""Continuous sparsification: soft masks that become hard as a temperature falls."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from stochprune.masks.ablate import apply
from stochprune.masks.select import from_scores
from stochprune.runs.config import POSITIVE, Range, option
from stochprune.training.loop import Loader
from stochprune.training.parametrised import parametrised
from stochprune.training.pruning import Counting, Pruned, PruningConfig
from stochprune.training.state import State
from stochprune.training.training import Training
from stochprune.training.weights import make_optimizer


@dataclass(frozen=True)
class ContinuousSparsificationConfig(PruningConfig):
    """Continuous sparsification. Savarese, Silva and Maire 2020, "Winning the lottery with continuous sparsification"
    (arXiv 1912.04427).

    The weight is multiplied by sigmoid(beta s), where beta grows from 1 to ``beta``. The paper keeps the weights with
    s > 0, whose number follows from ``price`` and ``first_score``; to compare at equal sparsity, the cut at the end
    keeps the highest s.
    """

    score_lr: float = option(0.1, "Learning rate of the scores s.", POSITIVE)
    first_score: float = option(0.0, "Score s at the start.", Range("be finite", lambda value: True))
    price: float = option(1e-8, "Loss for each unit of the sum of all masks.", POSITIVE)
    beta: float = option(200.0, "Beta in the last step; it grows from 1 by a constant factor a step.", POSITIVE)


class SoftMask(nn.Module):
    """A parametrisation: the weight times sigmoid(beta s)."""

    beta: Tensor

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self.scores = nn.Parameter(torch.zeros_like(weight))
        self.register_buffer("beta", weight.new_ones(()))

    def forward(self, weight: Tensor) -> Tensor:
        return weight * self.mask()

    def mask(self) -> Tensor:
        return torch.sigmoid(self.beta * self.scores)


class _Sharpening(Counting):
    """Adds the price of the masks to the loss, and raises beta after each step."""

    def __init__(self, parts: dict[str, SoftMask], config: ContinuousSparsificationConfig, steps: int) -> None:
        self.parts, self.config, self.steps = parts, config, steps

    def penalty(self) -> Tensor | float:
        return self.config.price * torch.stack([part.mask().sum() for part in self.parts.values()]).sum()

    def hold(self) -> None:
        for part in self.parts.values():
            part.beta.fill_(self.config.beta ** (self.made / self.steps))

    def measure(self, state: State) -> dict[str, float]:
        scores = [part.scores for part in self.parts.values()]
        kept = sum(int((score > 0).sum()) for score in scores)
        return {"sparsity": 1 - kept / sum(score.numel() for score in scores)}


def continuous_sparsification(
    model: nn.Module, loader: Loader, config: ContinuousSparsificationConfig, training: Training
) -> Pruned:
    """Train weights and scores, then keep the weights of the highest scores of all, in place."""
    steps = max(1, training.steps(loader, config.epochs) - 1)  # the last step has the last beta
    with parametrised(model, SoftMask, leave=False) as parts:
        scores = [part.scores for part in parts.values()]
        for score in scores:
            nn.init.constant_(score, config.first_score)
        constraint = _Sharpening(parts, config, steps)
        optimizer = make_optimizer(model, config, training.options, scores, config.score_lr)
        history = training.fit(model, loader, config, optimizer, constraint)
        found = {name: part.scores.detach() for name, part in parts.items()}
    masks = from_scores(found, config.sparsity, allow_empty=True)
    return Pruned(apply(model, masks), masks, history)
