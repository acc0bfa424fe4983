"""The experiments of the linear lab. Each returns the numbers of one figure; together they take seconds."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from stochprune import bounds, rng
from stochprune.functional import bernoulli_kl, masked_linear
from stochprune.runs.config import POSITIVE, PROBABILITY, Config, at_least, option
from stochprune.runs.run import open_run, run_folder
from stochprune.seeding import generator
from stochprune.theory import lab_data, linear
from stochprune.theory.flow import drift, flow, flow_divergence_bound, orthogonal_flow
from stochprune.theory.linear import LinearModel


@dataclass(frozen=True)
class LinearLabConfig(Config):
    """The linear lab.

    Raises:
        ValueError: more features than examples, or than 16.
    """

    seed: int = option(0, "Seed of the data and the masks.", at_least(0))
    examples: int = option(200, "Examples of the synthetic problems.", at_least(2))
    features: int = option(12, "Features of the synthetic problems, at most 16 (masks are enumerated).", at_least(2))
    rate: float = option(0.5, "Learning rate of the discrete trainings; their time is rate times steps.", POSITIVE)
    steps: int = option(400, "Steps of the discrete trainings.", at_least(2))
    temperature: float = option(0.5, "Temperature of the concrete masks.", POSITIVE)
    pairs: int = option(
        60, "Pairs of prior and posterior data for each size in the picture of certificates.", at_least(2)
    )
    delta: float = option(0.05, "Probability with which a certificate may fail.", PROBABILITY)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.features > 16 or self.features > self.examples:
            raise ValueError(f"features must be at most 16 and at most the examples, got {self.features}")


@dataclass(frozen=True)
class Training:
    """Probabilities of keeping each weight over time.

    Attributes:
        times: [101], rate times steps.
        wanted: by weight, the part of it that the labels ask for.
        flows: by estimator [101, d], the flow that it follows in the mean.
        trained: by estimator [steps + 1, d], what discrete training gives.
        losses: by estimator, the expected loss at the end of its flow; ``best`` is that of the best of all masks.
    """

    times: list[float]
    wanted: list[float]
    flows: dict[str, list[list[float]]]
    trained: dict[str, list[list[float]]]
    losses: dict[str, float]
    best: float


@dataclass(frozen=True)
class Alignment:
    """The alignment of each weight with the labels and with their residual, and whether it was kept."""

    alignment: list[float]
    residual_alignment: list[float]
    kept: list[float]
    best_mask: list[bool]


@dataclass(frozen=True)
class Paths:
    """Mean weights as the regularisation grows.

    Attributes:
        names: of the features, if they have any.
        sizes, mask_weights: [110] and [110, d], of the best masks of weights of one size.
        keeps, dropout_weights: [100] and [100, d], of the ridge at each probability of keeping.
    """

    names: list[str] | None
    sizes: list[float]
    mask_weights: list[list[float]]
    keeps: list[float]
    dropout_weights: list[list[float]]


@dataclass(frozen=True)
class CertifiedPair:
    """Prior and posterior that flowed from independent samples, and the certificate of the posterior.

    Attributes:
        examples: of each sample.
        bound: on the divergence ``kl``, by the ``change`` of the features' alignment.
        certificate: on ``risk``, from ``empirical_risk``.
    """

    examples: int
    time: float
    bound: float
    kl: float
    change: float
    empirical_risk: float
    certificate: float
    risk: float


@dataclass(frozen=True)
class LabResults:
    """The numbers of all figures, ``alignment`` and ``paths`` by the name of their problem."""

    training: Training
    alignment: dict[str, Alignment]
    paths: dict[str, Paths]
    certificates: list[CertifiedPair]


def run_lab(config: LinearLabConfig, out: Path = Path("runs")) -> tuple[Path, dict[str, Any]]:
    """Run all experiments.

    Returns:
        The folder ``out/linear-lab-<digest>``, and what ``results.json`` there holds: ``configuration``, ``versions``
        and the fields of :class:`LabResults`.

    Raises:
        CheckpointError: another process is using the folder.
    """
    folder = run_folder(out, "linear-lab", config)
    with open_run(config, folder) as run:
        found = LabResults(training(config), alignment(config), paths(config), certificates(config))
        return folder, run.write(dataclasses.asdict(found))


def training(config: LinearLabConfig) -> Training:
    """Discrete training of the probabilities by each estimator beside the flow it follows in the mean.

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
    return Training(
        times=times.tolist(),
        wanted=(model.alignment / model.w).tolist(),
        flows={name: torch.sigmoid(path).tolist() for name, path in flows.items()},
        trained={name: descend(model, start, name, config).tolist() for name in flows},
        losses={
            name: float(linear.expected_loss(model, linear.bernoulli_moments(path[-1]))) for name, path in flows.items()
        },
        best=float(linear.expected_loss(model, (linear.best_mask(model).double(), torch.zeros_like(start)))),
    )


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


def alignment(config: LinearLabConfig) -> dict[str, Alignment]:
    """Return whether each weight is kept, beside the alignment of its feature with the labels.

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
        apart = model.x.mT @ (model.y - model.predict(q)) + model.sizes * q * model.w
        found[name] = Alignment(
            alignment=(model.alignment * len(model.y) / (model.sizes * model.w)).tolist(),
            residual_alignment=(apart / (model.sizes * model.w)).tolist(),
            kept=q.tolist(),
            best_mask=linear.best_mask(model).tolist(),
        )
    return found


def paths(config: LinearLabConfig) -> dict[str, Paths]:
    """Mean weights as the regularisation grows: the adaptive L1 of trained masks beside the adaptive L2 of dropout.

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
        found[title] = Paths(
            names=labels,
            sizes=sizes.tolist(),
            mask_weights=[(m * least.sign() * s).tolist() for m, s in zip(masks, sizes, strict=True)],
            keeps=keeps.tolist(),
            dropout_weights=[linear.dropout_solution(model, float(q)).tolist() for q in keeps],
        )
    return found


def certificates(config: LinearLabConfig) -> list[CertifiedPair]:
    """Divergence and certificate of posteriors against the change of the features' alignment from their prior data.

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
                CertifiedPair(
                    examples=size,
                    time=time,
                    bound=flow_divergence_bound(prior, posterior, time),
                    kl=kl,
                    change=float((drift(posterior) - drift(prior)).norm()),
                    empirical_risk=risk,
                    certificate=bounds.maurer(risk, kl, size, config.delta),
                    risk=cells.risk(keep.numpy()),
                )
            )
    return points
