"""Pruning masks: made from scores, applied to models, and changed for ablations.

A mask is a dictionary of bool tensors by qualified weight name, True where the weight is kept.
"""

from stochprune.masks.ablate import apply, expand, invert, reinitialize, rescale, shuffle
from stochprune.masks.distribution import LayerStatistics, kept_weights, layer_statistics, statistics
from stochprune.masks.model import of
from stochprune.masks.probabilities import keep_probabilities
from stochprune.masks.select import from_scores, n_of_m, sparsity

__all__ = [
    "LayerStatistics",
    "apply",
    "expand",
    "from_scores",
    "invert",
    "keep_probabilities",
    "kept_weights",
    "layer_statistics",
    "n_of_m",
    "of",
    "reinitialize",
    "rescale",
    "shuffle",
    "sparsity",
    "statistics",
]
