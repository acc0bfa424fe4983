"""Each test here runs once for each backend of this machine, in memory that is poisoned."""

from __future__ import annotations

import pytest
import torch

from stochprune import backends
from stochprune.doctor.self_test import instructions
from tests.backends.cases import ON_GPU, VARIANTS
from tests.cuda.emulation import emulation


@pytest.fixture(params=VARIANTS)
def backend(request, monkeypatch):
    name, _, instruction_set = request.param.partition("-")
    if name == "cuda" and not torch.cuda.is_available():
        monkeypatch.setattr("stochprune._C.cuda", emulation(), raising=False)
    if not instruction_set:
        yield backends.load(name)
        return
    if instruction_set.startswith("amx"):  # small layers, too, are computed on tiles
        monkeypatch.setattr("stochprune.native.tiles.SMALLEST_LAYER", 1)
    with instructions(instruction_set):
        yield backends.load(name)


@pytest.fixture
def device(backend) -> str:
    return "cuda" if backend.NAME in ON_GPU and torch.cuda.is_available() else "cpu"


@pytest.fixture(autouse=True)
def poisoned_memory(monkeypatch):
    """Fresh memory holds NaN, so that an element no kernel writes shows."""
    for owner, name in ((torch, "empty"), (torch, "empty_like"), (torch.Tensor, "new_empty")):
        allocate = getattr(owner, name)

        def fresh(*args, _allocate=allocate, **kwargs):
            out = _allocate(*args, **kwargs)
            return out.fill_(float("nan")) if out.is_floating_point() else out

        monkeypatch.setattr(owner, name, fresh)
