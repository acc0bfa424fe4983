"""The problems of the linear lab: synthetic problems with known solutions, and one real data set."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from stochprune.extras import extra
from stochprune.seeding import generator
from stochprune.theory.linear import LinearModel


def _tensor(values: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(np.ascontiguousarray(values, dtype=np.float64))


def orthogonal(seed: int, examples: int, features: int) -> LinearModel:
    """Orthogonal features of squared norm n, weights +-1, and labels whose best fit is -1/2 .. 2 times the weights."""
    numbers = generator(seed, "linear lab", "orthogonal")
    basis, _ = np.linalg.qr(numbers.standard_normal((examples, features)))
    x = basis * np.sqrt(examples)
    w = np.where(np.arange(features) % 2, -1.0, 1.0)
    outside = numbers.standard_normal(examples)
    noise = outside - basis @ (basis.T @ outside)
    return LinearModel(_tensor(x), _tensor(x @ (w * np.linspace(-0.5, 2.0, features)) + noise), _tensor(w))


def correlated(seed: int, examples: int, features: int) -> LinearModel:
    """Gaussian features of correlation 0.5^|i - j|; every second has a coefficient; noise of standard deviation 1/2."""
    numbers = generator(seed, "linear lab", "correlated")
    index = np.arange(features)
    covariance = 0.5 ** np.abs(index[:, None] - index)
    x = numbers.standard_normal((examples, features)) @ np.linalg.cholesky(covariance).T
    coefficients = np.where(index % 2, 0.0, numbers.uniform(0.3, 1.5, features) * numbers.choice([-1, 1], features))
    w = coefficients + 0.4 * numbers.standard_normal(features)
    return LinearModel(_tensor(x), _tensor(x @ coefficients + 0.5 * numbers.standard_normal(examples)), _tensor(w))


def diabetes() -> tuple[LinearModel, list[str]]:
    """The diabetes data of Efron, Hastie, Johnstone and Tibshirani 2004 (442 patients, 10 features, scikit-learn).

    Features and labels are standardised; the weights are those of least squares. Also returns the feature names.
    """
    with extra("studies", "diabetes"):  # here: scikit-learn takes a second to import
        from sklearn.datasets import load_diabetes

    raw = load_diabetes()
    x, y = ((v - v.mean(0)) / v.std(0) for v in (raw.data, raw.target.astype(np.float64)))
    w, *_ = np.linalg.lstsq(x, y, rcond=None)
    return LinearModel(_tensor(x), _tensor(y), _tensor(w)), list(raw.feature_names)


@dataclass(frozen=True)
class Cells:
    """A distribution whose features are orthogonal on every sample, because each example belongs to one cell.

    x is sqrt(d) in the example's cell and 0 elsewhere. The label is 1 with the cell's probability, else -1. The weights
    are +-1/sqrt(d), so an output is +-1 or 0. The classifier is the sign of the output; at 0 it guesses.

    Attributes:
        chances: [d], probability that the label of a cell is 1.
        w: [d], the weights.
    """

    chances: np.ndarray
    w: np.ndarray

    @classmethod
    def make(cls, seed: int, features: int) -> Cells:
        """Make cells whose labels are right with probability 0.8 to 0.98; every third weight has the wrong sign."""
        numbers = generator(seed, "linear lab", "cells")
        chances = 0.5 + numbers.uniform(0.3, 0.48, features) * numbers.choice([-1, 1], features)
        right = np.where(chances > 0.5, 1.0, -1.0)
        return cls(chances, np.where(np.arange(features) % 3 == 0, -right, right) / np.sqrt(features))

    def sample(self, numbers: np.random.Generator, examples: int) -> LinearModel:
        """Independent examples."""
        d = len(self.w)
        cell = numbers.integers(0, d, examples)
        y = np.where(numbers.random(examples) < self.chances[cell], 1.0, -1.0)
        x = np.zeros((examples, d))
        x[np.arange(examples), cell] = np.sqrt(d)
        return LinearModel(_tensor(x), _tensor(y), _tensor(self.w))

    def risk(self, q: np.ndarray) -> float:
        """Return the exact expected 0-1 loss of the stochastic classifier on a fresh example."""
        wrong = np.where(self.w > 0, 1 - self.chances, self.chances)
        return float(np.mean(q * wrong + (1 - q) / 2))


def empirical_risk(model: LinearModel, q: torch.Tensor) -> float:
    """Return the exact expected 0-1 loss of the stochastic classifier on examples of :class:`Cells`, one mask each."""
    kept = (model.x != 0).double() @ q  # [n]: the probability that the example's one weight is kept
    wrong = (model.predict(torch.ones_like(model.w)) * model.y < 0).double()
    return float((kept * wrong + (1 - kept) / 2).mean())
