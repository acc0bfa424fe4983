"""Certificates of posteriors that are learnt on the digits under two gradient estimators."""

from __future__ import annotations

import math
import statistics
import time
from typing import Any

import torch
from rich.progress import track
from torch import Tensor

from bench.tables import table
from stochprune import data, models, pac_bayes
from stochprune.data.splits import Part, split
from stochprune.pac_bayes import CertifyConfig, Posterior, PriorConfig, SelfBoundConfig, make_posterior
from stochprune.pac_bayes.objective import Objective

FAMILIES = ("masks", "gaussian")
LEARNERS = [  # the estimator and the number of epochs
    ("straight_through", 10),
    ("straight_through", 16),
    ("local_reparameterisation", 10),
]
RATES, SEEDS, GRADIENTS = (0.1, 0.5), range(5), 200
PRIOR = PriorConfig(prior_epochs=6, keep=0.8, sigma=0.05)


def noise(posterior: Posterior, part: Part) -> tuple[Tensor, float, float]:
    """Return the mean of the objective's gradient for one batch, the norm of this mean, and the spread of one draw.

    The gradient is measured in the metric of the KL, in which the steps are taken. The norm is that of the mean, minus
    the contribution of the noise. The spread is the square root of the summed variances.
    """
    config = SelfBoundConfig()
    objective = Objective(posterior, len(part), CertifyConfig.delta, config)
    x, y = part.x[: config.batch_size], part.y[: config.batch_size]
    tensors, curvatures = zip(*posterior.curvatures(), strict=True)
    total, squares = torch.zeros(()), 0.0
    for _ in range(GRADIENTS):
        grads = torch.autograd.grad(objective.loss(objective(x), y), tensors)
        g = torch.cat([(g / c.sqrt()).flatten().double() for g, c in zip(grads, curvatures, strict=True)])
        total, squares = total + g, squares + float(g @ g)
    mean = total / GRADIENTS
    variance = (squares - GRADIENTS * float(mean @ mean)) / (GRADIENTS - 1)
    return mean, math.sqrt(max(0.0, float(mean @ mean) - variance / GRADIENTS)), math.sqrt(variance)


def learn() -> list[dict[str, Any]]:
    """Learn under straight_through and local reparameterisation, from one prior per family."""
    digits = data.load("digits", None)
    parts = split(digits.train_x, digits.train_y, 0.5, 0)
    prior = pac_bayes.train_prior(
        models.build("lenet_300_100", digits.shape, digits.num_classes, 0), parts.prior, PRIOR
    )
    certificate = lambda posterior: pac_bayes.certify(posterior, parts.certify, CertifyConfig(draws=2000)).bound  # noqa: E731
    rows = []
    for family in track(FAMILIES, "learning"):
        control, means = certificate(make_posterior(prior, family)), []
        for start, (estimator, epochs) in enumerate(LEARNERS):
            posterior = make_posterior(prior, family)
            posterior.at(1, start * GRADIENTS)
            posterior.estimate_by(estimator)
            mean, norm, spread = noise(posterior, parts.certify)
            means.append(mean / norm)
            row = {"family": family, "estimator": estimator, "epochs": epochs, "prior": control}
            row |= {"spread": spread / norm, "cosine": min(1.0, float(means[0] @ means[-1]))}
            row |= {"certificates": {}, "kl": {}, "seconds": []}
            for rate in RATES:
                config, found = SelfBoundConfig(estimator=estimator, lr=rate, epochs=epochs), []
                for seed in SEEDS:
                    begin = time.process_time()
                    found.append(pac_bayes.self_bound(prior, parts.certify, config, family=family, seed=seed))
                    row["seconds"].append(time.process_time() - begin)
                row["kl"][str(rate)] = [result.history[-1]["kl"] for result in found]
                row["certificates"][str(rate)] = [certificate(result.posterior) for result in found]
            rows.append(row)
    return rows


def tables(rows: list[dict[str, Any]]) -> list[str]:
    """Return a heading, a description and the table of the certificates."""
    about = (
        "The network is LeNet-300-100 on the digits; 719 of them are used for the certificate. The prior is trained "
        f"for {PRIOR.prior_epochs} epochs. Its weights are kept with probability {PRIOR.keep:g}, or have the standard "
        f"deviation {PRIOR.sigma:g}. Spread and cosine describe the gradient of the objective at the prior, for one "
        f"batch of {SelfBoundConfig.batch_size} and over {GRADIENTS} draws, in the metric of the KL, in which the "
        "steps are taken. The spread is that of one draw, in per cent of the norm of the mean over the draws. "
        "The cosine is between this mean and the mean of the first row of the posterior. All certificates use the "
        "same 2000 draws: the prior's own certificate, and for each learning rate the mean ± the standard "
        f"deviation over {len(SEEDS)} seeds. The KL is in nats. The seconds are processor time of the learning."
    )
    shown = lambda values: f"{statistics.mean(values):.4f} ± {statistics.stdev(values):.4f}"  # noqa: E731
    rates = [title for rate in RATES for title in (f"rate {rate}", "KL")]
    lines = []
    for row in rows:
        line = [row["family"], row["estimator"], str(row["epochs"]), f"{statistics.median(row['seconds']):.2f}"]
        line += [f"{100 * row['spread']:.0f}", f"{row['cosine']:.2f}", f"{row['prior']:.4f}"]
        for rate, found in row["certificates"].items():
            line += [shown(found), f"{statistics.mean(row['kl'][rate]):.2f}"]
        lines.append(line)
    return [
        "### Self-bounded learning",
        about,
        table(["posterior", "estimator", "epochs", "seconds", "spread", "cosine", "prior's", *rates], lines),
    ]
