"""stochprune: stochastic pruning masks that are sampled in registers and never stored.

A stochastic mask is not data, it is an address: whether a weight is kept is a pure function of the seed, the draw, the
layer and the weight's position (:mod:`stochprune.rng`). Kernels, layers and trainers build on this contract.
"""

from importlib import import_module
from importlib.metadata import PackageNotFoundError as _PackageNotFoundError
from importlib.metadata import version as _version
from typing import TYPE_CHECKING, Any

# These functions are imported from their own files: a package and its file may share a name, which confuses mypy.
from stochprune import backends, functional, masks, nn, rng
from stochprune.functional.keep_mask import keep_mask
from stochprune.nn.convert import convert
from stochprune.nn.harden import harden
from stochprune.nn.sparsify import sparsify

if TYPE_CHECKING:
    from stochprune import bounds, data, distributed, language_models, models, pac_bayes, scores, training
    from stochprune import cuda as cuda
    from stochprune import native as native
    from stochprune import report as report
    from stochprune import runs as runs
    from stochprune import shrinking as shrinking
    from stochprune import studies as studies
    from stochprune import theory as theory
    from stochprune.language_models.export import export
    from stochprune.nn.save_sparse import load_sparse, save_sparse
    from stochprune.pac_bayes import Certificate
    from stochprune.pac_bayes.certify import certify
    from stochprune.pac_bayes.self_bound import self_bound
    from stochprune.shrinking import ShrinkReport
    from stochprune.shrinking.shrink import shrink
    from stochprune.training import Budget, FinetuneConfig, MaskedAdamW, parameter_groups
    from stochprune.training.finetune import finetune
    from stochprune.training.mask_loss import mask_loss
    from stochprune.training.prune_finetune import prune_finetune

try:
    __version__ = _version("stochprune")
except _PackageNotFoundError:  # imported from its folder
    __version__ = "0+not.installed"

__all__ = [
    "Budget",
    "Certificate",
    "FinetuneConfig",
    "MaskedAdamW",
    "ShrinkReport",
    "backends",
    "bounds",
    "certify",
    "convert",
    "data",
    "distributed",
    "export",
    "finetune",
    "functional",
    "harden",
    "keep_mask",
    "language_models",
    "load_sparse",
    "mask_loss",
    "masks",
    "models",
    "nn",
    "pac_bayes",
    "parameter_groups",
    "prune_finetune",
    "rng",
    "save_sparse",
    "scores",
    "self_bound",
    "shrink",
    "sparsify",
    "training",
]

# These packages and names are imported on first use. _HOMES gives the package of each name. __all__ has the packages
# that need torch and numpy alone and that most users need.
_PACKAGES = {
    *("bounds", "data", "distributed", "language_models", "models", "pac_bayes", "scores", "training"),
    *("cuda", "kernels", "native", "report", "runs", "shrinking", "studies", "theory"),
}
_HOMES = {
    "Budget": "training",
    "Certificate": "pac_bayes",
    "FinetuneConfig": "training",
    "MaskedAdamW": "training",
    "ShrinkReport": "shrinking",
    "certify": "pac_bayes",
    "export": "language_models",
    "finetune": "training",
    "load_sparse": "nn.save_sparse",
    "save_sparse": "nn.save_sparse",
    "mask_loss": "training",
    "parameter_groups": "training",
    "prune_finetune": "training",
    "self_bound": "pac_bayes",
    "shrink": "shrinking",
}


if not TYPE_CHECKING:  # with this function, type checkers would accept every name

    def __getattr__(name: str) -> Any:
        if name in _PACKAGES:
            return import_module(f"{__name__}.{name}")
        if name in _HOMES:
            return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
