"""Cascade weight shedding: how many of the kept weights a training moves to almost 0."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from stochprune.arguments import checked
from stochprune.masks import kept_weights
from stochprune.training.state import State


class WeightShedding:
    """A callback that measures the fraction of kept weights near 0 after each epoch, for all layers and for each.

    After pruning, training may move many of the remaining weights to almost 0, so that they could be pruned as well:
    Azarian and Porikli 2021, "Cascade weight shedding in deep neural networks: benefits and pitfalls for network
    pruning" (arXiv 2103.10629). We know the paper from its abstract; the threshold is our choice: ``tolerance`` times
    the root mean square of the layer's kept weights at the start of the training.

    The history gets ``shed`` and ``shed_<weight name>``, fractions of the kept weights. ``start`` has the same keys:
    the fractions before the first step. A layer of which nothing is kept is left out.

    Args:
        masks: bool masks by weight name, as for :func:`train_weights`.
        tolerance: positive.

    Raises:
        ValueError: a tolerance that is not positive, or masks that keep nothing.
    """

    @checked
    def __init__(self, masks: Mapping[str, Tensor], tolerance: float = 0.01) -> None:
        if not tolerance > 0:
            raise ValueError(f"WeightShedding: tolerance must be positive, got {tolerance}")
        self.masks = {name: mask for name, mask in masks.items() if bool(mask.any())}
        if not self.masks:
            raise ValueError(f"WeightShedding: masks keep no weight of {', '.join(masks) or 'no layer'}")
        self.tolerance = tolerance
        self.thresholds: dict[str, float] = {}
        self.start: dict[str, float] = {}

    def setup(self, state: State) -> None:
        # A resumed run starts from the same weights before its checkpoint is restored, so this stores nothing.
        kept = kept_weights(state.model, self.masks)
        self.thresholds = {name: self.tolerance * float((w**2).mean() ** 0.5) for name, w in kept.items()}
        self.start = self._measure(state)

    def on_epoch(self, state: State) -> None:
        state.history[-1].update(self._measure(state))

    @torch.no_grad()
    def _measure(self, state: State) -> dict[str, float]:
        kept = kept_weights(state.model, self.masks)
        near = {name: int((abs(w) < self.thresholds[name]).sum()) for name, w in kept.items()}
        shed = {f"shed_{name}": count / len(kept[name]) for name, count in near.items()}
        return {"shed": sum(near.values()) / sum(map(len, kept.values())), **shed}
