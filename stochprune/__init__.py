"""stochprune: stochastic pruning masks that are sampled in registers and never stored.

A stochastic mask is not data, it is an address: whether a weight is kept is a pure function of the seed, the draw, the
layer and the weight's position (:mod:`stochprune.rng`). Kernels, layers and trainers build on this contract.
"""

from importlib.metadata import version as _version

from stochprune import backends, bounds, data, functional, masks, models, nn, pac_bayes, rng, scores, training
from stochprune.functional import keep_mask
from stochprune.nn import convert, harden
from stochprune.pac_bayes import Certificate, certify, self_bound
from stochprune.training import FinetuneConfig, finetune

__version__ = _version("stochprune")

__all__ = [
    "Certificate",
    "FinetuneConfig",
    "backends",
    "bounds",
    "certify",
    "convert",
    "data",
    "finetune",
    "functional",
    "harden",
    "keep_mask",
    "masks",
    "models",
    "nn",
    "pac_bayes",
    "rng",
    "scores",
    "self_bound",
    "training",
]
