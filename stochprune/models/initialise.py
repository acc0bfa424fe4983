"""Initialisation of networks with local random generators."""

from __future__ import annotations

import functools
import inspect
import math
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from stochprune.arguments import Function, checked
from stochprune.seeding import generator

Model = TypeVar("Model", bound=nn.Module)
Fill = Callable[[Tensor, np.random.Generator], Tensor]


def builder(function: Function) -> Function:
    """Make a function that builds a network check its arguments: their types, and that every size is at least 1."""
    signature = inspect.signature(function)

    @functools.wraps(function)
    def build(*args: Any, **kwargs: Any) -> nn.Module:
        for name, value in signature.bind(*args, **kwargs).arguments.items():
            sizes = value if isinstance(value, Sequence) and not isinstance(value, str) else (value,)
            if name != "seed" and any(isinstance(size, int) and size < 1 and size is not False for size in sizes):
                raise ValueError(f"{function.__name__}: {name} must be at least 1, got {value}")
        return function(*args, **kwargs)

    return checked(build)  # type: ignore[return-value]


@torch.no_grad()
def normal_(weight: Tensor, generator: np.random.Generator, std: float = 0.02) -> Tensor:
    """Fill a tensor in place from N(0, std^2). The default is that of GPT-2 and of most vision transformers."""
    return weight.copy_(torch.from_numpy(generator.standard_normal(tuple(weight.shape), np.float32)).mul_(std))


def kaiming_normal_(weight: Tensor, generator: np.random.Generator) -> Tensor:
    """Fill a weight [out, in, ...] in place from N(0, 2 / fan_in); fan_in is the product of all sizes but the first.

    He, Zhang, Ren and Sun 2015, "Delving deep into rectifiers", equation 10: this variance preserves the size of
    signals through ReLU layers. It is the default of ``open_lth`` (Frankle), which much of the pruning literature uses.
    """
    return normal_(weight, generator, math.sqrt(2 / max(1, math.prod(weight.shape[1:]))))


def initialised(construct: Callable[[], Model], seed: int, fill: Fill = kaiming_normal_) -> Model:
    """A model whose initial values depend only on ``seed`` and on the names and shapes of its parameters.

    Normalisation layers start as in torch, other vectors (biases) at 0. Tensors of two and more dimensions are filled,
    each with its own generator made from ``seed``.

    Args:
        construct: builds the model. It is called under the meta device, because torch's constructors use the global
            generator; tie weights afterwards.
        seed: 0 .. 2^64 - 1.
        fill: fills a tensor in place from a generator.
    """
    with torch.device("meta"):
        model = construct()
    model.to_empty(device="cpu")
    for prefix, module in model.named_modules():
        if isinstance(module, (nn.modules.batchnorm._NormBase, nn.LayerNorm)):
            module.reset_parameters()
            continue
        for name, parameter in module.named_parameters(prefix, recurse=False):
            if parameter.dim() < 2:
                nn.init.zeros_(parameter)
            else:
                fill(parameter, generator(seed, "initialise", name))
    return model
