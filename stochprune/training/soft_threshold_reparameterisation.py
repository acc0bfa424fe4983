"""STR: each layer learns the soft threshold of its weights."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stochprune.masks.ablate import apply
from stochprune.masks.select import from_scores
from stochprune.runs.config import NOT_NEGATIVE, POSITIVE, Range, option
from stochprune.scores import prunable_weights
from stochprune.training.constraint import Constraint
from stochprune.training.loop import Loader
from stochprune.training.parametrised import parametrised
from stochprune.training.pruning import Pruned, PruningConfig
from stochprune.training.state import State
from stochprune.training.training import Training
from stochprune.training.weights import make_optimizer


@dataclass(frozen=True)
class STRConfig(PruningConfig):
    """Soft threshold reparameterisation. Kusupati et al. 2020, "Soft threshold weight reparameterization for learnable
    sparsity" (arXiv 2002.03231).

    A layer with the parameter s uses the weights sign(w) max(|w| - sigmoid(s), 0). In the paper the start and the decay
    of s determine the sparsity; to compare at equal sparsity, the cut at the end keeps the highest |w| - sigmoid(s). If
    the thresholds prune more than ``sparsity``, some kept weights are 0.
    """

    s_init: float = option(-5.0, "The parameter s of each layer at the start.", Range("be finite", lambda value: True))
    s_lr: float = option(0.05, "Learning rate of s.", POSITIVE)
    s_decay: float = option(
        0.1,
        "L2 penalty of s, which raises the thresholds.",
        NOT_NEGATIVE,
    )


class LearnedThreshold(nn.Module):
    """A parametrisation: the soft threshold of the weight at sigmoid(s), with its true gradients (section 3)."""

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self.s = nn.Parameter(weight.new_zeros(()))

    def forward(self, weight: Tensor) -> Tensor:
        return weight.sign() * F.relu(self.distance(weight))

    def distance(self, weight: Tensor) -> Tensor:
        """Return |w| minus the threshold; weights with a negative distance are pruned."""
        return weight.abs() - torch.sigmoid(self.s)


class _Decay(Constraint):
    """Adds the decay of s to the loss."""

    def __init__(self, parts: dict[str, LearnedThreshold], weights: dict[str, nn.Parameter], decay: float) -> None:
        self.parts, self.weights, self.decay = parts, weights, decay

    def penalty(self) -> Tensor:
        return self.decay / 2 * torch.stack([part.s.square() for part in self.parts.values()]).sum()

    def distances(self) -> dict[str, Tensor]:
        return {name: part.distance(self.weights[name]).detach() for name, part in self.parts.items()}

    def measure(self, state: State) -> dict[str, float]:
        found = self.distances().values()
        return {"sparsity": sum(int((each <= 0).sum()) for each in found) / sum(each.numel() for each in found)}


def soft_threshold_reparameterisation(
    model: nn.Module, loader: Loader, config: STRConfig, training: Training
) -> Pruned:
    """Train weights and thresholds, then keep the weights that are highest above their thresholds, in place."""
    weights = prunable_weights(model)
    with parametrised(model, LearnedThreshold, leave=True) as parts:
        learned = [part.s for part in parts.values()]
        for s in learned:
            nn.init.constant_(s, config.s_init)
        constraint = _Decay(parts, weights, config.s_decay)
        optimizer = make_optimizer(model, config, training.options, learned, config.s_lr)
        history = training.fit(model, loader, config, optimizer, constraint)
        masks = from_scores(constraint.distances(), config.sparsity, allow_empty=True)
    return Pruned(apply(model, masks), masks, history)
