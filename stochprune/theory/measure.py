"""The measurements of one trained network and its compressions, and every bound on its risk."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np

from stochprune import bounds
from stochprune.theory import compression, norm_bounds, sketch
from stochprune.theory.bounds_config import BoundsConfig
from stochprune.theory.compression import Weights
from stochprune.theory.spectral import norm_lower, norm_upper
from stochprune.theory.subject import Subject


@dataclass(frozen=True)
class Compressed:
    """The effects of one compression, measured, predicted and proved.

    Attributes:
        scale: d of the compression.
        kept, predicted_kept: fractions of the weights.
        error: the largest change of the outputs over the training examples; ``output_change`` is proved to be larger.
        paper_margin: the margin that the paper asks for.
        largest_relative_change: of a layer, in spectral norm.
    """

    scale: float
    kept: float
    predicted_kept: float
    error: float
    paper_margin: float
    output_change: float
    largest_relative_change: float
    test_error: float


@dataclass(frozen=True)
class Bound:
    """A bound on the risk.

    Attributes:
        complete: it holds with its probability as it stands; else constants and logarithms are left out.
        numbers: what it depends on, by name.
    """

    name: str
    value: float
    complete: bool
    numbers: dict[str, float] = field(default_factory=dict)

    def row(self) -> dict[str, Any]:
        """Return the line of a table."""
        return {"name": self.name, "value": self.value, "complete": self.complete, **self.numbers}


@dataclass(frozen=True)
class PrunedNetwork:
    """Errors of a pruned network, and what the bounds add to its margin loss.

    Attributes:
        complexity: of Guha et al.
        sparse_norms: of :func:`stochprune.theory.norm_bounds.galanti_2023`; None if the margin is not positive.
        counting: the counting bound, which is complete.
    """

    kept: float
    train_error: float
    test_error: float
    complexity: float
    sparse_norms: float | None
    counting: float


@dataclass(frozen=True)
class SketchPoint:
    """The share of sparse matrices of order p, with so many entries a line, that a sketch of ``rows`` recovers."""

    p: int
    per_line: int
    rows: int
    predicted: float
    success: float


def compressed(subject: Subject, scale: float, seed: int) -> Compressed:
    """Compress a network at one scale, and measure it."""
    pruned = compression.compress(subject.weights, scale, seed=seed)
    x = subject.train.x
    moved = compression.outputs(subject.weights, x) - compression.outputs(pruned, x)
    spectral = [layer.spectral for layer in subject.norms]
    changes = [norm_upper((w - pruned[name]).double().numpy()) for name, w in subject.weights.items()]
    shrink = compression.contractions(subject.shapes, len(x))
    return Compressed(
        scale=scale,
        kept=compression.kept(pruned),
        predicted_kept=compression.predicted_kept(scale),
        error=float(moved.norm(dim=1).max()),
        paper_margin=compression.paper_margin(spectral, changes, subject.radius, shrink),
        output_change=compression.output_change(spectral, changes, subject.radius),
        largest_relative_change=max(c / a for c, a in zip(changes, spectral, strict=True)),
        test_error=subject.test_error(pruned),
    )


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


def bound_table(subject: Subject, certificate: Bound, config: BoundsConfig) -> list[Bound]:
    """Return every bound on the risk: norm-based, counting, the certificate, and that of the examples held out."""
    n, margin, loss = len(subject.train), subject.margin, subject.margin_loss
    scale, needed = matching_scale(subject, config.seed)
    found = norm_bounds.cushions(subject.weights, subject.train.x[: config.cushion_examples])
    norm_based = {
        "Neyshabur 2015": norm_bounds.neyshabur_2015(subject.norms, subject.radius, margin, n),
        "Bartlett 2017": norm_bounds.bartlett_2017(subject.norms, subject.radius, margin, n),
        "Neyshabur 2017": norm_bounds.neyshabur_2017(subject.norms, subject.radius, margin, n),
        "Galanti 2023": norm_bounds.galanti_2023(subject.norms, subject.radius, margin, n),
        "Arora 2018": norm_bounds.arora_2018(found, margin, n),
    }
    complexity = compression.paper_complexity(subject.shapes, compression.predicted_kept(scale), n)
    wrong = subject.held_out_error(subject.weights)
    held_out = bounds.chernoff(wrong, len(subject.held_out), config.delta)
    return [
        *(Bound(name, loss + term, False) for name, term in norm_based.items()),
        Bound("Guha 2023", loss + complexity, False, {"scale": scale, "margin": needed}),
        min((_counting(subject, d, config) for d in config.scales), key=lambda bound: bound.value),
        certificate,
        Bound("held-out examples alone", held_out, True, {"error": wrong}),
    ]


def _counting(subject: Subject, scale: float, config: BoundsConfig) -> Bound:
    """Return the counting bound of one rounded compression; it holds for all networks that the code can write."""
    pruned = compression.compress(subject.weights, scale, seed=config.seed)
    value, error, nats = _counted(subject, pruned, config.levels, config.delta)
    return Bound("counting", value, True, {"scale": scale, "nats": nats, "error": error})


def _counted(subject: Subject, weights: Weights, levels: int, delta: float) -> tuple[float, float, float]:
    """The counting bound of weights once they are rounded; their training error, and the nats of their code."""
    coded = compression.quantise(weights, levels)
    nats = compression.code_length(coded, levels) + compression.scaling_length(subject.train.x)
    error = subject.train_error(coded)
    return compression.counting_bound(error, nats, len(subject.train), delta), error, nats


def pruned_network(subject: Subject, levels: int, delta: float) -> PrunedNetwork:
    """Measure a pruned network; ``levels`` and ``delta`` are those of the counting bound."""
    kept, examples = compression.kept(subject.weights), len(subject.train)
    sparse_norms = None
    if subject.margin > 0:
        sparse_norms = norm_bounds.galanti_2023(subject.norms, subject.radius, subject.margin, examples)
    return PrunedNetwork(
        kept=kept,
        train_error=subject.train_error(subject.weights),
        test_error=subject.test_error(subject.weights),
        complexity=compression.paper_complexity(subject.shapes, kept, examples),
        sparse_norms=sparse_norms,
        counting=_counted(subject, subject.weights, levels, delta)[0],
    )


def sketches(config: BoundsConfig) -> list[SketchPoint]:
    """Measure how often sparse matrices are recovered from sketches, by matrix size, entries per line and rows."""
    points = []
    for p, per_line, part in itertools.product(config.sketch_sizes, (1, 2, 3), np.arange(0.3, 1.25, 0.15)):
        predicted = sketch.predicted_rows(p, per_line)
        rows = round(part * predicted)
        if 3 <= rows < p:
            share = sketch.success(p, per_line, rows, config.sketch_trials, config.seed)
            points.append(SketchPoint(p, per_line, rows, predicted, share))
    return points
