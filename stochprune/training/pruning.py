"""The fields of every pruning method's configuration, and its result."""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Mapping
from typing import Any, Literal

import torch
from torch import Tensor, nn

from stochprune import patterns, scores
from stochprune.runs.config import FRACTION, Config, at_least, option
from stochprune.training.config import WeightConfig
from stochprune.training.constraint import Constraint
from stochprune.training.state import State
from stochprune.training.weights import FixedMasks


@dataclasses.dataclass(frozen=True)
class PruningConfig(WeightConfig):
    """The fields that every pruning method adds to those of weight training."""

    sparsity: float = option(0.9, "Fraction of weights pruned at the end.", FRACTION)
    seed: int = option(0, "Seed of the method's random choices.", at_least(0))


PATTERN = "N:M pattern, such as 2:4, at a sparsity of 1 - N / M; without one, single weights."
GROUPED_PATTERN = "Pattern of the masks, such as 2:4 or rows; empty for single weights."
SCOPE = "The weights that are ranked together."
GROUPS = re.compile(r"rows|columns|\d+x\d+", re.ASCII)
EXCLUDE = "Shell pattern on weight names, such as lm_head.*: these weights stay dense."


def check_pattern(config: Any, *, groups: bool = False) -> None:
    """Raise ``ValueError`` unless the ``pattern`` is empty or N:M, of the sparsity.

    ``groups`` allows rows and such, of a configuration with a ``scope``, which must have an effect.
    """
    kind = type(config).__name__
    if groups and ":" in config.pattern and config.scope != "global":
        raise ValueError(
            f"{kind}: scope has no effect with pattern {config.pattern}, which ranks each group alone, got scope "
            f"{config.scope}: leave it out"
        )
    if groups and config.pattern == "rows" and config.scope == "row":
        raise ValueError(f"{kind}: scope row would rank each group of pattern rows alone: use scope layer or global")
    if config.pattern and not (groups and GROUPS.fullmatch(config.pattern)):
        n, m = patterns.parse(config.pattern, kind)
        patterns.check(kind, n, m, m)
        if not math.isclose(config.sparsity, 1 - n / m):
            raise ValueError(
                f"{kind}: pattern {config.pattern} prunes {1 - n / m:g} of the weights, got sparsity {config.sparsity}"
            )


@dataclasses.dataclass(frozen=True)
class ChoiceConfig(Config):
    """The fields of methods that start from a score: which weights they prune, and in which pattern."""

    score: str = option("magnitude", f"Pruning score of the first mask: {', '.join(scores.NAMES)}.")
    scope: Literal["global", "layer", "row"] = option("global", SCOPE)
    pattern: str = option("", GROUPED_PATTERN)
    exclude: str = option("", EXCLUDE)
    calibration: int = option(0, "Batches of the first epoch that the score sees; 0 means all.", at_least(0))

    def __post_init__(self) -> None:
        super().__post_init__()
        check_pattern(self, groups=True)


@dataclasses.dataclass(frozen=True)
class Pruned:
    """The result of a pruning method.

    Attributes:
        model: plain layers; pruned weights are exactly 0.
        masks: bool by weight name, True where kept.
        history: one entry per epoch, see :func:`stochprune.training.loop.fit`.
    """

    model: nn.Module
    masks: dict[str, Tensor]
    history: list[dict[str, float]]


class Counting(Constraint):
    """A constraint that follows a schedule; checkpoints store its position.

    Attributes:
        made: the number of optimiser steps made.
    """

    made = 0

    def after_step(self) -> None:
        self.made += 1
        self.hold()

    def state_dict(self) -> dict[str, Any]:
        return {"made": self.made}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.made = int(state["made"])


class ChangingMasks(FixedMasks):
    """Masks that change during the training; checkpoints store them.

    Attributes:
        made: the number of optimiser steps made.
    """

    def __init__(self, model: nn.Module, masks: Mapping[str, Tensor]) -> None:
        super().__init__(model, masks)
        self.names = list(masks)
        self.made = 0

    @property
    def masks(self) -> dict[str, Tensor]:
        """The present masks, bool by weight name, True where kept."""
        return {name: ~pruned for name, (_, pruned) in zip(self.names, self.pairs, strict=True)}

    def change(self, masks: Mapping[str, Tensor]) -> None:
        """Hold other masks from now on."""
        weights = [weight for weight, _ in self.pairs]
        self.pairs = [(weight, ~masks[name]) for name, weight in zip(self.names, weights, strict=True)]

    def measure(self, state: State) -> dict[str, float]:
        """Return the present ``sparsity``, for the history."""
        pruned = [mask for _, mask in self.pairs]
        return {"sparsity": sum(int(mask.sum()) for mask in pruned) / sum(mask.numel() for mask in pruned)}

    def state_dict(self) -> dict[str, Any]:
        return {"made": self.made, "pruned": [pruned for _, pruned in self.pairs]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        shapes = [tuple(mask.shape) for mask in state["pruned"]], [tuple(mask.shape) for _, mask in self.pairs]
        if shapes[0] != shapes[1]:
            raise ValueError(f"the masks of {type(self).__name__} must have shapes {shapes[1]}, got {shapes[0]}")
        self.made = int(state["made"])
        self.pairs = [
            (weight, mask.to(weight.device, torch.bool))
            for (weight, _), mask in zip(self.pairs, state["pruned"], strict=True)
        ]
