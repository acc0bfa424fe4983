"""Bounds: float64 functions of numbers, each with its source and its assumptions. See docs/bounds.md."""

from stochprune.bounds.kl import kl, kl_inverse
from stochprune.bounds.monte_carlo import betting, monte_carlo
from stochprune.bounds.pac_bayes import (
    catoni,
    chernoff,
    complexity,
    lam,
    maurer,
    mcallester,
    optimal_lambda,
    quadratic,
    tolstikhin_seldin,
)

__all__ = [
    "betting",
    "catoni",
    "chernoff",
    "complexity",
    "kl",
    "kl_inverse",
    "lam",
    "maurer",
    "mcallester",
    "monte_carlo",
    "optimal_lambda",
    "quadratic",
    "tolstikhin_seldin",
]
