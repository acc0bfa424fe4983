"""Shared fixtures. Without a GPU the Triton kernels run in the interpreter, to be asked for before any import."""

from __future__ import annotations

import os

import torch

if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")

import pytest


def pytest_configure(config: pytest.Config) -> None:
    # Here, not in pyproject.toml: read there, the package would be imported before its coverage is measured.
    config.addinivalue_line("filterwarnings", "error::stochprune.backends.BackendWarning")


@pytest.fixture
def generator() -> torch.Generator:
    return torch.Generator().manual_seed(20211021)


@pytest.fixture(autouse=True)
def global_random_state_is_untouched():
    """Nothing in this package may draw from, or seed, the global generators."""
    before = torch.get_rng_state()
    yield
    assert torch.equal(before, torch.get_rng_state()), "a test or the code under test used torch's global generator"
