"""Rules for the arguments of the bounds, one per argument name."""

from __future__ import annotations

import math
from dataclasses import dataclass
from numbers import Integral, Real
from typing import Any

import numpy as np
import torch
from torch import Tensor


@dataclass(frozen=True)
class Rule:
    """Allows the numbers from ``low`` to ``high``, without the ends if ``open``; never NaN.

    Attributes:
        says: the rule in words.
        whole: allow integers only, those of numpy included, booleans excluded.
        differentiable: keep a tensor of one element as a tensor.
    """

    says: str
    low: float
    high: float
    open: bool = False
    whole: bool = False
    differentiable: bool = False

    def taken(self, value: Any) -> Any:
        """Return the value as an int, a float or a float64 tensor.

        Raises:
            ValueError: the rule does not allow it.
        """
        number = value.item() if _holds_numbers(value) and value.numel() == 1 else value
        kinds: Any = Integral if self.whole else Real  # mypy knows no order of these
        if isinstance(number, bool) or not isinstance(number, kinds):
            raise ValueError
        if not (self.low < number < self.high if self.open else self.low <= number <= self.high):
            raise ValueError
        if self.differentiable and isinstance(value, Tensor):
            return value.double()
        # Small integers of numpy overflow silently, small floats round.
        return int(number) if self.whole else float(number)


def _holds_numbers(value: Any) -> bool:
    """Return True if it is a dense tensor on a device that keeps values."""
    return isinstance(value, Tensor) and value.layout == torch.strided and not value.is_meta


_COUNT = Rule("be an integer of at least 1, and at most 2^53", 1, 1 << 53, whole=True)  # exact in float64
_SHARE = Rule("lie in [0, 1] and be one number", 0, 1, differentiable=True)
_NATS = Rule("be at least 0 and one number", 0, math.inf, differentiable=True)
RULES = {
    **dict.fromkeys(("q", "p", "risk", "mean"), _SHARE),
    **dict.fromkeys(("c", "kl"), _NATS),
    **dict.fromkeys(("m", "draws", "choices", "planned"), _COUNT),
    "delta": Rule("lie strictly between 0 and 1", 0, 1, open=True),
    "lam": Rule("lie strictly between 0 and 2", 0, 2, open=True),
    "beta": Rule("be positive and finite", 0, math.inf, open=True),
}


def check(function: str, **values: object) -> tuple[Any, ...]:
    """Return the values as float64 numbers and exact integers.

    Raises:
        ValueError: a value breaks the rule of its name.
    """
    taken = []
    for name, value in values.items():
        try:
            taken.append(RULES[name].taken(value))
        except (ValueError, OverflowError):  # OverflowError: an integer beyond float64
            raise ValueError(f"bounds.{function}: {name} must {RULES[name].says}, got {value!r}") from None
    return tuple(taken)


def losses(function: str, values: object) -> np.ndarray:
    """Return ``values`` as a float64 vector [T], T at least 1, of numbers in [0, 1].

    Raises:
        ValueError: the values are not such a vector.
    """
    if isinstance(values, Tensor):
        values = None if values.is_complex() or not _holds_numbers(values) else values.detach().cpu().double().numpy()
    try:
        given = np.asarray(values)
    except ValueError:  # a ragged list
        given = np.asarray(None)
    if given.dtype.kind not in "bfiu" or given.ndim != 1 or not len(given):
        raise ValueError(
            f"bounds.{function}: values must be a vector of at least one number in [0, 1], "
            f"got shape {given.shape} of {given.dtype}"
        )
    x = given.astype(np.float64)
    outside = ~((x >= 0) & (x <= 1))
    if outside.any():
        first = int(outside.argmax())
        raise ValueError(f"bounds.{function}: values must lie in [0, 1], number {first} is {x[first]}")
    return x
