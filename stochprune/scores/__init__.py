"""Pruning scores: pure functions ``(model, loss_fn, batches, **options) -> {name: Tensor}``; higher means keep."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from stochprune.arguments import checked
from stochprune.scores._common import Data, Loss, Score, prunable_weights
from stochprune.scores._inputs import by_output
from stochprune.scores._layer_wise import Sparsity
from stochprune.scores.admm import admm_prune
from stochprune.scores.first_epochs import dissipating_gradients, k_starts
from stochprune.scores.force import force, iterative_snip
from stochprune.scores.grasp import grasp
from stochprune.scores.magnitude import magnitude
from stochprune.scores.prospr import prospr
from stochprune.scores.random import erk_densities, random
from stochprune.scores.snip import snip
from stochprune.scores.sparsegpt import sparsegpt, sparsegpt_prune
from stochprune.scores.synflow import synflow
from stochprune.scores.wanda import wanda

__all__ = [
    "NAMES",
    "Score",
    "Sparsity",
    "admm_prune",
    "by_name",
    "by_output",
    "check_options",
    "compute",
    "dissipating_gradients",
    "erk_densities",
    "force",
    "grasp",
    "iterative_snip",
    "k_starts",
    "magnitude",
    "prospr",
    "prunable_weights",
    "random",
    "snip",
    "sparsegpt",
    "sparsegpt_prune",
    "synflow",
    "wanda",
]

_SCORES: dict[str, Score] = {
    score.__name__: score
    for score in (
        magnitude,
        random,
        snip,
        grasp,
        synflow,
        iterative_snip,
        force,
        prospr,
        wanda,
        sparsegpt,
        dissipating_gradients,
        k_starts,
    )
}


NAMES = tuple(_SCORES)


@checked
def by_name(name: str) -> Score:
    """Return the score function called ``name``.

    Raises:
        ValueError: an unknown name; the message lists the known names.
    """
    if name not in _SCORES:
        raise ValueError(f"unknown score {name!r}; known are: {', '.join(_SCORES)}")
    return _SCORES[name]


@checked
def check_options(name: str, options: Mapping[str, Any]) -> None:
    """Raise ``ValueError`` for an unknown score or an option that it lacks; the message lists the known ones."""
    known = [p.name for p in inspect.signature(by_name(name)).parameters.values() if p.kind is p.KEYWORD_ONLY]
    unknown = sorted(set(options) - set(known))
    if unknown:
        raise ValueError(f"{name} has no option {unknown[0]!r}; it has: {', '.join(known) or 'none'}")


@checked
def compute(
    name: str,
    model: nn.Module,
    loss_fn: Loss,
    batches: Data,
    *,
    sparsity: float,
    seed: int,
    **options: Any,
) -> dict[str, Tensor]:
    """Compute the score called ``name``; pass ``sparsity`` and ``seed`` to the scores that take them.

    Raises:
        ValueError: an unknown name or option, and the errors of the score itself.
    """
    check_options(name, options)
    if not 0 <= sparsity < 1:
        raise ValueError(f"scores.compute: sparsity must lie in [0, 1), got {sparsity}")
    score = by_name(name)
    known = inspect.signature(score).parameters
    given = {key: value for key, value in {"sparsity": sparsity, "seed": seed}.items() if key in known}
    return score(model, loss_fn, batches, **{**given, **options})
