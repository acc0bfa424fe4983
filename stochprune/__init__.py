"""stochprune: stochastic pruning masks that are drawn in registers and never stored.

A stochastic mask is not data, it is an address: whether a weight is kept is a pure function of the seed, the draw, the
layer and the weight's position (:mod:`stochprune.rng`). On that stand kernels, layers and trainers.
"""

from importlib.metadata import version as _version

from stochprune import backends, functional, masks, nn, rng, scores
from stochprune.functional import keep_mask
from stochprune.nn import convert, harden

__version__ = _version("stochprune")

__all__ = [
    "backends",
    "convert",
    "functional",
    "harden",
    "keep_mask",
    "masks",
    "nn",
    "rng",
    "scores",
]
