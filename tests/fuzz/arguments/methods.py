"""Arguments of methods that take a user's tensors."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import stochprune as sp
from tests.fuzz.arguments.objects import loader, tensor


def arguments() -> dict[str, Callable[[], dict[str, Any]]]:
    small = {"nn.MaskedLinear.__call__": (lambda: sp.nn.MaskedLinear(8, 4), (4, 8))}
    small["nn.MaskedConv2d.__call__"] = (lambda: sp.nn.MaskedConv2d(3, 4, 2), (2, 3, 5, 5))
    small["nn.NMMaskedLinear.__call__"] = (lambda: sp.nn.NMMaskedLinear(8, 4), (4, 8))
    made = {
        name: lambda make=make, shape=shape: {"self": make(), "x": tensor(*shape)}
        for name, (make, shape) in small.items()
    }
    return {
        **made,
        "nn.MaskedLinear.from_linear": lambda: {"linear": sp.models.mlp((8, 4), seed=0).fc1, "keep": 0.9},
        "data.Batches.set_epoch": lambda: {"self": loader(), "epoch": 1},
    }
