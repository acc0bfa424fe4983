"""Hyper-parameters of the trainers: each has one home here, with its help text and its range."""

from __future__ import annotations

import dataclasses
from typing import Literal

from stochprune.runs.config import FRACTION, NOT_NEGATIVE, POSITIVE, Config, at_least, at_most, option


@dataclasses.dataclass(frozen=True)
class WeightConfig(Config):
    """Configuration of weight training, dense or under a fixed mask."""

    epochs: int = option(10, "Passes over the training set.", at_least(0))
    lr: float = option(1e-3, "Learning rate at the start.", POSITIVE)
    checkpoint_every: int = option(500, "Optimiser steps between checkpoints.", at_least(1))
    optimizer: Literal["adam", "sgd"] = option("adam", "Adam, or SGD with Nesterov momentum 0.9.")
    weight_decay: float = option(
        0.0,
        "L2 penalty, as torch's optimisers take it.",
        NOT_NEGATIVE,
    )
    schedule: Literal["constant", "linear", "cosine", "steps"] = option(
        "constant", "Schedule of the learning rate; steps: divide by ten at one half and at three quarters."
    )


@dataclasses.dataclass(frozen=True)
class FinetuneConfig(Config):
    """Probabilistic fine-tuning of a pruning mask.

    With ``budget_schedule="cubic"`` the budget falls from its start S(0) to the number k of weights to keep, as
    ``k + (S(0) - k)(1 - t / T)^3`` with T the steps of the ramp (Zhu and Gupta 2017, equation 1), and then stays. So
    the probabilities go to 0 and 1 during the training, and the cut at its end changes little. k follows from
    ``sparsity``, which :func:`stochprune.finetune` needs then, and which a constant budget refuses; ``prune_finetune``
    and studies set it themselves. They also set the keep probabilities of ``start``; ``finetune`` takes those of its
    model.

    Attributes:
        cuts: True for a method that also cuts to ``sparsity``, which a constant budget then allows.
    """

    cuts = False

    epochs: int = option(12, "Epochs of mask fine-tuning.", at_least(0))
    mode: Literal["joint", "frozen"] = option(
        "joint", "joint: train weights and keep probabilities together; frozen: train the probabilities only."
    )
    weight_lr: float = option(1e-3, "Adam's learning rate for the weights.", POSITIVE)
    logit_lr: float = option(0.1, "Adam's learning rate for the logits of the keep probabilities.", POSITIVE)
    estimator: Literal["straight_through", "concrete", "straight_through_concrete", "expected", "hard_concrete"] = (
        option("straight_through", "Estimator of the gradient with respect to the keep probabilities.")
    )
    temperature: float = option(1.0, "Temperature of the concrete estimators.", POSITIVE)
    budget: Literal["shift", "penalty", "kl", "none"] = option(
        "shift", "How to hold the expected number of kept weights: a shift of all logits, a penalty, or the KL."
    )
    penalty_strength: float = option(
        100.0, "Loss per squared relative deviation from the budget (budget penalty).", POSITIVE
    )
    kl_strength: float = option(
        1e-4, "Loss per nat of KL from the initial probabilities, summed over weights (budget kl).", POSITIVE
    )
    budget_schedule: Literal["constant", "cubic"] = option(
        "constant", "constant: the budget stays at its start; cubic: it falls to the number of weights to keep."
    )
    budget_scope: Literal["global", "layer"] = option(
        "global", "global: hold the budget over all weights together; layer: in each layer."
    )
    ramp: float = option(0.75, "Fraction of the epochs in which the cubic budget falls; then it stays.", at_most(1))
    sharpen: float = option(
        1.0,
        "Factor of the logits when the cubic budget has fallen, so that the masks sampled later are nearly the cut.",
        POSITIVE,
    )
    start: Literal["mask", "dense", "score"] = option(
        "mask",
        "Keep probabilities at the start. mask: 0.95 and 0.05 by the score's mask; dense: 0.95; score: 0.95, shifted "
        "by the standardised score.",
    )
    sparsity: float = option(0.0, "Fraction of weights pruned at the end of the cubic budget.", FRACTION)
    checkpoint_every: int = option(500, "Optimiser steps between checkpoints.", at_least(1))
    seed: int = option(0, "Seed of the masks of the training.", at_least(0))

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.budget_schedule == "cubic" and self.budget not in ("shift", "penalty"):
            raise ValueError(
                f"{type(self).__name__}: budget_schedule cubic needs budget shift or penalty, got budget {self.budget}"
            )
        if not self.cuts and self.budget_schedule == "constant" and self.sparsity != 0:
            raise ValueError(
                f"{type(self).__name__}: sparsity is the end of a cubic budget, and a constant one stays at its start, "
                f"got sparsity {self.sparsity}: give budget_schedule='cubic', or leave sparsity out and start from "
                "masks of this sparsity"
            )
