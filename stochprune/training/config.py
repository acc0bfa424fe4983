"""Hyper-parameters of the trainers, each defined once, with its help text.

The options and help of the command line, the checks and the names of run folders are made from these dataclasses.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from typing import Any, Literal

from stochprune import rng
from stochprune.arguments import check_fields


def option(default: Any, help: str) -> Any:
    """A dataclass field with a help text."""
    return dataclasses.field(default=default, metadata={"help": help})


def digest(config: Any, exclude: tuple[str, ...] = ()) -> str:
    """Twelve hexadecimal digits that change with the value of any field not in ``exclude``."""
    values = {name: value for name, value in dataclasses.asdict(config).items() if name not in exclude}
    text = json.dumps({"class": type(config).__name__, **values}, sort_keys=True)
    return hashlib.blake2s(text.encode()).hexdigest()[:12]


def _check_counts(config: Any, minimum: int, *names: str) -> None:
    for name in names:
        value = getattr(config, name)
        if not minimum <= value < 1 << 64:
            what = f"an integer of at least {minimum}" if value < minimum else "below 2^64"
            raise ValueError(f"{type(config).__name__}: {name} must be {what}, got {value}")


def _check_positive(config: Any, *names: str) -> None:
    for name in names:
        value = getattr(config, name)
        if not value > 0:
            raise ValueError(f"{type(config).__name__}: {name} must be positive and finite, got {value}")


@dataclasses.dataclass(frozen=True)
class WeightConfig:
    """Configuration of weight training, dense or under a fixed mask."""

    epochs: int = option(10, "Passes over the training set.")
    lr: float = option(1e-3, "Initial learning rate.")
    checkpoint_every: int = option(500, "Optimiser steps between checkpoints.")
    optimizer: Literal["adam", "sgd"] = option("adam", "Adam, or SGD with Nesterov momentum 0.9.")
    weight_decay: float = option(0.0, "L2 penalty, as in torch's optimisers.")
    schedule: Literal["constant", "linear", "cosine", "steps"] = option(
        "constant", "Schedule of the learning rate; steps: divide by ten at one half and at three quarters."
    )

    def __post_init__(self) -> None:
        check_fields(self)
        _check_counts(self, 0, "epochs")
        _check_counts(self, 1, "checkpoint_every")
        _check_positive(self, "lr")
        if self.weight_decay < 0:
            raise ValueError(f"weight_decay must be at least 0 and finite, got {self.weight_decay}")


@dataclasses.dataclass(frozen=True)
class FinetuneConfig:
    """Configuration of the probabilistic fine-tuning of a pruning mask.

    Raises:
        ValueError: a value outside its range, or an unknown choice.
    """

    epochs: int = option(12, "Epochs of mask fine-tuning.")
    mode: Literal["joint", "frozen"] = option(
        "joint", "joint: train weights and keep probabilities together; frozen: train the probabilities only."
    )
    weight_lr: float = option(1e-3, "Adam's learning rate for the weights.")
    logit_lr: float = option(0.1, "Adam's learning rate for the logits of the keep probabilities.")
    estimator: Literal["straight_through", "concrete", "straight_through_concrete", "expected", "hard_concrete"] = (
        option("straight_through", "Estimator of the gradient with respect to the keep probabilities.")
    )
    temperature: float = option(1.0, "Temperature of the concrete estimators.")
    budget: Literal["shift", "penalty", "kl", "none"] = option(
        "shift", "How to hold the expected number of kept weights: a shift of all logits, a penalty, or the KL."
    )
    penalty_strength: float = option(100.0, "Loss per squared relative deviation from the budget (budget penalty).")
    kl_strength: float = option(1e-4, "Loss per nat of KL from the start, summed over weights (budget kl).")
    checkpoint_every: int = option(500, "Optimiser steps between checkpoints.")
    seed: int = option(0, "Seed of the masks of the training.")

    def __post_init__(self) -> None:
        check_fields(self)
        _check_counts(self, 0, "epochs", "seed")
        rng.check_address(type(self).__name__, seed=self.seed)
        _check_counts(self, 1, "checkpoint_every")
        _check_positive(self, "weight_lr", "logit_lr", "temperature", "penalty_strength", "kl_strength")
