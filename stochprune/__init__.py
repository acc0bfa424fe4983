"""stochprune: stochastic pruning masks that are sampled in registers and never stored.

A stochastic mask is not data, it is an address: whether a weight is kept is a pure function of the seed, the draw, the
layer and the weight's position (:mod:`stochprune.rng`). Kernels, layers and trainers build on this contract.
"""

from importlib import import_module
from importlib.metadata import version as _version
from typing import TYPE_CHECKING, Any

# Functions from their own files: mypy takes a name that a package shares with its file for either.
from stochprune import backends, functional, masks, nn, rng
from stochprune.functional.keep_mask import keep_mask
from stochprune.nn.convert import convert
from stochprune.nn.harden import harden

if TYPE_CHECKING:
    from stochprune import bounds, data, models, pac_bayes, scores, training
    from stochprune.pac_bayes import Certificate
    from stochprune.pac_bayes.certify import certify
    from stochprune.pac_bayes.self_bound import self_bound
    from stochprune.training import Budget, FinetuneConfig, parameter_groups
    from stochprune.training.finetune import finetune
    from stochprune.training.mask_loss import mask_loss
    from stochprune.training.prune_finetune import prune_finetune

__version__ = _version("stochprune")

__all__ = [
    "Budget",
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
    "mask_loss",
    "masks",
    "models",
    "nn",
    "pac_bayes",
    "parameter_groups",
    "prune_finetune",
    "rng",
    "scores",
    "self_bound",
    "training",
]

# Imported when they are first asked for; of a name, the package that has it.
_PACKAGES = {"bounds", "data", "models", "pac_bayes", "scores", "training"}
_HOMES = {
    "Budget": "training",
    "Certificate": "pac_bayes",
    "FinetuneConfig": "training",
    "certify": "pac_bayes",
    "finetune": "training",
    "mask_loss": "training",
    "parameter_groups": "training",
    "prune_finetune": "training",
    "self_bound": "pac_bayes",
}


if not TYPE_CHECKING:  # which would take every name for one of the package

    def __getattr__(name: str) -> Any:
        if name in _PACKAGES:
            return import_module(f"{__name__}.{name}")
        if name in _HOMES:
            return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
