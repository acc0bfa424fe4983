"""``stochprune bounds``: many bounds on one trained network, and measurements of its compression."""

from __future__ import annotations

import copy
import dataclasses
import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from stochprune import bounds, data, rng
from stochprune.arguments import check_fields
from stochprune.data.splits import Part, Split, split
from stochprune.nn import convert
from stochprune.pac_bayes.certify import certify
from stochprune.pac_bayes.config import CertifyConfig
from stochprune.pac_bayes.families import make_posterior
from stochprune.pac_bayes.prior import Prior
from stochprune.runs.device import device_of
from stochprune.runs.files import write_json
from stochprune.runs.folder import claim
from stochprune.runs.results import versions
from stochprune.theory import compression, norm_bounds, sketch
from stochprune.theory.spectral import norm_lower, norm_upper
from stochprune.theory.subject import Subject, network, next_mask, weights_of
from stochprune.training.config import WeightConfig, _check_counts, _check_positive, digest, option
from stochprune.training.progress import ProgressBar
from stochprune.training.weights import train_weights


@dataclass(frozen=True)
class BoundsConfig:
    """Configuration of one fully connected network of equal layers without biases, and of the bounds on it.

    Raises:
        ValueError: a value outside its range.
    """

    data: str = option("digits", "Data set: digits (comes with scikit-learn) or mnist (IDX files in --data-dir).")
    layers: int = option(5, "Linear layers, as wide as the inputs.")
    epochs: int = option(20, "Epochs of training.")
    batch_size: int = option(64, "Examples in a batch.")
    lr: float = option(1e-3, "Adam's learning rate; it falls by a cosine.")
    train_fraction: float = option(0.8, "Fraction of the training set for training; the rest certifies.")
    scales: tuple[float, ...] = option((0.1, 0.5, 1.0, 2.0, 5.0, 10.0), "Scales d of the compression, with commas.")
    margin_share: float = option(0.1, "All but this share of the examples have a larger margin than the bounds use.")
    levels: int = option(16, "Number of values per layer to which weights are rounded before they are counted.")
    rounds: int = option(5, "Rounds of iterative pruning; each prunes a tenth of the rest and rewinds the weights.")
    round_epochs: int = option(5, "Epochs of training in a round.")
    keep: float = option(0.99, "Probability of keeping a weight in the PAC-Bayes certificate.")
    draws: int = option(2000, "Monte Carlo draws of the certificate.")
    cushion_examples: int = option(20, "Examples on which the cushions of Arora et al. are measured.")
    sketch_sizes: tuple[int, ...] = option((16, 24), "Sizes p of the p x p matrices that are sketched, with commas.")
    sketch_trials: int = option(6, "Random matrices per size of sketch.")
    delta: float = option(0.05, "Probability with which a complete bound may fail.")
    seed: int = option(0, "Seed of all random numbers.")

    def __post_init__(self) -> None:
        check_fields(self)
        _check_counts(self, 0, "seed", "rounds")
        rng.check_address(type(self).__name__, seed=self.seed)
        _check_counts(self, 1, "batch_size", "epochs", "levels", "round_epochs", "draws", "cushion_examples")
        _check_counts(self, 1, "sketch_trials")
        _check_counts(self, 2, "layers")
        _check_positive(self, "lr")
        for name in ("train_fraction", "margin_share", "keep", "delta"):
            if not 0 < getattr(self, name) < 1:
                raise ValueError(f"{name} must lie strictly between 0 and 1, got {getattr(self, name)}")
        if not self.sketch_sizes or min(self.sketch_sizes) < 4:  # no sketch of a smaller matrix is smaller than it
            raise ValueError(f"sketch_sizes must be sizes of at least 4, got {self.sketch_sizes}")
        if not self.scales or not all(0 < d < math.inf for d in self.scales):
            raise ValueError(f"scales must be positive numbers, got {', '.join(map(str, self.scales)) or 'none'}")


def run_bounds(
    config: BoundsConfig,
    *,
    data_dir: Path | None = None,
    out: Path = Path("runs"),
    device: str | torch.device = "cpu",
) -> tuple[Path, dict]:
    """Train, compress, prune, certify and compare. A run that was killed continues from its last checkpoint.

    Args:
        device: the device of training and certifying; the rest runs on the CPU in float64.

    Returns:
        The run's folder and the results, which are also in its ``results.json``.

    Raises:
        ValueError: an unknown data set or device, or an error of a part.
        CheckpointError: a file in the folder that cannot be read, or another process is using the folder.
    """
    place = device_of(device)
    dataset = data.load(config.data, data_dir, standardised=False)
    parts = split(dataset.train_x, dataset.train_y, config.train_fraction, config.seed)
    assert parts.prior is not None
    # The folder's identity includes the data: a checkpoint of other files may have seen examples that certify here.
    folder = out / f"bounds-{digest(config)}-{parts.prior.digest[:8]}"
    with claim(folder):
        return folder, _compared(config, dataset, parts, folder, place)


def _compared(
    config: BoundsConfig, dataset: data.Dataset, parts: Split, folder: Path, place: torch.device
) -> dict[str, Any]:
    assert parts.prior is not None
    sizes = [math.prod(dataset.shape)] * config.layers + [dataset.num_classes]
    steps = math.ceil(len(parts.prior) / config.batch_size)
    total = steps * (config.epochs + config.rounds * config.round_epochs) + config.draws
    with ProgressBar("training", total) as bar:
        start = network(sizes, config.seed)
        model = _train(copy.deepcopy(start), parts.prior, config, config.epochs, folder / "dense", bar, None, place)
        bar.finish(steps * config.epochs)
        test_x = parts.scaled(dataset.test_x)
        subject = Subject.of(model, parts.prior, parts.certify, test_x, dataset.test_y, config.margin_share)
        rounds = _iterative(start, subject, config, folder, bar, steps, place)
        bar.begin("certifying")
        certificate = _certificate(model, subject, config, folder / "certificate", place)
        bar.finish(config.draws)
        bar.begin("compressing")
        compressed = [_compressed(subject, scale, config) for scale in config.scales]
        bar.begin("comparing")
        table = _table(subject, certificate, config)
        bar.begin("sketching")
        sketches = _sketches(config)
    results = {
        "configuration": dataclasses.asdict(config),
        "versions": versions(place),
        "sizes": sizes,
        "examples": len(subject.train),
        "radius": subject.radius,
        "margin": subject.margin,
        "train_error": subject.train_error(subject.weights),
        "test_error": subject.test_error(subject.weights),
        "norms": [dataclasses.asdict(layer) for layer in subject.norms],
        "compression": compressed,
        "bounds": table,
        "iterative": rounds,
        "sketch": sketches,
    }
    write_json(folder / "results.json", results)
    return results


def _train(
    model: nn.Sequential,
    part: Part,
    config: BoundsConfig,
    epochs: int,
    folder: Path,
    bar: ProgressBar,
    kept: dict[str, Tensor] | None,
    device: torch.device,
) -> nn.Sequential:
    training = WeightConfig(epochs, config.lr, schedule="cosine")
    batches = part.to(device).batches(config.batch_size, config.seed)
    train_weights(model.to(device), batches, training, masks=kept, folder=folder, callbacks=[bar])
    return model.cpu()


def _compressed(subject: Subject, scale: float, config: BoundsConfig) -> dict[str, float]:
    """Measure what one compression keeps and changes, with the predicted and the proved values."""
    pruned = compression.compress(subject.weights, scale, seed=config.seed)
    x = subject.train.x
    moved = compression.outputs(subject.weights, x) - compression.outputs(pruned, x)
    spectral = [layer.spectral for layer in subject.norms]
    changes = [norm_upper((w - pruned[name]).double().numpy()) for name, w in subject.weights.items()]
    shrink = compression.contractions(subject.shapes, len(x))
    return {
        "scale": scale,
        "kept": compression.kept(pruned),
        "predicted_kept": compression.predicted_kept(scale),
        "error": float(moved.norm(dim=1).max()),
        "paper_margin": compression.paper_margin(spectral, changes, subject.radius, shrink),
        "output_change": compression.output_change(spectral, changes, subject.radius),
        "largest_relative_change": max(c / a for c, a in zip(changes, spectral, strict=True)),
        "test_error": subject.test_error(pruned),
    }


def matching_scale(subject: Subject, seed: int) -> tuple[float, float]:
    """Return the scale d at which the paper's margin equals the measured margin, and the paper's margin there.

    Bisects ln d with spectral norms estimated by power iteration, then shrinks d until the margin from proved norms is
    small enough.
    """
    spectral = [layer.spectral for layer in subject.norms]
    shrink = compression.contractions(subject.shapes, len(subject.train))

    def needed(scale: float, norm: Callable[[np.ndarray], float]) -> float:
        pruned = compression.compress(subject.weights, scale, seed=seed)
        changes = [norm((w - pruned[name]).double().numpy()) for name, w in subject.weights.items()]
        return compression.paper_margin(spectral, changes, subject.radius, shrink)

    low, high = math.log(1e-9), math.log(1e3)
    for _ in range(24):
        middle = (low + high) / 2
        below = needed(math.exp(middle), partial(norm_lower, iterations=20)) < subject.margin
        low, high = (middle, high) if below else (low, middle)
    scale = math.exp(low)
    while (margin := needed(scale, norm_upper)) > subject.margin:
        scale *= 0.95
    return scale, margin


def _table(subject: Subject, certificate: dict[str, float], config: BoundsConfig) -> list[dict[str, Any]]:
    """Return the bounds on the risk: the value of each, whether it is complete, and for which network."""
    n, margin, loss = len(subject.train), subject.margin, subject.margin_loss
    scale, needed = matching_scale(subject, config.seed)
    found = norm_bounds.cushions(subject.weights, subject.train.x[: config.cushion_examples])
    norm_based = {
        "Neyshabur 2015": norm_bounds.neyshabur_2015(subject.norms, subject.radius, margin, n),
        "Bartlett 2017": norm_bounds.bartlett_2017(subject.norms, subject.radius, margin, n),
        "Neyshabur 2017": norm_bounds.neyshabur_2017(subject.norms, subject.radius, margin, n),
        "Arora 2018": norm_bounds.arora_2018(found, margin, n),
        "Guha 2023": compression.paper_complexity(subject.shapes, compression.predicted_kept(scale), n),
    }
    rows: list[dict[str, Any]] = [
        {"name": name, "value": loss + term, "complete": False} for name, term in norm_based.items()
    ]
    rows[-1] |= {"scale": scale, "margin": needed}
    rows.append(min((_counted(subject, d, config) for d in config.scales), key=lambda row: row["value"]))
    rows.append({"name": "PAC-Bayes certificate", "complete": True, **certificate})
    wrong = subject.held_out_error(subject.weights)
    value = bounds.chernoff(wrong, len(subject.held_out), config.delta)
    rows.append({"name": "held-out examples alone", "value": value, "complete": True, "error": wrong})
    return rows


def _counted(subject: Subject, scale: float, config: BoundsConfig) -> dict[str, Any]:
    """Return the counting bound of one rounded compression; it holds for all networks that the code can write."""
    coded = compression.quantise(compression.compress(subject.weights, scale, seed=config.seed), config.levels)
    nats, error = compression.code_length(coded, config.levels), subject.train_error(coded)
    value = compression.counting_bound(error, nats, len(subject.train), config.delta)
    numbers = {"scale": scale, "nats": nats, "error": error}
    return {"name": "counting", "value": value, "complete": True, **numbers}


def _certificate(
    model: nn.Sequential, subject: Subject, config: BoundsConfig, folder: Path, device: torch.device
) -> dict[str, float]:
    """Certify the same weights under random masks of keep probability ``keep``, on the held-out examples."""
    random = convert(copy.deepcopy(model), keep_kept=config.keep, seed=config.seed).to(device)
    posterior = make_posterior(Prior(random.requires_grad_(False).eval(), (subject.train,)), "masks")
    plan = CertifyConfig(delta=0.8 * config.delta, delta_draws=0.2 * config.delta, draws=config.draws)
    found = certify(posterior, subject.held_out.to(device), plan, seed=config.seed, folder=folder)
    return {"value": found.bound, "error": found.mean_loss, "kl": found.total_kl}


def _iterative(
    start: nn.Sequential,
    subject: Subject,
    config: BoundsConfig,
    folder: Path,
    bar: ProgressBar,
    steps: int,
    device: torch.device,
) -> list[dict[str, float]]:
    """Prune by magnitude in rounds and return the paper's complexity and the counting bound of each round."""
    kept = {name: torch.ones_like(w, dtype=torch.bool) for name, w in subject.weights.items()}
    weights, rows = subject.weights, []
    for number in range(config.rounds):
        bar.begin(f"pruning, round {number + 1}")
        kept = next_mask(weights, kept, 0.9)
        model = copy.deepcopy(start)  # rewound to the weights before training
        _train(model, subject.train, config, config.round_epochs, folder / f"round{number + 1}", bar, kept, device)
        bar.finish(steps * config.round_epochs)
        weights = weights_of(model)
        coded = compression.quantise(weights, config.levels)
        nats = compression.code_length(coded, config.levels)
        rows.append(
            {
                "kept": compression.kept(weights),
                "train_error": subject.train_error(weights),
                "test_error": subject.test_error(weights),
                "complexity": compression.paper_complexity(
                    subject.shapes, compression.kept(weights), len(subject.train)
                ),
                "counting": compression.counting_bound(
                    subject.train_error(coded), nats, len(subject.train), config.delta
                ),
            }
        )
    return rows


def _sketches(config: BoundsConfig) -> list[dict[str, float]]:
    """Measure how often sparse matrices are recovered from sketches, by matrix size, entries per line and rows."""
    points = []
    for p, per_line, part in itertools.product(config.sketch_sizes, (1, 2, 3), np.arange(0.3, 1.25, 0.15)):
        predicted = sketch.predicted_rows(p, per_line)
        rows = round(part * predicted)
        if 3 <= rows < p:
            share = sketch.success(p, per_line, rows, config.sketch_trials, config.seed)
            points.append({"p": p, "per_line": per_line, "rows": rows, "predicted": predicted, "success": share})
    return points
