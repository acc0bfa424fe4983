"""A small classification problem, and a prior for it."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from stochprune.data.splits import Split, split
from stochprune.models import mlp
from stochprune.pac_bayes import Prior, PriorConfig, train_prior


def make_split(count: int = 400, fraction: float = 0.5) -> Split:
    generator = torch.Generator().manual_seed(7)
    x = torch.randn(count, 6, generator=generator)
    y = (x[:, :3] + 0.5 * torch.randn(count, 3, generator=generator)).argmax(dim=1)
    return split(x, y, fraction)


def make_prior(parts: Split, **options: object) -> Prior:
    config = PriorConfig(**{"prior_epochs": 30, "prior_lr": 1e-2, "keep": 0.9, "sigma": 0.1, **options})
    return train_prior(mlp((6, 12, 3), seed=0), parts.prior, config)


@pytest.fixture(scope="session")
def parts() -> Split:
    return make_split()


@pytest.fixture(scope="session")
def prior(parts: Split) -> Prior:
    return make_prior(parts)


@pytest.fixture
def priors() -> Callable[..., Prior]:
    return make_prior


class Stop(Exception):
    """Raised by a test to stop a run."""
