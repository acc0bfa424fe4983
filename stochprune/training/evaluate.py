"""Errors of deterministic and stochastic predictors, in per cent."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from stochprune.nn import masked_layers, sampling


@dataclass(frozen=True)
class StochasticError:
    """Errors in per cent of a network under random masks.

    Attributes:
        mean: of single draws: the error of the stochastic predictor.
        ensemble: of the average of the class probabilities over the draws.
    """

    mean: float
    ensemble: float


@torch.no_grad()
def predict(model: nn.Module, x: Tensor, batch_size: int = 4096) -> Tensor:
    """The model's outputs [n, classes] in evaluation mode; the mode is restored."""
    device = next(model.parameters()).device
    training = model.training
    model.eval()
    try:
        return torch.cat([model(part.to(device)) for part in x.split(batch_size)])
    finally:
        model.train(training)


def error(outputs: Tensor, y: Tensor) -> float:
    """Share of examples, in per cent, whose largest output is not their label."""
    return 100.0 * (outputs.argmax(dim=1) != y.to(outputs.device)).double().mean().item()


def stochastic_error(model: nn.Module, x: Tensor, y: Tensor, draws: int = 10) -> StochasticError:
    """The errors under ``draws`` fresh hard masks. The layers' draw counters and estimators stay as they were."""
    if draws < 1:
        raise ValueError(f"draws must be at least 1, got {draws}")
    with _hard_masks(model), sampling(model):
        outputs = [predict(model, x) for _ in range(draws)]
    singles = [error(output, y) for output in outputs]
    mean_probability = torch.stack([output.softmax(dim=1) for output in outputs]).mean(dim=0)
    return StochasticError(sum(singles) / draws, error(mean_probability, y))


@contextlib.contextmanager
def _hard_masks(model: nn.Module) -> Iterator[None]:
    layers = list(masked_layers(model).values())
    before = [(layer.estimator, layer.mask_draw.clone()) for layer in layers]
    for layer in layers:
        layer.estimator = "straight_through"
    try:
        yield
    finally:
        for layer, (estimator, draw) in zip(layers, before, strict=True):
            layer.estimator = estimator
            layer.mask_draw.copy_(draw)
