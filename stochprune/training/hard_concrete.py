"""L0 regularisation: hard concrete gates whose expected number has a price."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from stochprune.masks.select import from_scores
from stochprune.nn import convert, masked_layers, sampling
from stochprune.nn.harden import cut
from stochprune.runs.config import POSITIVE, PROBABILITY, option
from stochprune.scores import prunable_weights
from stochprune.training.constraint import Constraint
from stochprune.training.loop import Loader
from stochprune.training.mask_loss import mask_loss
from stochprune.training.pruning import Pruned, PruningConfig
from stochprune.training.state import State
from stochprune.training.training import Training
from stochprune.training.weights import make_optimizer


@dataclass(frozen=True)
class HardConcreteConfig(PruningConfig):
    """L0 regularisation. Louizos, Welling and Kingma 2018, "Learning sparse neural networks through L0 regularization"
    (arXiv 1712.01312), equation 12 for weights: temperature 2/3, gates stretched to (-0.1, 1.1).

    The paper prunes the weights whose deterministic gate is 0, whose number follows from ``price``; to compare at equal
    sparsity, the cut at the end keeps the highest logits. The kept weights are multiplied by their gates.
    """

    keep: float = option(0.9, "Sigmoid of the gates' logits at the start.", PROBABILITY)
    logit_lr: float = option(0.1, "Learning rate of the logits.", POSITIVE)
    price: float = option(1.0, "Loss if all gates are open: the sum of P(gate > 0) costs price / number.", POSITIVE)
    temperature: float = option(2 / 3, "Temperature of the gates.", POSITIVE)


class _Price(Constraint):
    """Adds the price of the expected number of open gates to the loss."""

    def __init__(self, model: nn.Module, price: float) -> None:
        self.model = model
        self.layers = list(masked_layers(model).values())
        self.count = sum(layer.mask_logits.numel() for layer in self.layers)
        self.each = price / max(1, self.count)

    def penalty(self) -> Tensor:
        return mask_loss(self.model, l0=self.each)

    def measure(self, state: State) -> dict[str, float]:
        return {"sparsity": 1 - sum(int(layer.mask().sum()) for layer in self.layers) / max(1, self.count)}


def hard_concrete(model: nn.Module, loader: Loader, config: HardConcreteConfig, training: Training) -> Pruned:
    """Train weights and gates, then keep the weights of the highest logits of all, in place."""
    everything = {name: torch.ones_like(weight, dtype=torch.bool) for name, weight in prunable_weights(model).items()}
    model = convert(model, everything, keep_kept=config.keep, seed=config.seed)
    layers = masked_layers(model)
    for layer in layers.values():
        layer.estimator, layer.temperature = "hard_concrete", config.temperature
    logits = list({id(layer.mask_logits): layer.mask_logits for layer in layers.values()}.values())
    with sampling(model):
        optimizer = make_optimizer(model, config, training.options, logits, config.logit_lr)
        history = training.fit(model, loader, config, optimizer, _Price(model, config.price))
    found = {name: layers[name].mask_logits.detach() for name in everything}
    masks = from_scores(found, config.sparsity, allow_empty=True)
    return Pruned(cut(model, masks), masks, history)
