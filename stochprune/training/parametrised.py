"""Prunable weights as functions of trained parameters, while a training runs."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import TypeVar

from torch import nn
from torch.nn.utils import parametrize

from stochprune.scores import prunable_weights

Part = TypeVar("Part", bound=nn.Module)


@contextlib.contextmanager
def parametrised(model: nn.Module, make: Callable[[nn.Parameter], Part], *, leave: bool) -> Iterator[dict[str, Part]]:
    """Parametrise the prunable weights inside the block; yield the parts by weight name.

    Args:
        make: makes the part of a weight; its forward computes the weight that the layer uses.
        leave: True: a weight ends as its part computes it; False: as the parameter that was trained.
    """
    parts = {name: make(weight) for name, weight in prunable_weights(model).items()}
    owners = {name: model.get_submodule(name.rpartition(".")[0]) for name in parts}
    for name, part in parts.items():
        parametrize.register_parametrization(owners[name], name.rpartition(".")[2], part)
    try:
        yield parts
    finally:
        for name, owner in owners.items():
            parametrize.remove_parametrizations(owner, name.rpartition(".")[2], leave_parametrized=leave)
