"""The experiments of the linear lab. Each returns the numbers of one figure; together they take seconds."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from stochprune import bounds, rng
from stochprune.arguments import check_fields
from stochprune.functional import bernoulli_kl, masked_linear
from stochprune.seeding import generator
from stochprune.theory import lab_data, linear
from stochprune.theory.flow import drift, flow, flow_divergence_bound, orthogonal_flow
from stochprune.theory.linear import LinearModel
from stochprune.training.config import _check_counts, _check_positive, option


@dataclass(frozen=True)
class LinearLabConfig:
    """Configuration of the linear lab.

    Raises:
        ValueError: a value outside its range.
    """

    seed: int = option(0, "Seed of the data and the masks.")
    examples: int = option(200, "Examples of the synthetic problems.")
    features: int = option(12, "Features of the synthetic problems, at most 16 (masks are enumerated).")
    rate: float = option(0.5, "Learning rate of gradient descent; the time of the flow is rate times steps.")
    steps: int = option(400, "Steps of gradient descent.")
    temperature: float = option(0.5, "Temperature of the concrete masks.")
    pairs: int = option(60, "Pairs of prior and posterior data per size in the picture of certificates.")
    delta: float = option(0.05, "Probability with which a certificate may fail.")

    def __post_init__(self) -> None:
        check_fields(self)
        _check_counts(self, 0, "seed")
        rng.check_address(type(self).__name__, seed=self.seed)
        _check_counts(self, 2, "examples", "features", "steps", "pairs")
        _check_positive(self, "rate", "temperature", "delta")
        if self.features > 16 or self.features > self.examples:
            raise ValueError(f"features must be at most 16 and at most the examples, got {self.features}")
        if not self.delta < 1:
            raise ValueError(f"delta must be below 1, got {self.delta}")


def run(config: LinearLabConfig) -> dict[str, Any]:
    """Run all experiments and return their numbers by the name of their figure."""
    results = {
        "training": training(config),
        "alignment": alignment(config),
        "paths": paths(config),
        "certificates": certificates(config),
    }
    return {"configuration": dataclasses.asdict(config), **results}


def training(config: LinearLabConfig) -> dict[str, Any]:
    """Train the probabilities with each estimator, and compute the flow that the estimator follows in the mean.

    Features are orthogonal, so the flow of the exact loss has a closed form. Straight-through follows the flow of the
    mean network, concrete masks the flow of their own expected loss.
    """
    model = lab_data.orthogonal(config.seed, config.examples, config.features)
    start = torch.zeros(config.features, dtype=torch.float64)
    times = torch.linspace(0, config.rate * config.steps, 101, dtype=torch.float64)
    concrete = lambda logits: linear.concrete_moments(logits, config.temperature, 128)  # noqa: E731
    flows = {
        "exact": orthogonal_flow(start, drift(model), times),
        "straight_through": flow(model, start, times, linear.mean_moments),
        "concrete": flow(model, start, times, concrete),
    }
    return {
        "times": times.tolist(),
        "wanted": (model.alignment / model.w).tolist(),
        "flows": {name: torch.sigmoid(path).tolist() for name, path in flows.items()},
        "trained": {name: descend(model, start, name, config).tolist() for name in flows},
        "losses": {
            name: float(linear.expected_loss(model, linear.bernoulli_moments(path[-1]))) for name, path in flows.items()
        },
        "best": float(linear.expected_loss(model, (linear.best_mask(model).double(), torch.zeros_like(start)))),
    }


def descend(model: LinearModel, start: Tensor, estimator: str, config: LinearLabConfig) -> Tensor:
    """Return probabilities [steps + 1, d] of gradient descent, with a fresh mask in each step unless ``"exact"``."""
    logits, path = start.clone().requires_grad_(), [torch.sigmoid(start)]
    for step in range(config.steps):
        if estimator == "exact":
            loss = linear.expected_loss(model, linear.bernoulli_moments(logits))
        else:
            outputs = masked_linear(
                model.x,
                model.w[None],
                logits[None],
                seed=config.seed,
                draw=step,
                stream=1,
                estimator=estimator,
                temperature=config.temperature,
            )
            loss = (model.y - outputs[:, 0]).square().mean() / 2
        (slope,) = torch.autograd.grad(loss, logits)
        logits = (logits - config.rate * slope).detach().requires_grad_()
        path.append(torch.sigmoid(logits.detach()))
    return torch.stack(path)


def alignment(config: LinearLabConfig) -> dict[str, Any]:
    """Compute the final probability of each weight and the alignment of its feature with the labels.

    With orthogonal features a weight is kept if <x_i, y> / (s_i w_i) exceeds 1/2. With correlated features the same
    holds for the residual of the other weights instead of the labels, at the end of the flow.
    """
    found = {}
    for name, model in (
        ("orthogonal features", lab_data.orthogonal(config.seed, config.examples, config.features)),
        ("correlated features", lab_data.correlated(config.seed, config.examples, config.features)),
        ("diabetes", lab_data.diabetes()[0]),
    ):
        start = torch.zeros_like(model.w)
        q = torch.sigmoid(flow(model, start, torch.tensor([1e4], dtype=torch.float64), linear.bernoulli_moments)[0])
        aligned = model.x.mT @ (model.y - model.predict(q)) + model.sizes * q * model.w
        found[name] = {
            "alignment": (model.alignment * len(model.y) / (model.sizes * model.w)).tolist(),
            "residual_alignment": (aligned / (model.sizes * model.w)).tolist(),
            "kept": q.tolist(),
            "best_mask": linear.best_mask(model).tolist(),
        }
    return found


def paths(config: LinearLabConfig) -> dict[str, Any]:
    """Compute mean weights as the regularisation grows: adaptive L1 for trained masks, adaptive L2 for dropout.

    Masks: fixed weights of one size and with the signs of least squares; the best mask at each size. Dropout: the ridge
    solution at each keep probability.
    """
    problem, names = lab_data.diabetes()
    synthetic = lab_data.correlated(config.seed, config.examples, config.features)
    found = {}
    for title, model, labels in (("diabetes", problem, names), ("correlated features", synthetic, None)):
        least = torch.linalg.lstsq(model.x, model.y[:, None]).solution[:, 0]
        sizes = torch.linspace(0, 2.2 * float(least.abs().max()), 111, dtype=torch.float64)[1:]
        masks = [linear.best_mask(LinearModel(model.x, model.y, least.sign() * size)) for size in sizes]
        keeps = torch.linspace(0.01, 1, 100, dtype=torch.float64)
        found[title] = {
            "names": labels,
            "sizes": sizes.tolist(),
            "mask_weights": [(m * least.sign() * s).tolist() for m, s in zip(masks, sizes, strict=True)],
            "keeps": keeps.tolist(),
            "dropout_weights": [linear.dropout_solution(model, float(q)).tolist() for q in keeps],
        }
    return found


def certificates(config: LinearLabConfig) -> list[dict[str, float]]:
    """Compute KL and certificate of posteriors, and the change of the features' alignment from their prior data.

    Prior and posterior follow the flow for the same time from the same start, on independent samples of a distribution
    whose features are orthogonal on every sample. The empirical risk is exact. Maurer's certificate is compared with
    the true risk.
    """
    cells = lab_data.Cells.make(config.seed, config.features)
    start = torch.zeros(config.features, dtype=torch.float64)
    points = []
    for size in (50, 200, 800, 3200):
        for pair in range(config.pairs):
            numbers = generator(config.seed, "linear lab", "pair", size, pair)
            prior, posterior = cells.sample(numbers, size), cells.sample(numbers, size)
            time = float(10 ** numbers.uniform(0.5, 3.5))
            at = torch.tensor([time], dtype=torch.float64)
            p, q = (orthogonal_flow(start, drift(m), at)[0] for m in (prior, posterior))
            kl = float(bernoulli_kl(q, p))
            keep = rng.threshold_from_logits(q).double() / rng.LEVELS  # the probabilities that are sampled, as in kl
            risk = lab_data.empirical_risk(posterior, keep)
            points.append(
                {
                    "examples": size,
                    "time": time,
                    "bound": flow_divergence_bound(prior, posterior, time),
                    "kl": kl,
                    "change": float((drift(posterior) - drift(prior)).norm()),
                    "empirical_risk": risk,
                    "certificate": bounds.maurer(risk, kl, size, config.delta),
                    "risk": cells.risk(keep.numpy()),
                }
            )
    return points
