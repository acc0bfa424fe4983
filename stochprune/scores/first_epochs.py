"""Scores from the first epochs of training: K-starts and dissipating gradients."""

from __future__ import annotations

import math
from collections.abc import Mapping
from itertools import chain, repeat
from typing import Literal

import torch
from torch import Tensor, nn

from stochprune.arguments import checked
from stochprune.masks import from_scores
from stochprune.nn.selection import Selectors
from stochprune.nn.unmasked import silent_about_unmasked
from stochprune.scores._common import (
    Data,
    Examples,
    Loss,
    all_finite,
    mean_over_examples,
    needed,
    repeatable,
    scored_weights,
    wide,
)
from stochprune.scores._sgd import check_descent, descend, starting_point
from stochprune.scores.random import random
from stochprune.seeding import generator


@checked
def dissipating_gradients(
    model: nn.Module,
    loss_fn: Loss = None,
    batches: Data = None,
    *,
    epochs: int = 2,
    lr: float = 0.1,
    momentum: float = 0.9,
    include: Selectors | None = None,
    exclude: Selectors | None = None,
) -> dict[str, Tensor]:
    """Return ``|w_T - w| / |w|``: how far a weight moves in its first epochs, as a fraction of its initial value.

    Weights that stay within a fraction of their initial value are pruned, whatever their size. The masks are for the
    weights before these epochs. This is our reading of the abstract of Haroon 2022, "What to prune and what not to
    prune at initialization" (arXiv 2209.02201); its threshold on the fraction is here the cut at a sparsity.

    Args:
        loss_fn: as for :func:`snip`.
        batches: one epoch, iterated ``epochs`` times. Under a process group each rank trains on its own batches, and
            the movements are averaged.
        epochs, lr, momentum: hyper-parameters of the SGD on a copy of the weights.
        include, exclude: as in :func:`prunable_weights`.

    Returns:
        By weight name, a tensor of the weight's shape; float64 if the weight is, else float32.

    Raises:
        ValueError: no loss function or examples, less than one epoch, a learning rate or momentum out of range, no
            prunable layer, or a score that is not finite (training diverged).
    """
    loss, batches = needed("dissipating_gradients", loss_fn, batches)
    _check_epochs("dissipating_gradients", epochs)
    check_descent("dissipating_gradients", lr=lr, momentum=momentum)
    feed = _feed("dissipating_gradients", repeatable(batches), epochs)
    theta = descend(model, loss, feed, starting_point(model), lr=lr, momentum=momentum)
    weights = scored_weights("dissipating_gradients", model, include, exclude)
    moved = {name: (wide(theta[weight]) - wide(weight)).abs() for name, weight in weights.items()}
    scores = all_finite("dissipating_gradients", mean_over_examples([(1, moved)]))
    for name, weight in weights.items():
        limits = torch.finfo(scores[name].dtype)  # a weight that starts at 0 may move
        scores[name] = (scores[name] / wide(weight).abs().clamp_min(limits.tiny)).clamp_max(limits.max)
    return scores


@checked
def k_starts(
    model: nn.Module,
    loss_fn: Loss = None,
    batches: Data = None,
    *,
    sparsity: float = 0.9,
    starts: int = 5,
    epochs: int = 2,
    lr: float = 0.1,
    momentum: float = 0.9,
    fitness: Literal["magnitude", "gradient", "both"] = "magnitude",
    seed: int = 0,
    include: Selectors | None = None,
    exclude: Selectors | None = None,
) -> dict[str, Tensor]:
    """Return the random scores of the fittest of ``starts`` random masks, each trained for the first epochs.

    This is our reading of the abstract of Haroon 2022 (arXiv 2209.02201). The fitness of a mask is a sum over its kept
    weights: of ``|w_T|`` for ``"magnitude"``, of ``|g|`` accumulated over all steps for ``"gradient"``, and of their
    product for ``"both"``.

    Args:
        loss_fn, batches, epochs, lr, momentum: as for :func:`dissipating_gradients`.
        sparsity: the sparsity at which the scores will be cut.
        starts: K, the number of random masks.
        seed: seed of the random masks, 0 .. 2^64 - 1.
        include, exclude: as in :func:`prunable_weights`.

    Returns:
        By weight name, a float32 tensor of the weight's shape; its cut at ``sparsity`` is the fittest mask.

    Raises:
        ValueError: as for :func:`dissipating_gradients`; also less than one start, an unknown fitness, or a sparsity
            outside [0, 1).
    """
    loss, batches = needed("k_starts", loss_fn, batches)
    _check_epochs("k_starts", epochs)
    check_descent("k_starts", lr=lr, momentum=momentum)
    if starts < 1:
        raise ValueError(f"starts must be at least 1, got {starts}")
    if fitness not in ("magnitude", "gradient", "both"):
        raise ValueError(f"fitness must be 'magnitude', 'gradient' or 'both', got {fitness!r}")
    batches = repeatable(batches)
    weights = scored_weights("k_starts", model, include, exclude)
    best, chosen = -math.inf, None
    for number in range(starts):
        number_seed = int(generator(seed, "k-starts", number).integers(1 << 63))
        with silent_about_unmasked():
            scores = random(model, seed=number_seed, include=include, exclude=exclude)
        masks: dict[Tensor, Tensor] = {
            weights[name]: mask for name, mask in from_scores(scores, sparsity, allow_empty=True).items()
        }
        accumulated: dict[Tensor, Tensor] = dict.fromkeys(masks, torch.zeros(()))

        def see(grads: Mapping[Tensor, Tensor], accumulated: dict[Tensor, Tensor] = accumulated) -> None:
            for weight in accumulated:
                accumulated[weight] = accumulated[weight] + grads[weight].abs()

        begin = starting_point(model) | {weight: weight.detach() * mask for weight, mask in masks.items()}
        feed = _feed("k_starts", batches, epochs)
        theta = descend(model, loss, feed, begin, lr=lr, momentum=momentum, masks=masks, see=see)
        total = torch.zeros((), dtype=torch.float64)
        for weight, mask in masks.items():
            size = theta[weight].abs() if fitness != "gradient" else 1.0
            slope = accumulated[weight] if fitness != "magnitude" else 1.0
            total = total + (size * slope * mask).sum(dtype=torch.float64)
        fit = mean_over_examples([(1, {"fitness": total})])["fitness"].item()  # all ranks choose the same start
        if fit > best:  # the fitness of a start that diverged is NaN
            best, chosen = fit, scores
    if chosen is None:
        raise ValueError(f"k_starts: all {starts} starts diverged: lower lr, now {lr}")
    return chosen


def _feed(score: str, batches: Examples, epochs: int) -> Examples:
    """Yield the batches of all epochs, at least one."""
    feed = chain.from_iterable(repeat(batches, epochs))
    first = next(feed, None)
    if first is None:
        raise ValueError(f"{score}: batches gave no examples")
    return chain([first], feed)


def _check_epochs(score: str, epochs: int) -> None:
    if epochs < 1:
        raise ValueError(f"{score}: epochs must be at least 1, got {epochs}")
