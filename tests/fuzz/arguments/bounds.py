"""Arguments of ``stochprune.bounds``."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tests.fuzz.arguments.objects import probabilities, without

RISK = {"risk": 0.1, "kl": 5.0, "m": 100, "delta": 0.05, "choices": 1}


def arguments() -> dict[str, Callable[[], dict[str, Any]]]:
    return {
        "bounds.betting": lambda: {"values": probabilities(), "delta": 0.05, "choices": 1, "planned": 5},
        "bounds.catoni": lambda: {**RISK, "beta": 1.0},
        "bounds.chernoff": lambda: without(RISK, "kl"),
        "bounds.complexity": lambda: without(RISK, "risk"),
        "bounds.kl": lambda: {"q": 0.1, "p": 0.2},
        "bounds.kl_inverse": lambda: {"q": 0.1, "c": 0.2},
        "bounds.lam": lambda: {**RISK, "lam": 1.0},
        "bounds.monte_carlo": lambda: {"mean": 0.1, "draws": 100, "delta": 0.05, "choices": 1},
        **{
            f"bounds.{name}": lambda: dict(RISK)
            for name in ("maurer", "mcallester", "quadratic", "tolstikhin_seldin", "optimal_lambda")
        },
    }
