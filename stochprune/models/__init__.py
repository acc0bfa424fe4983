"""Networks for the experiments, initialised from a seed."""

from stochprune.models.catalogue import build
from stochprune.models.mlp import lenet_300_100, mlp

__all__ = ["build", "lenet_300_100", "mlp"]
