"""L0 regularisation: hard concrete gates whose expected number has a price."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn

from stochprune.nn import masked_layers, sampling
from stochprune.runs.config import POSITIVE, PROBABILITY, option
from stochprune.training.all_masked import convert_all, cut_lowest, mask_logits, share_pruned
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
        count = sum(layer.mask_logits.numel() for layer in masked_layers(model).values())
        self.each = price / max(1, count)

    def penalty(self) -> Tensor:
        return mask_loss(self.model, l0=self.each)

    def measure(self, state: State) -> dict[str, float]:
        return {"sparsity": share_pruned(self.model)}


def hard_concrete(model: nn.Module, loader: Loader, config: HardConcreteConfig, training: Training) -> Pruned:
    """Train weights and gates, then keep the weights of the highest logits of all, in place."""
    model = convert_all(model, config.keep, config.seed)
    for layer in masked_layers(model).values():
        layer.estimator, layer.temperature = "hard_concrete", config.temperature
    with sampling(model):
        optimizer = make_optimizer(model, config, training.options, mask_logits(model), config.logit_lr)
        history = training.fit(model, loader, config, optimizer, _Price(model, config.price))
    return cut_lowest(model, config.sparsity, history)
