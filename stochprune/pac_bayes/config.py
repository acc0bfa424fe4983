"""Hyper-parameters of priors, posteriors and certificates."""

from __future__ import annotations

import dataclasses
from typing import Literal

from stochprune import scores
from stochprune.data import HELP as DATA
from stochprune.models import HELP as MODELS
from stochprune.runs.config import FRACTION, NOT_NEGATIVE, POSITIVE, PROBABILITY, Config, at_least, at_most, option
from stochprune.training.config import WeightConfig

POSTERIORS = ("masks", "gaussian", "spike_and_slab")
"""Names of the posteriors; :mod:`stochprune.pac_bayes.families` has their types."""


def check_family(family: str) -> None:
    """Raise ValueError if there is no posterior of this name."""
    if family not in POSTERIORS:
        raise ValueError(f"unknown posterior {family!r}; known are: {', '.join(POSTERIORS)}")


@dataclasses.dataclass(frozen=True)
class PriorConfig(Config):
    """Configuration of the prior: a network trained under random masks on its own part of the data, or untrained."""

    prior_fraction: float = option(0.5, "Fraction of the training set for the prior; 0 is a data-free prior.", FRACTION)
    include: str = option("*", "Shell pattern on weight names: the matching weights are random, the others fixed.")
    score: str = option(
        "none",
        f"Pruning score of the prior's mask, computed on the network trained dense: none, {', '.join(scores.NAMES)}.",
    )
    sparsity: float = option(0.0, "Fraction of weights that the prior's mask prunes (with a score).", FRACTION)
    keep: float = option(0.95, "Probability with which the prior keeps a weight of its mask.", PROBABILITY)
    keep_pruned: float = option(
        0.05, "Probability with which the prior keeps a pruned weight (with a score).", PROBABILITY
    )
    sigma: float = option(0.01, "The prior's standard deviation of a weight (gaussian, spike_and_slab).", POSITIVE)
    prior_epochs: int = option(60, "Passes over the prior's part.", at_least(0))
    prior_optimizer: Literal["adam", "sgd"] = option(
        WeightConfig.optimizer, "Optimiser of the prior: Adam, or SGD with Nesterov momentum 0.9."
    )
    prior_lr: float = option(1e-3, "The prior's initial learning rate; it falls to 0 along a cosine.", POSITIVE)
    prior_weight_decay: float = option(0.0, "L2 penalty in the prior's training.", NOT_NEGATIVE)
    prior_batch_size: int = option(64, "Examples in a batch of the prior's training.", at_least(1))
    shift: int = option(0, "Largest random shift in pixels of the prior's training images.", at_least(0))
    flip: bool = option(False, "Mirror each of the prior's training images with probability one half.")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.score != "none":
            scores.by_name(self.score)  # raises for an unknown score
        if (self.score == "none") != (self.sparsity == 0):
            raise ValueError(f"give both or none: got score {self.score} and sparsity {self.sparsity:g}")


@dataclasses.dataclass(frozen=True)
class SelfBoundConfig(Config):
    """Configuration of self-bounded learning, which minimises a bound on the posterior's own risk."""

    objective: Literal["quadratic", "lambda", "classic", "kl"] = option(
        "quadratic", "Bound to minimise: quadratic, lambda (alternating), classic, or kl (the certificate's own)."
    )
    epochs: int = option(10, "Passes over the certifying examples.", at_least(0))
    lr: float = option(
        0.1, "Initial rate of the natural gradient, in (0, 1]; it falls to 0 along a cosine.", at_most(1)
    )
    batch_size: int = option(256, "Examples in a batch.", at_least(1))
    surrogate: Literal["cross_entropy", "soft_zero_one"] = option(
        "cross_entropy",
        "Loss in [0, 1] to learn with: bounded cross-entropy, or 1 - softmax(outputs / temperature) of the label.",
    )
    first_softness: float = option(3.0, "Temperature of soft_zero_one at the first step.", POSITIVE)
    last_softness: float = option(0.1, "Temperature of soft_zero_one after the last step; geometric fall.", POSITIVE)
    p_min: float = option(
        1e-4, "Minimum probability in the cross-entropy, which is divided by ln(1 / p_min).", at_most(0.5)
    )
    kl_penalty: float = option(
        1.0,
        "Factor of the KL in the objective: 1 is the bound itself; a smaller one suits data-free priors.",
        POSITIVE,
    )
    estimator: Literal["straight_through", "concrete", "straight_through_concrete", "local_reparameterisation"] = (
        option(
            "straight_through",
            "Estimator of the gradient of keep probabilities; local_reparameterisation also for that of weights.",
        )
    )
    temperature: float = option(1.0, "Temperature of the concrete estimators.", POSITIVE)
    checkpoint_every: int = option(500, "Optimiser steps between checkpoints.", at_least(1))


@dataclasses.dataclass(frozen=True)
class CertifyConfig(Config):
    """Configuration of a certificate: what it claims and how the risk is estimated, all fixed in advance."""

    delta: float = option(0.025, "Probability that the bound fails over the examples.", PROBABILITY)
    delta_draws: float = option(0.01, "Probability that the bound fails over the Monte Carlo draws.", PROBABILITY)
    draws: int = option(
        5_000, "Number of Monte Carlo draws; each samples one network and one batch of examples.", at_least(1)
    )
    draw_examples: int = option(64, "Examples in the batch of a draw; 0 uses all examples in each draw.", at_least(0))
    monte_carlo: Literal["betting", "kl"] = option(
        "betting", "Bound on the mean of the draws: betting, or kl, the inverse of kl as in the literature."
    )
    loss: Literal["zero_one", "cross_entropy"] = option("zero_one", "Loss to certify.")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.delta + self.delta_draws >= 1:
            raise ValueError(f"delta + delta_draws must lie below 1, got {self.delta + self.delta_draws}")


@dataclasses.dataclass(frozen=True)
class RunConfig(Config):
    """Configuration of a run: a prior, the posteriors learnt from it with each objective, and all certificates."""

    data: str = option("digits", DATA)
    model: str = option("lenet_300_100", MODELS)
    posteriors: tuple[str, ...] = option(
        POSTERIORS,
        "What is random, separated by commas: masks, gaussian (weights), spike_and_slab (both).",
    )
    objectives: tuple[str, ...] = option(
        ("quadratic",),
        "Bounds to minimise, separated by commas: quadratic, lambda (alternating), classic, kl (the certificate's).",
    )
    seed: int = option(0, "Seed of everything.", at_least(0))
    tried_priors: int = option(
        0, "Other priors looked at on the same certifying examples; delta is divided by their number too.", at_least(0)
    )
    tried_certificates: int = option(
        0, "Other certificates looked at on the same examples; delta_draws is divided by their number too.", at_least(0)
    )
    prior: PriorConfig = dataclasses.field(default_factory=PriorConfig)
    self_bound: SelfBoundConfig = dataclasses.field(default_factory=SelfBoundConfig)
    certify: CertifyConfig = dataclasses.field(default_factory=CertifyConfig)

    def __post_init__(self) -> None:
        super().__post_init__()
        for family in self.posteriors:
            check_family(family)
        for objective in self.objectives:
            dataclasses.replace(self.self_bound, objective=objective)  # type: ignore[arg-type]
