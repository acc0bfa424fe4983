"""Values by which the fuzz replaces an argument, and which of them an argument may take."""

from __future__ import annotations

import inspect
import math
import random
import typing
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

NAN, INF = math.nan, math.inf
NUMBERS = (None, True, -1, 0, 1, 2**31, 2**32, 2**40, 2**63, 2**64, 10**400, 0.0, 0.5, 1.5, -0.5, 1e308, NAN, INF, -INF)
OTHERS = (1j, "", "x", "../../x", "\x00", b"x", (), (None,), object, Path("nowhere"))
FRESH: tuple[Callable[[], Any], ...] = (list, dict, lambda: [1], lambda: {"a": 1}, lambda: [None], object)
TENSORS: tuple[Callable[[], Any], ...] = (
    lambda: np.zeros(2),
    lambda: torch.empty(0),
    lambda: torch.tensor(1.0),
    lambda: torch.tensor([1]),
    lambda: torch.tensor([-1, 2]),
    lambda: torch.tensor([1.0, NAN]),
    lambda: torch.ones(5, 8, dtype=torch.complex64),
    lambda: torch.ones(5, 8, device="meta"),
    lambda: torch.eye(4).to_sparse(),
    lambda: torch.ones(3, 0, 2),
    lambda: torch.ones(1, 1, 1, 1, 1, 1),
)


def _cast(dtype: torch.dtype) -> Callable[[Tensor], Any]:
    return lambda value: value.to(dtype)


def _filled(number: float) -> Callable[[Tensor], Any]:
    def fill(value: Tensor) -> Tensor:
        value = value.clone()
        if value.numel() and value.dtype != torch.bool:
            limits = None if value.is_floating_point() else torch.iinfo(value.dtype)
            value.view(-1)[-1] = number if limits is None else int(max(min(number, limits.max), limits.min))
        return value

    return fill


VARIANTS: tuple[Callable[[Tensor], Any], ...] = (
    *map(_cast, (torch.float16, torch.bfloat16, torch.float64, torch.int64, torch.uint8, torch.bool, torch.complex64)),
    *map(_filled, (INF, -INF, -1.0, 1e30)),
    lambda value: value.clone().fill_(NAN) if value.is_floating_point() else value,
    lambda value: value.to("meta"),
    lambda value: value.to_sparse(),
    lambda value: value.unsqueeze(0),
    lambda value: value.flatten(),
    lambda value: value[:0] if value.dim() else value,
    lambda value: value[..., :1] if value.dim() else value,
    lambda value: value.mT if value.dim() > 1 else value,
    lambda value: value.tolist(),
    lambda value: value.numpy(),
)
"""Changes of a valid tensor: other dtypes, one bad number, other devices, layouts and shapes."""

SEED, DRAW, STREAM, COUNT = (0, 2**64 - 1), (0, 2**32 - 1), (0, 2**31 - 1), (1, 2**63)
INTEGERS = {
    **{"seed": SEED, "mask_seed": SEED, "draw": DRAW, "stream": STREAM, "row_offset": DRAW, "col_offset": (0, 2**34)},
    **{"samples": (1, 2**32), "epochs": (0, 2**64), "epoch": (0, 10**400), "rounds": (0, 2**63), "m": COUNT},
    **{
        "choices": COUNT,
        "draws": COUNT,
        "planned": COUNT,
        "batch_size": COUNT,
        "window": (1, 10**400),
        "priors": COUNT,
    },
    **{
        "priors": COUNT,
        "posteriors": COUNT,
        "steps": COUNT,
        "begin": (0, 2**63),
        "count": COUNT,
        "examples": (0, 2**63),
    },
    **{"groups": COUNT, "block": COUNT, "starts": COUNT, "n": (0, 2**63), "num_classes": COUNT, "depth": (0, 2**31)},
    **{"width": COUNT, "heads": COUNT, "patch": COUNT, "context": COUNT, "vocabulary": COUNT},
}
REALS = {
    **{"sparsity": (0, 1), "temperature": (0, 1e308), "delta": (0, 1), "delta_draws": (0, 1), "keep": (0, 1)},
    **{"keep_kept": (0, 1), "keep_pruned": (0, 1), "damping": (0, 1e300), "lr": (0, 1e300), "momentum": (0, 1)},
    **{"risk": (0, 1e300), "mean": (0, 1), "q": (0, 1), "p": (0, 1), "lam": (0, 1e300), "beta": (0, 1e300)},
    **{"sigma": (0, 1e308), "prior_sigma": (0, 1e308), "threshold": (0, 1), "kl": (0, 1e309)},
}
SLOW = {"epochs", "draws", "rounds", "steps", "starts", "retrain_epochs", "cycles", "rows", "cols", "planned", "depth"}
SLOW |= {"samples", "width", "in_features", "out_features", "num_classes", "vocabulary", "context", "num_embeddings"}
SLOW |= {"in_channels", "out_channels", "embedding_dim", "kernel_size", "size", "sizes", "padding", "prior_epochs"}
"""Arguments for which a large number is valid, but takes much time or memory."""


def mutated(numbers: random.Random, name: str, value: Any) -> Any:
    """Return another value for an argument, chosen at random."""
    if isinstance(value, Tensor) and numbers.random() < 0.5:
        return numbers.choice(VARIANTS)(value)
    if isinstance(value, dict) and value and numbers.random() < 0.5:
        changed = dict(value)
        key = numbers.choice(sorted(value))
        if numbers.random() < 0.3:
            changed[numbers.choice(("x", "", 3))] = changed.pop(key)
        else:
            changed[key] = mutated(numbers, "", value[key])
        return changed
    made = numbers.choice((*NUMBERS, *OTHERS)) if numbers.random() < 0.6 else numbers.choice(FRESH + TENSORS)()
    if name in SLOW and isinstance(made, (int, float)) and abs(made) > 8:
        return -made
    return made


def is_nonsense(function: Callable[..., Any], name: str, value: Any) -> bool:
    """Return True if an argument may never take this value: by its name and range, else by its annotation.

    True and False in the place of a number, and tensors in the place of one, are left open.
    """
    if isinstance(value, (bool, Tensor, np.ndarray)):
        return False
    kind = _annotation(function, name)
    if value is None:
        return kind is not None and kind is not typing.Any and not _takes_none(kind)
    if name in INTEGERS and kind in (int, None, typing.Optional[int]):  # noqa: UP045
        low, high = INTEGERS[name]
        return not isinstance(value, int) or not low <= value <= high
    if name in REALS and kind in (float, None):
        low, high = REALS[name]
        return not isinstance(value, (int, float)) or not low <= value <= high
    if kind is int:
        return not isinstance(value, int)
    if kind is float:
        return not isinstance(value, (int, float)) or value != value
    if kind is str:
        return not isinstance(value, str)
    return kind is Tensor


def _annotation(function: Callable[..., Any], name: str) -> Any:
    try:
        parameter = inspect.signature(function, eval_str=True).parameters.get(name)
    except (NameError, TypeError, ValueError):
        return None
    return None if parameter is None or parameter.annotation is inspect.Parameter.empty else parameter.annotation


def _takes_none(kind: Any) -> bool:
    return type(None) in typing.get_args(kind)
