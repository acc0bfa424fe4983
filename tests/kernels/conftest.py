"""The kernels run on the GPU where there is one, else in the interpreter; scratch memory is poisoned."""

from __future__ import annotations

import os
from collections.abc import Callable

import pytest
import torch
from torch import Tensor


@pytest.fixture
def device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


@pytest.fixture(autouse=True)
def poison(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fresh memory holds NaN, so that an element no kernel writes shows."""

    def poisoned(allocate: Callable[..., Tensor]) -> Callable[..., Tensor]:
        def fresh(*args: object, **kwargs: object) -> Tensor:
            out = allocate(*args, **kwargs)
            out.untyped_storage().fill_(255)  # NaN in every floating dtype
            return out

        return fresh

    for owner, name in ((torch, "empty"), (torch, "empty_like"), (Tensor, "new_empty")):
        monkeypatch.setattr(owner, name, poisoned(getattr(owner, name)))


@pytest.fixture
def compiler_environment() -> dict[str, str]:
    """For a process of its own: the interpreter replaces the compiler for the life of a process."""
    return {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
