"""A world small enough to know every risk exactly, many samples of it at once, and posteriors learnt on each.

64 inputs, uniform, labels flipped with probability ``noise``; a network with one output over fixed random features, of
which a mask keeps some. All masks are enumerated, so that the risk of a product of Bernoullis is a finite sum.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from stochprune import bounds
from stochprune.seeding import generator

DELTA, DELTA_DRAWS = 0.1, 0.05
OBJECTIVES = ("quadratic", "lambda", "classic", "kl", "adversary", "greedy")


@dataclass(frozen=True)
class World:
    """Masks [H, weights], and the 0-1 loss [H, 128] of each on every example (input and label) of probability [128]."""

    masks: Tensor
    losses: Tensor
    probability: Tensor

    @classmethod
    def make(cls, weights: int = 8, noise: float = 0.4, seed: int = 0) -> World:
        numbers = generator(seed, "world")
        inputs = torch.tensor(list(itertools.product((-1.0, 1.0), repeat=6)), dtype=torch.float64)  # [64, 6]
        features = torch.from_numpy(numbers.standard_normal((64, weights)))
        masks = torch.tensor(list(itertools.product((0.0, 1.0), repeat=weights)), dtype=torch.float64)
        scores = (masks * torch.from_numpy(numbers.standard_normal(weights))) @ features.T  # [H, 64]
        positive = scores > 0
        teacher = inputs[:, 0] * inputs[:, 1] + 0.5 * inputs[:, 2] > 0
        losses = torch.cat([(~positive).double(), positive.double()], dim=1)  # label 1, then label 0
        one = torch.where(teacher, 1 - noise, noise).double() / 64
        return cls(masks, losses, torch.cat([one, 1 / 64 - one]))

    @property
    def risk(self) -> Tensor:
        """True risk of each mask [H]."""
        return self.losses @ self.probability

    def samples(self, repetitions: int, m: int, seed: int) -> Tensor:
        """Empirical risks [repetitions, H], each of m independent examples."""
        counts = generator(seed, "samples", m).multinomial(m, self.probability.numpy(), repetitions)
        return torch.from_numpy(counts / m) @ self.losses.T

    def posterior(self, logits: Tensor) -> Tensor:
        """Probability of every mask [..., H] under independent Bernoullis of logits [..., weights]."""
        log_keep, log_drop = torch.nn.functional.logsigmoid(logits), torch.nn.functional.logsigmoid(-logits)
        return (log_keep @ self.masks.T + log_drop @ (1 - self.masks).T).exp()


def divergence(logits: Tensor, prior: float) -> Tensor:
    """KL of Bernoullis of logits [..., weights] from probability ``prior``, summed."""
    q = torch.sigmoid(logits)
    return (q * (logits - math.log(prior / (1 - prior))) + torch.log(1 - q) - math.log(1 - prior)).sum(-1)


def learn(world: World, empirical: Tensor, m: int, objective: str, prior: float = 0.5, steps: int = 30) -> Tensor:
    """Logits [repetitions, weights] that minimise an objective on each sample.

    ``adversary`` knows the truth: it maximises the true risk less the empirical one and the price of the divergence.
    ``greedy`` takes the single mask whose empirical risk is furthest below its true one, whatever the price.
    """
    if objective == "greedy":
        return 30 * (2 * world.masks[(empirical - world.risk).argmin(dim=1)] - 1)
    start = math.log(prior / (1 - prior))
    logits = torch.full((len(empirical), world.masks.shape[1]), start, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.Adam([logits], lr=0.3)
    for _ in range(steps):
        q = world.posterior(logits)
        risk, kl = (q * empirical).sum(-1), divergence(logits, prior)
        b = (kl + math.log(2 * math.sqrt(m) / DELTA)) / m
        if objective == "adversary":
            loss = (risk + b / 2).sqrt() * b.sqrt() + risk - q @ world.risk
        elif objective == "classic":
            loss = risk + (b / 2).sqrt()
        elif objective == "lambda":
            lam = (2 / ((2 * risk / b + 1).sqrt() + 1)).detach()
            loss = risk / (1 - lam / 2) + b / (lam * (1 - lam / 2))
        else:
            loss = ((risk + b / 2).sqrt() + (b / 2).sqrt()) ** 2
            if objective == "kl":
                loss = _tangent(risk, b)
        optimizer.zero_grad()
        loss.sum().backward()
        optimizer.step()
    return logits.detach()


def _tangent(risk: Tensor, b: Tensor) -> Tensor:
    """Has the gradient of kl^-1(risk | b), element by element."""
    r, c = risk.detach().clamp(1e-9), b.detach()
    low, high = r.clone(), torch.ones_like(r)
    for _ in range(50):
        p = (low + high) / 2
        more = r * (r / p).log() + (1 - r) * ((1 - r) / (1 - p)).log() > c
        low, high = torch.where(more, low, p), torch.where(more, p, high)
    along_p = (high - r) / (high * (1 - high))
    along_r = (r * (1 - high) / (high * (1 - r))).log()
    return (b - along_r * risk) / along_p


BOUNDS = {
    "maurer": bounds.maurer,
    "mcallester": bounds.mcallester,
    "quadratic": bounds.quadratic,
    "tolstikhin_seldin": bounds.tolstikhin_seldin,
    "lam": lambda r, kl, m, delta: bounds.lam(r, kl, m, delta, bounds.optimal_lambda(r, kl, m, delta)),
    "catoni": lambda r, kl, m, delta: bounds.catoni(r, kl, m, delta, 2.0),
    "catoni of five": lambda r, kl, m, delta: min(
        bounds.catoni(r, kl, m, delta, beta, choices=5) for beta in (0.5, 1.0, 2.0, 4.0, 8.0)
    ),
}
BROKEN = {  # each leaves out what a proof needs
    "no divergence": lambda r, kl, m, delta: bounds.maurer(r, 0.0, m, delta),
    "no confidence": lambda r, kl, m, delta: bounds.kl_inverse(r, kl / m),
    "mean divergence": lambda r, kl, m, delta: bounds.maurer(r, kl / 10, m, delta),
}


def violations(world: World, empirical: Tensor, logits: Tensor, m: int, bound, prior: float = 0.5) -> float:
    """Share of the samples on which the true risk of the posterior exceeds the bound."""
    q = world.posterior(logits)
    rows = zip(
        (q * empirical).sum(-1).clamp(0, 1).tolist(),
        divergence(logits, prior).clamp_min(0).tolist(),
        (q @ world.risk).tolist(),
        strict=True,
    )
    return float(np.mean([truth > bound(risk, kl, m, DELTA) for risk, kl, truth in rows]))
