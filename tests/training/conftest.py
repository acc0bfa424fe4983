"""A small problem and small models for the trainers."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import stochprune as sp
from stochprune.data import Batches
from tests.runs import owners


@pytest.fixture
def problem() -> tuple[Tensor, Tensor]:
    """60 examples of 6 features in 3 classes that a linear map separates, with noise."""
    generator = torch.Generator().manual_seed(7)
    x = torch.randn(60, 6, generator=generator)
    y = (x @ torch.randn(6, 3, generator=generator) + 0.3 * torch.randn(60, 3, generator=generator)).argmax(dim=1)
    return x, y


@pytest.fixture
def loader(problem: tuple[Tensor, Tensor]) -> Batches:
    return Batches(*problem, batch_size=16, seed=3)


def make_dense() -> nn.Sequential:
    return owners.dense(hidden=10)


def make_masked(dtype: torch.dtype = torch.float32) -> nn.Module:
    dense = make_dense().to(dtype)
    generator = torch.Generator().manual_seed(2)
    masks = {
        name: torch.rand(parameter.shape, generator=generator) < 0.5
        for name, parameter in dense.named_parameters()
        if parameter.dim() == 2
    }
    return sp.convert(dense, masks, seed=5)


@pytest.fixture
def dense() -> nn.Sequential:
    return make_dense()


@pytest.fixture
def masked() -> Callable[..., nn.Module]:
    """Makes the same masked model at each call."""
    return make_masked


class Stop(Exception):
    """Raised by a test to stop a run."""


class Recorder:
    """A callback that calls ``look`` after each step, and raises :class:`Stop` after step ``stop``."""

    def __init__(self, look: Callable[[], object] = lambda: None, stop: int | None = None) -> None:
        self.look, self.stop = look, stop
        self.seen: list[object] = []
        self.epochs: list[int] = []

    def on_step(self, state: object) -> None:
        self.seen.append(self.look())
        if state.step == self.stop:
            raise Stop

    def on_epoch(self, state: object) -> None:
        self.epochs.append(state.epoch)


@pytest.fixture
def recorder() -> type[Recorder]:
    return Recorder


@pytest.fixture
def stop() -> type[Stop]:
    return Stop


class Killer:
    """A callback that raises :class:`Stop` after a step, counted over all trainings that have it."""

    def __init__(self, after: int) -> None:
        self.left = after

    def on_step(self, state: object) -> None:
        self.left -= 1
        if not self.left:
            raise Stop


@pytest.fixture
def killer() -> type[Killer]:
    return Killer


@pytest.fixture
def resumes(dense: nn.Sequential, tmp_path: Path) -> Callable[..., None]:
    """Check that a training which is stopped after a step, and started again, ends with the weights of a whole one."""

    def check(train: Callable[..., object], stop_after: int) -> None:
        whole, part, again = (copy.deepcopy(dense) for _ in range(3))
        train(whole)
        with pytest.raises(Stop):
            train(part, folder=tmp_path, callbacks=[Recorder(stop=stop_after)])
        train(again, folder=tmp_path)
        assert all(torch.equal(a, b) for a, b in zip(whole.parameters(), again.parameters(), strict=True))

    return check
