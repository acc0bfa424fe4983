"""Hyper-parameters: each has one home here, with its help text.

The command line's options and help, the checks and the names of run folders all follow from these dataclasses.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import reprlib
import sys
from typing import Any, Literal, get_args, get_origin, get_type_hints

from stochprune import rng


def option(default: Any, help: str) -> Any:
    """A dataclass field with a help text."""
    return dataclasses.field(default=default, metadata={"help": help})


def digest(config: Any, exclude: tuple[str, ...] = ()) -> str:
    """Twelve hexadecimal digits that change with the value of any field not in ``exclude``."""
    values = {name: value for name, value in dataclasses.asdict(config).items() if name not in exclude}
    text = json.dumps({"class": type(config).__name__, **values}, sort_keys=True)
    return hashlib.blake2s(text.encode()).hexdigest()[:12]


def check_fields(config: Any) -> None:
    """Check every field of a configuration against its annotation; each configuration calls this first.

    Raises:
        ValueError: a value of another kind, NaN, infinity, or an unknown choice; the message names field and value.
    """
    for name, kind in get_type_hints(type(config)).items():
        value = getattr(config, name)
        if not _fits(kind, value):
            raise ValueError(f"{type(config).__name__}: {name} must be {_in_words(kind)}, got {reprlib.repr(value)}")


def _fits(kind: Any, value: Any) -> bool:
    if get_origin(kind) is Literal:
        return isinstance(value, str) and value in get_args(kind)
    if get_origin(kind) is tuple:
        return isinstance(value, tuple) and all(_fits(get_args(kind)[0], item) for item in value)
    if kind is float:
        number = isinstance(value, (int, float)) and not isinstance(value, bool)
        return number and abs(value) <= sys.float_info.max  # False for NaN, infinity and integers beyond
    if kind is int:
        return isinstance(value, int) and not isinstance(value, bool)
    return isinstance(value, kind)


def _in_words(kind: Any) -> str:
    if get_origin(kind) is Literal:
        return f"one of {', '.join(get_args(kind))}"
    if get_origin(kind) is tuple:
        return f"a tuple, each item {_in_words(get_args(kind)[0])}"
    words = {float: "a finite number", int: "an integer", str: "text", bool: "True or False"}
    return words.get(kind) or f"of class {kind.__name__}"


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
    """Training of the weights alone, dense or under a fixed mask."""

    epochs: int = option(10, "Passes over the training set.")
    lr: float = option(1e-3, "Learning rate at the start.")
    checkpoint_every: int = option(500, "Optimiser steps between checkpoints.")
    optimizer: Literal["adam", "sgd"] = option("adam", "Adam, or SGD with Nesterov's momentum of 0.9.")
    weight_decay: float = option(0.0, "L2 penalty, as torch's optimisers take it.")
    schedule: Literal["constant", "linear", "cosine", "steps"] = option(
        "constant", "How the rate falls; steps: to a tenth at one half and at three quarters."
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
    """Probabilistic fine-tuning of a pruning mask.

    Raises:
        ValueError: a value outside its range, or an unknown choice.
    """

    epochs: int = option(12, "Epochs of mask fine-tuning.")
    mode: Literal["joint", "frozen"] = option(
        "joint", "joint: weights and keep probabilities are trained together; frozen: the probabilities alone."
    )
    weight_lr: float = option(1e-3, "Adam's learning rate for the weights.")
    logit_lr: float = option(0.1, "Adam's learning rate for the logits of the keep probabilities.")
    estimator: Literal["straight_through", "concrete", "straight_through_concrete", "expected", "hard_concrete"] = (
        option("straight_through", "Estimator of the gradient with respect to the keep probabilities.")
    )
    temperature: float = option(1.0, "Temperature of the concrete estimators.")
    budget: Literal["shift", "penalty", "kl", "none"] = option(
        "shift", "How the expected number of kept weights is held: a common shift, a penalty, the KL to the start."
    )
    penalty_strength: float = option(100.0, "Loss per squared relative deviation from the budget (budget penalty).")
    kl_strength: float = option(1e-4, "Loss per nat of KL to the start, summed over weights (budget kl).")
    checkpoint_every: int = option(500, "Optimiser steps between checkpoints.")
    seed: int = option(0, "Seed of the masks drawn while training.")

    def __post_init__(self) -> None:
        check_fields(self)
        _check_counts(self, 0, "epochs", "seed")
        rng.check_address(type(self).__name__, seed=self.seed)
        _check_counts(self, 1, "checkpoint_every")
        _check_positive(self, "weight_lr", "logit_lr", "temperature", "penalty_strength", "kl_strength")
