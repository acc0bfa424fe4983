"""Training of some parameters of a model while all others stay as they are."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator

from torch import Tensor, nn


@contextlib.contextmanager
def frozen(model: nn.Module, trained: Iterable[Tensor]) -> Iterator[None]:
    """Inside the block the parameters of a model that are not among ``trained`` require no gradient."""
    stay = {id(each) for each in trained}
    others = [each for each in model.parameters() if each.requires_grad and id(each) not in stay]
    for parameter in others:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in others:
            parameter.requires_grad_(True)
