"""Hyper-parameters of priors, posteriors and certificates."""

from __future__ import annotations

import dataclasses
from typing import Literal

from stochprune import rng, scores
from stochprune.arguments import check_fields
from stochprune.training.config import _check_counts, _check_positive, option


@dataclasses.dataclass(frozen=True)
class PriorConfig:
    """Configuration of the prior: a network trained under random masks on its own part of the data, or untrained.

    Raises:
        ValueError: a value outside its range, or an unknown choice.
    """

    prior_fraction: float = option(0.5, "Fraction of the training set for the prior; 0 is a data-free prior.")
    include: str = option("*", "Shell pattern on weight names: the matching weights are random, the others fixed.")
    score: str = option(
        "none", "Pruning score of the prior's mask, or none; the network is first trained dense on the prior's part."
    )
    sparsity: float = option(0.0, "Fraction of weights that the prior's mask prunes (with a score).")
    keep: float = option(0.95, "Probability with which the prior keeps a weight of its mask.")
    keep_pruned: float = option(0.05, "Probability with which the prior keeps a pruned weight (with a score).")
    sigma: float = option(0.01, "The prior's standard deviation of a weight (gaussian, spike_and_slab).")
    prior_epochs: int = option(60, "Passes over the prior's part.")
    prior_lr: float = option(1e-3, "Adam's initial learning rate; it falls to 0 along a cosine.")
    prior_batch_size: int = option(64, "Examples in a batch of the prior's training.")
    shift: int = option(0, "Largest random shift in pixels of the prior's training images.")
    flip: bool = option(False, "Mirror each of the prior's training images with probability one half.")

    def __post_init__(self) -> None:
        check_fields(self)
        _check_counts(self, 0, "prior_epochs", "shift")
        _check_counts(self, 1, "prior_batch_size")
        _check_positive(self, "prior_lr", "sigma")
        for name in ("keep", "keep_pruned"):
            if not 0 < getattr(self, name) < 1:
                raise ValueError(f"{name} must lie strictly between 0 and 1, got {getattr(self, name)}")
        for name in ("prior_fraction", "sparsity"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name} must lie in [0, 1), got {getattr(self, name)}")
        if self.score != "none":
            scores.by_name(self.score)  # raises for an unknown score
        if (self.score == "none") != (self.sparsity == 0):
            raise ValueError(f"give both or none: got score {self.score} and sparsity {self.sparsity:g}")


@dataclasses.dataclass(frozen=True)
class SelfBoundConfig:
    """Configuration of self-bounded learning, which minimises a bound on the posterior's own risk.

    Raises:
        ValueError: a value outside its range, or an unknown choice.
    """

    objective: Literal["quadratic", "lambda", "classic", "kl"] = option(
        "quadratic", "Bound to minimise: quadratic, lambda (alternating), classic, or kl (the certificate's own)."
    )
    epochs: int = option(10, "Passes over the certifying examples.")
    lr: float = option(0.1, "Initial rate of the natural gradient, in (0, 1]; it falls to 0 along a cosine.")
    batch_size: int = option(256, "Examples in a batch.")
    p_min: float = option(1e-4, "Minimum probability in the cross-entropy, which is divided by ln(1 / p_min).")
    kl_penalty: float = option(
        1.0,
        "Factor of the KL in the objective: 1 is the bound itself; a smaller one suits data-free priors.",
    )
    estimator: Literal["straight_through", "concrete", "straight_through_concrete", "local_reparameterisation"] = (
        option(
            "straight_through",
            "Estimator of the gradient of keep probabilities; local_reparameterisation also for that of weights.",
        )
    )
    temperature: float = option(1.0, "Temperature of the concrete estimators.")
    checkpoint_every: int = option(500, "Optimiser steps between checkpoints.")

    def __post_init__(self) -> None:
        check_fields(self)
        _check_counts(self, 0, "epochs")
        _check_counts(self, 1, "batch_size", "checkpoint_every")
        _check_positive(self, "temperature", "kl_penalty")
        for name, most in (("lr", 1.0), ("p_min", 0.5)):
            if not 0 < getattr(self, name) <= most:
                raise ValueError(f"{name} must lie in (0, {most:g}], got {getattr(self, name)}")


@dataclasses.dataclass(frozen=True)
class CertifyConfig:
    """Configuration of a certificate: what it claims and how the risk is estimated, all fixed in advance.

    Raises:
        ValueError: a value outside its range, or an unknown choice.
    """

    delta: float = option(0.025, "Probability that the bound fails over the examples.")
    delta_draws: float = option(0.01, "Probability that the bound fails over the Monte Carlo draws.")
    draws: int = option(5_000, "Number of Monte Carlo draws; each samples one network and one batch of examples.")
    draw_examples: int = option(64, "Examples in the batch of a draw; 0 uses all examples in each draw.")
    monte_carlo: Literal["betting", "kl"] = option(
        "betting", "Bound on the mean of the draws: betting, or kl, the inverse of kl as in the literature."
    )
    loss: Literal["zero_one", "cross_entropy"] = option("zero_one", "Loss to certify.")

    def __post_init__(self) -> None:
        check_fields(self)
        _check_counts(self, 1, "draws")
        _check_counts(self, 0, "draw_examples")
        _check_levels(self, "delta", "delta_draws")
        if self.delta + self.delta_draws >= 1:
            raise ValueError(f"delta + delta_draws must lie below 1, got {self.delta + self.delta_draws}")


def _check_levels(config: object, *names: str) -> None:
    for name in names:
        if not 0 < getattr(config, name) < 1:
            raise ValueError(f"{name} must lie strictly between 0 and 1, got {getattr(config, name)}")


@dataclasses.dataclass(frozen=True)
class RunConfig:
    """Configuration of a run: a prior, the posteriors learnt from it with each objective, and all certificates.

    Raises:
        ValueError: a value outside its range.
    """

    data: str = option("digits", "Data set: digits (comes with scikit-learn), mnist or cifar10 (files in --data-dir).")
    model: str = option("lenet_300_100", "Name of the network in stochprune.models, e.g. pbb_fc or pbb_cnn.")
    posteriors: tuple[str, ...] = option(
        ("masks", "gaussian", "spike_and_slab"), "What is random: masks, gaussian (weights), spike_and_slab (both)."
    )
    objectives: tuple[str, ...] = option(
        ("quadratic",),
        "Bounds to minimise: quadratic, lambda (alternating), classic, kl (the certificate's own); with commas.",
    )
    seed: int = option(0, "Seed of all random numbers.")
    prior: PriorConfig = dataclasses.field(default_factory=PriorConfig)
    self_bound: SelfBoundConfig = dataclasses.field(default_factory=SelfBoundConfig)
    certify: CertifyConfig = dataclasses.field(default_factory=CertifyConfig)

    def __post_init__(self) -> None:
        check_fields(self)
        _check_counts(self, 0, "seed")
        rng.check_address(type(self).__name__, seed=self.seed)
        for name in ("posteriors", "objectives"):
            values = getattr(self, name)
            if not values or len(set(values)) != len(values):
                raise ValueError(f"{name} must name at least one, each once, got {', '.join(values) or 'none'}")
        for objective in self.objectives:
            dataclasses.replace(self.self_bound, objective=objective)  # type: ignore[arg-type]
