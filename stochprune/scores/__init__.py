"""Pruning scores: pure functions ``(model, loss_fn, batches, **options) -> {name: Tensor}``; higher means keep."""

from stochprune.scores._common import Score, prunable_weights
from stochprune.scores.magnitude import magnitude
from stochprune.scores.random import random
from stochprune.scores.snip import snip

__all__ = ["Score", "by_name", "magnitude", "prunable_weights", "random", "snip"]

_SCORES: dict[str, Score] = {"magnitude": magnitude, "random": random, "snip": snip}


def by_name(name: str) -> Score:
    """The score called ``name``.

    Raises:
        ValueError: an unknown name; the message lists the known ones.
    """
    if name not in _SCORES:
        raise ValueError(f"unknown score {name!r}; known are: {', '.join(_SCORES)}")
    return _SCORES[name]
